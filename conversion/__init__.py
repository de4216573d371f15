"""Between original Megatron checkpoints, repositories of the old Hub port, and complete Hub repositories."""

from .errors import ConversionError
from .export import export_checkpoint
from .repository import convert_checkpoint
from .verify import verify_repository

__all__ = ["ConversionError", "convert_checkpoint", "export_checkpoint", "verify_repository"]
