"""NIR's files: a graph of records in HDF5, as ``nir`` 1.0.8 lays them out (``nir/serialization.py``).

Reading trusts nothing: types and sizes are checked before anything is allocated, links to other files, virtual data
and unknown filters are refused, and everything that is wrong is a :class:`NetworkError`.
"""

import math
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np

from snnkit.errors import NetworkError
from snnkit.files import replacing

Record: TypeAlias = dict[str, Any]  # "type", parameters as arrays or strings, possibly a dictionary "metadata"
NIR_VERSION = "1.0.8"  # whose layout is written
MAX_ITEMS, MAX_EDGES, MAX_DEPTH = 20_000, 20_000, 8
MAX_BYTES, BYTES_PER_STORED = 128 * 2**20, 8  # what a small file may hold, and what each stored byte adds
MAX_RAW_CHUNK = 128 * 2**10  # a deflated chunk of this size cannot grow beyond 132 MiB
FILTERS = {1, 2, 3, 32000}  # deflate, shuffle, fletcher32, lzf


@dataclass(frozen=True, eq=False)
class Graph:
    """Named records, the edges between them, and what the file says about itself."""

    nodes: dict[str, Record]
    edges: list[tuple[str, str]]
    metadata: dict[str, Any] = field(default_factory=dict)

    def same_as(self, other: "Graph") -> bool:
        """Whether nodes and edges are equal, value by value, metadata apart."""
        return set(self.edges) == set(other.edges) and _equal(self.nodes, other.nodes)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        a, b = ({key: value for key, value in x.items() if key != "metadata"} for x in (a, b))
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, str) or isinstance(b, str):
        return bool(isinstance(a, str) and isinstance(b, str) and a == b)
    return not isinstance(a, dict) and not isinstance(b, dict) and np.array_equal(a, b)


def write(graph: Graph, path: str | os.PathLike[str]) -> Path:
    """Writes ``path`` in one move; the same graph gives the same bytes."""
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("version", data=NIR_VERSION, dtype=h5py.string_dtype())
        root = file.create_group("node")
        root.create_dataset("type", data="NIRGraph", dtype=h5py.string_dtype())
        edges = np.array(graph.edges, dtype=object).reshape(-1, 2)
        root.create_dataset("edges", data=edges, dtype=h5py.string_dtype())
        _write(root.create_group("nodes"), graph.nodes)
        if graph.metadata:
            _write(root.create_group("metadata"), graph.metadata)
    return Path(path)


def _write(group: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            _write(group.create_group(name), value)
        elif isinstance(value, str):
            group.create_dataset(name, data=value, dtype=h5py.string_dtype())
        else:
            array = np.asarray(value)
            group.create_dataset(name, data=array, compression="gzip" if array.ndim else None)


def read(path: str | os.PathLike[str]) -> Graph:
    """The graph in a .nir file; raises :class:`NetworkError` for a file that is missing, damaged or not NIR's."""
    path = Path(path)
    if not path.is_file():
        raise NetworkError(f"there is no file '{path}'", "check the path")
    try:
        with h5py.File(path, "r") as file:
            return _Reader(path).graph(file)
    except NetworkError:
        raise
    except Exception as error:  # whatever the HDF5 library makes of damaged bytes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise NetworkError(f"'{path}' is not a readable NIR file ({reason})", "it may be truncated") from None


class _Reader:
    """Walks one file and keeps account of what it has taken from it."""

    def __init__(self, path: Path) -> None:
        self.path, self.items = path, 0
        self.budget = MAX_BYTES + BYTES_PER_STORED * path.stat().st_size

    def graph(self, file: Any) -> Graph:
        root = self._child(file, "node")
        if not isinstance(root, h5py.Group) or "nodes" not in root or "edges" not in root:
            raise self._damaged("it holds no NIR graph")
        return self._graph(root, depth=1)

    def _graph(self, group: Any, depth: int) -> Graph:
        nodes, edges = self._child(group, "nodes"), self._dataset(self._child(group, "edges"), "edges")
        metadata = self._group(self._child(group, "metadata"), depth) if "metadata" in group else {}
        records = self._group(nodes, depth)
        if wrong := [name for name, record in records.items() if not isinstance(_type(record), str)]:
            raise self._damaged(f"node '{wrong[0]}' has no type")
        return Graph(records, self._edges(edges), metadata)

    def _edges(self, values: Any) -> list[tuple[str, str]]:
        if isinstance(values, np.ndarray) and values.size == 0:
            return []
        if not isinstance(values, list) or not all(len(edge) == 2 for edge in values):
            raise self._damaged("its edges are not pairs of names")
        return [(str(source), str(target)) for source, target in values]

    def _group(self, group: Any, depth: int) -> dict[str, Any]:
        if not isinstance(group, h5py.Group):
            raise self._damaged("a dataset stands where a group is expected")
        if depth > MAX_DEPTH:
            raise self._damaged(f"its groups are nested more than {MAX_DEPTH} deep")
        values = {}
        for name in group:
            child = self._child(group, name)
            values[name] = (
                self._group(child, depth + 1) if isinstance(child, h5py.Group) else self._dataset(child, name)
            )
        return values

    def _child(self, group: Any, name: str) -> Any:
        self.items += 1
        if self.items > MAX_ITEMS:
            raise self._damaged(f"it holds more than {MAX_ITEMS} items")
        if name not in group:
            raise self._damaged(f"'{name}' is missing")
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise self._damaged(f"'{name}' is a link, which is not followed")
        return group[name]

    def _dataset(self, dataset: Any, name: str) -> Any:
        """Numbers as an array, a string as str, a table of strings as a list of lists."""
        if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
            raise self._damaged(f"'{name}' holds nothing")
        if dataset.is_virtual or dataset.external:
            raise self._damaged(f"'{name}' keeps its data in other files, which are not opened")
        self._take(name, math.prod(dataset.shape) * dataset.dtype.itemsize)
        if dataset.chunks is not None:
            self._check_chunks(dataset, name)
        if h5py.check_string_dtype(dataset.dtype) is not None:
            if math.prod(dataset.shape) > 2 * MAX_EDGES:
                raise self._damaged(f"'{name}' holds more than {MAX_EDGES} pairs of names")
            text = dataset.asstr()[()]
            return text if isinstance(text, str) else text.tolist()
        if dataset.dtype.kind not in "fiub":
            raise self._damaged(f"'{name}' is {dataset.dtype}, neither numbers nor text")
        return np.asarray(dataset[()])

    def _take(self, name: str, size: int) -> None:
        self.budget -= size
        if self.budget < 0:
            raise self._damaged(f"'{name}' claims {size:,} bytes, more than a file of this size can mean")

    def _check_chunks(self, dataset: Any, name: str) -> None:
        """Refuses chunks that would grow beyond what they claim; the HDF5 library finds out too late."""
        size = math.prod(dataset.chunks) * dataset.dtype.itemsize
        plan = dataset.id.get_create_plist()
        filters = [plan.get_filter(index)[0] for index in range(plan.get_nfilters())]
        if not set(filters) <= FILTERS or len(set(filters)) < len(filters):
            raise self._damaged(f"'{name}' is packed by unknown filters")
        if size > max(MAX_BYTES, math.prod(dataset.shape) * dataset.dtype.itemsize):
            raise self._damaged(f"'{name}' is stored in pieces of {size:,} bytes")
        for stored, offset in self._stored_chunks(dataset):
            if stored > 1.01 * size + 1024:
                raise self._damaged(f"'{name}' holds a piece of {stored:,} bytes that should be {size:,}")
            if 1 in filters and stored > MAX_RAW_CHUNK:
                skipped, raw = dataset.id.read_direct_chunk(offset)
                if skipped >> filters.index(1) & 1:  # it did not shrink and is stored as it is
                    continue
                if len(zlib.decompressobj().decompress(raw, size + 8)) > size + 4:  # fletcher32 adds 4 bytes
                    raise self._damaged(f"'{name}' holds a piece that unpacks to more than its {size:,} bytes")

    def _stored_chunks(self, dataset: Any) -> Iterator[tuple[int, tuple[int, ...]]]:
        count = dataset.id.get_num_chunks()
        if count > MAX_ITEMS:
            raise self._damaged(f"a dataset is stored in {count} pieces")
        for index in range(count):
            info = dataset.id.get_chunk_info(index)
            yield info.size, info.chunk_offset

    def _damaged(self, reason: str) -> NetworkError:
        return NetworkError(f"'{self.path}' is not a readable NIR file: {reason}", "write the file again")


def _type(record: Any) -> Any:
    return record.get("type") if isinstance(record, dict) else None
