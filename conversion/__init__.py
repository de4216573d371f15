"""From and to original Megatron checkpoints, and from repositories of the old Hub port.

What a complete Hub repository is stands in `hub_repository`, which knows nothing of this folder.
"""

from typing import TYPE_CHECKING

from ..hub_repository.errors import RepositoryError as ConversionError
from ..lazy import lazy_exports

__all__ = ["ConversionError", "convert_checkpoint", "export_checkpoint", "verify_repository"]

if TYPE_CHECKING:
    from .convert import convert_checkpoint
    from .export import export_checkpoint
    from .verify import verify_repository
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "convert_checkpoint": ".convert",
            "export_checkpoint": ".export",
            "verify_repository": ".verify",
        },
    )
