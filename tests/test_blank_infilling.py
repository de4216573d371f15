"""The pretraining objective: the original's distributions, and its rules on every sample."""

import json
import math
from collections import Counter
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import long
from made import make_vocabulary
from safetensors.torch import load_file

from glm_transformers import GLMTokenizerFast
from glm_transformers.conversion.tokenizers import build_tokenizer, find_vocabulary
from glm_transformers.training import RECIPES, BlankInfillingCollator, Recipe, blank_infilling
from glm_transformers.training.blank_infilling import NothingToMask, sentence_end_table

# The modes of the golden samples: our recipe for each, and the tokens of a text there.
TOKEN = dict(token=1.0)
SENTENCE = dict(token=0.0, sentence=1.0)
DOCUMENT = dict(token=0.0, document=1.0)
GOLDEN_MODES = {
    "token_default": TOKEN,
    "token_dblock": dict(block_mask_prob=0.1, **TOKEN),
    "token_single_span": dict(single_span_prob=1.0, **TOKEN),
    "token_noshuffle": dict(shuffle_pieces=False, **TOKEN),
    "token_random_position": dict(random_position=True, **TOKEN),
    "token_noblockposition": dict(block_positions=False, **TOKEN),
    "token_multidoc": TOKEN,
    "sentence": SENTENCE,
    "sentence_multidoc": SENTENCE,
    "document_suffix": dict(suffix_prob=1.0, document_min_share=0.25, **DOCUMENT),
    "document_infill": dict(suffix_prob=0.0, document_min_share=0.25, **DOCUMENT),
    "document_mixed_minratio0.5": DOCUMENT,
    "document_multidoc": dict(document_min_share=0.25, **DOCUMENT),
}
LENGTH = 56
EOS, SOP, EOP, CLS, MASK, GMASK, SMASK, DBLOCK = (*range(50256, 50261), *range(50263, 50266))


# --- Statistics, so that the tests need no further library ---------------------------------------


def chi_square(ours: Counter, theirs: Counter, draws: int = 4999) -> float:
    """p-value of both histograms being samples of one distribution.

    The statistic is compared with that of histograms dealt at random from both together, so that it
    holds for few values, too; the smallest p-value is 1 / (draws + 1).
    """
    if not ours or not theirs:
        return float(not ours and not theirs)
    values = sorted(set(ours) | set(theirs))
    table = pool(np.array([[ours[value], theirs[value]] for value in values]))  # (bins, 2)
    if len(table) < 2:  # both hold one value, the same
        return 1.0
    totals, sizes = table.sum(1), table.sum(0)  # (bins,), (2,)
    expected = totals[:, None] * sizes / sizes.sum()  # (bins, 2)

    def statistic(theirs: np.ndarray) -> np.ndarray:  # (..., bins) -> (...)
        return ((theirs - expected[:, 1]) ** 2 * (1 / expected).sum(1)).sum(-1)

    dealt = np.random.default_rng(0).multivariate_hypergeometric(totals, sizes[1], size=draws)
    as_far = statistic(dealt) >= statistic(table[:, 1]) * (1 - 1e-9)
    return (1 + int(as_far.sum())) / (1 + draws)


def pool(table: np.ndarray) -> np.ndarray:
    """Counts (values, 2) -> (bins, 2): neighbours are joined until each sample expects one of each.

    Two bins at least are left, or else nothing could be told from the table.
    """
    least = table.sum() / table.sum(0).min()  # of both samples in a bin
    bins = [table[0]]
    for row in table[1:]:
        if bins[-1].sum() < least:
            bins[-1] = bins[-1] + row
        else:
            bins.append(row)
    if len(bins) > 2 and bins[-1].sum() < least:
        bins[-2:] = [bins[-2] + bins[-1]]
    if len(bins) == 1 and len(table) > 1:
        largest = table.sum(1).argmax()
        others = np.delete(table, largest, axis=0)
        bins = [table[largest], others.sum(0)]
    return np.array(bins)


def kolmogorov_smirnov(ours, theirs) -> float:
    """p-value of two samples coming from one distribution (asymptotic form)."""
    ours, theirs = np.sort(ours), np.sort(theirs)
    values = np.concatenate([ours, theirs])
    gap = np.abs(
        np.searchsorted(ours, values, side="right") / len(ours)
        - np.searchsorted(theirs, values, side="right") / len(theirs)
    ).max()
    size = math.sqrt(len(ours) * len(theirs) / (len(ours) + len(theirs)))
    x = (size + 0.12 + 0.11 / size) * gap
    return (
        1.0
        if x < 0.2
        else min(1.0, 2 * sum((-1) ** (k - 1) * math.exp(-2 * (k * x) ** 2) for k in range(1, 100)))
    )


def test_the_statistics_can_tell_distributions_apart():
    random = np.random.default_rng(0)
    a, b, c = (random.poisson(mean, 3000) for mean in (3, 3, 3.3))
    assert chi_square(Counter(a.tolist()), Counter(b.tolist())) > 0.001
    assert chi_square(Counter(a.tolist()), Counter(c.tolist())) < 0.001
    assert kolmogorov_smirnov(a, b) > 0.001
    assert kolmogorov_smirnov(a, random.poisson(3.6, 3000)) < 0.001


@pytest.mark.parametrize(
    "ours, theirs",
    [
        ({1: 1000}, {2: 1000}),
        ({1: 1000}, {2: 5}),
        ({1: 5}, {2: 1000}),
        ({True: 200}, {True: 185, False: 15}),
        ({True: 9}, {}),
        ({False: 5000}, {False: 400, True: 45}),  # [dBLOCK] never, and in a tenth
        ({1: 10, 2: 10, 3: 10, 4: 10}, {5: 10, 6: 10, 7: 10}),
        (dict.fromkeys(range(0, 60, 2), 5), dict.fromkeys(range(1, 60, 2), 5)),
    ],
)
def test_what_only_one_sample_has_is_a_difference(ours, theirs):
    assert chi_square(Counter(ours), Counter(theirs)) < 0.001
    assert chi_square(Counter(theirs), Counter(ours)) < 0.001


@pytest.mark.parametrize(
    "ours, theirs",
    [
        ({1: 1000}, {1: 10}),
        ({1: 990, 2: 10}, {1: 100}),
        ({1: 1000, 2: 2000}, {1: 9, 2: 21}),
    ],
)
def test_what_one_sample_is_too_small_for_is_none(ours, theirs):
    assert chi_square(Counter(ours), Counter(theirs)) > 0.05


def test_the_p_value_is_one():
    """Of samples of one distribution, one in ten has a p-value below a tenth."""
    random = np.random.default_rng(1)
    below = 0
    for _ in range(300):
        ours, theirs = random.poisson(3, 400), random.poisson(3, 100)
        below += chi_square(Counter(ours.tolist()), Counter(theirs.tolist()), draws=199) <= 0.1
    assert 12 <= below <= 50  # 30, and 3.5 standard deviations


# --- Reading a row -------------------------------------------------------------------------------


class Row:
    """One sample, ours or the original's, taken apart.

    context: its ids. pieces: (column of the blank, inputs, labels, (start, end)) of each.
    """

    def __init__(self, ids, positions, labels, context):
        self.context, self.positions, self.ids = ids[:context], positions, ids
        self.offset = positions[0][0]
        starts = [i for i in range(context, len(ids)) if ids[i] == SOP] + [len(ids)]
        self.pieces = [
            (positions[0][start] - self.offset, ids[start:end], labels[start:end], (start, end))
            for start, end in pairwise(starts)
        ]
        self.spans = [
            [id for id in labels if id not in (EOP, EOS)] for _, _, labels, _ in self.pieces
        ]

    def statistics(self) -> dict:
        blanks = [blank for blank, *_ in self.pieces]
        return {
            "span lengths": [len(span) for span in self.spans],
            "number of spans": [len(self.spans)],
            "masked share": [sum(map(len, self.spans))],
            "in text order": [blanks == sorted(blanks)] if len(blanks) > 1 else [],
            "mask kinds": [id for id in self.context if id in (MASK, GMASK, SMASK)],
            "last target": [self.pieces[-1][2][-1] in (EOS, EOP) and self.pieces[-1][2][-1]],
            "block masks": [id == DBLOCK for _, inputs, _, _ in self.pieces for id in inputs[1:]],
            "offsets": [self.offset],
            "blanks": blanks,
        }


def rows_of(batch) -> list[Row]:
    rows = []
    fields = ("input_ids", "position_ids", "labels", "attention_mask")
    columns = (batch[field].tolist() for field in fields)
    for ids, positions, labels, context in zip(*columns, strict=True):
        length = max(i + 1 for i, label in enumerate(labels) if label != -100)
        assert labels[:context] == [-100] * context and -100 not in labels[context:length]
        padding = ids[length:] + positions[0][length:] + positions[1][length:]
        assert not any(padding)
        rows.append(Row(ids[:length], [p[:length] for p in positions], labels[:length], context))
    return rows


def golden_rows(golden, mode) -> list[Row]:
    rows = []
    fields = (
        golden[f"{mode}.{field}"].tolist()
        for field in ("text", "position_id", "target", "loss_mask", "sep")
    )
    for ids, positions, targets, mask, context in zip(*fields, strict=True):
        length = max(i + 1 for i, used in enumerate(mask) if used)
        rows.append(Row(ids[:length], [p[:length] for p in positions], targets[:length], context))
    return rows


@pytest.fixture(scope="module", autouse=True)
def sentence_ends():
    """What a large vocabulary says of them is read once, not for each of a hundred collators."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blank_infilling, "sentence_end_table", cache(sentence_end_table))
        yield


@pytest.fixture(scope="module")
def tokenizer(repository):
    return GLMTokenizerFast.from_pretrained(repository("tiny-gpt2-fp16"))


@pytest.fixture(scope="module")
def golden(reference):
    return load_file(reference / "pretraining/blank_infilling_samples.safetensors")


@pytest.fixture(scope="module")
def statistics(reference):
    return json.loads((reference / "pretraining/blank_infilling_statistics.json").read_text())


def samples_of(golden, mode):
    return [{"input_ids": text} for text in golden[f"{mode}.input_text"].tolist()]


@pytest.fixture(scope="module")
def our_rows(tokenizer, golden):
    """`our_rows(mode, batch_size)`: (text, row) for each golden input, three times."""

    @cache
    def rows(mode: str, batch_size: int = 1) -> list[tuple[list[int], Row]]:
        collator = BlankInfillingCollator(
            tokenizer, Recipe(**GOLDEN_MODES[mode]), max_length=LENGTH, seed=1
        )
        samples, found = samples_of(golden, mode), []
        for _ in range(3):
            for start in range(0, len(samples), batch_size):
                batch = samples[start : start + batch_size]
                texts = [sample["input_ids"] for sample in batch]
                found += zip(texts, rows_of(collator(batch)), strict=True)
        return found

    return rows


# --- Distributions -------------------------------------------------------------------------------


def collect(rows: list[Row]) -> dict[str, list]:
    collected = {}
    for row in rows:
        for name, values in row.statistics().items():
            collected.setdefault(name, []).extend(values)
    return collected


@pytest.mark.parametrize("mode", GOLDEN_MODES)
def test_distributions_on_the_same_texts(our_rows, golden, mode):
    theirs = golden_rows(golden, mode)
    if mode.startswith("document"):  # its batches were of two texts, which share one length
        theirs = theirs[::2]
    ours, theirs = collect([row for _, row in our_rows(mode)]), collect(theirs)
    for name in theirs:
        if name in ("span lengths", "masked share", "blanks", "offsets"):
            assert kolmogorov_smirnov(ours[name], theirs[name]) > 0.001, name
        assert chi_square(Counter(ours[name]), Counter(theirs[name])) > 0.001, name
    for name in ("mask kinds", "last target"):
        assert set(ours[name]) == set(theirs[name]), name


@pytest.fixture(scope="module")
def long_texts(golden) -> list[list[int]]:
    """Texts as the original's statistics were made of: sentences of the golden inputs, drawn."""
    count, length = 1500, 256
    sentences = set()
    for text in golden["sentence.input_text"].tolist():
        sentence = []
        for id in text[1:-1]:
            sentence.append(id)
            if id in (13, 30, 0, 26, 25):  # . ? ! ; :
                sentences.add(tuple(sentence))
                sentence = []
    sentences = sorted(sentences)
    random, texts = np.random.default_rng(3), []
    for _ in range(count):
        ids = [CLS]
        while len(ids) < length - 1:
            ids += sentences[random.integers(len(sentences))]
        texts.append([*ids[: length - 1], EOS])
    return texts


# What these change is no matter of the text's length.
ALSO_OF_SHORT_TEXTS = ("token_noshuffle", "token_random_position", "token_noblockposition")


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param(mode, marks=long) if mode in ALSO_OF_SHORT_TEXTS else mode
        for mode in GOLDEN_MODES
        if "multidoc" not in mode
    ],
)
def test_distributions_on_1500_long_texts(tokenizer, long_texts, statistics, mode):
    theirs = statistics["modes"][mode]["statistics_large"]
    collator = BlankInfillingCollator(
        tokenizer, Recipe(**GOLDEN_MODES[mode]), max_length=256, seed=2
    )
    rows = [row for text in long_texts for row in rows_of(collator([{"input_ids": text}]))]
    assert len(rows) == theirs["n"]
    spans = Counter(len(span) for row in rows for span in row.spans)
    # In sentence mode they depend on how often each sentence was drawn, which is not known.
    if mode != "sentence":
        assert chi_square(spans, histogram(theirs["span_length_histogram_excl_end_token"])) > 0.001
        counts = Counter(len(row.spans) for row in rows)
        assert chi_square(counts, histogram(theirs["spans_per_sample_histogram"])) > 0.001
    shares = np.array([sum(len(labels) for _, _, labels, _ in row.pieces) / 256 for row in rows])
    shares -= [len(row.pieces) / 256 * (row.pieces[-1][2][-1] == EOP) for row in rows]
    error = math.hypot(shares.std(), theirs["generated_fraction_std"]) / math.sqrt(1500)
    assert abs(shares.mean() - theirs["generated_fraction_mean"]) < 3.3 * error  # p > 0.001
    blanks = np.array([(blank + row.offset) / 256 for row in rows for blank, *_ in row.pieces])
    error = math.hypot(blanks.std(), theirs["anchor_fraction_std"]) / math.sqrt(1500)
    assert abs(blanks.mean() - theirs["anchor_fraction_mean"]) < 3.3 * error
    if theirs["dblock_fraction_of_generated_inputs"] is not None:
        hidden = Counter(
            id == DBLOCK for row in rows for _, inputs, _, _ in row.pieces for id in inputs[1:]
        )
        count = sum(hidden.values())
        expected = round(count * theirs["dblock_fraction_of_generated_inputs"])
        assert chi_square(hidden, Counter({True: expected, False: count - expected})) > 0.001


def histogram(counts: dict) -> Counter:
    return Counter({int(value): count for value, count in counts.items()})


def test_span_lengths_follow_the_normalised_poisson_law(tokenizer, statistics):
    law = statistics["span_length_pmf_normalised"]
    collator = BlankInfillingCollator(tokenizer)
    np.testing.assert_allclose(
        np.diff(collator.length_cdf, prepend=0), [law[str(k)] for k in range(1, 40)], atol=1e-12
    )


@pytest.mark.parametrize(
    "name, theirs",
    [
        ("glm-base", "glm-base/large/roberta (bert-prob 1)"),
        ("glm-large-chinese", "glm-large-chinese"),
        ("glm-10b", "glm-10b stage 1 (512)"),
        ("glm-10b-stage2", "glm-10b stage 2 (1024)"),
        ("glm-10b-chinese", "glm-10b-chinese stage 1 (512)"),
        ("glm-10b-chinese-stage2", "glm-10b-chinese stage 2 (1024)"),
    ],
)
def test_mode_mix_of_the_released_recipes(tokenizer, golden, statistics, name, theirs):
    mix, arguments = statistics["mode_mix"][theirs], statistics["mode_mix"][theirs]["arguments"]
    collator = BlankInfillingCollator(tokenizer, name, max_length=512, seed=3)
    recipe, seen = RECIPES[name], Counter()
    samples = samples_of(golden, "sentence")[:1]
    for _ in range(1200):
        batch = collator(samples)
        kinds = {MASK: "bert", SMASK: "sentence", GMASK: "gpt"}
        seen.update({kinds[id] for id in batch["input_ids"][0].tolist() if id in kinds})
    expected = Counter(
        {mode: round(share * mix["batches"]) for mode, share in mix["observed"].items()}
    )
    assert set(seen) == set(expected) and chi_square(seen, expected) > 0.001
    assert arguments.get("short_seq_prob", 0) == recipe.short_sequence_prob
    assert arguments.get("block_mask_prob", 0) == recipe.block_mask_prob
    assert arguments.get("single_span_prob", 0) == recipe.single_span_prob
    assert arguments.get("gpt_min_ratio", 0.5) == recipe.document_min_share


# --- Rules that hold exactly, on every sample ----------------------------------------------------


def check_rules(text: list[int], row: Row, mode: str, length=LENGTH):
    """Everything that must be true of one row; the original's rows are held to the same."""
    context_length, masks = len(row.context), {"t": MASK, "s": SMASK, "d": GMASK}[mode[0]]
    columns = [i for i, id in enumerate(row.context) if id in (MASK, GMASK, SMASK)]
    assert {row.context[i] for i in columns} == {masks}
    assert sorted(blank for blank, *_ in row.pieces) == columns  # every mask has one piece
    assert row.positions[0][:context_length] == list(range(row.offset, row.offset + context_length))
    assert row.positions[1][:context_length] == [0] * context_length
    assert row.context[0] == CLS and row.offset + context_length <= max(length, context_length)
    suffix = row.pieces[0][2][-1] != EOP
    answers = {}
    for blank, inputs, labels, (start, end) in row.pieces:
        size = end - start
        assert row.positions[0][start:end] == [blank + row.offset] * size
        assert row.positions[1][start:end] == (
            [1] * size if "noblockposition" in mode else list(range(1, size + 1))
        )
        assert inputs[0] == SOP and len(labels) == size
        # Each input is the label before it, unless it is hidden.
        for id, label in zip(inputs[1:], labels[:-1], strict=True):
            assert id == label or (id == DBLOCK and "dblock" in mode)
        if not suffix:
            assert labels[-1] == EOP and EOP not in labels[:-1] and EOS not in labels
        answers[blank] = labels if suffix else labels[:-1]
    rebuilt = [id for i, token in enumerate(row.context) for id in answers.get(i, [token])]
    assert rebuilt == text
    if suffix:
        assert mode.startswith("document") and columns == [context_length - 1]
        assert EOP not in row.pieces[0][2]
    elif mode.startswith("token"):
        assert all(b - a > 1 for a, b in pairwise(columns))  # spans do not touch
        assert columns[-1] < context_length - 1 and not any(
            id in (CLS, EOS) for answer in answers.values() for id in answer
        )
        if "single" not in mode:  # the share is reached with the last span, and not before
            lengths = [len(answer) for answer in answers.values()]
            assert sum(lengths) >= int(0.15 * len(text)) > sum(lengths) - max(lengths)
        documents = " ".join(map(str, text[:-1])).replace(f"{CLS} ", "").split(f" {EOS} ")
        free = [len(document.split()) for document in documents]
        masked = [0] * len(free)
        for column, answer in answers.items():
            masked[row.context[:column].count(EOS)] += len(answer)
        assert all(
            n <= int(0.15 * size) for n, size in zip(masked, free, strict=True) if size < max(free)
        )
    elif mode.startswith("sentence"):
        lengths = [len(answer) for answer in answers.values()]
        assert sum(lengths) - max(lengths) < int(0.15 * len(text))
    if "single" in mode or mode.startswith("document"):
        assert len(row.pieces) == 1
    if "noshuffle" in mode:
        assert [blank for blank, *_ in row.pieces] == columns
    if "dblock" not in mode:
        assert DBLOCK not in row.ids


@pytest.mark.parametrize("mode", GOLDEN_MODES)
def test_rules_hold_on_every_sample(our_rows, golden, mode):
    texts = golden[f"{mode}.input_text"].tolist()
    for text, row in zip(texts, golden_rows(golden, mode), strict=True):
        check_rules(text, row, mode)
    for batch_size in (1, 8):
        for text, row in our_rows(mode, batch_size):
            check_rules(text, row, mode)


def test_the_originals_sentences_are_ours(tokenizer, golden):
    everything = Recipe(token=0, sentence=1, masked_share=1)
    collator = BlankInfillingCollator(tokenizer, everything, max_length=LENGTH)
    for mode in ("sentence", "sentence_multidoc"):
        seen = {"with [CLS]": 0, "of a cut text": 0}
        texts = golden[f"{mode}.input_text"].tolist()
        for text, theirs in zip(texts, golden_rows(golden, mode), strict=True):
            (ours,) = rows_of(collator([{"input_ids": text}]))
            assert {tuple(span) for span in theirs.spans} <= {tuple(span) for span in ours.spans}
            seen["with [CLS]"] += any(span[0] == CLS for span in theirs.spans)
            seen["of a cut text"] += text[-1] != EOS and theirs.context[-1] == SMASK
        assert mode == "sentence" or all(seen.values())


def test_rules_of_short_sequences(tokenizer, long_texts):
    collator = BlankInfillingCollator(
        tokenizer, Recipe(short_sequence_prob=1.0), max_length=256, seed=5
    )
    text = long_texts[0]
    lengths = set()
    for _ in range(200):
        rows = rows_of(collator([{"input_ids": text}]))
        parts = []
        for row in rows:
            answers = {blank: labels[:-1] for blank, _, labels, _ in row.pieces}
            parts.append(
                [id for i, token in enumerate(row.context) for id in answers.get(i, [token])]
            )
            check_rules(parts[-1], row, "token_default", length=256)
        (length,) = {len(part) for part in parts}
        joined = [id for part in parts for id in part[1:]]
        assert joined == text[1 : 1 + len(joined)] and len(text) - 1 - len(joined) < length - 1
        lengths.add(length)
    assert min(lengths) >= 32 and max(lengths) < 255 and len(lengths) > 80


def test_cls_is_no_target_of_a_short_sequence(tokenizer):
    """It has a `[CLS]` of its own before that of a document, or ends with one."""
    collator = BlankInfillingCollator(tokenizer, max_length=LENGTH)
    for text in ([CLS, CLS, *range(100, 110), EOS], [CLS, *range(100, 110), EOS, CLS]):
        for number in range(100):
            assert not {CLS, EOS} & set(
                collator.collate([{"input_ids": text}], number)["labels"].flatten().tolist()
            )


def test_document_length_is_shared_by_the_batch(tokenizer, long_texts):
    collator = BlankInfillingCollator(
        tokenizer, Recipe(**GOLDEN_MODES["document_suffix"]), max_length=256
    )
    text = long_texts[0]
    for _ in range(50):
        short, long = rows_of(collator([{"input_ids": text[:100]}, {"input_ids": text}]))
        wanted = len(long.pieces[0][2])
        assert 25 <= wanted <= 254 and len(short.pieces[0][2]) == min(wanted, 98)


def drawn(tokenizer, text, recipe, max_length=LENGTH, count=400):
    """The rows of many batches of one text."""
    collator = BlankInfillingCollator(tokenizer, recipe, max_length=max_length)
    for number in range(count):
        yield from rows_of(collator.collate([{"input_ids": text}], number))


@pytest.mark.parametrize("share, size", [(0.25, 12), (0.0, 12), (0.25, 4), (1.0, 12)])
@pytest.mark.parametrize("suffix_prob", [0.0, 1.0])
def test_document_mode_draws_every_length_that_it_may(tokenizer, share, size, suffix_prob):
    """From the least share, of one token at least, to all but `[CLS]` and the last token."""
    text = [CLS, *range(100, 98 + size), EOS]
    recipe = Recipe(**DOCUMENT, document_min_share=share, suffix_prob=suffix_prob)
    lengths = Counter(
        len(row.pieces[0][2]) - (row.pieces[0][2][-1] == EOP)
        for row in drawn(tokenizer, text, recipe)
    )
    longest = size - 2
    allowed = range(min(max(1, int(share * size)), longest), longest + 1)
    assert set(lengths) == set(allowed)
    assert chi_square(lengths, Counter(dict.fromkeys(allowed, 1000))) > 0.001


def test_short_sequences_have_every_length_that_they_may(tokenizer):
    """From 32 tokens to the longest text without two."""
    text = [CLS, *range(100, 138), EOS]
    recipe = Recipe(short_sequence_prob=1.0)
    lengths = set()
    for row in drawn(tokenizer, text, recipe, max_length=40):
        masked = sum(map(len, row.spans)) - len(row.spans)  # a mask stands for each span
        lengths.add(len(row.context) + masked)
    assert lengths == set(range(32, 39))


def test_the_shortest_text_has_one_token_masked_at_least(tokenizer):
    text = [CLS, 100, 101, EOS]
    masked = Counter(sum(map(len, row.spans)) for row in drawn(tokenizer, text, Recipe()))
    assert set(masked) == {1, 2}  # a span of three does not fit


def test_the_loss_mask_is_split_with_the_text(tokenizer):
    text = [CLS, *range(100, 138), EOS]
    recipe = Recipe(**DOCUMENT, short_sequence_prob=1.0, suffix_prob=1.0)
    collator = BlankInfillingCollator(tokenizer, recipe, max_length=40)
    sample = {"input_ids": text, "loss_mask": [id % 2 for id in text]}
    for number in range(50):
        batch = collator.collate([sample], number)
        context, labels = int(batch["attention_mask"][0]), batch["labels"][0]
        tail = text[context - 1 :][: len(labels) - context]
        assert labels[context:].tolist() == [id if id % 2 else -100 for id in tail]


def test_a_document_takes_all_of_its_share(tokenizer):
    """A span as long as the share of a document that is not the longest is placed in it."""
    text = [CLS, *range(100, 114), EOS, CLS, *range(200, 230), EOS]
    masked = Counter(
        sum(id < 200 for span in row.spans for id in span)
        for row in drawn(tokenizer, text, Recipe())
    )
    assert set(masked) == {0, 1, 2}  # 0.15 * 14 is 2.1


def test_a_short_sequence_of_two_documents_is_continued(tokenizer):
    """The second one may be no more than its `[CLS]`."""
    text = [CLS, *range(100, 110), EOS, CLS]
    recipe = Recipe(**DOCUMENT, suffix_prob=0.0)
    for row in drawn(tokenizer, text, recipe, count=20):
        assert row.context[-1] == GMASK and row.pieces[0][2][-1] == CLS


@pytest.mark.parametrize("mode", [TOKEN, SENTENCE, DOCUMENT])
def test_random_positions_in_every_mode(tokenizer, mode):
    """All that leave the context below the longest position, and no others."""
    text = [CLS, *range(100, 109), 13, EOS]
    offsets = {}
    for row in drawn(tokenizer, text, Recipe(**mode, random_position=True), 14, count=600):
        offsets.setdefault(len(row.context), set()).add(row.offset)
    assert all(max(seen) <= 14 - context for context, seen in offsets.items())
    # The context that came most often was drawn with each of them.
    context, seen = max(offsets.items(), key=lambda item: len(item[1]))
    assert seen == set(range(14 - context + 1))


def test_loss_mask_of_the_data_counts_in_the_suffix_form(tokenizer, golden):
    text = golden["document_suffix.input_text"][0].tolist()
    sample = {"input_ids": text, "loss_mask": [0] * 50 + [1] * 6}
    collator = BlankInfillingCollator(
        tokenizer, Recipe(**GOLDEN_MODES["document_suffix"]), max_length=LENGTH
    )
    for _ in range(20):
        batch = collator([sample])
        context, labels = int(batch["attention_mask"][0]), batch["labels"][0]
        cut = context - 1  # where the tail begins: the context ends with a mask
        assert labels[context:].tolist() == [
            id if place >= 50 else -100 for place, id in enumerate(text[cut:], start=cut)
        ]
    token = BlankInfillingCollator(tokenizer, max_length=LENGTH)([sample])
    pieces = token["input_ids"].shape[1] - token["attention_mask"][0]
    assert (token["labels"][0] != -100).sum() == pieces


def test_positions_are_those_the_model_derives(tokenizer, golden, tiny_model):
    """In text order the model finds them itself; shuffled pieces are why we hand them over."""
    from glm_transformers.blanks_glm import BlankLayout, BlockPositions, count_positions

    recipe = Recipe(0.4, 0.3, 0.3, shuffle_pieces=False)
    collator = BlankInfillingCollator(tokenizer, recipe, max_length=LENGTH)

    class Ids:
        start_token_ids, end_token_ids, mask_token_ids = [SOP], [EOP], [MASK, GMASK, SMASK]

    for sample in samples_of(golden, "sentence")[:60]:
        batch = collator([sample])
        layout = BlankLayout.of(batch["input_ids"], Ids)
        of_context = count_positions(torch.ones_like(batch["input_ids"]))
        positions = BlockPositions.position_ids(layout, of_context, layout.length)
        assert torch.equal(positions, batch["position_ids"])
        assert layout.in_context.sum() == batch["attention_mask"][0]


# --- Seeds, workers, processes -------------------------------------------------------------------


@pytest.fixture(scope="module")
def made_tokenizer(made_repository):
    return GLMTokenizerFast.from_pretrained(made_repository)


TEXTS = [
    "Ng is an adjunct professor at Stanford (formerly associate professor).",
    "Tsinghua University is located in Beijing.",
]


def made_samples(tokenizer, count=8):
    return [{"input_ids": tokenizer(" ".join(TEXTS) * 2).input_ids} for _ in range(count)]


def same(a, b) -> bool:
    return a["labels"].shape == b["labels"].shape and all(
        torch.equal(a[name], b[name]) for name in a
    )


def test_batches_are_a_function_of_seed_and_number(made_tokenizer):
    samples = made_samples(made_tokenizer)

    def build(**options):
        return BlankInfillingCollator(made_tokenizer, "glm-10b", **options)

    first, again, continued = build(), build(), build(first_batch=2)
    batches = [first(samples) for _ in range(4)]
    assert {tensor.dtype for batch in batches for tensor in batch.values()} == {torch.int64}
    assert all(same(batch, again(samples)) for batch in batches)
    assert same(batches[2], continued(samples)) and same(batches[3], continued(samples))
    assert not any(same(batches[0], batch) for batch in batches[1:])
    assert not same(build(seed=1)(samples), batches[0])


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_workers_and_processes_never_share_random_numbers(made_tokenizer, workers):
    samples = made_samples(made_tokenizer, count=48)

    def batches(**options):
        collator = BlankInfillingCollator(made_tokenizer, **options)
        return list(
            torch.utils.data.DataLoader(
                samples, batch_size=4, collate_fn=collator, num_workers=workers
            )
        )

    ranks = [batches(rank=rank, world_size=2) for rank in (0, 1)]
    everything = [batch for rank in ranks for batch in rank]
    assert not any(same(a, b) for i, a in enumerate(everything) for b in everything[:i])
    # Neither workers nor processes change what the whole run sees: batch 2 n + rank of one process.
    one = BlankInfillingCollator(made_tokenizer)
    for of_rank_0, of_rank_1 in zip(*ranks, strict=True):
        assert same(of_rank_0, one(samples[:4])) and same(of_rank_1, one(samples[:4]))
    continued = batches(first_batch=12)[:2]
    numbered = [one.collate(samples[:4], number) for number in (12, 13)]
    assert all(same(a, b) for a, b in zip(continued, numbered, strict=True))


@pytest.mark.parametrize("workers, persistent", [(0, False), (2, False), (2, True)])
def test_no_epoch_is_like_another(made_tokenizer, workers, persistent):
    loader = torch.utils.data.DataLoader(
        made_samples(made_tokenizer),
        batch_size=2,
        collate_fn=BlankInfillingCollator(made_tokenizer),
        num_workers=workers,
        persistent_workers=persistent,
    )
    batches = [batch for _ in range(3) for batch in loader]
    assert not any(same(a, b) for i, a in enumerate(batches) for b in batches[:i])


# --- Tokenizers and options -----------------------------------------------------------------------


def test_a_tokenizer_with_one_mask_uses_it_in_every_mode(tmp_path):
    files = find_vocabulary("bert", make_vocabulary(tmp_path, "bert"))
    tokenizer = build_tokenizer("bert", files, task_mask=False)
    collator = BlankInfillingCollator(tokenizer)
    assert set(collator.mask_ids.values()) == {tokenizer.mask_token_id}
    sample = {"input_ids": tokenizer("the quick fox jumps. the lazy dog is in beijing.").input_ids}
    for mode in ("token", "sentence", "document"):
        batch = collator.collate([sample], 0, mode)
        assert tokenizer.mask_token_id in batch["input_ids"]


def test_the_id_of_hidden_tokens_can_be_given(made_tokenizer):
    recipe = Recipe(block_mask_prob=1.0)
    batch = BlankInfillingCollator(made_tokenizer, recipe, block_mask_id=7)(
        made_samples(made_tokenizer)
    )
    in_piece = batch["position_ids"][:, 1] > 1
    assert (batch["input_ids"][in_piece] == 7).all()


def test_only_some_tokens_of_short_spans_are_hidden(made_tokenizer):
    """Each by a draw of its own, and none in the other modes."""
    recipe = Recipe(block_mask_prob=0.5, mean_span_length=9.0, masked_share=0.5)
    collator = BlankInfillingCollator(made_tokenizer, recipe)
    for mode in ("token", "sentence", "document"):
        batch = collator.collate(made_samples(made_tokenizer), 0, mode)
        hidden = batch["input_ids"] == collator.block_mask_id
        in_piece = batch["position_ids"][:, 1] > 1
        assert (hidden & ~in_piece).sum() == 0
        if mode == "token":
            of_each = hidden.sum(-1) / in_piece.sum(-1)
            assert ((of_each > 0) & (of_each < 1)).all()
        else:
            assert not hidden.any()


def test_a_single_span_is_of_token_mode_whatever_the_recipe_draws(made_tokenizer):
    collator = BlankInfillingCollator(
        made_tokenizer, Recipe(token=0, sentence=1, single_span_prob=1.0)
    )
    ids = collator.collate(made_samples(made_tokenizer), 0)["input_ids"]
    assert ((ids == collator.mask_ids["token"]).sum(-1) == 1).all()
    assert not (ids == collator.mask_ids["sentence"]).any()


def test_a_mode_that_is_asked_for_has_several_spans(made_tokenizer):
    """As in an evaluation, whatever the recipe says of single spans."""
    collator = BlankInfillingCollator(made_tokenizer, Recipe(single_span_prob=1.0))
    ids = collator.collate(made_samples(made_tokenizer, 8), 0, "token")["input_ids"]
    assert ((ids == collator.mask_ids["token"]).sum(-1) > 1).any()


# --- Wrong input ---------------------------------------------------------------------------------


def test_wrong_input_is_one_clear_sentence(made_tokenizer):
    with pytest.raises(ValueError, match="choose one of glm-base"):
        BlankInfillingCollator(made_tokenizer, "glm-2b")
    with pytest.raises(ValueError, match="add up to 1"):
        Recipe(token=0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        Recipe(block_mask_prob=1.5)
    for wrong in (
        dict(token="0.5"),
        dict(token=True),
        dict(shuffle_pieces=0.5),
        dict(mean_span_length=math.nan),
    ):
        with pytest.raises(ValueError, match="give"):
            Recipe(**wrong)
    with pytest.raises(ValueError, match="at least 34"):
        BlankInfillingCollator(made_tokenizer, "glm-10b", max_length=33)
    BlankInfillingCollator(made_tokenizer, "glm-10b", max_length=34)
    collator = BlankInfillingCollator(made_tokenizer, max_length=16)
    cls, eos = made_tokenizer.cls_token_id, made_tokenizer.eos_token_id
    for ids in ([cls, 5, eos], [5] * 8, [cls] + [5] * 20):
        with pytest.raises(ValueError, match="must begin with"):
            collator([{"input_ids": ids}])
    no_sentence = {"input_ids": [cls, eos, cls, eos]}
    with pytest.raises(ValueError, match="sentence mode"):
        BlankInfillingCollator(made_tokenizer, Recipe(token=0, sentence=1))([no_sentence])


def test_texts_that_cannot_be_masked_are_left_out(made_tokenizer):
    cls, eos = made_tokenizer.cls_token_id, made_tokenizer.eos_token_id
    collator = BlankInfillingCollator(made_tokenizer, Recipe(token=0, sentence=1))
    batch = collator([{"input_ids": [cls, eos, cls, eos]}, *made_samples(made_tokenizer, 2)])
    assert len(batch["input_ids"]) == 2


def test_a_batch_that_cannot_be_masked_is_drawn_again(made_tokenizer):
    cls, eos = made_tokenizer.cls_token_id, made_tokenizer.eos_token_id
    word = made_tokenizer("and", add_special_tokens=False).input_ids[0]
    no_sentence = [{"input_ids": [cls, *[word] * 30, eos]}]
    collator = BlankInfillingCollator(made_tokenizer, Recipe(token=0.1, sentence=0.9))
    with pytest.warns(UserWarning, match="sentence mode"):
        for number in range(20):
            ids = collator.collate(no_sentence, number)["input_ids"]
            assert (ids == collator.mask_ids["token"]).any()
    with pytest.raises(NothingToMask):
        collator.collate(no_sentence, 0, "sentence")


# --- The loss ------------------------------------------------------------------------------------


def test_one_step_gives_the_originals_loss_and_gradients(reference, repository):
    """Through the loss that computes logits at the targets only; without dropout, as there."""
    from goldens import PLAIN_IDS

    from glm_transformers import GLMForConditionalGeneration

    golden = load_file(reference / "goldens/tiny-fp32/train_step.safetensors")
    dropouts = dict(embedding_dropout_prob=0.0, attention_dropout_prob=0.0, output_dropout_prob=0.0)
    model = GLMForConditionalGeneration.from_pretrained(
        repository("tiny-fp32"), dtype=torch.float32, **PLAIN_IDS, **dropouts
    )
    labels = golden["labels"].masked_fill(golden["loss_mask"] == 0, -100)
    inputs = dict(
        input_ids=golden["input_ids"],
        attention_mask=golden["sep"],
        position_ids=golden["position_ids"],
    )
    loss = model.train()(**inputs, labels=labels).loss
    loss.backward()
    torch.testing.assert_close(loss.detach(), golden["loss"][0], atol=0, rtol=1e-5)
    for name, parameter in model.named_parameters():
        expected = golden[f"grad.{name.removeprefix('glm.')}"]  # all of it, or a corner
        part = parameter.grad[tuple(slice(size) for size in expected.shape)]
        assert (part - expected).norm() <= 1e-5 * expected.norm(), name
    # Divided by the targets of a whole step, the losses of its batches add up to the mean.
    parts = [
        model(
            **{n: t[i : i + 1] if len(t) > 1 else t for n, t in inputs.items()},
            labels=labels[i : i + 1],
            num_items_in_batch=(labels != -100).sum(),
        ).loss
        for i in range(len(labels))
    ]
    torch.testing.assert_close(sum(parts), loss)
