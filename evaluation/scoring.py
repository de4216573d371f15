"""How likely answers are: of choices that are offered for a blank, and of the answer to each blank.

    score_choices(model, tokenizer, ["Ng is at [MASK]."], [[" Stanford", " Beijing"]])
    log_likelihood(model, tokenizer, ["Ng is at [MASK]."], [" Stanford"])

Texts, choices and answers are scored exactly as they are written: in the families of GPT-2 and
RoBERTa begin an answer with the space that it has in the text. The choices of a text stand behind
one context, which is read once, in one row of a batch. Against expanding the cache of the context
to a row for each choice this is the faster way: benchmarks/score.py measures both.

Any model with GLM's network and head will do, from the package or from a repository, with adapters,
on any device, in any dtype; it is left in the mode in which it was.

Shapes: B batch, C choices, G tokens of a choice, T tokens, R scored tokens, H hidden, V vocabulary.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from transformers import BatchEncoding

from ..collation_glm import GLMMultipleChoiceCollator, Row, TextCollator
from ..tokenization_glm import IGNORED, GLMTokenizerFast
from .batches import Finished, in_order, run_in_batches

# Tokens whose logits are computed at once: (1024, 50304) in float32 are 206 MB.
TOKENS_AT_ONCE = 1024

# {"context": ids, "begun": ids, "answers": [ids, ...]}, as `GLMMultipleChoiceCollator` takes it.
Feature = dict[str, Any]


class AnswerScore(NamedTuple):
    """Of the answer to one blank.

    tokens (G,): its ids.
    log_probs (G,): of each token, behind the context, earlier answers and the tokens before it.
    is_greedy: whether each token is the most likely one, so that greedy decoding would say them.
    """

    tokens: list[int]
    log_probs: list[float]
    is_greedy: bool

    @property
    def log_prob(self) -> float:
        """Of the whole answer."""
        return math.fsum(self.log_probs)


class TokenScores(NamedTuple):
    """Of R tokens: log_probs (R,), logits (R,), and is_best (R,), whether none is more likely."""

    log_probs: torch.Tensor
    logits: torch.Tensor
    is_best: torch.Tensor


# --- Choices --------------------------------------------------------------------------------------


def score_choices(
    model,
    tokenizer: GLMTokenizerFast,
    texts: Sequence[str],
    choices: Sequence[Sequence[str]],
    *,
    unidirectional: bool = False,
    length_penalty: float = 0.0,
    end_token: bool = False,
    max_length: int | None = None,
    batch_size: int = 16,
    finished: Finished | None = None,
) -> list[list[float]]:
    """The score of each choice of each text; the best is the answer (FACTS section 6).

    Args:
        texts: with a mask; `[MASK]` is appended where there is none. With several masks the choices
            answer the last one.
        choices: of each text.
        unidirectional: read `[gMASK]` alone, and the text from left to right as what was written
            in its place; the choices go on behind it.
        length_penalty: a score is divided by the choice's number of tokens to this power.
        end_token: score the end of each choice, too; tuning on choices of several tokens does.
        max_length: tokens of a context with its longest choice, the model's by default. Of a longer
            text the right end is kept, as in the original, but more of it where that would cut the
            last mask away.
        batch_size: texts of a forward pass.
        finished: of `run_in_batches`.

    Returns:
        The log-probability of each choice, summed over its tokens.

    Raises:
        ValueError: for texts and choices that cannot be scored; it says which and why.
    """
    if isinstance(texts, str) or len(texts) != len(choices):
        raise ValueError(
            f"There are {len(choices)} lists of choices for {count_texts(texts)}; pass a list of "
            "texts, and a list of choices for each."
        )
    check_model(model)
    longest = model.config.max_sequence_length if max_length is None else max_length
    make = unidirectional_feature if unidirectional else bidirectional_feature
    features = []
    for number, (text, of_text) in enumerate(zip(texts, choices, strict=True), start=1):
        with named(f"Text {number}"):
            answers = encode_answers(tokenizer, of_text, end_token)
            features.append(make(tokenizer, text, answers, longest))
    warn_of_cuts(features)
    return score_packed(
        model,
        tokenizer,
        features,
        length_penalty=length_penalty,
        batch_size=batch_size,
        finished=finished,
    )


def score_packed(
    model,
    tokenizer: GLMTokenizerFast,
    features: Sequence[Feature],
    *,
    normalised: bool = True,
    length_penalty: float = 0.0,
    batch_size: int = 16,
    name: str = "Scoring",
    finished: Finished | None = None,
) -> list[list[float]]:
    """The score of each choice, of texts that are ids already.

    Args:
        features: of `GLMMultipleChoiceCollator`: "context", "answers", and "begun" if the answers
            go on behind something.
        normalised: False sums the logits instead of the log-probabilities: so the original scores
            choices of one token, which differ from each other by as much. With choices of several
            tokens the sums have no meaning.
        length_penalty, batch_size: of `score_choices`.
        name, finished: of `run_in_batches`.

    Raises:
        ValueError: for features that cannot be scored; it says which and why.
    """
    check_model(model)
    collate = GLMMultipleChoiceCollator(tokenizer)
    lengths = []
    for number, feature in enumerate(features, start=1):
        with named(f"Text {number}"):
            lengths.append(check_feature(feature, model))

    def score(batch_features: list[Feature]) -> list[list[float]]:
        batch = collate(batch_features)
        counts = [len(feature["answers"]) for feature in batch_features]
        return score_batch(model, batch, counts, normalised, length_penalty)

    return in_order(run_in_batches(model, score, features, lengths, batch_size, name, finished))


def score_batch(
    model,
    batch: BatchEncoding,
    counts: list[int],
    normalised: bool,
    length_penalty: float,
) -> list[list[float]]:
    """The scores of each row's choices, of which row b has counts[b]."""
    said = batch["choice_ids"]  # (B, C, G)
    is_token = said != IGNORED
    rows = is_token.nonzero()[:, 0]  # (R,)
    tokens = score_tokens(
        model,
        {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")},
        rows,
        batch["choice_indices"][is_token],
        said[is_token],
    )
    values = tokens.log_probs if normalised else tokens.logits
    of_tokens = values.new_zeros(said.shape).masked_scatter(is_token, values)
    lengths = is_token.sum(-1).clamp(min=1)  # (B, C)
    scores = of_tokens.sum(-1) / lengths**length_penalty  # (B, C)
    return [row[:count] for row, count in zip(scores.tolist(), counts, strict=True)]


def bidirectional_feature(
    tokenizer: GLMTokenizerFast,
    text: str,
    answers: list[list[int]],
    max_length: int,
) -> Feature:
    """`[CLS]` text with a mask `<|endoftext|>`, then the choices."""
    ids = encode(tokenizer, text)
    masks = tokenizer.mask_token_ids
    if not any(id in masks for id in ids):
        ids = [*ids, tokenizer.mask_token_id]
    room = room_for(answers, max_length)
    last_mask = max(column for column, id in enumerate(ids) if id in masks)
    first = min(max(len(ids) - room, 0), last_mask)
    kept = ids[first : first + room]
    return {
        "context": [tokenizer.cls_token_id, *kept, tokenizer.eos_token_id],
        "answers": answers,
        "cut": len(kept) < len(ids),
    }


def unidirectional_feature(
    tokenizer: GLMTokenizerFast,
    text: str,
    answers: list[list[int]],
    max_length: int,
) -> Feature:
    """`[CLS]` and the mask that is continued, then the text, then the choices."""
    ids = encode(tokenizer, text)
    kept = ids[max(len(ids) - room_for(answers, max_length), 0) :]
    return {
        "context": [tokenizer.cls_token_id, tokenizer.continuation_mask_id],
        "begun": kept,
        "answers": answers,
        "cut": len(kept) < len(ids),
    }


def room_for(answers: list[list[int]], max_length: int) -> int:
    """Tokens of a text beside its longest answer and two special tokens."""
    longest = max(map(len, answers))
    room = max_length - longest - 2
    if room < 1:
        raise ValueError(
            f"A choice has {longest} tokens, which leaves no room for a text within {max_length}; "
            "shorten it."
        )
    return room


# --- Answers --------------------------------------------------------------------------------------


def log_likelihood(
    model,
    tokenizer: GLMTokenizerFast,
    texts: Sequence[str],
    answers: Sequence[str | Sequence[str]],
    *,
    end_token: bool = False,
    batch_size: int = 16,
    finished: Finished | None = None,
) -> list[list[AnswerScore]]:
    """How likely the answer to each blank is.

    Args:
        texts: with masks; `[MASK]` is appended where there is none.
        answers: of each text one, or one for each of its masks; a later answer sees the earlier
            ones, as when they are generated.
        end_token: score the end of each answer, too: that it is all that is said.
        batch_size: texts of a forward pass.
        finished: of `run_in_batches`.

    Returns:
        For each text the scores of its answers.

    Raises:
        ValueError: for texts and answers that cannot be scored; it says which and why.
    """
    if isinstance(texts, str) or isinstance(answers, str) or len(texts) != len(answers):
        raise ValueError(
            f"There are {len(answers)} answers for {count_texts(texts)}; pass a list of texts, and "
            "an answer, or a list of answers, for each."
        )
    check_model(model)
    collator = TextCollator(tokenizer)
    work = []
    lengths = []
    for number, (text, of_text) in enumerate(zip(texts, answers, strict=True), start=1):
        with named(f"Text {number}"):
            said = [of_text] if isinstance(of_text, str) else of_text
            ids = encode_answers(tokenizer, said, end_token)
            row = answered_row(collator, text, ids, model)
        work.append((row, ids))
        lengths.append(len(row.context) + len(row.pieces))

    def score(part: list[tuple[Row, list[list[int]]]]) -> list[list[AnswerScore]]:
        batch = collator.pad([row for row, _ in part])
        labels = batch.pop("labels")  # (B, T)
        is_token = labels != IGNORED
        rows, columns = is_token.nonzero(as_tuple=True)
        tokens = score_tokens(model, batch, rows, columns, labels[is_token])
        return split_scores(tokens, [answers for _, answers in part])

    scores = in_order(run_in_batches(model, score, work, lengths, batch_size, finished=finished))
    # Lists, where they were kept as JSON.
    return [[AnswerScore(*of_answer) for of_answer in of_text] for of_text in scores]


def perplexity(
    model,
    tokenizer: GLMTokenizerFast,
    texts: Sequence[str],
    answers: Sequence[str | Sequence[str]],
    **options,
) -> list[float]:
    """For each text e to the mean negative log-probability of its answers' tokens.

    `evaluate_documents` measures the perplexity of texts without blanks, however long.

    Args:
        texts, answers, options: of `log_likelihood`.
    """
    values = []
    for scores in log_likelihood(model, tokenizer, texts, answers, **options):
        log_probs = [value for score in scores for value in score.log_probs]
        values.append(math.exp(-math.fsum(log_probs) / len(log_probs)))
    return values


def answered_row(
    collator: TextCollator,
    text: str,
    answers: list[list[int]],
    model,
) -> Row:
    """A text and the answers to its masks, in the layout of training."""
    tokenizer = collator.tokenizer
    ids = encode(tokenizer, text)
    if not any(id in tokenizer.mask_token_ids for id in ids):
        ids = [*ids, tokenizer.mask_token_id]
    context = [tokenizer.cls_token_id, *ids, tokenizer.eos_token_id]
    blanks = collator.count_blanks(context)
    if blanks != len(answers):
        raise ValueError(
            f"it has {blanks} masks and {len(answers)} answers; give each mask an answer."
        )
    check_positions_left(len(context), max(map(len, answers)), model)
    return Row(context, *tokenizer.pieces(answers))


def split_scores(tokens: TokenScores, answers: list[list[list[int]]]) -> list[list[AnswerScore]]:
    """The scores of R tokens, which are those of all answers of all texts one after the other."""
    log_probs = iter(tokens.log_probs.tolist())
    is_best = iter(tokens.is_best.tolist())
    scores = []
    for of_text in answers:
        of_answers = []
        for answer in of_text:
            values = [next(log_probs) for _ in answer]
            best = [next(is_best) for _ in answer]
            of_answers.append(AnswerScore(answer, values, all(best)))
        scores.append(of_answers)
    return scores


# --- What both share ------------------------------------------------------------------------------


def score_tokens(
    model,
    inputs: dict[str, torch.Tensor],
    rows: torch.Tensor,
    columns: torch.Tensor,
    tokens: torch.Tensor,
) -> TokenScores:
    """What the model says to tokens (R,) at their rows and columns (R,) of a batch; on the CPU."""
    device = model.device
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    states = model.glm(**inputs, use_cache=False).last_hidden_state  # (B, T, H)
    device = states.device  # the last layers of a large model may have another one
    states = states[rows.to(device), columns.to(device)]  # (R, H)
    log_probs, logits, is_best = [], [], []
    for part, wanted in zip(
        states.split(TOKENS_AT_ONCE),
        tokens.to(device).split(TOKENS_AT_ONCE),
        strict=True,
    ):
        of_part = model.lm_head(part).float()  # (R, V)
        of_wanted = of_part.gather(1, wanted[:, None])[:, 0]  # (R,)
        log_probs.append(of_wanted - of_part.logsumexp(-1))
        logits.append(of_wanted)
        is_best.append(of_part.argmax(-1) == wanted)
    return TokenScores(
        torch.cat(log_probs).double().cpu(),
        torch.cat(logits).double().cpu(),
        torch.cat(is_best).cpu(),
    )


@contextmanager
def named(what: str) -> Iterator[None]:
    """Names what a ValueError is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def encode(tokenizer: GLMTokenizerFast, text: str) -> list[int]:
    """The ids of a text without special tokens, however long it is."""
    if not isinstance(text, str):
        raise ValueError(f"it is no text but {type(text).__name__}; pass a string.")
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    tokenizer.check_no_commands(ids, "A text")
    return ids


def encode_answers(
    tokenizer: GLMTokenizerFast,
    answers: Sequence[str],
    end_token: bool,
) -> list[list[int]]:
    """The ids of answers or choices as they are written."""
    end = [tokenizer.eop_token_id] if end_token else []
    return [ids + end for ids in tokenizer.encode_choices(answers)]


def check_model(model):
    """Raise a ValueError for a model that cannot score."""
    if not hasattr(model, "glm") or not hasattr(model, "lm_head"):
        raise ValueError(
            f"{type(model).__name__} says no words; load the model with AutoModelForSeq2SeqLM."
        )
    if not model.config.block_position_encoding:
        raise ValueError(
            "This model has no block positions, and the original has no rule for scoring with it; "
            "use a model that has."
        )
    adapter: Any = getattr(model, "active_peft_config", None)
    if getattr(adapter, "is_prompt_learning", False):
        raise ValueError(
            f"A model with an adapter of the kind {adapter.peft_type.value} puts virtual tokens in "
            "front of a text, which scoring does not read; use another adapter, or generate."
        )


def check_feature(feature: Feature, model) -> int:
    """How many tokens a feature takes; raise a ValueError if the model has no positions for it."""
    begun = len(feature.get("begun") or [])
    check_positions_left(len(feature["context"]), begun + max(map(len, feature["answers"])), model)
    return len(feature["context"]) + begun + sum(map(len, feature["answers"]))


def check_positions_left(context: int, answer: int, model):
    """Raise a ValueError for a context or an answer of more tokens than there are positions."""
    rows = model.config.position_rows
    if max(context, answer + 1) > rows:  # the block positions of an answer begin at 1
        raise ValueError(
            f"a context of {context} tokens and an answer of {answer} were given, but this model "
            f"has {rows} positions; shorten it."
        )


def warn_of_cuts(features: list[Feature]):
    cut = sum(feature["cut"] for feature in features)
    if cut:
        warnings.warn(
            f"{cut} of {len(features)} texts were too long and were cut; ask for a greater length, "
            "if the model has the positions.",
            stacklevel=3,
        )


def count_texts(texts: Sequence[str]) -> str:
    return "one text" if isinstance(texts, str) else f"{len(texts)} texts"
