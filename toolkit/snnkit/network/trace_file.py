"""Traces as .npz files, so that what a chip or another simulator did can be compared with a target.

The arrays of a file, numpy's own format without pickled objects:

================  =====================================================================================
``format``        the text ``snnkit-trace-1``
``target``        what recorded it, a text
``spikes.NODE``   bool (or 0 and 1) [T, B, *shape], for each neuron node that was recorded; at least one
``readouts``      [B, classes], optional; integers for an integer network
``v.NODE``        integers [T, B, *shape], optional: the membrane as it is compared with the threshold,
                  before any reset, with 6 fractional bits
``u.NODE``        likewise the synaptic current
``inputs_sha256`` optional: :func:`digest` of the raw samples, checked against those that are run
================  =====================================================================================

Index t is the network's timestep, without a chip's pipeline latency; samples come in the order of the data. A file may
hold the first samples only, and some of the layers.
"""

import hashlib
import math
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from snnkit.errors import DataError, UsageError
from snnkit.files import replacing
from snnkit.network.ir import Array, Network, Shape, infer_shapes, verify
from snnkit.network.trace import Trace

FORMAT = "snnkit-trace-1"
TEXT = 4096  # bytes that a text in the file may take


@dataclass(frozen=True, eq=False)
class Recording:
    """A trace that was read, with the membranes that it brought; ``readouts`` are [B, 0] where it has none."""

    trace: Trace
    u: dict[str, Array]
    v: dict[str, Array]
    inputs_sha256: str | None

    def state(self, sample: int, timestep: int, node: str) -> tuple[Array, Array]:
        """The u and v [*shape] of a node as they were recorded, NaN where they were not."""
        nothing = np.full(self.trace.spikes_per_neuron[node][0].shape, np.nan)
        u, v = (held[node][timestep, sample] if node in held else nothing for held in (self.u, self.v))
        return u, v

    def require_inputs(self, inputs: Array) -> None:
        """Raises :class:`DataError` where the recording was made from other samples than these."""
        if self.inputs_sha256 is not None and self.inputs_sha256 != digest(inputs):
            message = f"the trace of '{self.trace.target}' was recorded from other samples than these"
            raise DataError(message, "name the data that it was recorded from with --data")


def digest(inputs: Array) -> str:
    """SHA-256 of the raw samples: shape, kind of number, and little-endian bytes."""
    plain = np.ascontiguousarray(inputs, inputs.dtype.newbyteorder("<"))
    header = f"{plain.dtype.str} {plain.shape}".encode()
    return hashlib.sha256(header + plain.tobytes()).hexdigest()


def save_trace(trace: Trace, path: str | os.PathLike[str], inputs: Array | None = None) -> Path:
    """Writes a trace with rasters, in one move, with the digest of the ``inputs`` that it belongs to."""
    path = Path(path)
    if path.suffix != ".npz":
        raise UsageError(f"'{path}' is not an .npz file", "give a name that ends with .npz")
    if trace.rasters is None:
        raise UsageError("a trace without rasters cannot be saved", "run with record='raster'")
    arrays: dict[str, Any] = {"format": np.array(FORMAT), "target": np.array(trace.target), "readouts": trace.readouts}
    arrays |= {f"spikes.{name}": raster for name, raster in trace.rasters.items()}
    if inputs is not None:
        arrays["inputs_sha256"] = np.array(digest(inputs))
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    return path


def load_trace(path: str | os.PathLike[str], net: Network, samples: int) -> Recording:
    """Reads a recording of ``net`` with at most ``samples`` samples.

    Sizes are checked before anything is read. Raises :class:`DataError` for a file that is no trace, is damaged, or
    does not fit the network, naming the array.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}
            headers = {key: _header(archive, name) for key, name in members.items()}
            _check_names(path, net, headers)
            count = _check_shapes(path, net, headers, samples)
            arrays = {key: _read(archive, name) for key, name in members.items()}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        message = getattr(error, "strerror", None) or str(error)
        raise DataError(f"cannot read the trace '{path}': {message}", "give an .npz file, see --save-trace") from None
    if str(arrays["format"]) != FORMAT:
        raise DataError(f"'{path}' has the format '{arrays['format']}'", f"this snnkit reads {FORMAT}")
    rasters = {}
    for key, array in arrays.items():
        if key.startswith("spikes."):
            if array.dtype.kind != "b" and not np.isin(array, (0, 1)).all():
                raise DataError(f"'{path}': '{key}' holds values other than 0 and 1", "record spikes as bool")
            rasters[key.removeprefix("spikes.")] = array.astype(bool)
    readouts = arrays.get("readouts", np.zeros((count, 0)))
    if not np.isfinite(readouts).all():
        raise DataError(f"'{path}': 'readouts' holds values that are not finite", "record numbers")
    trace = Trace.from_rasters(
        target=str(arrays.get("target", path.name)),
        readouts=readouts,
        rasters={neuron.name: rasters[neuron.name] for neuron in net.neurons if neuron.name in rasters},
        keep_rasters=True,
        seconds=0.0,
        steps=0,
        notes=(f"recorded, {path.name}",),
    )
    u, v = ({k[2:]: a for k, a in arrays.items() if k.startswith(f"{name}.")} for name in "uv")
    sha = arrays.get("inputs_sha256")
    return Recording(trace, u, v, None if sha is None else str(sha))


def _header(archive: zipfile.ZipFile, name: str) -> tuple[Shape, np.dtype[Any]]:
    with archive.open(name) as file:
        return _read_header(file)


def _read_header(file: IO[bytes]) -> tuple[Shape, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"it holds an array of the unknown version {version}")
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, which are never read")
    return tuple(shape), dtype


def _read(archive: zipfile.ZipFile, name: str) -> Array:
    with archive.open(name) as file:
        array: Array = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _check_names(path: Path, net: Network, headers: dict[str, tuple[Shape, np.dtype[Any]]]) -> None:
    neurons = {neuron.name for neuron in net.neurons}
    if "format" not in headers:
        raise DataError(f"'{path}' is no trace: it has no 'format'", f"write the text {FORMAT} there")
    for key, (shape, dtype) in headers.items():
        kind, _, node = key.partition(".")
        if kind in ("spikes", "u", "v") and node not in neurons:
            raise DataError(
                f"'{path}': '{key}' names no neurons of the network", f"it has {', '.join(sorted(neurons))}"
            )
        if kind in ("format", "target", "inputs_sha256"):
            if shape or dtype.kind != "U" or dtype.itemsize > TEXT:
                raise DataError(f"'{path}': '{key}' is no text", "save a text of numpy's, np.array('...')")
        elif kind not in ("spikes", "u", "v", "readouts"):
            raise DataError(f"'{path}' holds the unknown array '{key}'", "leave it out")
    if not any(key.startswith("spikes.") for key in headers):
        raise DataError(f"'{path}' holds no spikes", "record 'spikes.NODE' of at least one layer")


def _check_shapes(path: Path, net: Network, headers: dict[str, tuple[Shape, np.dtype[Any]]], samples: int) -> int:
    """How many samples all arrays hold."""
    shapes = infer_shapes(net)
    whole = verify(net) == "integer"
    first = next(shape for key, (shape, _) in headers.items() if key.startswith("spikes."))
    count = first[1] if len(first) > 1 else 0
    if not 1 <= count <= samples:
        raise DataError(
            f"'{path}' holds {count} samples, and there are {samples}", "give the data it was recorded from"
        )
    for key, (shape, dtype) in headers.items():
        kind, _, node = key.partition(".")
        if kind == "readouts":
            expected: Shape = (count, math.prod(shapes[net.readout.name]))
            kinds = "iu" if whole else "f"
        elif kind in ("spikes", "u", "v"):
            expected = (net.timesteps, count, *shapes[node])
            kinds = "biu" if kind == "spikes" else "iu" if whole else "f"
        else:
            continue
        if shape != expected or dtype.kind not in kinds or dtype.itemsize > 8:
            raise DataError(
                f"'{path}': '{key}' is {dtype} {shape}, expected {expected}",
                "index [timestep, sample, ...], without the pipeline's latency",
            )
    return count
