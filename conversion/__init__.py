"""From an original Megatron checkpoint to a complete Hub repository."""

from .errors import ConversionError
from .repository import convert_checkpoint


__all__ = ["ConversionError", "convert_checkpoint"]
