"""Finds the tensors in a file of `torch.save`, whatever else it holds, and runs nothing of it.

A torch file is a pickle that says how to rebuild Python objects, and the bytes of the tensors
beside it. The pickle is read by Python's unpickler with stand-ins that do nothing: a tensor becomes
a description of where it lies, and is mapped into memory when it is needed.

Why not `torch.load(mmap=True, weights_only=True)`: it lets a file of one kilobyte ask for any
memory (bytearrays, sets and old tensor types of any size), reads pickle protocol 2 alone, and does
not compare a storage with its record. Here every file ends soon, in little memory.
"""

import io
import math
import os
import pickle
import pickletools
import re
import struct
import zipfile
import zlib
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..hub_repository.errors import RepositoryError, library_errors
from ..hub_repository.files import require_file
from ..hub_repository.weights import LazyTensor

# What precedes the tensors is below one megabyte, and 60,000 steps, for the largest GLM with its
# optimizer; these are the most that are read.
LARGEST_PICKLE = 2**26
MOST_STEPS = 500_000
LARGEST_DIRECTORY = 2**22  # of a zip file, 46 bytes and a name for each record
READ_AHEAD = 2**26  # bytes
# The first object of a torch file from before 1.6, a number chosen by torch.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# Opcodes of a pickle that name a place in its memory.
MEMO_OPCODES = ("PUT", "BINPUT", "LONG_BINPUT")

STORAGE_TYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    # None of these holds a parameter, but they may lie beside them.
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "QInt8Storage": torch.int8,
    "QUInt8Storage": torch.uint8,
    "QInt32Storage": torch.int32,
    "UntypedStorage": torch.uint8,
}


# --- Stand-ins: what a pickle builds instead of what it names -------------------------------------


class Storage(NamedTuple):
    """The memory of one or more tensors, known by its key; `numbers` of `dtype`."""

    key: str
    dtype: torch.dtype
    numbers: int


class PickledTensor(NamedTuple):
    """A view of a storage, which begins `offset` numbers into it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Ignored:
    """Stands for what no conversion needs, and drops whatever it is given.

    Random states, optimizers, arguments, paths, dates: of whatever name, nothing is imported.
    """

    __slots__ = ()

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def drop(self, *args):
        pass

    __call__ = __setstate__ = __setitem__ = append = extend = add = drop


class Dictionary(dict):
    """Stands for an ordered dictionary, filled item by item; what else it is given is dropped."""

    def __init__(self, *args):
        pass

    def __setstate__(self, state):
        pass


class Parameter:
    """Stands for `torch.nn.Parameter`: its tensor."""

    def __new__(cls, tensor, *args):
        return tensor


class RebuiltTensor:
    """Stands for the function by which torch rebuilds a tensor: gives a `PickledTensor`."""

    def __new__(cls, storage, offset, shape, stride, *args):
        if not (
            isinstance(storage, Storage) and isinstance(shape, tuple) and isinstance(stride, tuple)
        ):
            raise ValueError("a tensor in it has no proper storage or shape")
        sizes = (offset, *shape, *stride)
        if any(type(size) is not int or not 0 <= size < 2**48 for size in sizes):
            raise ValueError("a tensor in it has no proper shape")
        if len(shape) != len(stride) or len(shape) > 8:
            raise ValueError("a tensor in it has no proper shape")
        # From the smallest stride to the largest, every step leaves the room that the dimensions
        # inside it take.
        room = 1
        steps = zip(stride, shape, strict=True)
        for step, size in sorted((step, size) for step, size in steps if size != 1):
            if step < room:
                raise ValueError("a tensor in it overlaps itself")
            room = step * size
        tensor = PickledTensor(storage, offset, shape, stride)
        if math.prod(shape) and offset + spanned(tensor) > storage.numbers:
            raise ValueError("a tensor in it reaches beyond its storage")
        return tensor


def spanned(tensor: PickledTensor) -> int:
    """How many numbers lie from a tensor's first to its last; it has some."""
    pairs = zip(tensor.shape, tensor.stride, strict=True)
    return 1 + sum((size - 1) * step for size, step in pairs)


STAND_INS = {
    ("collections", "OrderedDict"): Dictionary,
    ("torch._utils", "_rebuild_tensor"): RebuiltTensor,
    ("torch._utils", "_rebuild_tensor_v2"): RebuiltTensor,
    ("torch._utils", "_rebuild_parameter"): Parameter,
}
STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage")
# Names here would run what the file says. Nothing is run in any case; but who writes them into a
# checkpoint is not to be trusted with its weights either.
RUNNING = re.compile(
    r"(os|posix|nt|sys|subprocess|importlib|runpy|pty|socket|ctypes|shutil|code)\..*"
    r"|(builtins|__builtin__)\.(eval|exec|compile|open|[gs]etattr|__import__|breakpoint)"
)


class Unpickler(pickle.Unpickler):
    """Builds stand-ins only: no name in the pickle is ever imported."""

    def __init__(self, content: memoryview):
        super().__init__(io.BytesIO(content), encoding="utf-8")
        self.storages: dict[str, Storage] = {}

    def find_class(self, module, name):
        if RUNNING.fullmatch(f"{module}.{name}"):
            raise ValueError(f"it names {module}.{name}, which runs programs; do not trust it")
        if module in STORAGE_MODULES and name in STORAGE_TYPES:
            return STORAGE_TYPES[name]
        return STAND_INS.get((module, name), Ignored)

    def persistent_load(self, identifier):
        kind, *description = identifier
        if kind == "module":  # in legacy files: a class, and its source
            return Ignored
        # type, key, device, numbers; legacy files add what it is a view of, or None.
        dtype, key, _, numbers, *view = description
        if (
            kind != "storage"
            or not isinstance(dtype, torch.dtype)
            or type(key) not in (str, int)
            or type(numbers) is not int
            or not 0 <= numbers < 2**48
            or view not in ([], [None])
        ):
            raise ValueError("one of its storages is of an unknown kind")
        storage = Storage(str(key), dtype, numbers)
        if self.storages.setdefault(storage.key, storage) != storage:
            raise ValueError("one of its storages is of two kinds")
        return storage


def unpickle(stream: io.BytesIO) -> tuple[Any, dict[str, Storage]]:
    """The next object of the stream, which is left just behind it, and the storages it names."""
    start = stream.tell()
    # A few bytes may ask for any memory: first a look at all of them.
    for step, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if step >= MOST_STEPS:
            raise ValueError("its pickle has more steps than that of any checkpoint")
        if opcode.name in MEMO_OPCODES and argument is not None and argument > MOST_STEPS:
            raise ValueError("its pickle is damaged")
    unpickler = Unpickler(stream.getbuffer()[start : stream.tell()])
    return unpickler.load(), unpickler.storages


# --- Files ----------------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where the bytes of a storage lie; checksum: their CRC-32, where the file has one."""

    start: int
    length: int
    checksum: int | None = None


@dataclass
class TorchFile:
    """The objects in a torch file, its tensors as `PickledTensor`.

    name: what the file was called when it was written, where it keeps that.
    intact: keys of the storages whose checksum was right.
    asked: the blocks that the system was asked to read ahead.
    """

    file: Path
    content: object
    places: dict[str, Place]
    name: str | None = None
    intact: set[str] = field(default_factory=set)
    asked: set[int] = field(default_factory=set)

    def lazy(self, tensor: PickledTensor) -> LazyTensor:
        """
        Raises:
            RepositoryError: if the tensor's storage is not in the file, or not as long as the
                pickle says.
        """
        storage, place = tensor.storage, self.places.get(tensor.storage.key)
        if place is None or storage.numbers * storage.dtype.itemsize != place.length:
            raise RepositoryError(
                f"{self.file} is damaged: a storage is missing or of a wrong length; copy it again."
            )
        # The checksum is that of the storage, and of a tensor that is all of it, in its order.
        in_order = torch.empty(tensor.shape, device="meta").stride() == tensor.stride
        is_whole = in_order and math.prod(tensor.shape) == storage.numbers
        checksum = place.checksum if is_whole else None
        return LazyTensor(tensor.shape, storage.dtype, partial(self.read, tensor), checksum)

    def read(self, tensor: PickledTensor) -> torch.Tensor:
        """The tensor, a view of the mapped file.

        Raises:
            RepositoryError: if its storage does not have its checksum.
        """
        storage, place = tensor.storage, self.places[tensor.storage.key]
        self.read_ahead(place)
        mapped = self.mapped[place.start : place.start + place.length]  # (bytes,)
        if place.start % storage.dtype.itemsize:
            mapped = mapped.clone()  # not every kernel reads numbers that lie across words
        if place.checksum is not None and storage.key not in self.intact:
            if zlib.crc32(mapped.numpy().data) != place.checksum:
                raise RepositoryError(
                    f"{self.file} is damaged: a tensor does not have its checksum; copy it again."
                )
            self.intact.add(storage.key)
        numbers = mapped.view(storage.dtype)
        offset = numbers.storage_offset() + tensor.offset
        return numbers.as_strided(tensor.shape, tensor.stride, offset)

    def read_ahead(self, place: Place):
        """Have the system read a tensor, and some that follow, in large blocks and at once.

        What is mapped it reads in small ones, five times slower from a disk. Each block is asked
        for once: to look for what is in memory already takes as long as to copy it.
        """
        if not hasattr(os, "posix_fadvise"):  # macOS has no such advice
            return
        last = (place.start + place.length) // READ_AHEAD + 1
        blocks = set(range(place.start // READ_AHEAD, last + 1)) - self.asked
        self.asked |= blocks
        if blocks:
            with open(self.file, "rb") as opened, suppress(OSError):  # some file systems take none
                for block in sorted(blocks):
                    start = block * READ_AHEAD
                    os.posix_fadvise(opened.fileno(), start, READ_AHEAD, os.POSIX_FADV_WILLNEED)

    @cached_property
    def mapped(self) -> torch.Tensor:
        """The file as memory, (bytes,): read when it is looked at; writing changes a copy."""
        with library_errors(f"{self.file} cannot be mapped into memory"):
            length = self.file.stat().st_size
            return torch.from_file(str(self.file), False, length, dtype=torch.uint8)


def read_torch_file(file: Path) -> TorchFile:
    """The objects of a file written by `torch.save`, of any age.

    Raises:
        RepositoryError: if it is damaged, or asks for more than a checkpoint needs.
    """
    require_file(file)
    with library_errors(f"{file} cannot be read as a checkpoint of tensors"):
        with open(file, "rb") as opened:
            is_zip = opened.read(4) == b"PK\x03\x04"
        return read_zip(file) if is_zip else read_legacy(file)


def read_zip(file: Path) -> TorchFile:
    """A file from torch 1.6 on: a zip file with a pickle, and a record for each storage."""
    length = file.stat().st_size
    with open(file, "rb") as opened:
        check_directory(opened, length)
        with zipfile.ZipFile(opened) as archive:
            records = {record.filename: record for record in archive.infolist()}
            if len(records) < len(archive.infolist()):
                raise ValueError("it holds a record twice; download or copy it again")
            if any(record.compress_type != zipfile.ZIP_STORED for record in records.values()):
                raise ValueError("its records are compressed; save it again with torch.save")
            roots = [name.removesuffix("data.pkl") for name in records if "/data.pkl" in name]
            if len(roots) != 1:
                raise ValueError("it is a zip file without the pickle that torch writes")
            (root,) = roots
            order = records.get(f"{root}byteorder")
            if order is not None and (order.file_size > 6 or archive.read(order) != b"little"):
                raise ValueError("its bytes are not little-endian; save it again on such a machine")
            if records[f"{root}data.pkl"].file_size > LARGEST_PICKLE:
                raise ValueError("its pickle is larger than that of any checkpoint")
            content, _ = unpickle(io.BytesIO(archive.read(f"{root}data.pkl")))
        places = {}
        for name, record in records.items():
            if not name.startswith(f"{root}data/"):
                continue
            # A record's own header has 30 bytes, of which the last four give the lengths of its
            # name and of what follows it.
            opened.seek(record.header_offset)
            header = opened.read(30)
            start = record.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
            if header[:4] != b"PK\x03\x04" or start + record.file_size > length:
                raise ValueError("it ends before its tensors do; download or copy it again")
            key = name.removeprefix(f"{root}data/")
            places[key] = Place(start, record.file_size, record.CRC)
    return TorchFile(file, content, places, name=root.rstrip("/"))


def check_directory(opened: io.BufferedReader, length: int):
    """Raise if a zip file has no directory, as when its end is missing, or a very long one."""
    opened.seek(max(0, length - 22 - 2**16))  # its end has 22 bytes, and may have a comment
    tail = opened.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + 22:
        raise ValueError("its end is missing; download or copy it again, completely")
    sizes = [struct.unpack("<I", tail[end + 12 : end + 16])[0]]
    # Large files have another end before this one, of 56 bytes, and 20 bytes that lead to it.
    large = tail[max(0, end - 76) : end]
    if large[:4] == b"PK\x06\x06":
        sizes = [struct.unpack("<Q", large[40:48])[0]]
    if max(sizes) > LARGEST_DIRECTORY:
        raise ValueError("it has more records than any checkpoint")


def read_legacy(file: Path) -> TorchFile:
    """A file from before torch 1.6.

    Five pickles: a magic number, a version, the machine, the objects, the keys of the storages;
    then for each key eight bytes with its count of numbers, and the numbers.
    """
    length = file.stat().st_size
    with open(file, "rb") as opened:
        stream = io.BytesIO(opened.read(min(length, LARGEST_PICKLE)))
        if bytes(stream.getbuffer()[:1]) != pickle.PROTO or unpickle(stream)[0] != LEGACY_MAGIC:
            raise ValueError("it is no file that torch.save wrote, or only a part of one")
        unpickle(stream)  # the version
        machine, _ = unpickle(stream)
        if not machine["little_endian"]:
            raise ValueError("its bytes are not little-endian; save it again on such a machine")
        content, storages = unpickle(stream)
        keys, _ = unpickle(stream)
        # These files have no checksums, but what does not add up is seen.
        if sorted(storages) != sorted(keys):
            raise ValueError("its tensors and its storages are not the same")
        tensors = collect_tensors(content)
        uses = Counter(tensor.storage.key for tensor in tensors)
        for tensor in tensors:
            numbers = math.prod(tensor.shape)
            if uses[tensor.storage.key] == 1 and numbers != tensor.storage.numbers:
                raise ValueError(
                    "a tensor does not fill its storage; if that is meant, load it with torch and "
                    "save it again"
                )
        places, start = {}, stream.tell()
        for key in keys:
            opened.seek(start)
            (numbers,) = struct.unpack("<q", opened.read(8))
            if numbers != storages[key].numbers:
                raise ValueError("a storage is not as long as its tensors say")
            places[key] = Place(start + 8, numbers * storages[key].dtype.itemsize)
            start += 8 + places[key].length
        if start > length:
            raise ValueError("it ends before its tensors do; download or copy it again")
    return TorchFile(file, content, places)


def collect_tensors(content) -> list[PickledTensor]:
    """All tensors in nested dictionaries, lists and tuples."""
    found, waiting, seen = [], [content], set()  # a pickle may hold itself
    while waiting:
        value = waiting.pop()
        if isinstance(value, PickledTensor):
            found.append(value)
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, dict) else value)
    return found
