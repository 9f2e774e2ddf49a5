"""Lava: the network on Intel's simulated Loihi, lava-nc's fixed-point model.

What runs is what the exporter writes: a sequential network is loaded through lava-dl's netx, any other is built from
lava.proc's processes by the ``run.py`` of its directory. Lava needs Python 3.10 and numpy 1, so it runs in worker
processes (``workers/lava_netx.py``) with an environment of their own, which uv keeps in its cache. What comes back is
identical to Lava's fixed-point model, not to silicon.
"""

import configparser
import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from snnkit.errors import DataError, UnavailableError, UnsupportedError, WorkerError
from snnkit.network.depth import depths, paths, relays, stem_neurons
from snnkit.network.ir import Array, Conv2d, Flatten, Network, Shape, Synapse, infer_shapes
from snnkit.network.trace import Trace
from snnkit_targets._processes import Workplace, workplace

WORKER = Path(__file__).parent / "workers" / "lava_netx.py"
NAME = "the Lava worker"  # what messages call it
STARTING = 120.0  # seconds that a worker may take to start, or to end, beside the limit for a sample
POLL = 0.1  # seconds between two looks at the workers
TEMPORARY = 75  # characters of the temporary folder's path: with the names below it a socket's is limited to 107
MEMORY = 2.5e7  # bytes that one of Lava's processes takes
CONVOLUTIONS = {
    "stock": "Lava's own convolution",
    "gemm": "convolutions as exact matrix products, compared with Lava's own in each layer for a sample",
}
REQUIRED = {"lava-nc": "0.10.0", "lava-dl": "0.6.0"}
PYTHON_HINT = "install Python 3.10, or name one: SNNKIT_LAVA_PYTHON=/path/to/python3.10"
_FOREIGN = ("VIRTUAL_ENV", "UV_PYTHON", "UV_PROJECT_ENVIRONMENT", "UV_NO_CACHE")  # would choose another environment


class Options(BaseModel):
    """``record``: keep the rasters, or only the counts. ``time_limit``: seconds a sample, None for :func:`time_limit`.

    ``convolution``: ``stock`` is Lava's own; ``gemm`` is an exact matrix product in its place, up to 90 times faster,
    which every layer compares with Lava's own while the first sample runs. ``workers`` share the samples, None for
    :func:`default_workers`. ``form`` is the exporter's: what is run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    record: Literal["counts", "raster"] = "counts"
    time_limit: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    convolution: Literal["stock", "gemm"] = "gemm"
    workers: Annotated[int, Field(ge=1, le=256)] | None = None
    form: Literal["auto", "net", "directory"] = "auto"


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
    if len(folder := tempfile.gettempdir()) > TEMPORARY:
        return f"sockets of Lava's processes take no path as long as '{folder}'; set TMPDIR to a shorter one, as /tmp"
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


def check(net: Network, options: Options) -> list[str]:
    """All reasons why Lava cannot run ``net``: those of its exporter."""
    from snnkit_exporters import lava as exporter

    return exporter.check(net, exporter.Options(form=options.form))


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
    form = exporter.suffix(net, exporter.Options(form=options.form))[1:]
    count = options.workers or default_workers(net, samples)
    parts = [part for part in np.array_split(np.arange(samples), count) if len(part)]
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        places = []
        for part in parts:
            places.append(stack.enter_context(workplace()))
            _start(net, frames[:, part], places[-1], environment, options, form)
        _wait(places, [len(part) for part in parts], net, options)
        traces = []
        for place, part in zip(places, parts, strict=True):
            try:
                traces.append(_result(net, frames[:, part], place.folder))
            except (OSError, ValueError, KeyError, TypeError) as error:
                message = f"the Lava worker wrote a damaged result: {error}"
                raise WorkerError(message, "run it again; is the temporary folder full?") from None
    trace = Trace.join(traces)
    loaded = f", netx {REQUIRED['lava-dl']}" if form == "net" else ", built from lava.proc"
    notes = [f"Lava {REQUIRED['lava-nc']} fixed_pt{loaded}"]
    if any(isinstance(node, Conv2d) for node in net.nodes):
        notes.append(CONVOLUTIONS[options.convolution])
    if added := sum(relays(net).values()):
        notes.append(f"{added} relay neurons added")
    if hosted := stem_neurons(net):
        notes.append(f"{', '.join(sorted(hosted))} computed by the host")
    if len(parts) > 1:
        notes.append(f"{len(parts)} workers")
    if wrong := int((trace.readouts != _exact_readouts(net, frames, trace.rasters or {})).any(axis=1).sum()):
        notes.append(f"the readout of {wrong} of {samples} samples left the 24 bits of Lava's neurons")
    return dataclasses.replace(
        trace,
        rasters=trace.rasters if options.record == "raster" else None,
        seconds=time.perf_counter() - started,
        notes=tuple(notes),
    )


def default_workers(net: Network, samples: int) -> int:
    """How many Lava runs share the samples: Lava itself spreads a network over the cores, a process a layer."""
    processes = 2 * len(paths(net)) + len(net.neurons)
    cores = len(os.sched_getaffinity(0))
    memory = _free_memory() / (processes * MEMORY)
    return max(1, min(cores // 2, samples // 16, int(memory)))


def time_limit(net: Network) -> float:
    """A generous limit in seconds for one sample, about ten times what stock Lava takes on two CPU cores.

    Measured: 1 ms a step for three layers, and 10 ns for each product of scipy's convolution, which computes all
    positions before it strides.
    """
    shapes = infer_shapes(net)
    products = sum(
        node.weight.size * math.prod(shapes[node.inputs[0].source][1:])
        for node in net.synapses
        if isinstance(node, Conv2d)
    )
    return 30 + net.timesteps * (0.005 * len(net.nodes) + 1e-7 * products)


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
    """The encoded input, int16 [T or 1, B, *shape]."""
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
    return encoded.astype(np.int16)[None] if entry.encoding == "direct" else encoded.astype(np.int16)


def _start(
    net: Network, frames: Array, place: Workplace, environment: Environment, options: Options, form: str
) -> None:
    """Gives a worker its network and its samples."""
    from snnkit_exporters import _lava_directory as directory
    from snnkit_exporters import _lava_netx as netx
    from snnkit_exporters import lava as exporter

    exporter.export(net, place.folder / f"network.{form}", exporter.Options())
    if form == "net" and isinstance(net.consumers(net.input.name)[0], Flatten):  # netx takes it flat
        frames = frames.reshape(*frames.shape[:2], -1)
    np.save(place.folder / "frames.npy", frames)
    job = {
        "samples": frames.shape[1],
        "timesteps": net.timesteps,
        "message_bits": netx.message_bits(net),
        "neurons": [node.name for node in net.neurons],
        "form": form,
        "convolution": options.convolution,
    }
    (place.folder / "job.json").write_text(json.dumps(job))
    command = [str(environment.python), "-s", str(WORKER), str(place.folder)]
    place.start(command, worker_environment() | {"PYTHONPATH": str(directory.STANDALONE)}, NAME)


def _wait(places: Sequence[Workplace], samples: Sequence[int], net: Network, options: Options) -> None:
    """Waits for all workers; a sample that takes longer than its limit is an error."""
    limit = options.time_limit or time_limit(net)
    steps = dict.fromkeys(places, 0)
    since = dict.fromkeys(places, time.monotonic())
    total = {place: count * net.timesteps for place, count in zip(places, samples, strict=True)}
    with _progress(sum(samples)) as show:
        while since:
            for place in list(since):
                if place.poll(POLL / len(since)) is not None:
                    del since[place]
                    continue
                with contextlib.suppress(OSError, ValueError):
                    now = int((place.folder / "progress").read_text())
                    if now // net.timesteps > steps[place] // net.timesteps or not steps[place]:
                        since[place] = time.monotonic()
                    steps[place] = now
                running = 0 < steps[place] < total[place]
                if time.monotonic() - since[place] > limit + (0 if running else STARTING):
                    sample = steps[place] // net.timesteps + 1
                    what = f"sample {sample} of {total[place] // net.timesteps}" if running else "start or end"
                    raise place.timeout(f"{NAME} did not finish {what} within {limit + (not running) * STARTING:g} s")
            show(sum(min(steps[place], total[place]) for place in places) // net.timesteps)


@contextlib.contextmanager
def _progress(samples: int) -> Iterator[Callable[[int], None]]:
    """A bar of finished samples on a terminal; the function says how many there are."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("Lava", total=samples)
        yield lambda done: bars.update(task, completed=done)


def _free_memory() -> float:
    """Bytes of memory that can be used without swapping."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _result(net: Network, frames: Array, folder: Path) -> Trace:
    """What a worker wrote, checked: the head's v [B, classes] and the bits of every neuron and step."""
    shapes, depth, hosted = infer_shapes(net), depths(net), stem_neurons(net)
    samples = frames.shape[1]
    report = json.loads((folder / "report.json").read_text())
    steps = samples * net.timesteps + max(depth.values())
    if not isinstance(report["seconds"], float) or report["steps"] != steps:
        raise ValueError("the report does not fit the job")
    rasters = {}
    stems = 0
    for index, node in enumerate(net.neurons):
        shape = shapes[node.name]
        size = math.prod(shape)
        if node.name in hosted:
            whole = (net.timesteps, samples, *shape)
            rasters[node.name] = _array(folder / f"stem-{stems}.npy", np.dtype(np.bool_), whole)
            stems += 1
            continue
        rows = _array(folder / f"raster-{index}.npy", np.dtype(np.uint8), (steps, -(-size // 8)))
        ours = rows[depth[node.name] :][: samples * net.timesteps]
        spikes = np.unpackbits(ours, axis=1, count=size).view(np.bool_)
        rasters[node.name] = np.ascontiguousarray(spikes.reshape(samples, net.timesteps, *shape).swapaxes(0, 1))
    if net.readout.mode == "count":
        readouts = _exact_readouts(net, frames, rasters)
    else:
        whole = (samples, *shapes[net.readout.name])
        readouts = _array(folder / "readouts.npy", np.dtype(np.int64), whole) >> 6  # v has six fractional bits
    return Trace.from_rasters(
        target="lava", readouts=readouts, rasters=rasters, keep_rasters=True, seconds=report["seconds"], steps=steps
    )


def _array(path: Path, dtype: np.dtype[Any], shape: Shape) -> Array:
    array: Array = np.load(path, allow_pickle=False)
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{path.name} is {array.dtype} {array.shape}, expected {dtype} {shape}")
    return array


def _exact_readouts(net: Network, frames: Array, rasters: dict[str, Array]) -> Array:
    """The readouts without any width, int64 [B, classes], from the input and the spikes that reached the readout."""
    total: Array = np.zeros((frames.shape[1], *infer_shapes(net)[net.readout.name]), np.int64)
    for way in paths(net):
        if way.target != net.readout.name:
            continue
        sent = (
            rasters[way.source]
            if way.source in rasters
            else np.broadcast_to(frames, (net.timesteps, *frames.shape[1:]))
        )
        arrived = sent[: net.timesteps - way.delay].sum(axis=0, dtype=np.int64).reshape(len(total), -1)
        synapse = net[way.via]
        total += arrived @ synapse.effective_weight.T.astype(np.int64) if isinstance(synapse, Synapse) else arrived
    for edge in net.readout.inputs:
        if isinstance(synapse := net[edge.source], Synapse) and synapse.bias is not None:
            total += net.timesteps * synapse.bias.astype(np.int64)
    return total
