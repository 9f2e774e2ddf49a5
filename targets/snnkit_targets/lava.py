"""Lava: the network on Intel's simulated Loihi (lava-nc's fixed-point model, loaded through lava-dl's netx).

Lava needs Python 3.10 and numpy 1, so it runs in a worker process (``workers/lava_netx.py``) with an environment of its
own, which uv keeps in its cache. What comes back is identical to Lava's fixed-point model, not to silicon.
"""

import configparser
import importlib.metadata
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from snnkit.errors import DataError, UnavailableError, UnsupportedError, WorkerError
from snnkit.network.ir import LIF, Array, Conv2d, Flatten, Network, Shape, infer_shapes
from snnkit.network.trace import Trace
from snnkit_targets._processes import workplace

WORKER = Path(__file__).parent / "workers" / "lava_netx.py"
REQUIRED = {"lava-nc": "0.10.0", "lava-dl": "0.6.0"}
PYTHON_HINT = "install Python 3.10, or name one: SNNKIT_LAVA_PYTHON=/path/to/python3.10"
_FOREIGN = ("VIRTUAL_ENV", "UV_PYTHON", "UV_PROJECT_ENVIRONMENT", "UV_NO_CACHE")  # would choose another environment


class Options(BaseModel):
    """``record``: keep the rasters, or only the counts. ``time_limit``: seconds, None for :func:`time_limit`.

    ``convolution``: ``stock`` is Lava's own; ``gemm`` is an exact matrix product in its place, up to 90 times faster.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    record: Literal["counts", "raster"] = "counts"
    time_limit: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    convolution: Literal["stock", "gemm"] = "stock"


@dataclass(frozen=True)
class Environment:
    """Where Lava is installed, and what: ``versions`` maps names of distributions to versions."""

    prefix: Path
    versions: dict[str, str]

    @property
    def python(self) -> Path:
        return self.prefix / "bin" / "python"


def available() -> str | None:
    """None if Lava can be run (or set up) here, else what is missing and how to get it. Starts nothing but ``uv``."""
    if sys.platform != "linux":
        return "Lava runs on Linux only; use another target here"
    try:
        if environment() and not os.environ.get("SNNKIT_LAVA_PYTHON"):
            return None
        python = find_python()
    except UnavailableError as error:
        return f"{error}; {error.hint}"
    downloads = os.environ.get("UV_PYTHON_DOWNLOADS", "automatic").lower()
    if python is None and (downloads not in ("automatic", "true", "1") or _offline()):
        return f"there is no Python 3.10, which Lava needs, and uv may not download one; {PYTHON_HINT}"
    return None


def check(net: Network, options: Options) -> list[str]:  # noqa: ARG001 - every target has this signature
    """All reasons why Lava cannot run ``net``: those of its exporter."""
    from snnkit_exporters import lava as exporter

    return exporter.check(net, exporter.Options())


def run(net: Network, inputs: Array, options: Options) -> Trace:
    """Runs B samples back to back: float [B, *shape] in 0..1 (direct) or integers [T, B, *shape] (events).

    Raises ``UnsupportedError``, ``UnavailableError``, ``DataError``, ``WorkerError`` or ``WorkerTimeoutError``.
    """
    from snnkit_exporters import lava as exporter

    if reasons := check(net, options):
        raise UnsupportedError("the network cannot run on Lava", reasons, "change these nodes, or use another target")
    frames = _frames(net, inputs)
    samples = frames.shape[1]
    environment = prepare()
    seconds = options.time_limit or time_limit(net, samples)
    with workplace() as place:
        exporter.export(net, place.folder / "network.net", exporter.Options())
        np.save(place.folder / "frames.npy", frames)
        job = {
            "samples": samples,
            "timesteps": net.timesteps,
            "message_bits": exporter.message_bits(net),
            "convolution": options.convolution,
        }
        (place.folder / "job.json").write_text(json.dumps(job))
        command = [str(environment.python), "-I", str(WORKER), str(place.folder)]
        place.run(command, worker_environment(), seconds, "the Lava worker")
        try:
            report, potentials, rasters = _results(net, place.folder, samples)
        except (OSError, ValueError, KeyError, TypeError) as error:
            message = f"the Lava worker wrote a damaged result: {error}"
            raise WorkerError(message, "run it again; is the temporary folder full?") from None
    notes = [f"stock Lava {REQUIRED['lava-nc']} fixed_pt, netx {REQUIRED['lava-dl']}"]
    if options.convolution == "gemm":
        notes = [f"Lava {REQUIRED['lava-nc']} fixed_pt with its convolution replaced by an exact matrix product"]
    readouts = potentials >> 6  # v has six fractional bits
    if wrong := int((readouts != _exact_readouts(net, frames, rasters)).any(axis=1).sum()):
        notes.append(f"the readout of {wrong} of {samples} samples left the 24 bits of Lava's neurons")
    return Trace.from_rasters(
        target="lava",
        readouts=readouts,
        rasters=rasters,
        keep_rasters=options.record == "raster",
        seconds=report["seconds"],
        steps=report["steps"],
        notes=tuple(notes),
    )


def time_limit(net: Network, samples: int) -> float:
    """A generous limit in seconds, about ten times what stock Lava takes on two CPU cores.

    Measured: 1 ms a step for three layers, and 10 ns for each product of scipy's convolution, which computes all
    positions before it strides.
    """
    shapes = infer_shapes(net)
    products = sum(
        node.weight.size * math.prod(shapes[node.inputs[0].source][1:])
        for node in net.synapses
        if isinstance(node, Conv2d)
    )
    steps = samples * net.timesteps + len(net.synapses)
    return 120.0 + steps * (0.005 * len(net.synapses) + 1e-7 * products)


def find_python() -> Path | None:
    """A Python 3.10 on this machine: ``SNNKIT_LAVA_PYTHON``, what uv finds, pyenv's versions; None if there is none.

    Raises :class:`UnavailableError` if the variable names something else.
    """
    if named := os.environ.get("SNNKIT_LAVA_PYTHON"):
        if not _is_python310(Path(named)):
            raise UnavailableError(f"SNNKIT_LAVA_PYTHON is '{named}', which is not a Python 3.10", PYTHON_HINT)
        return Path(named).absolute()
    found = _ask([_uv(), "python", "find", "--no-python-downloads", "--system", "--no-project", "3.10"])
    if found and _is_python310(Path(found)):
        return Path(found)
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")  # uv does not look there
    candidates = sorted(root.glob("versions/3.10.*/bin/python"), key=lambda path: (len(str(path)), str(path)))
    return next((path for path in reversed(candidates) if _is_python310(path)), None)


def prepare(seconds: float = 900) -> Environment:
    """Makes the environment if it is not there (about 400 MB in uv's cache) and says what is in it.

    Raises :class:`UnavailableError` if it cannot be made, :class:`WorkerTimeoutError` if that takes too long.
    """
    found = environment()
    if found and not os.environ.get("SNNKIT_LAVA_PYTHON"):  # looking for interpreters takes uv up to a second
        return found
    python = find_python()
    if found and python and _made_from(found, python):
        return found
    command = [_uv(), "sync", "--quiet", "--script", str(WORKER), "--python", str(python or "3.10")]
    with workplace() as place:
        try:
            place.run(command, worker_environment(), seconds, "uv")
        except WorkerError as error:
            if python is None:
                message = f"there is no Python 3.10, which Lava needs, and uv could not fetch one ({error})"
                raise UnavailableError(message, PYTHON_HINT) from error
            message = f"Lava could not be installed ({error})"
            raise UnavailableError(message, "a package registry must be reachable the first time") from error
    found = environment()
    if found is None:
        raise UnavailableError("uv made no environment for Lava", "'uv cache clean' may help")
    return found


def environment() -> Environment | None:
    """The environment in uv's cache, if it is there and holds the versions that this target needs."""
    prefix = _prefix()
    if prefix is None:
        return None
    sites = [str(path) for path in prefix.glob("lib/python3.10/site-packages")]
    versions = {found.name: found.version for found in importlib.metadata.distributions(path=sites)}
    if any(versions.get(name) != needed for name, needed in REQUIRED.items()):
        return None
    return Environment(prefix, dict(sorted(versions.items())))


def remove_environment() -> Path | None:
    """Deletes the environment from uv's cache; returns where it was, None if there was none."""
    prefix = _prefix()
    if prefix is not None:
        shutil.rmtree(prefix)
    return prefix


def worker_environment() -> dict[str, str]:
    """The environment variables of this process, without those that would change the worker's Python."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON") and k not in _FOREIGN}
    return kept | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _prefix() -> Path | None:
    """The folder of the worker's environment: only one that lies in uv's cache counts."""
    python = _ask([_uv(), "python", "find", "--no-python-downloads", "--script", str(WORKER)])
    cache = _ask([_uv(), "cache", "dir"])
    if not python or not cache:
        return None
    prefix = Path(python).parent.parent
    ours = prefix.parent.parent == Path(cache) and prefix.parent.name.startswith("environments-")
    return prefix if ours and (prefix / "pyvenv.cfg").is_file() else None


def _made_from(found: Environment, python: Path) -> bool:
    config = configparser.ConfigParser(interpolation=None)
    config.read_string("[venv]\n" + (found.prefix / "pyvenv.cfg").read_text())
    home = Path(config["venv"].get("home", ""))
    return home.resolve() in (python.parent.resolve(), python.resolve().parent)


def _uv() -> str:
    from uv import find_uv_bin

    try:
        return find_uv_bin()
    except FileNotFoundError:
        raise UnavailableError("uv is missing, which sets up Lava", "install it: pip install uv") from None


def _offline() -> bool:
    return os.environ.get("UV_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def _ask(command: list[str]) -> str:
    """The stdout of a quick command, empty if it fails."""
    try:
        answer = subprocess.run(
            command, env=worker_environment(), cwd="/", capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def _is_python310(path: Path) -> bool:
    return _ask([str(path.absolute()), "-I", "-c", "import sys; print(sys.version_info[:2])"]) == "(3, 10)"


def _frames(net: Network, inputs: Array) -> Array:
    """The encoded input, int16 [T or 1, B, *shape]; flat where the network flattens it before its first layer."""
    entry = net.input
    hint = f"give {'integers [T, B' if entry.encoding == 'events' else 'floats [B'}, {str(entry.shape)[1:-1]}]"
    leading = 2 if entry.encoding == "events" else 1
    if inputs.ndim != leading + len(entry.shape) or inputs.shape[leading:] != entry.shape or 0 in inputs.shape:
        raise DataError(f"the input has shape {inputs.shape}", hint)
    if entry.encoding == "events" and (inputs.shape[0] != net.timesteps or inputs.dtype.kind not in "biu"):
        raise DataError(
            f"the events are {inputs.dtype} in {inputs.shape[0]} timesteps, the network runs {net.timesteps}", hint
        )
    if not np.isfinite(inputs).all():
        raise DataError("the input holds values that are not finite", hint)
    encoded = entry.encode(inputs)
    if encoded.min() < 0 or encoded.max() > 2**entry.bits - 1:
        raise DataError(f"the input has values outside 0..{2**entry.bits - 1}, its {entry.bits} bits", hint)
    frames = encoded.astype(np.int16)[None] if entry.encoding == "direct" else encoded.astype(np.int16)
    flat = isinstance(net.consumers(entry.name)[0], Flatten)
    return frames.reshape(*frames.shape[:2], -1) if flat else frames


def _results(net: Network, folder: Path, samples: int) -> tuple[dict[str, Any], Array, dict[str, Array]]:
    """The report, the head's v [B, classes] and the rasters [T, B, *shape] that the worker wrote, checked."""
    shapes = infer_shapes(net)
    report = json.loads((folder / "report.json").read_text())
    steps = samples * net.timesteps + len(net.synapses)
    if not isinstance(report["seconds"], float) or report["steps"] != steps:
        raise ValueError("the report does not fit the job")
    classes = shapes[net.readout.name]
    potentials = _array(folder / "readouts.npy", np.dtype(np.int64), (samples, *classes))
    rasters = {}
    for index, node in enumerate(net.neurons):
        shape = shapes[node.name]
        size = math.prod(shape)
        rows = _array(folder / f"raster-{index}.npy", np.dtype(np.uint8), (steps, -(-size // 8)))
        ours = rows[index + 1 : index + 1 + samples * net.timesteps]  # a layer is one step behind the one before
        spikes = np.unpackbits(ours, axis=1, count=size).view(np.bool_)
        rasters[node.name] = np.ascontiguousarray(spikes.reshape(samples, net.timesteps, *shape).swapaxes(0, 1))
    return report, potentials, rasters


def _array(path: Path, dtype: np.dtype[Any], shape: Shape) -> Array:
    array: Array = np.load(path, allow_pickle=False)
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{path.name} is {array.dtype} {array.shape}, expected {dtype} {shape}")
    return array


def _exact_readouts(net: Network, frames: Array, rasters: dict[str, Array]) -> Array:
    """The sums without any width, int64 [B, classes], from the spikes that reached the last layer."""
    head = net.synapses[-1]
    sources = [node for node in net.nodes if isinstance(node, LIF)]
    if sources:
        arrived = rasters[sources[-1].name].sum(axis=0, dtype=np.int64)
    else:
        arrived = frames.sum(axis=0, dtype=np.int64) * (net.timesteps // len(frames))
    sums: Array = arrived.reshape(len(arrived), -1) @ head.effective_weight.T.astype(np.int64)
    return sums if head.bias is None else sums + net.timesteps * head.bias.astype(np.int64)
