"""What a training command reads of a converted repository: where it is, and its tokenizer."""

from pathlib import Path

from huggingface_hub import snapshot_download

from ..tokenization_glm import GLMTokenizerFast


def find_repository(name: str) -> Path:
    """The folder of a converted repository, which is downloaded if it is not here but on the Hub.

    Raises:
        ValueError: if it is in neither place, or is no converted repository.
    """
    folder = Path(name)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(name))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{name} is neither a folder nor a repository that the Hub gives; "
                "pass a converted repository."
            ) from error
    if not (folder / "config.json").is_file():
        raise ValueError(f"{name} holds no config.json; pass a converted repository.")
    return folder


def load_tokenizer(folder: str | Path) -> GLMTokenizerFast:
    """The tokenizer of a converted repository, or of another folder that has one.

    Raises:
        ValueError: if there is none, or none of GLM.
    """
    if not Path(folder, "tokenizer.json").is_file():
        raise ValueError(
            f"{folder} is no folder with a tokenizer.json; pass a converted repository."
        )
    try:
        tokenizer = GLMTokenizerFast.from_pretrained(folder)
        ids = tokenizer.sop_token_id, tokenizer.eop_token_id
    except Exception as error:  # the library has no error of its own for a damaged file
        raise ValueError(f"{folder} holds no tokenizer of GLM: {error}") from error
    if None in ids:
        raise ValueError(f"{folder} holds no tokenizer of GLM: it has no <|startofpiece|>.")
    return tokenizer
