"""Between original Megatron checkpoints, repositories of the old Hub port, and complete Hub repositories."""

from typing import TYPE_CHECKING

from ..lazy import lazy_exports

if TYPE_CHECKING:
    from .errors import ConversionError as ConversionError
    from .export import export_checkpoint as export_checkpoint
    from .repository import convert_checkpoint as convert_checkpoint
    from .verify import verify_repository as verify_repository
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "ConversionError": ".errors",
            "convert_checkpoint": ".repository",
            "export_checkpoint": ".export",
            "verify_repository": ".verify",
        },
    )
