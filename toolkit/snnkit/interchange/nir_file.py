"""NIR's files: a graph of records in HDF5, as ``nir`` 1.0.8 lays them out (``nir/serialization.py``).

Reading trusts nothing; see :mod:`snnkit.interchange.hdf5`.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np

from snnkit.files import replacing
from snnkit.interchange.hdf5 import Reader

Record: TypeAlias = dict[str, Any]  # "type", parameters as arrays or strings, possibly a dictionary "metadata"
NIR_VERSION = "1.0.8"  # whose layout is written
MAX_SHOWN = 200  # characters of a text that are shown


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
    reader = _Reader(path, "NIR file")
    return reader.read(reader.graph)


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The nodes of a .nir file as they are written; ``snnkit import`` makes a network of them."""
    graph = read(path)
    rows = []
    for name, record in graph.nodes.items():
        known = [f"{key} {_shown(value)}" for key, value in record.items() if key not in ("type", "metadata")]
        sources = ", ".join(source for source, target in graph.edges if target == name)
        row = {"node": name, "kind": record["type"], "reads": sources, "output": "", "parameters": ", ".join(known)}
        rows.append(row)
    said = {key: _said(value) for key, value in graph.metadata.items()}
    return {"kind": "NIR", "timesteps": said.get("timesteps", "unknown"), "nodes": rows, "metadata": said}


def _said(value: Any) -> Any:
    """What the metadata say, in short: a number, a text, or how much there is."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        number = value.item()
        return number if np.isfinite(number) else str(number)
    if isinstance(value, str):
        return value if len(value) <= MAX_SHOWN else f"{len(value):,} characters"
    return _shown(value)


def _shown(value: Any) -> str:
    """A parameter in short: a few whole numbers as they are, one number that fills an array, else the array's shape."""
    if not isinstance(value, np.ndarray):
        return value if isinstance(value, str) else "..."
    if value.size <= 4 and value.dtype.kind in "iu":
        return "x".join(str(number) for number in value.flat)
    shape = "x".join(map(str, value.shape))
    if value.size and value.dtype.kind in "fiu" and (value == value.flat[0]).all():
        return f"{shape} of {value.flat[0]:g}" if shape else f"{value.item():g}"
    return shape


class _Reader(Reader):
    """Takes the graph from an open file."""

    def graph(self, file: Any) -> Graph:
        root = self.child(file, "node")
        if not isinstance(root, h5py.Group) or "nodes" not in root or "edges" not in root:
            raise self.damaged("it holds no NIR graph")
        return self._graph(root, depth=1)

    def _graph(self, group: Any, depth: int) -> Graph:
        nodes, edges = self.child(group, "nodes"), self.dataset(self.child(group, "edges"), "edges")
        metadata = self.group(self.child(group, "metadata"), depth) if "metadata" in group else {}
        records = self.group(nodes, depth)
        if wrong := [name for name, record in records.items() if not isinstance(_type(record), str)]:
            raise self.damaged(f"node '{wrong[0]}' has no type")
        return Graph(records, self._edges(edges), metadata)

    def _edges(self, values: Any) -> list[tuple[str, str]]:
        if isinstance(values, np.ndarray) and values.size == 0:
            return []
        if not isinstance(values, list) or not all(len(edge) == 2 for edge in values):
            raise self.damaged("its edges are not pairs of names")
        return [(str(source), str(target)) for source, target in values]


def _type(record: Any) -> Any:
    return record.get("type") if isinstance(record, dict) else None
