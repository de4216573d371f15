"""Texts for pretraining: documents are read, turned into ids, and packed to the length that is trained on.

Every step is a `map` of the `datasets` library: cached on disk and shown with a progress bar, or lazy when streaming.
"""

from pathlib import Path

import numpy as np
from datasets import Dataset, IterableDataset, load_dataset

from .blank_infilling import SHORTEST_TEXT, sentence_end_table

FORMATS = {".txt": "text", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
DOCUMENTS_AT_ONCE = 1000  # documents that can meet in one sample; as many as `map` reads at a time
# How often the text is read at most for the packed samples on disk. Each document is drawn at random, so after this many
# passes the chance that one was never drawn is exp(-10).
MOST_PASSES = 10


def load_documents(
    source: str | Path, streaming: bool = False, split: str = "train"
) -> Dataset | IterableDataset:
    """Documents in the column `text`.

    Args:
        source: a text file with a document on each line, a JSON lines or parquet file with a column `text`, a folder of
            such files, or the name of a dataset on the Hub.
        streaming: read while training instead of copying to the cache.
        split: the part of a Hub dataset.

    Raises:
        ValueError: for a file or folder of another kind, data that cannot be read, and data without a column `text`.
    """
    path = Path(source)
    if path.exists():
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        files = [file for file in files if file.suffix in FORMATS]
        if len({FORMATS[file.suffix] for file in files}) != 1:
            raise ValueError(
                f"{source} must be files of one kind, with the ending {', '.join(FORMATS)}."
            )
        name, options = (
            FORMATS[files[0].suffix],
            dict(data_files=[str(file) for file in files], split="train"),
        )
    else:
        name, options = str(source), dict(split=split)
    try:
        documents = load_dataset(name, streaming=streaming, **options)
    except Exception as error:  # the library has a dozen kinds; the first cause says what it is
        known = (
            "cannot be read"
            if path.exists()
            else "is neither a file or folder nor a dataset that the Hub gives"
        )
        raise ValueError(f"{source} {known}: {error.__cause__ or error}") from error
    columns = documents.column_names
    if columns is not None and "text" not in columns:
        raise ValueError(
            f"{source} has the columns {', '.join(columns)}; name the one with the documents text."
        )
    return documents


def pack_documents(
    documents: Dataset | IterableDataset,
    tokenizer,
    length: int,
    wanted: int | None = None,
    one_document: bool = False,
    seed: int = 0,
) -> Dataset | IterableDataset:
    """Samples of at most `length` tokens, as `BlankInfillingCollator` takes them.

    A document is drawn with a probability that grows with its length; `[CLS]` document `<|endoftext|>` follow each other
    until the sample is full. A document that is too long starts at a random place, moved to the nearest sentence start,
    and ends with a sentence, unless that would cost half of the room. A document that was cut at its right has no
    `<|endoftext|>`, and ends its sample.

    Args:
        documents: with a column `text`.
        wanted: samples that training will read. The text is gone through as often as that takes, at most 10 times.
        one_document: one document in each sample; those of a single token are left out.

    Raises:
        ValueError: if the documents hold no text.
    """
    documents = documents.select_columns("text")  # a stream may not know which columns it has
    tokens = documents.map(
        _encode,
        batched=True,
        remove_columns=["text"],
        fn_kwargs={"tokenizer": tokenizer},
        **_shown(documents, "Encoding"),
    )
    passes = 1
    if isinstance(tokens, Dataset):
        total = sum(len(ids) for batch in tokens.iter(1000) for ids in batch["input_ids"])
        if total == 0:
            raise ValueError("The documents hold no text; check the data.")
        if wanted is not None:
            passes = min(MOST_PASSES, max(1, -(-wanted * length // total)))
    options = dict(
        length=length,
        passes=passes,
        one_document=one_document,
        seed=seed,
        cls_id=tokenizer.cls_token_id,
        eos_id=tokenizer.eos_token_id,
        ends_sentence=sentence_end_table(tokenizer),
    )
    packed = tokens.map(
        _pack,
        batched=True,
        with_indices=True,
        batch_size=DOCUMENTS_AT_ONCE,
        remove_columns=["input_ids"],
        fn_kwargs=options,
        **_shown(documents, "Packing"),
    )
    if isinstance(packed, Dataset) and len(packed) == 0:
        raise ValueError("The documents hold no text of two tokens; check the data.")
    return packed


def _shown(documents, what: str) -> dict:
    return {"desc": what} if isinstance(documents, Dataset) else {}


def _encode(batch: dict, tokenizer) -> dict:
    texts = ["" if text is None else text for text in batch["text"]]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(
            "The column text of the data holds something else than texts; check the data."
        )
    ids = tokenizer(texts, add_special_tokens=False, return_attention_mask=False).input_ids
    # The original has no ids for a blank line.
    return {"input_ids": [document for text, document in zip(texts, ids) if text.strip()]}


def _pack(
    batch, indices, length, passes, one_document, seed, cls_id, eos_id, ends_sentence
) -> dict:
    documents = [np.asarray(ids) for ids in batch["input_ids"]]
    share = np.cumsum([len(document) for document in documents])
    random = np.random.default_rng([seed, indices[0]])
    samples, packed = [], 0
    while packed < passes * share[-1]:
        sample, complete = [], True
        while complete and length - len(sample) > 2 and not (one_document and sample):
            document = documents[np.searchsorted(share, random.integers(share[-1]), side="right")]
            ids, complete = _fit(document, length - len(sample) - 1, random, ends_sentence)
            sample += [cls_id, *ids, *([eos_id] if complete else [])]
        if len(sample) >= SHORTEST_TEXT:
            samples.append(sample)
        packed += len(sample)
    return {"input_ids": samples}


def _fit(
    document: np.ndarray, room: int, random, ends_sentence: np.ndarray
) -> tuple[np.ndarray, bool]:
    """The part of the document that fits into `room` tokens, and whether its end (and `<|endoftext|>`) is in it."""
    if len(document) < room:
        return document, True
    ends = 1 + np.flatnonzero(ends_sentence[document])
    starts = np.concatenate([[0], ends[ends < len(document)]])
    start = random.integers(0, len(document) - room + 1)
    nearest = starts[np.abs(starts - start).argmin()]
    if abs(nearest - start) <= room // 2:
        start = nearest
    if len(document) - start < room:
        return document[start:], True
    ends = ends[(ends > start + room // 2) & (ends <= start + room)]
    return document[start : ends[-1] if len(ends) else start + room], False
