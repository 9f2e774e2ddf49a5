"""Recorded traces: written and read, incomplete ones, and files that are wrong."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from snnkit.cli.main import run as snnkit_command
from snnkit.errors import DataError, UsageError
from snnkit.network import Network, quantize, save
from snnkit.network.trace_file import digest, load_trace, save_trace
from snnkit_targets import reference
from tests.networks import raw_inputs
from tests.test_cli import fails
from tests.test_network import float_network


@pytest.fixture
def net() -> Network:
    return quantize(float_network())


@pytest.fixture
def raw(net: Network) -> np.ndarray:
    return raw_inputs(net, 6)


@pytest.fixture
def arrays(net: Network, raw: np.ndarray) -> dict[str, np.ndarray]:
    """What a lab would write by hand."""
    trace = reference.run(net, raw, reference.Options(record="raster"))
    return {
        "format": np.array("snnkit-trace-1"),
        "target": np.array("chip 7"),
        "spikes.lif": trace.rasters["lif"].astype(np.uint8),
        "readouts": trace.readouts,
        "inputs_sha256": np.array(digest(raw)),
    }


def write(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez(path, **arrays)
    return path


def test_what_is_written_is_read(tmp_path: Path, net: Network, raw: np.ndarray) -> None:
    trace = reference.run(net, raw, reference.Options(record="raster"))
    read = load_trace(save_trace(trace, tmp_path / "t.npz", raw), net, 6)
    read.require_inputs(raw)
    assert read.trace.target == "reference"
    np.testing.assert_array_equal(read.trace.readouts, trace.readouts)
    for name, raster in trace.rasters.items():
        np.testing.assert_array_equal(read.trace.rasters[name], raster)
        np.testing.assert_array_equal(read.trace.spikes_per_step[name], trace.spikes_per_step[name])
    with pytest.raises(DataError, match="recorded from other samples"):
        read.require_inputs(raw[::-1])
    with pytest.raises(UsageError, match="not an"):
        save_trace(trace, tmp_path / "t.txt")
    with pytest.raises(UsageError, match="without rasters"):
        save_trace(reference.run(net, raw, reference.Options()), tmp_path / "u.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["t.npz"]


def change(arrays: dict[str, np.ndarray], **changes: object) -> dict[str, np.ndarray]:
    renamed = {key.replace("__", "."): value for key, value in changes.items()}
    return {key: np.asarray(value) for key, value in (arrays | renamed).items() if value is not None}


WRONG = {
    "no 'format'": {"format": None},
    "has the format 'other'": {"format": "other"},
    "'format' is no text": {"format": 3},
    "'target' is no text": {"target": ["a", "b"]},
    "holds no spikes": {"spikes__lif": None},
    "'spikes.other' names no neurons": {"spikes__other": np.zeros((4, 6, 2), bool)},
    "unknown array 'secret'": {"secret": np.zeros(3)},
    "'spikes.lif' holds values other than 0 and 1": {"spikes__lif": np.full((4, 6, 3, 4, 4), 2)},
    "holds 7 samples": {"spikes__lif": np.zeros((4, 7, 3, 4, 4), bool)},
    "'spikes.lif' is float64": {"spikes__lif": np.zeros((4, 6, 3, 4, 4))},
    "'spikes.lif' is bool (5": {"spikes__lif": np.zeros((5, 6, 3, 4, 4), bool)},
    "'readouts' is float32": {"readouts": np.zeros((6, 2), np.float32)},
    "'readouts' is int64 (5": {"readouts": np.zeros((5, 2), np.int64)},
    "'v.lif' is": {"v__lif": np.zeros((4, 6), np.int64)},
    "pickled objects": {"readouts": np.array([{}], dtype=object)},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_files_name_the_array(tmp_path: Path, net: Network, arrays: dict[str, np.ndarray], message: str) -> None:
    path = write(tmp_path / "bad.npz", change(arrays, **WRONG[message]))
    with pytest.raises(DataError) as caught:
        load_trace(path, net, 6)
    assert message in str(caught.value)
    assert "bad.npz" in str(caught.value)


def test_damaged_files(tmp_path: Path, net: Network, arrays: dict[str, np.ndarray]) -> None:
    whole = write(tmp_path / "whole.npz", arrays).read_bytes()
    for name, content in {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"hello",
        "flipped": flip(whole),
    }.items():
        (tmp_path / f"{name}.npz").write_bytes(content)
        with pytest.raises(DataError, match=f"{name}.npz"):
            load_trace(tmp_path / f"{name}.npz", net, 6)
    with pytest.raises(DataError, match="No such file"):
        load_trace(tmp_path / "missing.npz", net, 6)


def flip(content: bytes) -> bytes:
    """One bit of the spikes: the archive's checksum tells."""
    at = content.index(b"spikes.lif.npy") + 300
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def test_a_huge_array_is_refused_before_it_is_read(tmp_path: Path, net: Network, arrays: dict[str, np.ndarray]) -> None:
    """Its header promises 10 TB; nothing of that size is allocated."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|b1", "fortran_order": False, "shape": (4, 6, 3, 4, 10**11)}
    )
    path = write(tmp_path / "huge.npz", change(arrays, spikes__lif=None))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("spikes.lif.npy", header.getvalue())
    with pytest.raises(DataError, match=r"'spikes\.lif' is bool"):
        load_trace(path, net, 6)


@pytest.fixture
def files(tmp_path: Path, net: Network, raw: np.ndarray) -> tuple[str, str]:
    np.save(tmp_path / "x.npy", raw)
    np.save(tmp_path / "y.npy", np.array([0, 1, 0, 1, 0, 1]))
    return str(save(net, tmp_path / "net.safetensors")), f"{tmp_path / 'x.npy'},{tmp_path / 'y.npy'}"


def test_a_recorded_trace_on_the_command_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, files: tuple[str, str], arrays: dict[str, np.ndarray]
) -> None:
    net, data = files
    saved = str(tmp_path / "reference.npz")
    assert snnkit_command(["run", net, "--data", data, "--save-trace", saved]) == 0
    assert f"trace: {saved}" in capsys.readouterr().out
    assert snnkit_command(["run", net, "--data", data, "-t", "onnxruntime", "--against", saved]) == 0
    assert "onnxruntime and reference: identical, every spike" in capsys.readouterr().out

    write(tmp_path / "chip.npz", change(arrays, readouts=None))  # no readouts: only the spikes are compared
    assert snnkit_command(["run", net, "--data", data, "--against", str(tmp_path / "chip.npz")]) == 0
    assert "identical in lif, every spike at every timestep; not recorded: out" in capsys.readouterr().out

    spikes = arrays["spikes.lif"][:, :4].copy()  # four samples only, and one spike less in the last of them
    first = tuple(np.argwhere(spikes[:, 3])[0])
    spikes[first[0], 3, *first[1:]] = 0
    v = np.full(spikes.shape, 77, np.int64)
    changed = change(arrays, spikes__lif=spikes, readouts=arrays["readouts"][:4], inputs_sha256=None, v__lif=v)
    write(tmp_path / "chip.npz", changed)
    command = ["run", net, "--data", data, "--against", str(tmp_path / "chip.npz")]
    assert snnkit_command(command) == 1
    output = capsys.readouterr().out
    assert "reference and chip 7: DIFFERENT spikes {'lif': 1}" in output
    assert f"first: timestep {first[0]}, lif, sample 3" in output
    assert "chip 7: does not spike; v 1.203125, threshold" in output
    assert "(its own)" in output
    assert "likely cause: unknown" in output
    assert snnkit_command([*command, "--json"]) == 1
    compared = json.loads(capsys.readouterr().out)["compared"][0]
    assert compared["diagnosis"]["sides"][1]["v"] == 77
    assert compared["agreement"]["lif"] == pytest.approx(1 - 1 / spikes.size)


def test_wrong_use_of_traces(capsys: pytest.CaptureFixture[str], tmp_path: Path, files: tuple[str, str]) -> None:
    net, data = files
    both = ["-t", "reference", "-t", "onnxruntime", "--save-trace", str(tmp_path / "t.npz")]
    error, _ = fails(capsys, "run", net, "--data", data, *both)
    assert "--save-trace takes what one target did" in error
    error, _ = fails(capsys, "run", net, "--data", data, "--against", str(tmp_path / "missing.npz"))
    assert "missing.npz" in error
    assert not (tmp_path / "t.npz").exists()


def test_state_of_the_reference(net: Network, raw: np.ndarray) -> None:
    trace = reference.run(net, raw, reference.Options(record="raster"))
    for t in range(net.timesteps):
        u, v = reference.state(net, raw, 2, t, "lif")
        assert u.shape == v.shape == trace.rasters["lif"].shape[2:]
        limit = np.asarray(net["lif"].v_threshold).astype(np.int64) << 6
        np.testing.assert_array_equal(v > limit.reshape(-1, *[1] * (limit.ndim and 2)), trace.rasters["lif"][t, 2])
    with pytest.raises(UsageError, match="no integer state"):
        reference.state(net, raw, 0, 0, "conv")
