"""HDF5 files that nobody vouches for: types and sizes are checked before anything is allocated.

Links, virtual data, data in other files and unknown filters are refused, and everything that is wrong is a
:class:`NetworkError`.
"""

import math
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

from snnkit.errors import NetworkError

MAX_ITEMS, MAX_TEXTS, MAX_DEPTH = 20_000, 40_000, 8
MAX_BYTES, BYTES_PER_STORED = 32 * 2**20, 8  # what a small file may hold, and what each stored byte adds
MAX_RAW_CHUNK = 128 * 2**10  # a deflated chunk of this size cannot grow beyond 132 MiB
REFERENCE = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])  # to a text in a global heap
FILTERS = {1, 2, 3, 32000}  # deflate, shuffle, fletcher32, lzf
Result = TypeVar("Result")


class Reader:
    """Walks one file, which is ``what``, and keeps account of what it has taken from it."""

    def __init__(self, path: str | os.PathLike[str], what: str) -> None:
        self.path, self.what, self.items, self.budget = Path(path), what, 0, MAX_BYTES
        self.size = 0
        self.heaps: dict[int, dict[int, bytes]] = {}

    def read(self, take: Callable[[Any], Result]) -> Result:
        """What ``take`` makes of the open file."""
        if not self.path.is_file():
            raise NetworkError(f"there is no file '{self.path}'", "check the path")
        try:
            self.size = self.path.stat().st_size
            self.budget += BYTES_PER_STORED * self.size
            with h5py.File(self.path, "r") as file:
                return take(file)
        except NetworkError:
            raise
        except Exception as error:  # whatever the HDF5 library makes of damaged bytes
            raise self.damaged(" ".join(str(error).split()) or type(error).__name__) from None

    def group(self, group: Any, depth: int) -> dict[str, Any]:
        """A group as a dictionary of groups, arrays and texts."""
        if not isinstance(group, h5py.Group):
            raise self.damaged("a dataset stands where a group is expected")
        if depth > MAX_DEPTH:
            raise self.damaged(f"its groups are nested more than {MAX_DEPTH} deep")
        values = {}
        for name in group:
            child = self.child(group, name)
            values[name] = self.group(child, depth + 1) if isinstance(child, h5py.Group) else self.dataset(child, name)
        return values

    def child(self, group: Any, name: str) -> Any:
        """What is called ``name`` in a group; no link is followed."""
        self.items += 1
        if self.items > MAX_ITEMS:
            raise self.damaged(f"it holds more than {MAX_ITEMS} items")
        if name not in group:
            raise self.damaged(f"'{name}' is missing")
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise self.damaged(f"'{name}' is a link, which is not followed")
        return group[name]

    def dataset(self, dataset: Any, name: str) -> Any:
        """Numbers as an array, a string as str, a table of strings as a list of lists."""
        if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
            raise self.damaged(f"'{name}' holds nothing")
        if dataset.is_virtual or dataset.external:
            raise self.damaged(f"'{name}' keeps its data in other files, which are not opened")
        self._take(name, math.prod(dataset.shape) * dataset.dtype.itemsize)
        if dataset.chunks is not None:
            self._check_chunks(dataset, name)
        if h5py.check_string_dtype(dataset.dtype) is not None:
            if math.prod(dataset.shape) > MAX_TEXTS:
                raise self.damaged(f"'{name}' holds more than {MAX_TEXTS} texts")
            if dataset.dtype.kind == "O":
                return self._texts(dataset, name)
            text = dataset.asstr()[()]
            return text if isinstance(text, str) else text.tolist()
        if dataset.dtype.kind not in "fiub":
            raise self.damaged(f"'{name}' is {dataset.dtype}, neither numbers nor text")
        return np.asarray(dataset[()])

    def _texts(self, dataset: Any, name: str) -> Any:
        """Texts of any length, read here: in damaged heaps the HDF5 library loops without end, and allocates claims."""
        count, start = math.prod(dataset.shape), dataset.id.get_offset()
        if dataset.file.userblock_size or start is None or dataset.id.get_storage_size() != count * REFERENCE.itemsize:
            raise self.damaged(f"the texts of '{name}' are stored in an unknown way")
        references = np.frombuffer(self._bytes(start, count * REFERENCE.itemsize), REFERENCE)
        self._take(name, int(references["length"].sum(dtype=np.int64)))
        texts = [self._heap_text(*map(int, reference)) for reference in references]
        table = np.array(texts, object).reshape(dataset.shape)
        return table[()] if table.ndim == 0 else table.tolist()

    def _heap_text(self, length: int, address: int, index: int) -> str:
        if not length:
            return ""
        stored = self._heap(address).get(index, b"")
        if len(stored) < length:
            raise self.damaged("a text is missing")
        return stored[:length].decode()

    def _heap(self, address: int) -> dict[int, bytes]:
        """The objects of a global heap collection (HDF5 file format 3.0, section III.E)."""
        if address not in self.heaps:
            head = self._bytes(address, 16)
            end = min(address + int.from_bytes(head[8:], "little"), self.size)
            if head[:4] != b"GCOL":
                raise self.damaged("its texts are not where they should be")
            objects: dict[int, bytes] = {}
            at = address + 16
            while at + 16 <= end:
                head = self._bytes(at, 16)
                index, size = int.from_bytes(head[:2], "little"), int.from_bytes(head[8:], "little")
                if index == 0:  # what is left is free
                    break
                objects[index] = self._bytes(at + 16, size)
                at += 16 + (size + 7) // 8 * 8
            self.heaps[address] = objects
        return self.heaps[address]

    def _bytes(self, start: int, count: int) -> bytes:
        if start + count > self.size:
            raise self.damaged("it ends too early")
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(count)

    def _take(self, name: str, size: int) -> None:
        self.budget -= size
        if self.budget < 0:
            raise self.damaged(f"'{name}' claims {size:,} bytes, more than a file of this size can mean")

    def _check_chunks(self, dataset: Any, name: str) -> None:
        """Refuses chunks that would grow beyond what they claim; the HDF5 library finds out too late."""
        size = math.prod(dataset.chunks) * dataset.dtype.itemsize
        plan = dataset.id.get_create_plist()
        filters = [plan.get_filter(index)[0] for index in range(plan.get_nfilters())]
        if not set(filters) <= FILTERS or len(set(filters)) < len(filters):
            raise self.damaged(f"'{name}' is packed by unknown filters")
        if size > max(MAX_BYTES, math.prod(dataset.shape) * dataset.dtype.itemsize):
            raise self.damaged(f"'{name}' is stored in pieces of {size:,} bytes")
        for stored, offset in self._stored_chunks(dataset):
            if stored > 1.01 * size + 1024:
                raise self.damaged(f"'{name}' holds a piece of {stored:,} bytes that should be {size:,}")
            if 1 in filters and stored > MAX_RAW_CHUNK:
                skipped, raw = dataset.id.read_direct_chunk(offset)
                if skipped >> filters.index(1) & 1:  # it did not shrink and is stored as it is
                    continue
                if len(zlib.decompressobj().decompress(raw, size + 8)) > size + 4:  # fletcher32 adds 4 bytes
                    raise self.damaged(f"'{name}' holds a piece that unpacks to more than its {size:,} bytes")

    def _stored_chunks(self, dataset: Any) -> Iterator[tuple[int, tuple[int, ...]]]:
        count = dataset.id.get_num_chunks()
        if count > MAX_ITEMS:
            raise self.damaged(f"a dataset is stored in {count} pieces")
        for index in range(count):
            info = dataset.id.get_chunk_info(index)
            yield info.size, info.chunk_offset

    def damaged(self, reason: str) -> NetworkError:
        """The error to raise."""
        return NetworkError(f"'{self.path}' is not a readable {self.what}: {reason}", "write the file again")
