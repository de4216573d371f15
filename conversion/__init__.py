"""From and to original Megatron checkpoints, and from repositories of the old Hub port.

What a complete Hub repository is stands in `hub_repository`, which knows nothing of this folder.
"""

from ..hub_repository.errors import RepositoryError as ConversionError
from .convert import convert_checkpoint
from .export import export_checkpoint
from .verify import verify_repository

__all__ = ["ConversionError", "convert_checkpoint", "export_checkpoint", "verify_repository"]
