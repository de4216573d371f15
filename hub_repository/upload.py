"""Uploads a converted repository to the Hugging Face Hub."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.utils import HFValidationError, validate_repo_id

from .errors import RepositoryError


def check_upload(name: str):
    """Say before any work whether an upload will be refused.

    Raises:
        RepositoryError: if the Hub can have no repository of this name, or does not know who asks.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise RepositoryError(
            f"{name} is no name on the Hub; pass one such as my-name/my-glm."
        ) from error
    try:
        HfApi().whoami()
    except Exception as error:
        # There is no network, no token, or a wrong one: each library has its own errors.
        raise RepositoryError(
            f"The Hub cannot be written to; log in with `hf auth login` and try again: {error}"
        ) from error


def push_to_hub(repository: Path, name: str) -> str:
    """Upload all files in one commit, so that nobody sees half a repository.

    Returns:
        The address of the repository.

    Raises:
        RepositoryError: if the upload fails; the repository on disk is complete.
    """
    api = HfApi()
    try:
        address = api.create_repo(name, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            folder_path=repository,
            commit_message="Convert from the original GLM checkpoint",
        )
    except Exception as error:
        raise RepositoryError(
            f"{repository} is complete, but uploading it failed; try `hf upload {name} {repository}`: {error}"
        ) from error
    return str(address)
