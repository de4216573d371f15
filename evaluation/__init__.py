"""Scores, perplexities and benchmarks, as the original measures them."""

from typing import TYPE_CHECKING

from ..lazy import lazy_exports

if TYPE_CHECKING:
    from .language_modeling import evaluate_documents as evaluate_documents
    from .language_modeling import evaluate_lambada as evaluate_lambada
    from .language_modeling import evaluate_wikitext as evaluate_wikitext
    from .scoring import AnswerScore as AnswerScore
    from .scoring import log_likelihood as log_likelihood
    from .scoring import perplexity as perplexity
    from .scoring import score_choices as score_choices
    from .scoring import score_packed as score_packed
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "AnswerScore": ".scoring",
            "log_likelihood": ".scoring",
            "perplexity": ".scoring",
            "score_choices": ".scoring",
            "score_packed": ".scoring",
            "evaluate_documents": ".language_modeling",
            "evaluate_lambada": ".language_modeling",
            "evaluate_wikitext": ".language_modeling",
        },
    )
