"""Finds the tensors inside a file without reading their bytes, and without running anything that the file says.

A torch file is a pickle that says how to rebuild Python objects, and the bytes of the tensors beside it. The pickle is read
with stand-ins that do nothing; a tensor becomes a description of where it lies, and is read when it is needed.
"""

import io
import json
import math
import pickle
import pickletools
import struct
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from .errors import ConversionError
from .tensors import Place, StoredTensor, contiguous_stride, spanned

# What precedes the tensors of a file is well below one megabyte for the largest GLM; much more is no checkpoint.
LARGEST_PICKLE = 256 * 2**20
# The first object of a torch file from before 1.6, a number chosen by torch, as pickle protocol 2 writes it.
LEGACY_START = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)

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
}
SAFETENSORS_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
SAFETENSORS_TYPES |= {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8}
SAFETENSORS_TYPES |= {"U8": torch.uint8, "BOOL": torch.bool}


# --- Stand-ins: what a pickle builds instead of what it names ---------------------------------------------------------


@dataclass(frozen=True)
class Storage:
    """The memory of one or more tensors, known by its key; `numbers` of `dtype`."""

    key: str
    dtype: torch.dtype
    numbers: int


@dataclass(frozen=True)
class PickledTensor:
    """A tensor as its pickle says it: a view of a storage, which begins `offset` numbers into it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Ignored:
    """Stands for what no conversion needs: random states, optimizers, arguments. It drops what it is built from."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


class Dictionary(dict):
    """Stands for an ordered dictionary; torch gives a state dict an attribute besides, which is dropped."""

    def __setstate__(self, state):
        pass


def rebuild_tensor(storage, offset, shape, stride, *_) -> PickledTensor:
    sizes = (offset, *shape, *stride)
    if (
        not isinstance(storage, Storage)
        or any(type(size) is not int or size < 0 for size in sizes)
        or len(shape) != len(stride)
    ):
        raise ValueError("a tensor in it has no proper storage or shape")
    # From the smallest stride to the largest, every step leaves the room that the dimensions inside it take.
    room = 1
    for step, size in sorted((step, size) for step, size in zip(stride, shape) if size != 1):
        if step < room:
            raise ValueError("a tensor in it overlaps itself")
        room = step * size
    if all(shape) and offset + spanned(shape, stride) > storage.numbers:
        raise ValueError("a tensor in it reaches beyond its storage")
    return PickledTensor(storage, offset, tuple(shape), tuple(stride))


def rebuild_parameter(tensor, *_):
    return tensor


ALLOWED = {
    ("collections", "OrderedDict"): Dictionary,
    ("torch._utils", "_rebuild_tensor"): rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
    ("torch.storage", "UntypedStorage"): torch.uint8,
    **{
        (module, name): dtype
        for module in ("torch", "torch.cuda")
        for name, dtype in STORAGE_TYPES.items()
    },
    **{
        (module, name): kind
        for module in ("builtins", "__builtin__")
        for name, kind in (("set", set), ("frozenset", frozenset))
    },
}
# Random states of numpy, old and new; the types and devices of optimizers; arguments; the loss scalers of half precision.
IGNORED = {
    "numpy": ("ndarray", "dtype"),
    "numpy.core.multiarray": ("_reconstruct", "scalar"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "_codecs": ("encode",),
    "torch": (
        "Size",
        "device",
        *(str(dtype).removeprefix("torch.") for dtype in STORAGE_TYPES.values()),
    ),
    "argparse": ("Namespace",),
    "fp16.loss_scaler": ("LossScaler", "DynamicLossScaler"),
    "deepspeed.runtime.fp16.loss_scaler": ("LossScaler", "DynamicLossScaler"),
}
ALLOWED |= {(module, name): Ignored for module, names in IGNORED.items() for name in names}


class Unpickler(pickle.Unpickler):
    """Builds stand-ins only: no name in the pickle is ever imported."""

    def find_class(self, module, name):
        if (module, name) not in ALLOWED:
            raise ValueError(f"it names {module}.{name}, which is no tensor and no plain value")
        return ALLOWED[module, name]

    def persistent_load(self, identifier):
        # ("storage", type, key, device, numbers); legacy files add what the storage is a view of, or None.
        kind, dtype, key, _, numbers, *view = identifier
        if (
            kind != "storage"
            or not isinstance(dtype, torch.dtype)
            or type(numbers) is not int
            or view not in ([], [None])
        ):
            raise ValueError("one of its storages is of an unknown kind")
        return Storage(str(key), dtype, numbers)


def unpickle(stream: io.BytesIO):
    """The next object of the stream, which is left just behind it."""
    start = stream.tell()
    # A number may ask for any memory in a few bytes: first a look at all of them.
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > stream.getbuffer().nbytes:
            raise ValueError("its pickle is damaged")
    end = stream.tell()
    return Unpickler(io.BytesIO(stream.getbuffer()[start:end]), encoding="utf-8").load()


# --- Files ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TorchFile:
    """The objects in a torch file, its tensors as `PickledTensor`; `name` is what it was called when it was written."""

    file: Path
    content: object
    places: dict[str, Place]
    name: str | None = None

    def locate(self, tensor: PickledTensor) -> StoredTensor:
        """
        Raises:
            ConversionError: if the tensor's storage is not in the file, or not as long as the pickle says.
        """
        storage, place = tensor.storage, self.places.get(tensor.storage.key)
        size = storage.dtype.itemsize
        if place is None or storage.numbers * size != place.length:
            raise ConversionError(
                f"{self.file} is damaged: a storage is missing or of a wrong length; copy it again."
            )
        whole = tensor.offset == 0 and spanned(tensor.shape, tensor.stride) == storage.numbers
        offset = place.offset + tensor.offset * size
        return StoredTensor(
            self.file,
            offset,
            storage.dtype,
            tensor.shape,
            tensor.stride,
            checksum=place.checksum if whole else None,
            within=None if whole or place.checksum is None else place,
        )


def read_torch_file(file: Path) -> TorchFile:
    """The objects of a file written by `torch.save`, of any age.

    Raises:
        ConversionError: if it is damaged, or names anything but tensors and plain values.
    """
    try:
        with open(file, "rb") as opened:
            is_zip = opened.read(4) == b"PK\x03\x04"
        return read_zip(file) if is_zip else read_legacy(file)
    except ConversionError:
        raise
    except OSError as error:
        raise ConversionError(f"{file} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # damaged files fail in every way there is
        reason = str(error) or type(error).__name__
        raise ConversionError(
            f"{file} cannot be read as a checkpoint of tensors: {reason}."
        ) from error


def read_zip(file: Path) -> TorchFile:
    length = file.stat().st_size
    with zipfile.ZipFile(file) as archive, open(file, "rb") as opened:
        records = {record.filename: record for record in archive.infolist()}
        roots = [name.removesuffix("data.pkl") for name in records if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError("it is a zip file without the pickle that torch writes")
        (root,) = roots
        if f"{root}byteorder" in records and archive.read(f"{root}byteorder") != b"little":
            raise ValueError(
                "it was written on a big-endian machine; save it again on a little-endian one"
            )
        if records[f"{root}data.pkl"].file_size > LARGEST_PICKLE:
            raise ValueError("its pickle is larger than that of any checkpoint")
        content = unpickle(io.BytesIO(archive.read(f"{root}data.pkl")))
        places = {}
        for name, record in records.items():
            if name.startswith(f"{root}data/"):
                if record.compress_type != zipfile.ZIP_STORED:
                    raise ValueError("its tensors are compressed; save it again with torch.save")
                # A record's own header: 30 bytes, of which the last four give the lengths of its name and of what follows it.
                opened.seek(record.header_offset)
                header = opened.read(30)
                offset = record.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
                if header[:4] != b"PK\x03\x04" or offset + record.file_size > length:
                    raise ValueError("it ends before its tensors do")
                places[name.removeprefix(f"{root}data/")] = Place(
                    file, offset, record.file_size, record.CRC
                )
    return TorchFile(file, content, places, name=root.rstrip("/"))


def read_legacy(file: Path) -> TorchFile:
    """A file from before torch 1.6: five pickles (a magic number, a version, the machine, the objects, the keys of the
    storages), then for each key eight bytes with its count of numbers, and the numbers."""
    with open(file, "rb") as opened:
        stream = io.BytesIO(opened.read(LARGEST_PICKLE))
        if not stream.getbuffer()[: len(LEGACY_START)] == LEGACY_START:
            raise ValueError("it is no file that torch.save wrote")
        stream.seek(len(LEGACY_START))
        _version, machine = unpickle(stream), unpickle(stream)
        if not machine["little_endian"]:
            raise ValueError(
                "it was written on a big-endian machine; save it again on a little-endian one"
            )
        tensors = []
        content = unpickle(stream)
        keys = unpickle(stream)
        collect_tensors(content, tensors)
        storages = {tensor.storage.key: tensor.storage for tensor in tensors}
        # These files have no checksums, but what does not add up is seen.
        if sorted(storages) != sorted(keys):
            raise ValueError("its tensors and its storages are not the same")
        uses = Counter(tensor.storage.key for tensor in tensors)
        for tensor in tensors:
            if uses[tensor.storage.key] == 1 and math.prod(tensor.shape) != tensor.storage.numbers:
                raise ValueError(
                    "a tensor does not fill its storage; if that is meant, load it with torch and save it again"
                )
        places, offset = {}, stream.tell()
        for key in keys:
            opened.seek(offset)
            (numbers,) = struct.unpack("<q", opened.read(8))
            places[key] = Place(file, offset + 8, numbers * storages[key].dtype.itemsize)
            if numbers != storages[key].numbers:
                raise ValueError("a storage is not as long as its tensors say")
            offset += 8 + places[key].length
        if offset > file.stat().st_size:
            raise ValueError("it ends before its tensors do")
    return TorchFile(file, content, places)


def collect_tensors(content, found: list):
    """Append all tensors in nested dictionaries, lists and tuples."""
    waiting, seen = [content], set()  # a pickle may hold itself
    while waiting:
        value = waiting.pop()
        if isinstance(value, PickledTensor):
            found.append(value)
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, dict) else value)


def read_safetensors(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file: eight bytes with the length of a JSON header, the header, the bytes.

    Raises:
        ConversionError: if it is damaged.
    """
    try:
        length = file.stat().st_size
        with open(file, "rb") as opened:
            (header_length,) = struct.unpack("<Q", opened.read(8))
            if header_length > min(length, LARGEST_PICKLE):
                raise ValueError("its header is longer than the file")
            header = json.loads(opened.read(header_length))
        tensors = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            dtype, shape, (start, end) = (
                SAFETENSORS_TYPES[entry["dtype"]],
                tuple(entry["shape"]),
                entry["data_offsets"],
            )
            if math.prod(shape) * dtype.itemsize != end - start or min(start, *shape, 0) < 0:
                raise ValueError(f"{name} is not as long as its shape says")
            if 8 + header_length + end > length:
                raise ValueError("it ends before its tensors do")
            tensors[name] = StoredTensor(
                file, 8 + header_length + start, dtype, shape, contiguous_stride(shape)
            )
        return tensors
    except OSError as error:
        raise ConversionError(f"{file} cannot be read: {error.strerror or error}.") from error
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConversionError(f"{file} is no complete safetensors file: {error}.") from error
