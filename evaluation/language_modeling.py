"""Language modelling as the original measures it: LAMBADA's last words, perplexity of long texts.

GLM reads what precedes a blank in both directions and writes from left to right what follows. The
unidirectional variants give it one token to read and let it write all the rest (FACTS section 9).
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from ..hub_repository.files import read_text
from ..modeling_glm import GLMForConditionalGeneration
from ..tokenization_glm import GLMTokenizerFast
from .batches import Finished
from .rows import Row, RowScore, score_rows, standard_error
from .scoring import encode, named

# What the original's scripts set.
LAMBADA_LENGTH = 512
WIKITEXT_LENGTH, WIKITEXT_STRIDE = 1024, 256
DOCUMENTS_LENGTH, DOCUMENTS_STRIDE = 512, 256
LARGEST_EXPONENT = 20.0  # of a perplexity; a hopeless model has a finite one

# As the original's README gives them: LAMBADA accuracy in percent, WikiText-103 perplexity.
PUBLISHED = {
    "GLM-10B, bidirectional": (72.35, 11.33),
    "GLM-10B, unidirectional": (67.18, 12.22),
    "GPT-2": (52.66, 17.48),
    "Megatron-LM 8.3B": (66.51, 10.81),
    "Turing-NLG": (67.98, 10.21),
}

# How WikiText's separated marks are joined to their words again, in this order: an expression and
# what replaces it. The published numbers were made with all of it, also with what surprises: the
# second expression looks for slashes, and a quotation in apostrophes loses the space before it.
DETOKENIZER = [
    (r"s '", "s'"),
    (r"/' [0-9]/", "/'[0-9]/"),
    (r" @-@ ", "-"),
    (r" @,@ ", ","),
    (r" @\.@ ", "."),
    *[(rf" {re.escape(mark)} ", f"{mark} ") for mark in ":;.!?,"],
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"\{\s*([^\}]*?)\s*\}", r"{\1}"),
    (r'"\s*([^"]*?)\s*"', r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    (r"= = = =", "===="),
    (r"= = =", "==="),
    (r"= =", "=="),
    (r" ° ", "°"),
    (r" \n", "\n"),
    (r"\n ", "\n"),
    (r" N ", " 1 "),
    (r" 's", "'s"),
]


@dataclass(frozen=True)
class Accuracy:
    """Of last words: how many were right, of how many."""

    right: int
    count: int

    @property
    def accuracy(self) -> float:
        return self.right / self.count

    @property
    def standard_error(self) -> float | None:
        """Of the accuracy, with the spread of a sample."""
        if self.count < 2:
            return None
        return math.sqrt(self.accuracy * (1 - self.accuracy) / (self.count - 1))


@dataclass(frozen=True)
class Perplexity:
    """Of one text or several.

    loss: negative log-probability of all scored tokens.
    tokens, words: of the texts; words are what single spaces divide in the raw texts.
    windows: forward rows in which the texts were read.
    loss_error: standard error of `loss`, with the windows as the sample; None for a single one.
    """

    loss: float
    tokens: int
    words: int
    windows: int
    loss_error: float | None

    @property
    def perplexity(self) -> float:
        """For each token."""
        return capped_exp(self.loss / (self.tokens - 1))

    @property
    def word_perplexity(self) -> float:
        """For each word, the number that is published: it does not depend on the tokenizer."""
        return capped_exp(self.loss / (self.words - 1))

    @property
    def standard_error(self) -> float | None:
        """Of the perplexity for each word, to the first order."""
        if self.loss_error is None:
            return None
        return self.word_perplexity * self.loss_error / (self.words - 1)

    @property
    def token_standard_error(self) -> float | None:
        """Of the perplexity for each token, to the first order."""
        if self.loss_error is None:
            return None
        return self.perplexity * self.loss_error / (self.tokens - 1)


def capped_exp(value: float) -> float:
    return math.exp(min(LARGEST_EXPONENT, value))


# --- LAMBADA --------------------------------------------------------------------------------------


def evaluate_lambada(
    model: GLMForConditionalGeneration,
    tokenizer: GLMTokenizerFast,
    texts: Sequence[str],
    *,
    length: int = LAMBADA_LENGTH,
    unidirectional: bool = False,
    batch_size: int = 16,
    finished: Finished | None = None,
) -> Accuracy:
    """How often the last word of a text is what the model would write.

    It is right if each of its tokens is the most likely one behind those before it.

    Args:
        texts: of LAMBADA, each with its last word.
        length: tokens of a row at most; more are dropped from the left.
        unidirectional: read the first token only and write all others.
        batch_size, finished: of `score_rows`.

    Raises:
        ValueError: for no texts, a text without a word, or a last word that is too long.
    """
    rows = []
    for number, text in enumerate(texts, start=1):
        with named(f"Text {number}"):
            rows.append(lambada_row(tokenizer, text, length, unidirectional))
    if not rows:
        raise ValueError("There are no texts; give one at least.")
    name = f"LAMBADA{', unidirectional' * unidirectional}"
    scores = score_rows(model, tokenizer, rows, batch_size, name, finished)
    return Accuracy(sum(score.is_greedy for score in scores), len(rows))


def lambada_row(
    tokenizer: GLMTokenizerFast,
    text: str,
    length: int = LAMBADA_LENGTH,
    unidirectional: bool = False,
) -> Row:
    """The last word behind `[CLS]` what precedes it, the mask, `<|endoftext|>`."""
    words = text.split()
    if not words:
        raise ValueError("A text has no words; leave it out.")
    before = text[: text.rfind(words[-1])]
    context = encode(tokenizer, before.strip())
    word = encode(tokenizer, f" {words[-1]}")
    if len(word) + 3 > length or not word:  # [CLS], the mask, <|endoftext|>
        raise ValueError(
            f"The last word of a text, {words[-1]!r}, has {len(word)} tokens, and rows have "
            f"{length}; it cannot be scored."
        )
    written: list[int] = []  # by the model, before the word
    if unidirectional:
        context, written = context[:1], context[1:]
    surplus = len(context) + len(written) + len(word) + 3 - length
    if surplus > 0:
        # The original fails where that drops more than its first token of a unidirectional text.
        written = written[max(surplus - len(context), 0) :]
        context = context[surplus:]
    mask = tokenizer.continuation_mask_id
    return Row(
        context=[tokenizer.cls_token_id, *context, mask, tokenizer.eos_token_id],
        blank=len(context) + 1,
        answer=written + word,
        first=len(written),
    )


def read_lambada(file: str | Path) -> list[str]:
    """The texts of a file of JSON lines, in their field `text`."""
    texts = []
    lines = read_text(Path(file), largest=None).split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'Line {number} of {file} is no JSON object with a "text"; LAMBADA comes as such.'
            ) from error
        if not isinstance(text, str) or len(text.split()) < 2:
            raise ValueError(
                f"Line {number} of {file} has the text {text!r}; the last word of a text is asked "
                "for, behind others."
            )
        texts.append(text)
    return texts


# --- Perplexity -----------------------------------------------------------------------------------


def evaluate_wikitext(
    model: GLMForConditionalGeneration,
    tokenizer: GLMTokenizerFast,
    text: str,
    *,
    length: int = WIKITEXT_LENGTH,
    stride: int | None = WIKITEXT_STRIDE,
    unidirectional: bool = False,
    batch_size: int = 16,
    finished: Finished | None = None,
) -> Perplexity:
    """The perplexity of a file of WikiText, all of it one document.

    Args:
        text: as the file has it, with its tokens spaced; `detokenize` joins them.
        length, stride, unidirectional: of `windows`.
        batch_size, finished: of `score_rows`.

    Raises:
        ValueError: for a text that is too short, or a stride longer than a window.
    """
    document = encode(tokenizer, detokenize(text))
    return _perplexity(
        model,
        tokenizer,
        [document],
        len(text.strip().split(" ")),
        (length, stride, unidirectional),
        batch_size,
        f"WikiText{', unidirectional' * unidirectional}",
        finished,
    )


def evaluate_documents(
    model: GLMForConditionalGeneration,
    tokenizer: GLMTokenizerFast,
    documents: Iterable[str],
    *,
    length: int = DOCUMENTS_LENGTH,
    stride: int | None = DOCUMENTS_STRIDE,
    unidirectional: bool = False,
    batch_size: int = 16,
    finished: Finished | None = None,
) -> Perplexity:
    """The perplexity of several documents together, each read by itself.

    Args:
        documents: as the lines of a file have them.
        length, stride, unidirectional: of `windows`.
        batch_size, finished: of `score_rows`.

    Raises:
        ValueError: for texts that are too short, or a stride longer than a window.
    """
    texts = [document.strip() for document in documents]
    encoded = []
    for number, text in enumerate(texts, start=1):
        with named(f"Text {number}"):
            encoded.append(encode(tokenizer, text))
    return _perplexity(
        model,
        tokenizer,
        encoded,
        sum(len(text.split(" ")) for text in texts),
        (length, stride, unidirectional),
        batch_size,
        f"Documents{', unidirectional' * unidirectional}",
        finished,
    )


def _perplexity(
    model: GLMForConditionalGeneration,
    tokenizer: GLMTokenizerFast,
    documents: list[list[int]],
    words: int,
    window: tuple[int, int | None, bool],
    batch_size: int,
    name: str,
    finished: Finished | None,
) -> Perplexity:
    """`window`: length, stride and direction."""
    tokens = sum(map(len, documents))
    if tokens < 2 or words < 2:
        raise ValueError(
            f"There are {tokens} tokens and {words} words; a perplexity needs two of each."
        )
    rows = [row for document in documents for row in windows(tokenizer, document, *window)]
    scores = score_rows(model, tokenizer, rows, batch_size, name, finished)
    loss = -sum(score.log_prob for score in scores)
    return Perplexity(
        loss=loss,
        tokens=tokens,
        words=words,
        windows=len(rows),
        loss_error=_error_of_loss(loss, rows, scores),
    )


def _error_of_loss(
    loss: float,
    rows: list[Row],
    scores: list[RowScore],
) -> float | None:
    """Of the sum: how far each window's loss is from what its tokens lose on average."""
    mean = loss / sum(row.scored for row in rows)
    return standard_error(
        -score.log_prob - mean * row.scored for row, score in zip(rows, scores, strict=True)
    )


def windows(
    tokenizer: GLMTokenizerFast,
    document: list[int],
    length: int = WIKITEXT_LENGTH,
    stride: int | None = WIKITEXT_STRIDE,
    unidirectional: bool = False,
) -> list[Row]:
    """A document (N,) in rows that score each of its tokens but the first once.

    The first window reads one token and scores the rest. Each later one starts `stride` tokens
    further and scores those that are new to it: the tokens before them it reads in both directions,
    or, unidirectional, it reads one and writes the others. The mask stands behind what is read, and
    no end of text does.

    Args:
        length: a window has one token less.
        stride: new tokens of a window, which the original calls overlapping; by default it is the
            window, so that nothing is read twice.

    Raises:
        ValueError: if the stride is longer than a window.
    """
    longest = length - 1
    stride = longest if stride is None else stride
    if not 0 < stride <= longest:
        raise ValueError(
            f"The stride is {stride}; give a value between 1 and {longest}, the tokens of a window."
        )
    mask = tokenizer.continuation_mask_id
    later = math.ceil(max(len(document) - longest, 0) / stride)
    rows = []
    for number in range(later + 1):
        tokens = document[number * stride :][:longest]
        known = 1 if number == 0 else longest - stride
        read = 1 if unidirectional else known
        answer = tokens[read:]
        if not answer:
            continue  # a document of one token has nothing to score
        context = [tokenizer.cls_token_id, *tokens[:read], mask]
        rows.append(
            Row(
                context,
                blank=len(context) - 1,
                answer=answer,
                first=max(known - read, 0),
            )
        )
    return rows


def read_wikitext(file: str | Path) -> str:
    """The text with its line ends as they are."""
    return read_text(Path(file), largest=None, newline="")


def read_documents(file: str | Path) -> list[str]:
    """The lines of a file."""
    return list(StringIO(read_text(Path(file), largest=None)))


def detokenize(text: str) -> str:
    """WikiText as people write it."""
    for pattern, replacement in DETOKENIZER:
        text = re.sub(pattern, replacement, text)
    return text
