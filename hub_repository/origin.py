"""Where a model comes from, as its card says: who made it, of what, and what that is good for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ORIGINAL = "https://github.com/THUDM/GLM"


@dataclass(frozen=True)
class Origin:
    """
    Attributes:
        description: a sentence on who made the model, with a link.
        data: sentences on what it was trained on.
        license: its name on the Hub, with which `license_name` and `license_link` may go.
        limits: sentences on what this model does worse than others of its kind.
        prompts: a text for each mask, which the model answers well.
        published: a section with the results that its makers published.
    """

    description: str
    data: str
    license: Mapping[str, Any]
    limits: str = ""
    prompts: Mapping[str, str] = field(default_factory=dict)
    published: str = ""


# The licence of weights whose makers' word is not known here.
AS_PUBLISHED: dict[str, Any] = {"license": "other", "license_name": "as-published-with-the-weights"}

# What the released models were trained on: the column "Corpus" of the original's README.
WIKI_AND_BOOKS = "the English Wikipedia and BooksCorpus, as BERT was"
PILE = "the Pile, English texts of many kinds, most of them from the web"
WUDAO = "WuDaoCorpora, Chinese texts from the web"
CORPORA = {
    "glm-base": WIKI_AND_BOOKS,
    "glm-large": WIKI_AND_BOOKS,
    "glm-large-chinese": WUDAO,
    "glm-doc": WIKI_AND_BOOKS,
    "glm-410m": WIKI_AND_BOOKS,
    "glm-515m": WIKI_AND_BOOKS,
    "glm-roberta-large": "texts like those of RoBERTa: books, Wikipedia, news and web pages",
    "glm-2b": PILE,
    "glm-10b": PILE,
    "glm-10b-chinese": WUDAO,
}

# What the original's README gives, for GLM-10B alone.
PUBLISHED = {
    "glm-10b": f"""## Published results

Of the released glm-10b, as [its authors]({ORIGINAL}) give them; not measured again.

| SuperGLUE, dev | COPA | WSC | RTE | WiC | CB | MultiRC | BoolQ | ReCoRD |
|---|---|---|---|---|---|---|---|---|
| | 98.0 | 95.2 | 93.1 | 75.7 | 98.7 / 98.2 | 88.1 / 63.3 | 88.7 | 94.4 / 94.0 |

| Summaries | ROUGE-1 | ROUGE-2 | ROUGE-L |
|---|---|---|---|
| CNN/DailyMail | 44.7 | 21.4 | 41.4 |
| XSum | 48.9 | 25.7 | 40.4 |

| Language modeling | LAMBADA, accuracy | WikiText-103, perplexity |
|---|---|---|
| bidirectional | 72.35 | 11.33 |
| unidirectional | 67.18 | 12.22 |"""
}

RELEASED_ORIGINS = {
    name: Origin(
        description=f"It was converted from the released checkpoint [{name}]({ORIGINAL}).",
        data=f"Its authors trained it on {corpus}.",
        license={**AS_PUBLISHED, "license_link": ORIGINAL},
        published=PUBLISHED.get(name, ""),
    )
    for name, corpus in CORPORA.items()
}
