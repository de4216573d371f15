"""Tensors that lie in files: read a few numbers at a time, whatever their size."""

import io
import math
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from .errors import ConversionError

# Bytes of a tensor that are worked on at once: few enough to stay in the processor's cache between one step and the next.
CHUNK = 2**21


@dataclass(frozen=True)
class Place:
    """Where the bytes of a storage lie, `length` of them; checksum: their CRC-32, where the file has one."""

    file: Path
    offset: int
    length: int
    checksum: int | None = None

    @cached_property
    def intact(self) -> bool:
        """Whether the bytes have their checksum; they are read when this is first asked."""
        checksum = 0
        with open_at(self.file, self.offset) as file:
            for count in step_sizes(self.length, CHUNK):
                part = memoryview(bytearray(count))
                read_into(file, part)
                checksum = zlib.crc32(part, checksum)
        return checksum == self.checksum


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies.

    offset: bytes from the start of the file to the tensor's first number.
    stride: numbers from one index to the next, for each dimension.
    checksum: CRC-32 of the bytes, where the file has one.
    within: the storage of which the tensor is only a part, and which has the checksum then.
    """

    file: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    checksum: int | None = None
    within: Place | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @contextmanager
    def opened(self) -> Iterator[Callable[[int], torch.Tensor]]:
        """Gives a function that returns the tensor's next numbers, as many as it is asked for, in memory of their own.

        Raises:
            ConversionError: if the file ends too early, or in the end if the bytes do not have their checksum.
        """
        if self.within is not None and not self.within.intact:
            raise damaged(self.file)
        if not is_contiguous(self.shape, self.stride):
            length = spanned(self.shape, self.stride)
            with replace(self, shape=(length,), stride=(1,)).opened() as take:
                numbers, taken = (
                    take(length).as_strided(self.shape, self.stride).contiguous().view(-1),
                    0,
                )

            def take_held(count: int) -> torch.Tensor:
                nonlocal taken
                taken += count
                return numbers[taken - count : taken]

            yield take_held
            return
        checksum = 0
        with open_at(self.file, self.offset) as file:

            def take_stored(count: int) -> torch.Tensor:
                nonlocal checksum
                numbers = torch.empty(count, dtype=self.dtype)
                read_into(file, memory(numbers))
                if self.checksum is not None:
                    checksum = zlib.crc32(memory(numbers), checksum)
                return numbers

            yield take_stored
        if self.checksum is not None and checksum != self.checksum:
            raise damaged(self.file)

    def forget(self):
        """Let the system have the memory back in which it keeps the tensor's bytes: they are not needed again.

        Else a large file that is read once pushes out what others need, and all that is written takes fresh memory.
        """
        length = spanned(self.shape, self.stride) * self.dtype.itemsize
        if length and hasattr(
            os, "posix_fadvise"
        ):  # no length would be the rest of the file; macOS has no such advice
            with (
                open_at(self.file, self.offset) as file,
                suppress(OSError),
            ):  # some file systems take no advice
                os.posix_fadvise(file.fileno(), self.offset, length, os.POSIX_FADV_DONTNEED)

    def read(self) -> torch.Tensor:
        """The tensor in memory."""
        with self.opened() as take:
            return take(math.prod(self.shape)).view(self.shape)

    def chunks(self) -> Iterator[torch.Tensor]:
        """The tensor's numbers in their order, some whole rows at a time."""
        with self.opened() as take:
            for count in chunk_sizes(self):
                yield take(count)


@dataclass(frozen=True)
class HeldTensor:
    """A tensor that is in memory, to be written like one that lies in a file."""

    tensor: torch.Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes

    def chunks(self) -> Iterator[torch.Tensor]:
        """The tensor's numbers in their order, some whole rows at a time."""
        return iter(self.tensor.detach().cpu().reshape(-1).split(chunk_sizes(self)))


def memory(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor."""
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two contiguous tensors are the same to the bit; 0.0 and -0.0 are not."""
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def chunk_sizes(tensor) -> list[int]:
    """The numbers in each chunk of a tensor: whole rows, about `CHUNK` bytes of them."""
    total = math.prod(tensor.shape)
    row = math.prod(tensor.shape[1:]) if total else 1
    return step_sizes(total, row * max(1, CHUNK // (row * tensor.dtype.itemsize)))


def step_sizes(total: int, step: int) -> list[int]:
    """`total` in steps, of which the last may be smaller."""
    return [min(step, total - start) for start in range(0, total, step)]


def damaged(file: Path) -> ConversionError:
    return ConversionError(
        f"{file} is damaged: a tensor does not have its checksum; copy it again."
    )


def open_at(path: Path, offset: int) -> io.FileIO:
    try:
        file = open(path, "rb", buffering=0)
        file.seek(offset)
        return file
    except OSError as error:
        raise ConversionError(f"{path} cannot be read: {error.strerror}.") from error


def read_into(file: io.FileIO, place: memoryview):
    """Fill the memory with the file's next bytes."""
    done = 0
    while done < len(place):  # one read gives at most 2 GB
        try:
            count = file.readinto(place[done:])
        except OSError as error:
            raise ConversionError(f"{file.name} cannot be read: {error.strerror}.") from error
        if not count:
            raise ConversionError(f"{file.name} ends before its tensors do; copy it again.")
        done += count


def spanned(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """How many numbers lie from a tensor's first to its last."""
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride)) if all(shape) else 0


def is_contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether a tensor's numbers lie in their order without gaps; where there is one index only, its stride means nothing."""
    steps = zip(shape, stride, contiguous_stride(shape))
    return not all(shape) or all(size == 1 or step == wanted for size, step, wanted in steps)


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[dimension + 1 :]) for dimension in range(len(shape)))
