"""Damaged and hostile NIR files: a network or a typed error, soon, in little memory, and nothing written."""

import tempfile
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snnkit.errors import NetworkError, SnnkitError, UnsupportedError
from snnkit.interchange import nir_file, nir_read
from snnkit.interchange.nir_read import Choices
from snnkit.network import quantize, verify
from snnkit_exporters import nir as exporter
from tests.test_network import float_network

CHOICES = Choices(reset="zero", dt=1e-4, timesteps=4)


def content() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        (path,) = exporter.export(quantize(float_network()), Path(folder) / "net.nir", exporter.Options())
        return path.read_bytes()


VALID = content()
DATASETS = [
    *(
        f"nodes/{node}/{name}"
        for node in ("conv", "fc", "lif")
        for name in ("weight", "bias", "v_threshold", "r", "tau")
    ),
    *("nodes/conv/stride", "nodes/conv/padding", "nodes/conv/groups", "nodes/conv/input_shape", "nodes/input/shape"),
    *("nodes/flat/start_dim", "nodes/output/shape", "edges", "nodes/lif/type", "metadata/dt", "metadata/snnkit"),
    *("metadata/timesteps", "metadata/reset", "nodes/lif", "nodes", "metadata"),
]
ODD: dict[str, Any] = {
    "nan": np.float32(np.nan),
    "infinite": np.array([np.inf]),
    "text": "no",
    "nothing": np.zeros(0),
    "negative": np.int64(-1),
    "zero": np.float64(0),
    "huge": np.array([2**40, 2**40, 2**40]),
    "vast": np.float64(1e300),
    "complex": np.complex64(1j),
    "deep": np.zeros((1,) * 9),
    "pairs": np.array([["a", "b"]], dtype="S1"),
}


def readable(path: Path) -> bool:
    """Whether the file is read; anything but a verified network or a typed error fails the test."""
    before = sorted(path.parent.iterdir())
    try:
        verify(nir_read.read(path, CHOICES).network)
    except SnnkitError:
        return False
    finally:
        assert sorted(path.parent.iterdir()) == before
    return True


@settings(max_examples=150)
@given(st.data())
def test_damaged_bytes(data: st.DataObject) -> None:
    damaged = bytearray(VALID)
    if data.draw(st.booleans()):
        for position in data.draw(st.lists(st.integers(8, len(VALID) - 1), min_size=1, max_size=6)):
            damaged[position] = data.draw(st.integers(0, 255))
    if data.draw(st.integers(0, 3)) == 0:
        del damaged[data.draw(st.integers(0, len(VALID) - 1)) :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged.nir"
        path.write_bytes(damaged)
        readable(path)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.sampled_from(DATASETS), st.sampled_from(["delete", *ODD])), min_size=1, max_size=3))
def test_damaged_values(changes: list[tuple[str, str]]) -> None:
    damage(changes)


@pytest.mark.parametrize("how", ["delete", *ODD])
@pytest.mark.parametrize("name", DATASETS)
def test_each_damaged_value(name: str, how: str) -> None:
    damage([(name, how)])
    damage([("metadata/snnkit", "delete"), (name, how)])  # as of another tool, whose file is interpreted


def damage(changes: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged.nir"
        path.write_bytes(VALID)
        with h5py.File(path, "r+") as file:
            for name, how in changes:
                if f"node/{name}" in file:
                    del file[f"node/{name}"]
                    if how != "delete":
                        file.create_dataset(f"node/{name}", data=ODD[how])
        readable(path)


def changed(path: Path, change: Callable[[Any], None]) -> Path:
    path.write_bytes(VALID)
    with h5py.File(path, "r+") as file:
        change(file["node"])
    return path


def replaced(name: str, **settings: Any) -> Callable[[Any], None]:
    def change(root: Any) -> None:
        del root[name]
        root.create_dataset(name, **settings)

    return change


def test_claims_are_checked_before_anything_is_allocated(tmp_path: Path) -> None:
    vast = replaced("nodes/fc/weight", shape=(2**20, 2**20), dtype="f4", chunks=(64, 64), compression="gzip")
    with pytest.raises(NetworkError, match="claims 4,398,046,511,104 bytes"):
        nir_read.read(changed(tmp_path / "a.nir", vast), CHOICES)
    pieces = replaced("nodes/fc/weight", shape=(2, 48), dtype="f4", chunks=(2**14, 2**14), maxshape=(None, None))
    with pytest.raises(NetworkError, match="stored in pieces of 1,073,741,824 bytes"):
        nir_read.read(changed(tmp_path / "b.nir", pieces), CHOICES)

    def bomb(root: Any) -> None:
        replaced("nodes/fc/weight", shape=(2**18,), dtype="f4", chunks=(2**18,), compression="gzip")(root)
        root["nodes/fc/weight"].id.write_direct_chunk((0,), zlib.compress(bytes(2**28)))

    with pytest.raises(NetworkError, match="unpacks to more than its 1,048,576 bytes"):
        nir_read.read(changed(tmp_path / "c.nir", bomb), CHOICES)


def test_other_files_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["weight"] = np.ones((2, 48), np.float32)

    def external(root: Any) -> None:
        del root["nodes/fc/weight"]
        root["nodes/fc/weight"] = h5py.ExternalLink(str(secret), "/weight")

    def soft(root: Any) -> None:
        del root["nodes/fc/weight"]
        root["nodes/fc/weight"] = h5py.SoftLink("/node/nodes/conv/weight")

    def virtual(root: Any) -> None:
        del root["nodes/fc/weight"]
        layout = h5py.VirtualLayout((2, 48), "f4")
        layout[:] = h5py.VirtualSource(str(secret), "weight", (2, 48))
        root.create_virtual_dataset("nodes/fc/weight", layout)

    raw = replaced("nodes/fc/weight", shape=(2, 48), dtype="f4", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
    for change, message in (
        (external, "is a link, which is not followed"),
        (soft, "is a link, which is not followed"),
        (virtual, "keeps its data in other files"),
        (raw, "keeps its data in other files"),
    ):
        with pytest.raises(NetworkError, match=message):
            nir_read.read(changed(tmp_path / "linked.nir", change), CHOICES)


def test_a_group_that_holds_itself(tmp_path: Path) -> None:
    def loop(root: Any) -> None:
        root["metadata/again"] = root["metadata"]

    with pytest.raises(NetworkError, match="nested more than"):
        nir_read.read(changed(tmp_path / "loop.nir", loop), CHOICES)


def test_texts_that_loop_in_the_library(tmp_path: Path) -> None:
    """A heap object that claims to reach into empty space, where the HDF5 library would read on without end."""
    damaged = bytearray(VALID)
    heap = damaged.index(b"GCOL")
    damaged[heap + 16 + 8 : heap + 16 + 16] = (2048).to_bytes(8, "little")
    path = tmp_path / "damaged.nir"
    path.write_bytes(damaged)
    assert not readable(path)


def test_small_files_that_ask_for_much(tmp_path: Path) -> None:
    """Chains whose conversion would grow with the square, or the cube, of what the file holds."""

    def chain(count: int, record: Callable[[int], dict[str, Any]], width: int = 2) -> Path:
        names = ["input", *(f"n{index}" for index in range(count)), "fc", "output"]
        records = [{"type": "Input", "shape": np.array([width])}, *map(record, range(count))]
        records.append({"type": "Linear", "weight": np.ones((2, width), np.float32)})
        records.append({"type": "Output", "shape": np.array([2])})
        graph = nir_file.Graph(dict(zip(names, records, strict=True)), list(pairwise(names)))
        return nir_file.write(graph, tmp_path / "chain.nir")

    linear = {"type": "Linear", "weight": np.eye(2, dtype=np.float32)}
    late = {"type": "Delay", "delay": np.full(2, 1e-4)}
    with pytest.raises(NetworkError, match="holds 2003 nodes; 1000 are taken"):
        nir_read.read(chain(2000, lambda index: linear), CHOICES)
    with pytest.raises(UnsupportedError, match="needs more than 1000 nodes"):
        nir_read.read(chain(200, lambda index: (late, linear)[index % 2]), CHOICES)
    scale = {"type": "Scale", "scale": np.tile([1.0, 2.0], 1024)}
    with pytest.raises(UnsupportedError, match="more weights than the file holds"):
        nir_read.read(chain(100, lambda index: scale, width=2048), CHOICES)
