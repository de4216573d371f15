"""Texts for pretraining: documents are read, turned into ids, packed to the length of training.

Every step is a `map` of the `datasets` library: cached on disk and shown with a progress bar, or
lazy when streaming.
"""

import math
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from datasets import Dataset, IterableDataset, load_dataset

from .. import tokenization_glm
from ..tokenization_glm import GLMTokenizerFast
from . import blank_infilling
from .blank_infilling import SHORTEST_TEXT, sentence_end_table

FORMATS = {".txt": "text", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
# Documents that can meet in one sample; as many as `map` reads at a time.
DOCUMENTS_AT_ONCE = 1000
# How often the text is read at most for the packed samples on disk. Each document is drawn at
# random, so after this many passes the chance that one was never drawn is exp(-10).
MOST_PASSES = 10
NO_TEXT = "The documents hold no text; check the data."


def code_digest() -> str:
    """Of what makes samples of texts: `datasets` caches by a function's name, not by its code."""
    files = (__file__, blank_infilling.__file__, tokenization_glm.__file__)
    return sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()


def load_documents(
    source: str | Path,
    streaming: bool = False,
    split: str = "train",
) -> Dataset | IterableDataset:
    """Documents in the column `text`.

    Args:
        source: a text file with a document on each line, a JSON lines or parquet file with a column
            `text`, a folder of such files, or the name of a dataset on the Hub.
        streaming: read while training instead of copying to the cache.
        split: the part of a Hub dataset.

    Raises:
        ValueError: for a file or folder of another kind, empty files, data that cannot be read, and
            data without a column `text`.
    """
    path = Path(source)
    if path.exists():
        files = find_files(path)
        name, split = FORMATS[files[0].suffix], "train"
        data_files = [str(file) for file in files]
        problem = "cannot be read"
    else:
        name, data_files = str(source), None
        problem = "is neither a file or folder nor a dataset that the Hub gives"
    try:
        documents = load_dataset(name, data_files=data_files, split=split, streaming=streaming)
    except Exception as error:  # the library has a dozen kinds; the first cause says what it is
        raise ValueError(f"{source} {problem}: {error.__cause__ or error}") from error
    columns = documents.column_names
    if columns is not None and "text" not in columns:
        names = ", ".join(columns)
        raise ValueError(f"{source} has the columns {names}; name the one with the documents text.")
    return documents


def find_files(path: Path) -> list[Path]:
    """The files of a source that hold something, all of one kind.

    Raises:
        ValueError: if there are none, or if they are of several kinds.
    """
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    files = [file for file in files if file.suffix in FORMATS]
    if len({FORMATS[file.suffix] for file in files}) != 1:
        endings = ", ".join(FORMATS)
        raise ValueError(f"{path} must be files of one kind, with the ending {endings}.")
    files = [file for file in files if file.stat().st_size]
    if not files:
        raise ValueError(f"{path} is empty; write documents into it.")
    return files


def pack_documents(
    documents: Dataset | IterableDataset,
    tokenizer,
    length: int,
    wanted: int | None = None,
    one_document: bool = False,
    seed: int = 0,
) -> Dataset | IterableDataset:
    """Samples of at most `length` tokens, as `BlankInfillingCollator` takes them.

    A document is drawn with a probability that grows with its length; `[CLS]` document
    `<|endoftext|>` follow each other until the sample is full. A document that is too long starts
    at a random place, moved to the nearest sentence start, and ends with a sentence, unless that
    would cost half of the room. A document that was cut at its right has no `<|endoftext|>`, and
    ends its sample.

    Args:
        documents: with a column `text`.
        wanted: samples that training will read. The text is gone through as often as that takes, at
            most 10 times.
        one_document: one document in each sample; those of a single token are left out.

    Raises:
        ValueError: if the documents hold no text.
    """
    shown = isinstance(documents, Dataset)
    tokens = documents.select_columns("text").map(  # a stream may not know which columns it has
        Encoding(tokenizer, code_digest()),
        batched=True,
        remove_columns=["text"],
        **({"desc": "Encoding"} if shown else {}),
    )
    packing = Packing(
        length=length,
        passes=count_passes(tokens, length, wanted),
        one_document=one_document,
        seed=seed,
        cls_id=tokenizer.cls_token_id,
        eos_id=tokenizer.eos_token_id,
        ends_sentence=sentence_end_table(tokenizer),
    )
    packed = tokens.map(
        packing,
        batched=True,
        with_indices=True,
        batch_size=DOCUMENTS_AT_ONCE,
        remove_columns=["input_ids"],
        **({"desc": "Packing"} if shown else {}),
    )
    if isinstance(packed, Dataset) and len(packed) == 0:
        raise ValueError("The documents hold no text of two tokens; check the data.")
    return packed


def count_passes(tokens: Dataset | IterableDataset, length: int, wanted: int | None) -> int:
    """How often the text must be gone through for the samples that are wanted; a stream, once.

    Raises:
        ValueError: if there are no tokens.
    """
    if not isinstance(tokens, Dataset):
        return 1
    total = sum(len(ids) for batch in tokens.iter(1000) for ids in batch["input_ids"])
    if total == 0:
        raise ValueError(NO_TEXT)
    if wanted is None:
        return 1
    return min(MOST_PASSES, max(1, math.ceil(wanted * length / total)))


@dataclass(frozen=True)
class Encoding:
    """Texts to ids, without those that every sample gets: what `map` calls.

    code: `code_digest`, so that other code does not find the cache of this, nor what is made of it.
    """

    tokenizer: GLMTokenizerFast
    code: str

    def __call__(self, batch: dict) -> dict:
        texts = ["" if text is None else text for text in batch["text"]]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(
                "The column text of the data holds something else than texts; check the data."
            )
        ids = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False).input_ids
        # The original has no ids for a blank line.
        documents = [ids for text, ids in zip(texts, ids, strict=True) if text.strip()]
        return {"input_ids": documents}


@dataclass(frozen=True)
class Packing:
    """Documents to samples: what `map` calls, and by whose fields it finds its cache."""

    length: int
    passes: int
    one_document: bool
    seed: int
    cls_id: int
    eos_id: int
    ends_sentence: np.ndarray  # (V,)

    def __call__(self, batch: dict, indices: list[int]) -> dict:
        documents = [np.asarray(ids) for ids in batch["input_ids"]]
        ends = np.cumsum([len(document) for document in documents])
        random = np.random.default_rng([self.seed, indices[0]])
        samples, packed = [], 0
        while packed < self.passes * ends[-1]:
            sample = self.fill(documents, ends, random)
            if len(sample) >= SHORTEST_TEXT:
                samples.append(sample)
            packed += len(sample)
        return {"input_ids": samples}

    def fill(self, documents: list[np.ndarray], ends: np.ndarray, random) -> list[int]:
        """One sample; `ends` is where each document ends when all are put in a row."""
        sample: list[int] = []
        complete = True
        while complete and self.length - len(sample) > 2 and not (self.one_document and sample):
            token = random.integers(ends[-1])
            document = documents[np.searchsorted(ends, token, side="right")]
            ids, complete = self.fit(document, self.length - len(sample) - 1, random)
            sample += [self.cls_id, *ids]
            if complete:
                sample.append(self.eos_id)
        return sample

    def fit(self, document: np.ndarray, room: int, random) -> tuple[np.ndarray, bool]:
        """What fits into `room` tokens, and whether the document's end, and its token, does."""
        if len(document) < room:
            return document, True
        ends = 1 + np.flatnonzero(self.ends_sentence[document])
        starts = np.concatenate([[0], ends[ends < len(document)]])
        start = random.integers(0, len(document) - room + 1)
        nearest = starts[np.abs(starts - start).argmin()]
        if abs(nearest - start) <= room // 2:
            start = nearest
        if len(document) - start < room:
            return document[start:], True
        ends = ends[(ends > start + room // 2) & (ends <= start + room)]
        return document[start : ends[-1] if len(ends) else start + room], False
