"""The tokenizer: the original's ids and text of every family, masks, model inputs, answers."""

import copy
import json
import random
import shutil
import sys
import unicodedata
from functools import cache

import numpy as np
import pytest
import sentencepiece
import torch
from made import make_vocabulary
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from glm_transformers import GLMTokenizerFast
from glm_transformers.conversion import ConversionError
from glm_transformers.conversion.tokenizers import build_tokenizer, find_vocabulary
from glm_transformers.hub_repository.repository import save_tokenizer
from glm_transformers.tokenization_glm import GLM_TOKENS

FAMILIES = {
    "gpt2_block": ("gpt2", False),
    "gpt2_block_taskmask": ("gpt2", True),
    "roberta_block": ("roberta", False),
    "roberta_block_taskmask": ("roberta", True),
    "bert_base_uncased_block": ("bert", False),
    "bert_large_uncased_block": ("bert", False),
    "bert_base_uncased_block_taskmask": ("bert", True),
    "chinese_sp_block": ("chinese", False),
    "chinese_sp_block_taskmask": ("chinese", True),
    "chinese_sp_block_taskmask_fix": ("chinese", True),
}
FINAL_SIGMA = "ς"


@pytest.fixture(scope="module")
def loaded(reference, tmp_path_factory):
    """`loaded(family, task_mask)`: the tokenizer of the original's vocabulary, saved and loaded.

    It went through its files, and through the library's own save.
    """

    @cache
    def load(family: str, task_mask: bool):
        folder = tmp_path_factory.mktemp(family)
        files = find_vocabulary(family, reference / "vocab")
        tokenizer = build_tokenizer(family, files, task_mask)
        save_tokenizer(tokenizer, folder, model_max_length=10_000)
        tokenizer = GLMTokenizerFast.from_pretrained(folder)
        tokenizer.save_pretrained(folder / "again")
        return GLMTokenizerFast.from_pretrained(folder / "again")

    return load


@pytest.mark.parametrize("setup", FAMILIES)
def test_ids_and_text_equal_the_original(reference, loaded, setup):
    family, task_mask = FAMILIES[setup]
    golden = json.loads((reference / f"tokenizers/{setup}.json").read_text())
    tokenizer = loaded(family, task_mask)
    # The converter gives glm-10b-chinese's [gMASK] the id 50009; in the original it shared 50007
    # with the end of piece.
    gmask = {50007: 50009} if setup == "chinese_sp_block_taskmask" else {}
    for case in golden["encode_cases"]:
        if not case["text"].strip() or (family == "bert" and FINAL_SIGMA in case["text"].lower()):
            continue  # accidents of the original, see docs/compatibility.md
        expected = (
            [gmask.get(id, id) for id in case["ids"]] if "[gMASK]" in case["text"] else case["ids"]
        )
        assert tokenizer(case["text"], add_special_tokens=False).input_ids == expected, case["text"]
    shared = (
        {2: ("<|endoftext|>", "[SEP]")} if family == "roberta" else {}
    )  # id: our surface, the original's
    if gmask:
        shared = {50007: ("<|endofpiece|>", "[gMASK]")}
    for case in golden["encode_cases"] + golden["decode_cases"]:
        text = tokenizer.decode(case["ids"])
        for id, (ours, theirs) in shared.items():
            if id in case["ids"]:
                text = text.replace(ours, theirs)
        assert text == case["decoded"], case["ids"]
    for token in golden["command_tokens"]:
        if token["surface"] not in [theirs for _, theirs in shared.values()]:
            assert tokenizer.convert_tokens_to_ids(token["surface"]) == token["id"], token


def test_random_chinese_text_equals_sentencepiece(reference, loaded):
    model = sentencepiece.SentencePieceProcessor(
        model_file=str(reference / "vocab/cog-pretrain.model")
    )
    tokenizer = loaded("chinese", True)
    generator = random.Random(1)
    alphabet = (
        "abcdefgh ABC ,.!?，。！？中国人民大学的一是在不了有和人<n>0123456789\u3000\t\n½①ﾊﾝ😀é—“”"
    )
    for _ in range(300):
        text = "".join(generator.choice(alphabet) for _ in range(generator.randint(1, 40)))
        ids = model.encode(text)
        assert tokenizer(text, add_special_tokens=False).input_ids == ids, repr(text)
        assert tokenizer.decode(ids) == model.decode(ids), repr(text)
    for text in ("ガンダムのパズル", "한국어 사람", "café", "\x85中国\x85", "  中国  "):
        decomposed = unicodedata.normalize("NFD", text)
        assert tokenizer(decomposed, add_special_tokens=False).input_ids == model.encode(
            decomposed
        ), ascii(decomposed)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    family = build_tokenizer(
        "gpt2", find_vocabulary("gpt2", make_vocabulary(folder)), task_mask=True
    )
    save_tokenizer(family, folder, model_max_length=64)
    return GLMTokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="module")
def plain_tokenizer(tmp_path_factory):
    folder = make_vocabulary(tmp_path_factory.mktemp("plain"), "bert")
    return build_tokenizer("bert", find_vocabulary("bert", folder), task_mask=False)


def test_special_tokens(tokenizer):
    assert tokenizer.sop_token == "<|startofpiece|>" and tokenizer.eop_token == "<|endofpiece|>"
    assert [
        tokenizer.mask_token_id,
        tokenizer.gmask_token_id,
        tokenizer.smask_token_id,
    ] == tokenizer.mask_token_ids
    assert tokenizer.continuation_mask == "[gMASK]"
    assert tokenizer.continuation_mask_id == tokenizer.gmask_token_id
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    named = {name: tokenizer.special_tokens_map[name] for name in GLM_TOKENS}
    assert named == GLM_TOKENS and set(named.values()) <= set(tokenizer.all_special_tokens)
    assert tokenizer.sop_token_id in tokenizer.all_special_ids


@pytest.mark.parametrize("saved_by", ["5", "4.57", "before", "list"])
def test_special_tokens_have_their_names_whoever_saved_them(tokenizer, tmp_path, saved_by):
    """Each version writes the names in a form of its own, and reads that of the others."""
    save_tokenizer(tokenizer, tmp_path, model_max_length=64)
    file = tmp_path / "tokenizer_config.json"
    config = json.loads(file.read_text())
    assert config.pop("extra_special_tokens") == GLM_TOKENS
    if saved_by == "5":
        config |= {"model_specific_special_tokens": GLM_TOKENS, "backend": "tokenizers"}
        config |= GLM_TOKENS
    elif saved_by == "4.57":
        added = tokenizer.added_tokens_decoder.items()
        config["added_tokens_decoder"] = {id: token.__getstate__() for id, token in added}
        config |= {"extra_special_tokens": {}, **GLM_TOKENS}
    elif saved_by == "list":  # 5, after a user added tokens without names
        config |= {"extra_special_tokens": ["[SEP]"], **GLM_TOKENS}
    file.write_text(json.dumps(config))
    for folder in (tmp_path, tmp_path / "again"):
        loaded = GLMTokenizerFast.from_pretrained(folder)
        for name, token in GLM_TOKENS.items():
            assert getattr(loaded, name) == token == loaded.special_tokens_map[name]
            assert getattr(loaded, f"{name}_id") == tokenizer.convert_tokens_to_ids(token)
        assert loaded.get_added_vocab() == tokenizer.get_added_vocab()
        loaded.save_pretrained(tmp_path / "again")


def test_the_library_alone_knows_the_special_tokens(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path, model_max_length=64)
    plain = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert plain.sop_token_id == tokenizer.sop_token_id
    assert plain.gmask_token == tokenizer.gmask_token


def test_a_mask_the_model_was_not_trained_with_is_text_and_asking_for_it_an_error(plain_tokenizer):
    assert plain_tokenizer.mask_token_ids == [plain_tokenizer.mask_token_id]
    assert plain_tokenizer.continuation_mask == "[MASK]"
    assert plain_tokenizer.continuation_mask_id == plain_tokenizer.mask_token_id
    assert not hasattr(plain_tokenizer, "gmask_token_id")
    with pytest.raises(
        AttributeError, match=r"has no \[gMASK\]; the masks it was trained with: \[MASK\]"
    ):
        _ = plain_tokenizer.gmask_token_id
    assert plain_tokenizer("[gMASK]").input_ids[-1] == plain_tokenizer.eos_token_id


def test_context_and_its_end(tokenizer):
    cls, eos, gmask = tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.gmask_token_id
    for text, ending in {
        "located in [MASK]": [tokenizer.mask_token_id, eos],
        "located in [sMASK]": [tokenizer.smask_token_id, eos],
        "located in [gMASK]": [gmask],
        "[gMASK]": [cls, gmask],
        "[gMASK] is located": [eos],
    }.items():
        ids = tokenizer(text).input_ids
        assert ids[0] == cls and ids[-len(ending) :] == ending, text
        assert tokenizer([text]).input_ids == [ids] and tokenizer.encode(text) == ids
        assert tokenizer(text, return_tensors="pt").input_ids.tolist() == [ids]
    assert tokenizer("located in [gMASK] ").input_ids[-1] == eos, (
        "a space behind it brings the end of text back"
    )
    assert tokenizer("[gMASK]", add_special_tokens=False).input_ids == [gmask]


@pytest.mark.parametrize("texts", [["Ng is [MASK]."], ["Go on [gMASK]"], ["One.", "Two [gMASK]"]])
def test_ids_without_special_tokens_get_those_of_their_text(tokenizer, texts):
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    assert tokenizer.build_inputs_with_special_tokens(*ids) == tokenizer(*texts).input_ids
    if hasattr(tokenizer, "prepare_for_model"):
        assert tokenizer.prepare_for_model(*ids).input_ids == tokenizer(*texts).input_ids


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_are_padded_rows(tokenizer, side):
    texts = [
        "located in [gMASK]",
        "Ng is an adjunct professor at [MASK] (formerly [sMASK])",
        "[gMASK]",
        "[MASK] in Beijing",
    ]
    tokenizer.padding_side = side
    try:
        batch = tokenizer(texts, padding=True, return_tensors="pt")
    finally:
        tokenizer.padding_side = "left"
    for text, ids, mask in zip(texts, batch.input_ids, batch.attention_mask.bool(), strict=True):
        single = tokenizer(text)
        assert ids[mask].tolist() == single.input_ids and sum(single.attention_mask) == int(
            mask.sum()
        )
        assert (mask.diff().int() != 0).sum() <= 1 and bool(mask[-1 if side == "left" else 0])
    longest = tokenizer(texts, padding="max_length", max_length=48, return_tensors="pt").input_ids
    assert longest.shape == (4, 48)


def test_masks_swallow_the_space_on_their_left_only(tokenizer):
    assert (
        tokenizer("in [MASK] b").input_ids
        == tokenizer("in[MASK] b").input_ids
        != tokenizer("in[MASK]b").input_ids
    )
    assert tokenizer("in \n\u3000[MASK]").input_ids == tokenizer("in[MASK]").input_ids


@pytest.mark.parametrize("family", ["gpt2", "roberta", "bert", "chinese"])
def test_what_python_takes_for_white_space_is_swallowed(loaded, family):
    """The original strips a text before a mask by `str.rstrip`, control characters included."""
    tokenizer = loaded(family, True)
    characters = [chr(code) for code in range(sys.maxunicode + 1) if chr(code).isspace()]
    assert "\x1c" in characters and "\x85" in characters and "\u3000" in characters
    for mask in ("[MASK]", "[gMASK]", "[sMASK]"):
        expected = tokenizer(f"in the{mask} b").input_ids
        for spaces in (*characters, "\x1f ", " \x1c", "\n\x1d \x1e\t", "\x1c" * 3):
            text = f"in the{spaces}{mask} b"
            encoded = tokenizer(text)
            assert encoded.input_ids == expected, ascii(text)
            (end,) = (
                end
                for id, (_, end) in zip(
                    encoded.input_ids, encoded.encodings[0].offsets, strict=True
                )
                if id == tokenizer.convert_tokens_to_ids(mask)
            )
            assert end == len(text) - 2
    # Other tokens swallow none, and behind a mask it stays.
    if family in ("gpt2", "roberta"):
        for text in ("a\x1c[CLS]", "a [MASK]\x1c", "a\x1cb [MASK]"):
            kept = tokenizer(text).input_ids
            assert kept != tokenizer(text.replace("\x1c", "")).input_ids, ascii(text)


def test_truncation_never_cuts_a_mask_away(tokenizer):
    text = "[MASK] is located in Beijing. The quick brown fox jumps over the lazy dog."
    cut = tokenizer(text, truncation=True, max_length=8).input_ids
    assert len(cut) == 8 and tokenizer.mask_token_id in cut and cut[-1] == tokenizer.eos_token_id
    with pytest.raises(ValueError, match="Truncation would cut a mask away"):
        tokenizer("The quick brown fox jumps over the lazy [MASK]", truncation=True, max_length=8)
    with pytest.raises(ValueError, match="Truncation would cut a mask away"):
        tokenizer(
            ["[MASK]", "The quick brown fox jumps over [gMASK]"], truncation=True, max_length=8
        )
    tokenizer.truncation_side = "left"
    try:
        with pytest.raises(ValueError, match="Truncation would cut a mask away"):
            tokenizer(text, truncation=True, max_length=8)
        kept = tokenizer(
            "The quick brown fox jumps over the lazy [gMASK]", truncation=True, max_length=8
        ).input_ids
        assert kept[-1] == tokenizer.gmask_token_id and kept[0] == tokenizer.cls_token_id
    finally:
        tokenizer.truncation_side = "right"


def test_truncation_of_pairs_and_windows(tokenizer):
    """An error only if the mask is gone: what overflows of a pair, or with a stride, repeats."""
    blank, other = "is [MASK] the dog", "The quick brown fox jumps over the lazy dog"
    whole = len(tokenizer(blank, other).input_ids)
    for pair in [(blank, other), ([blank], [other])]:
        kept = tokenizer(*pair, truncation="only_second", max_length=whole - 3).input_ids
        assert len(kept[0] if isinstance(pair[0], list) else kept) == whole - 3
    for pair in [(other + blank, other), ([other + blank], [other])]:
        with pytest.raises(ValueError, match="Truncation would cut a mask away"):
            tokenizer(
                *pair, truncation="only_first", max_length=len(tokenizer(other).input_ids) + 5
            )
    assert (
        tokenizer.mask_token_id
        in tokenizer(blank + other, truncation=True, max_length=8, stride=4).input_ids
    )
    text = f"The quick brown fox jumps over the lazy dog {blank} [gMASK]"
    windows = tokenizer(
        [text, "in [gMASK]"], truncation=True, max_length=8, return_overflowing_tokens=True
    )
    ends = {
        row[-1]
        for row, text in zip(windows.input_ids, windows.overflow_to_sample_mapping, strict=True)
        if text == 0
    }
    assert ends == {tokenizer.eos_token_id, tokenizer.gmask_token_id}, (
        "nothing is cut away, only the last is continued"
    )
    assert windows.input_ids[-1] == tokenizer("in [gMASK]").input_ids
    single = tokenizer(text, truncation=True, max_length=8, return_overflowing_tokens=True)
    assert single.input_ids == windows.input_ids[:-1]


def test_words_are_a_text(tokenizer):
    words = ["in", " Beijing", " [gMASK]"]
    ids = tokenizer("in Beijing [gMASK]").input_ids
    assert tokenizer(words, is_split_into_words=True).input_ids == ids
    assert tokenizer([words, ["in"]], is_split_into_words=True).input_ids[0] == ids


# --- Encodings: a text to be continued loses nothing but its end ----------------------------------

CONTINUED = "The quick brown fox \n jumps [gMASK]"
ENCODING_OPTIONS = [
    {},
    dict(return_tensors="pt"),
    dict(return_tensors="np", padding=True),
    dict(return_length=True, return_special_tokens_mask=True, return_token_type_ids=True),
    dict(return_offsets_mapping=True, return_attention_mask=False),
    dict(padding="max_length", max_length=40, return_offsets_mapping=True, return_length=True),
    dict(padding=True, pad_to_multiple_of=8, return_special_tokens_mask=True),
    dict(padding=True, pad_to_multiple_of=8, padding_side="right", return_tensors="pt"),
    dict(truncation=True, max_length=30),
]


def described(encoded):
    """Everything that an encoded text or batch tells."""
    data = {
        name: (type(value), np.asarray(value).tolist() if not isinstance(value, list) else value)
        for name, value in encoded.items()
    }
    rows = [
        (
            encoding.ids,
            encoding.tokens,
            encoding.type_ids,
            encoding.attention_mask,
            encoding.special_tokens_mask,
            encoding.offsets,
            encoding.word_ids,
            encoding.sequence_ids,
            encoding.n_sequences,
            [encoding.char_to_token(character) for character in range(40)],
            [encoding.token_to_chars(token) for token in range(len(encoding))],
            len(encoding.overflowing),
        )
        for encoding in encoded.encodings
    ]
    return type(encoded), encoded.is_fast, data, rows


@pytest.fixture(scope="module")
def without_end(tokenizer):
    """The library's own tokenizer on the same file, which puts no end behind any text."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    cls = ("[CLS]", tokenizer.cls_token_id)
    backend.post_processor = processors.TemplateProcessing("[CLS] $A", special_tokens=[cls])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|endoftext|>",
        padding_side="left",
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
    )


@pytest.mark.parametrize("options", ENCODING_OPTIONS, ids=str)
def test_a_continued_text_has_the_encoding_of_the_library(tokenizer, without_end, options):
    for texts in (CONTINUED, [CONTINUED], [CONTINUED, "[gMASK]", "in [MASK] [gMASK]"]):
        if len(texts) == 3 and "return_tensors" in options and "padding" not in options:
            continue  # rows of unequal length are no tensor
        assert described(tokenizer(texts, **options)) == described(without_end(texts, **options))
    words = [["in", " Beijing", " [gMASK]"], ["[gMASK]"]]
    options = {**options, "padding": options.get("padding", True), "is_split_into_words": True}
    assert described(tokenizer(words, **options)) == described(without_end(words, **options))


@pytest.mark.parametrize("options", ENCODING_OPTIONS, ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_of_both_ends_is_that_of_its_rows(tokenizer, options, side):
    """Fields, types and encodings as if each row had been encoded alone and padded."""
    texts = [CONTINUED, "The quick brown fox jumps in [MASK].", "[gMASK]"]
    options = {"padding": True, **options, "padding_side": options.get("padding_side", side)}
    batch = tokenizer(texts, **options)
    alone = [tokenizer(text, return_length=True).length[0] for text in texts]
    length = max(40 if options["padding"] == "max_length" else 0, *alone)
    length += -length % options.get("pad_to_multiple_of", 1)
    single = {**options, "padding": "max_length", "max_length": length, "return_tensors": None}
    for row, text in enumerate(texts):
        data = tokenizer(text, **single)
        assert set(data) == set(batch)
        for name, value in data.items():
            value = value if name != "length" else value[0]
            assert np.asarray(batch[name][row]).tolist() == np.asarray(value).tolist(), name
        expected = described(data)[3][0]
        assert described(batch)[3][row] == expected
    closed = tokenizer([text.replace("gM", "M") for text in texts], **options)
    assert {name: type(value) for name, value in batch.items()} == {
        name: type(value) for name, value in closed.items()
    }
    assert batch.is_fast


def test_a_continued_text_that_fits_is_not_cut(tokenizer):
    ids = tokenizer(CONTINUED).input_ids
    for texts in (CONTINUED, [CONTINUED, "in [MASK]"]):
        cut = tokenizer(texts, truncation=True, max_length=len(ids)).input_ids
        assert (cut[0] if isinstance(texts, list) else cut) == ids
        windows = tokenizer(
            texts, truncation=True, max_length=len(ids), return_overflowing_tokens=True
        )
        assert windows.input_ids[0] == ids
        with pytest.raises(ValueError, match="Truncation would cut a mask away"):
            tokenizer(texts, truncation=True, max_length=len(ids) - 1)
    tokenizer.truncation_side = "left"
    try:
        for texts in ([CONTINUED], [CONTINUED, "in [MASK]"]):
            cut = tokenizer(texts, truncation=True, max_length=len(ids) - 1).input_ids[0]
            assert cut == [ids[0], *ids[2:]], "no room is lost to an end that is not there"
    finally:
        tokenizer.truncation_side = "right"


def test_windows_of_a_batch_with_a_continued_text(tokenizer):
    texts = [CONTINUED, "The quick brown fox [MASK]"]
    options = dict(truncation=True, max_length=8, stride=2, return_overflowing_tokens=True)
    both = tokenizer(texts, padding=True, return_offsets_mapping=True, **options)
    last = both.overflow_to_sample_mapping.index(1) - 1
    assert both.input_ids[last][-1] == tokenizer.gmask_token_id
    assert [len(row) for row in both.input_ids] == [8] * len(both.input_ids)
    assert [row[-1] for row in both.input_ids[:last]] == [tokenizer.eos_token_id] * last
    offsets = [encoding.offsets for encoding in both.encodings]
    assert both.offset_mapping == offsets and offsets[last][-1][1] == len(CONTINUED)
    alone = tokenizer(texts[1], **options).input_ids
    assert both.input_ids[last + 1 :] == [
        [tokenizer.pad_token_id] * (8 - len(row)) + row for row in alone
    ]
    with pytest.raises(ValueError, match="raise max_length or lower stride"):
        tokenizer(texts, truncation=True, max_length=5, stride=4, return_overflowing_tokens=True)


def test_another_end_of_text_does_not_move_the_rule(tokenizer):
    """What stands behind a text is the post-processor's, whatever `eos_token` is called."""
    ids, closed = tokenizer(CONTINUED).input_ids, tokenizer("in [MASK]").input_ids
    other = copy.deepcopy(tokenizer)
    other.eos_token = "[SEP]"
    assert other(CONTINUED).input_ids == ids
    assert other([CONTINUED, "in [MASK]"]).input_ids == [ids, closed]


def test_a_continued_text_with_tokens_that_were_added(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["Tsinghua", "jumps"])
    ids = other(CONTINUED).input_ids
    assert other.convert_tokens_to_ids("jumps") in ids and ids[-1] == other.gmask_token_id
    assert other([CONTINUED, "[MASK]"]).input_ids[0] == ids
    assert other("jumps [gMASK]", split_special_tokens=True).input_ids[-1] == other.eos_token_id


def test_no_warning_for_a_continued_text(tokenizer, caplog):
    import transformers

    logger = transformers.utils.logging.get_logger("transformers")
    logger.addHandler(caplog.handler)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.deprecation_warnings = {}  # the library warns once
    try:
        tokenizer([CONTINUED, "in [MASK]"], padding=True, return_tensors="pt")
        assert not caplog.records
        tokenizer([CONTINUED * 20, "in [MASK]"])
        assert "Token indices sequence length is longer" in caplog.text
    finally:
        logger.removeHandler(caplog.handler)


# --- Model inputs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_build_inputs_for_generation(tokenizer, side):
    tokenizer.padding_side = side
    try:
        inputs = tokenizer(
            ["in [MASK] is [sMASK]", "The quick brown fox [MASK]"],
            padding=True,
            return_tensors="pt",
        )
    finally:
        tokenizer.padding_side = "left"
    context, real = inputs.input_ids, inputs.attention_mask
    width = context.shape[1]
    started = tokenizer.build_inputs_for_generation(inputs, max_gen_length=5)
    assert started.input_ids.tolist() == [
        [*row, tokenizer.sop_token_id] for row in context.tolist()
    ]
    assert started.position_ids.shape == (2, 2, width + 5)
    assert started.generation_attention_mask.shape == (2, 1, width + 5, width + 5)
    for row in range(2):
        mask_column = int((context[row] == tokenizer.mask_token_id).nonzero()[0])
        position = int(real[row, :mask_column].sum())
        assert started.position_ids[row, 0, width:].tolist() == [position] * 5
        assert started.position_ids[row, 1].tolist() == [0] * width + [1, 2, 3, 4, 5]
        assert started.position_ids[row, 0, :width][real[row].bool()].tolist() == list(
            range(int(real[row].sum()))
        )
        visible = started.generation_attention_mask[row, 0]
        assert torch.equal(visible[:, :width], real[row].expand(width + 5, -1))
        assert (
            torch.equal(visible[width:, width:], torch.ones(5, 5).tril().long())
            and not visible[:width, width:].any()
        )


def test_build_inputs_for_generation_with_targets(tokenizer):
    inputs = tokenizer(
        ["in [MASK] is [sMASK]", "The fox [MASK]"], padding=True, return_tensors="pt"
    )
    width = inputs.input_ids.shape[1]
    first, second, third = (
        tokenizer(text, add_special_tokens=False).input_ids
        for text in (" Beijing", " the fox", " jumps")
    )
    sop, eop = tokenizer.sop_token_id, tokenizer.eop_token_id
    batch = tokenizer.build_inputs_for_generation(inputs, targets=[["Beijing", "the fox"], "jumps"])
    assert tokenizer.decode(first) == " Beijing", "the space that the mask swallowed"
    read = [sop, *first, sop, *second]
    assert batch.input_ids[0, width:].tolist() == read
    assert batch.labels[0].tolist() == [-100] * width + [*first, eop, *second, eop]
    assert batch.labels[1].tolist() == [-100] * width + [*third, eop] + [-100] * (
        len(read) - len(third) - 1
    )
    blocks = list(range(1, len(first) + 2)) + list(range(1, len(second) + 2))
    assert batch.position_ids[0, 1, width:].tolist() == blocks
    assert len(set(batch.position_ids[0, 0, width : width + len(first) + 1].tolist())) == 1
    assert batch.attention_mask.shape == (2, 1, width + len(read), width + len(read))
    single = tokenizer.build_inputs_for_generation(
        tokenizer("The fox [MASK]", return_tensors="pt"), targets="jumps"
    )
    assert single.labels[0, -len(third) - 1 :].tolist() == [*third, eop]
    cut = tokenizer.build_inputs_for_generation(
        inputs, targets=["Beijing", "jumps"], max_gen_length=1
    )
    assert cut.labels[:, width:].tolist() == [first[:1], third[:1]], "a cut answer has no end"
    wide = tokenizer.build_inputs_for_generation(
        inputs, targets=["Beijing", "jumps"], max_gen_length=30, padding=True
    )
    assert wide.input_ids.shape[1] == width + 30


def test_answers_without_masks(tokenizer):
    inputs = tokenizer(["no mask here"], return_tensors="pt")
    with pytest.raises(ValueError, match="A text has no mask"):
        tokenizer.build_inputs_for_generation(inputs)
    inputs = tokenizer(["one [MASK]"], return_tensors="pt")
    with pytest.raises(ValueError, match="1 masks and 2 answers"):
        tokenizer.build_inputs_for_generation(inputs, targets=[["a", "b"]])
    with pytest.raises(ValueError, match="2 targets for 1 texts"):
        tokenizer.build_inputs_for_generation(inputs, targets=["a", "b"])
    with pytest.raises(ValueError, match="2 lists of choices for 1 texts"):
        tokenizer.build_inputs_for_multiple_choice(inputs, [["a"], ["b"]])
    with pytest.raises(ValueError, match="no choices or an empty one"):
        tokenizer.build_inputs_for_multiple_choice(inputs, [["a", ""]])


def test_build_inputs_for_multiple_choice(tokenizer):
    texts = ["in [MASK] is [MASK]", "The quick brown fox jumps over [MASK]"]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    choices = [["Beijing", "the fox"], ["a", "the lazy dog", "it"]]
    built = tokenizer.build_inputs_for_multiple_choice(inputs, choices)
    _, length = built.input_ids.shape
    assert built.position_ids.shape == (2, 2, length) and built.attention_mask.shape == (
        2,
        1,
        length,
        length,
    )
    for row in range(2):
        width = inputs.input_ids.shape[1]
        last_mask = int((inputs.input_ids[row] == tokenizer.mask_token_id).nonzero()[-1])
        position = int(inputs.attention_mask[row, :last_mask].sum())
        for text, ids, columns in zip(
            choices[row], built.choice_ids[row], built.choice_indices[row], strict=True
        ):
            assert ids.tolist() == tokenizer(text, add_special_tokens=False).input_ids
            assert built.input_ids[row, columns].tolist() == [
                tokenizer.sop_token_id,
                *ids[:-1].tolist(),
            ]
            assert set(built.position_ids[row, 0, columns].tolist()) == {position}
            assert built.position_ids[row, 1, columns].tolist() == list(range(1, len(ids) + 1))
            visible = built.attention_mask[row, 0, columns]
            assert torch.equal(visible[:, :width], inputs.attention_mask[row].expand(len(ids), -1))
            assert torch.equal(visible[:, columns], torch.ones(len(ids), len(ids)).tril().long())
            assert visible[:, width:].sum() == visible[:, columns].sum(), (
                "a choice does not see the others"
            )


def test_decode_pieces(tokenizer):
    sop, eop, eos, mask = (
        tokenizer.sop_token_id,
        tokenizer.eop_token_id,
        tokenizer.eos_token_id,
        tokenizer.mask_token_id,
    )
    word = lambda text: tokenizer(text, add_special_tokens=False).input_ids  # noqa: E731
    context = tokenizer("in [MASK] is [MASK]").input_ids
    rows = {
        (*context, sop, *word(" Beijing"), eop, *word(" the fox"), eop): ["Beijing", "the fox"],
        (*context, sop, *word(" Beijing"), eos, *word(" the fox"), eos, eos, eos): [
            "Beijing",
            "the fox",
        ],
        (eos, eos, *context, sop, eop, *word("dog")): ["", "dog"],
        (*context, sop, *word("dog"), eop): ["dog", ""],
        (*context, sop): ["", ""],
        (*context, sop, eop, eop, eos): ["", ""],
    }
    for row, expected in rows.items():
        assert tokenizer.decode_pieces([list(row)]) == [expected]
        assert (
            tokenizer.decode_pieces(torch.tensor(row))
            == tokenizer.decode_pieces(np.array(row))
            == [expected]
        )
    longest = max(map(len, rows))
    batch = torch.tensor([[eos] * (longest - len(row)) + list(row) for row in rows])
    assert tokenizer.decode_pieces(batch) == list(rows.values())
    assert mask in context


def test_decode_pieces_of_any_kind_of_rows(tokenizer):
    context = tokenizer("in [MASK] is [MASK]").input_ids
    word = tokenizer(" Beijing", add_special_tokens=False).input_ids
    row = torch.tensor([*context, tokenizer.sop_token_id, *word])
    for rows in (row, [row], [row.numpy()], [row.tolist()], row.tolist(), list(row.numpy())):
        assert tokenizer.decode_pieces(rows) == [["Beijing", ""]]


def test_decode_pieces_of_what_trainers_pad(tokenizer):
    """Negative ids do not count, padding in front of an answer is no answer."""
    sop, eop, pad = tokenizer.sop_token_id, tokenizer.eop_token_id, tokenizer.pad_token_id
    context = tokenizer("in [MASK] is [MASK]").input_ids
    first, second = (
        tokenizer(text, add_special_tokens=False).input_ids for text in (" Beijing", " the fox")
    )
    answers = [*first, eop, *second, eop]
    for row in (
        [*context, sop, *answers, -100, -100],
        [-100, -100, *context, sop, *answers],
        [-100] * len(context) + answers + [-100],  # labels
        [pad, pad, *answers],
        [pad, *answers[:-1], pad, pad],
    ):
        assert tokenizer.decode_pieces([row]) == [["Beijing", "the fox"]], row
        assert tokenizer.decode_pieces(np.array([row])) == [["Beijing", "the fox"]]
    assert tokenizer.decode_pieces([[eop, *second, eop]]) == [["", "the fox"]]
    assert tokenizer.decode_pieces([[-100, -100]]) == [[]]
    assert tokenizer.decode_pieces([]) == []


@pytest.mark.parametrize(
    "text, pieces, filled",
    [
        ("Ng is at [MASK].", ["Stanford"], "Ng is at Stanford."),
        ("Ng is at[MASK].", [" Stanford"], "Ng is at Stanford."),
        ("[MASK] is in [MASK] now", ["It", "Rome"], "It is in Rome now"),
        ("a [MASK] b", [""], "a b"),
        ("It is [MASK].", [""], "It is."),
        ("It is [gMASK]", [""], "It is"),
        ("We met [MASK] then", [", and talked,"], "We met, and talked, then"),
        ('He said "[MASK]"', ["yes"], 'He said "yes"'),
        ("[MASK]word", ["in"], "in word"),
        ("one [sMASK] two [gMASK]", ["A b.", "and so on"], "one A b. two and so on"),
        ("问题：冬天去哪里？回答： [gMASK]", ["海南。"], "问题：冬天去哪里？回答：海南。"),
        ("为纪念[MASK]而建", ["拿破仑"], "为纪念拿破仑而建"),
        ("서울은 [MASK] 이다", ["도시"], "서울은 도시 이다"),
        ("서울[MASK] 도시", ["은"], "서울은 도시"),
        ("He said, [MASK] and left", ["'yes'"], "He said, 'yes' and left"),
        ("We [MASK] go", ["'ll"], "We'll go"),
        ("a [MASK] b [MASK] c", ["x"], "a x b [MASK] c"),
        ("line\n[MASK]", ["next"], "line\nnext"),
    ],
)
def test_fill(tokenizer, text, pieces, filled):
    assert tokenizer.fill(text, pieces) == filled


def test_fill_with_too_many_pieces(tokenizer):
    with pytest.raises(ValueError, match="2 pieces for 1 masks"):
        tokenizer.fill("a [MASK]", ["b", "c"])


@pytest.mark.parametrize("family", ["gpt2", "roberta", "bert", "chinese"])
def test_a_vocabulary_trained_anew(loaded, family):
    """What the tokenizer adds to a text and the names of its tokens stay; tokens can be renamed."""
    tokenizer = loaded(family, True)
    corpus = ["The answer is in the text of the article.", "There are many articles."] * 5
    new = tokenizer.train_new_from_iterator(corpus, 300)
    text = "the article of [MASK]"
    assert (
        len(new) < 400
        and new.special_tokens_map == tokenizer.special_tokens_map
        and new.masks == tokenizer.masks
    )
    assert new.decode(new(text).input_ids) == tokenizer.decode(tokenizer(text).input_ids)
    renamed = tokenizer.train_new_from_iterator(
        corpus, 300, special_tokens_map={"[UNK]": "[unknown]"}
    )
    assert (
        renamed.unk_token == "[unknown]"
        and renamed.convert_tokens_to_ids("[unknown]") == renamed.unk_token_id
    )


def test_a_space_in_front_of_each_text(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path, model_max_length=64)
    spaced = GLMTokenizerFast.from_pretrained(tmp_path, add_prefix_space=True)
    assert spaced.add_prefix_space and not tokenizer.add_prefix_space
    assert (
        spaced.tokenize("Stanford")
        == tokenizer.tokenize(" Stanford")
        != tokenizer.tokenize("Stanford")
    )
    spaced.save_pretrained(tmp_path / "again")
    again = GLMTokenizerFast.from_pretrained(tmp_path / "again")
    assert again.tokenize("Stanford") == spaced.tokenize("Stanford")


def test_vocabulary_files(tmp_path):
    folder = make_vocabulary(tmp_path / "vocabulary")
    assert find_vocabulary("gpt2", folder / "merges.txt") == [
        folder / "vocab.json",
        folder / "merges.txt",
    ]
    (folder / "merges.txt").unlink()
    with pytest.raises(ConversionError, match=r"holds no gpt2-merges.txt or merges.txt"):
        find_vocabulary("gpt2", folder)
    (tmp_path / "cog-pretrain.model").write_bytes(b"\x0a\xff\xff")
    with pytest.raises(ConversionError, match="is not a chinese vocabulary"):
        build_tokenizer("chinese", find_vocabulary("chinese", tmp_path), True)


def test_saved_tokenizer_loads_through_auto_in_a_fresh_process(tokenizer, stranger, tmp_path):
    """From the files of the converter, and from what the library saves again."""
    import glm_transformers.tokenization_glm as module

    for source in ("converter", "library"):
        folder = tmp_path / source
        if source == "converter":
            folder.mkdir()
            save_tokenizer(tokenizer, folder, 64)
            shutil.copy(module.__file__, folder)
        else:
            program = (
                "import sys; from transformers import AutoTokenizer as A\n"
                "tokenizer = A.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
                "tokenizer.save_pretrained(sys.argv[2])"
            )
            stranger.output(program, tmp_path / "converter", folder, folder=tmp_path)
        program = (
            "import sys; from transformers import AutoTokenizer\n"
            "t = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
            "print(type(t).__name__, t('in [gMASK]').input_ids)\n"
            "print(t.padding_side, t.gmask_token_id, t.pad_token_id)"
        )
        printed = stranger.output(program, folder, folder=tmp_path)
        assert printed.strip().splitlines()[-2:] == [
            f"GLMTokenizerFast {tokenizer('in [gMASK]').input_ids}",
            f"left {tokenizer.gmask_token_id} {tokenizer.pad_token_id}",
        ]
