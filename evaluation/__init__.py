"""Scores, perplexities and benchmarks, as the original measures them."""

from typing import TYPE_CHECKING

from ..lazy import lazy_exports

if TYPE_CHECKING:
    from .language_modeling import evaluate_documents as evaluate_documents
    from .language_modeling import evaluate_lambada as evaluate_lambada
    from .language_modeling import evaluate_wikitext as evaluate_wikitext
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "evaluate_documents": ".language_modeling",
            "evaluate_lambada": ".language_modeling",
            "evaluate_wikitext": ".language_modeling",
        },
    )
