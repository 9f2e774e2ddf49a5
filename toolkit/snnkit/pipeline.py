"""From a run directory or a network file to the next stage: what each command of the command line calls.

Modules that need torch are imported where they are used, so that the rest stays light.
"""

import dataclasses
import functools
import math
import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel

from snnkit import plugins
from snnkit.analysis.accuracy import Accuracy
from snnkit.analysis.compare import Agreement, compare
from snnkit.analysis.diagnose import State, diagnose
from snnkit.errors import DataError, NetworkError, RunFolderError, UnavailableError, UnsupportedError, UsageError
from snnkit.network import Network, Trace, infer_shapes, predictions, verify
from snnkit.network import load as load_file
from snnkit.network.inputs import check_inputs
from snnkit.network.ir import Array
from snnkit.network.trace_file import Recording, load_trace
from snnkit.quantization import quantize as quantize
from snnkit.quantization import quantize_run as quantize_run
from snnkit.runs import Run

if TYPE_CHECKING:
    from snnkit.analysis.counts import OpCounts
    from snnkit.analysis.energy import Energy, Routing
    from snnkit.analysis.energy_models import EnergyModel
    from snnkit.analysis.mapping import Mapping as ChipMapping
    from snnkit.analysis.timesteps import AtTimesteps
    from snnkit.crosscheck import CrossCheck

PathLike = str | os.PathLike[str]
RASTERS = 2**28  # bytes of spikes that targets which are compared hold at once


# --- networks and samples ---------------------------------------------------------------------------------------------


def load(path: PathLike) -> Network:
    """The network in a file, or the quantised network of a run directory."""
    path = Path(path)
    if path.is_file():
        _expect_network(path)
    if not path.is_dir():
        return load_file(path)
    run = Run.open(path)
    if not run.network.is_file():
        raise RunFolderError(f"the run '{path}' has no quantised network yet", f"make it with 'snnkit quantize {path}'")
    return load_file(run.network)


def _expect_network(path: Path) -> None:
    kind = path.suffix.lower()
    if kind == ".nir":
        hint = f"make a network of it: snnkit import {path} -o {path.stem}.safetensors"
        raise UsageError(f"'{path}' is a NIR file", hint)
    if kind in (".onnx", ".net"):
        hint = "give the network or the run that it was exported from; 'snnkit inspect' shows the file"
        raise UsageError(f"'{path}' is an exported file", hint)


@dataclass(frozen=True, eq=False)
class Samples:
    """Raw inputs as a network takes them, labels [B] if known, and what to call them."""

    x: Array
    y: Array | None
    name: str


def load_samples(net: Network, data: str | None = None, *, count: int | None = None) -> Samples:
    """The test split of the network's own data set, of another by name, or ``x.npy[,y.npy]``; the first ``count``."""
    if data is not None and data.endswith(".npy"):
        samples = _samples_from_files(data)
    else:
        from snnkit.training.data import load_configured, settings_of

        settings = settings_of(net.metadata, data)
        if settings is None:
            raise DataError("the network does not say which data set it belongs to", "name one with --data")
        test = load_configured(settings, net.timesteps).test
        samples = Samples(test.x, test.y, settings.name)
    if count is not None:
        if count < 1:
            raise UsageError(f"{count} samples cannot be run", "give at least 1")
        samples = first_samples(net, samples, count)
    return samples


def first_samples(net: Network, samples: Samples, count: int) -> Samples:
    """The first ``count`` samples, or all where there are fewer."""
    batch = (slice(count),) if net.input.encoding == "direct" else (slice(None), slice(count))
    return Samples(samples.x[batch], None if samples.y is None else samples.y[:count], samples.name)


def sample_count(net: Network, samples: Samples) -> int:
    """How many samples there are, along the axis where this network expects them."""
    return int((*samples.x.shape, 0, 0)[0 if net.input.encoding == "direct" else 1])


def _samples_from_files(data: str) -> Samples:
    names = data.split(",")
    if len(names) > 2:
        raise UsageError(f"--data '{data}' names {len(names)} files", "give x.npy, or x.npy,y.npy")
    arrays = []
    for name in names:
        try:
            arrays.append(np.load(name, allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            message = getattr(error, "strerror", None) or str(error)
            raise DataError(f"cannot read '{name}': {message}", "give arrays saved with numpy.save") from None
    x: Array = arrays[0]
    if not isinstance(x, np.ndarray):
        raise DataError(f"'{names[0]}' holds several arrays", "save one array with numpy.save")
    if len(arrays) == 1:
        return Samples(x, None, names[0])
    y: Array = arrays[1]
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise DataError(f"'{names[1]}' holds {y.dtype} {y.shape}, not one integer label a sample", "save the labels")
    return Samples(x, y.astype(np.int64), names[0])


# --- export -----------------------------------------------------------------------------------------------------------


def export(net: Network, path: PathLike, target: str, **options: Any) -> list[Path]:
    """Writes ``net`` to ``path`` with the exporter called ``target``; returns the files written."""
    plugin = plugins.exporter(target)
    return plugin.export(net, Path(path), plugins.options(plugin, options))


def export_all(
    path: PathLike, targets: Sequence[str], output: PathLike | None = None, assignments: Sequence[str] = ()
) -> dict[str, list[Path]]:
    """Writes NET in several formats: into ``exports/`` of a run, beside a network file, or into ``output``.

    ``assignments`` are options, ``[TARGET.]KEY=VALUE``. Nothing is written unless every exporter can take the network.
    """
    options = plugins.options_of("exporters", targets, assignments)
    net = load(path)
    folder, stem = (Path(path) / "exports", "network") if Path(path).is_dir() else (Path(path).parent, Path(path).stem)
    folder = Path(output) if output is not None else folder
    loaded = {name: plugins.exporter(name) for name in options}
    reasons = [f"{name}: {reason}" for name, plugin in loaded.items() for reason in plugin.check(net, options[name])]
    if reasons:
        hint = _without_options(net, loaded) or "leave out the exporter, or change the network"
        raise UnsupportedError(f"'{path}' cannot be exported", reasons, hint)
    return {
        name: plugin.export(net, folder / f"{stem}{plugins.suffix(plugin, net, options[name])}", options[name])
        for name, plugin in loaded.items()
    }


def _without_options(net: Network, loaded: Mapping[str, Any]) -> str:
    """A hint, where all of these exporters or targets would take the network but for the options they were given."""
    fine = not any(plugin.check(net, plugin.Options()) for plugin in loaded.values())
    return "these options are in the way; without them it works" if fine else ""


# --- run --------------------------------------------------------------------------------------------------------------


def run(net: Network, inputs: Array, target: str = "reference", **options: Any) -> Trace:
    """Runs raw inputs on the target called ``target``: direct [B, *shape] in 0..1, or events [T, B, *shape].

    Raises :class:`UnavailableError` where the target is not installed, :class:`UnsupportedError` with all reasons
    where it cannot take the network.
    """
    plugin = plugins.target(target)
    checked = plugins.options(plugin, options)
    require(net, {target: checked})
    return plugin.run(net, inputs, checked)


def reasons_against(net: Network, options: Mapping[str, BaseModel]) -> dict[str, list[str]]:
    """All reasons why each target, by its name and with its options, cannot take the network; raises if one is missing.

    A target that is not installed is no answer, but an :class:`UnavailableError`.
    """
    loaded = {name: plugins.target(name) for name in options}
    for name, plugin in loaded.items():
        if missing := plugin.available():
            sentence, _, remedy = missing.partition("; ")
            raise UnavailableError(f"target '{name}' is not available: {sentence}", remedy or "see 'snnkit doctor'")
    return {name: plugin.check(net, options[name]) for name, plugin in loaded.items()}


def require(net: Network, options: Mapping[str, BaseModel]) -> None:
    """Raises unless every target, by its name and with its options, is available and takes the network."""
    against = reasons_against(net, options)
    reasons = [f"{name}: {reason}" for name, found in against.items() for reason in found]
    if reasons:
        loaded = {name: plugins.target(name) for name in options}
        hint = _without_options(net, loaded) or "leave out the target, or change the network"
        raise UnsupportedError("the network cannot be run", reasons, hint)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What one target made of the samples; ``accuracy`` is None without labels."""

    trace: Trace
    accuracy: Accuracy | None

    def to_json(self) -> dict[str, Any]:
        trace = self.trace
        result: dict[str, Any] = {
            "name": trace.target,
            "samples": trace.samples,
            "spikes_per_inference": trace.spikes_per_inference,
            "firing_rates": trace.firing_rates(),
            "overflows": trace.overflows,
            "seconds": trace.seconds,
            "steps": trace.steps,
            "notes": list(trace.notes),
        }
        if self.accuracy is None:
            return {**result, "predictions": predictions(trace).tolist() if trace.readouts.shape[1] else []}
        return {**result, **self.accuracy.to_json()}


def evaluate(
    net: Network,
    samples: Samples,
    targets: Sequence[str],
    assignments: Sequence[str] = (),
    *,
    against: PathLike | None = None,
    rasters: bool = False,
) -> tuple[list[Evaluation], list[Agreement]]:
    """Runs the samples on each target; several are compared with the first one, spike by spike.

    ``assignments`` are options, ``[TARGET.]KEY=VALUE``. ``against`` is a recorded trace, see
    :mod:`snnkit.network.trace_file`: it comes last, and only the samples that it holds are run. Where two differ, the
    cause of their first divergence is looked for. ``rasters`` keeps them; without it, and without a recording, memory
    does not grow with neurons times samples.
    """
    check_inputs(net, samples.x)
    if not sample_count(net, samples):
        raise DataError(f"'{samples.name}' holds no samples", "give at least one")
    several = len(set(targets)) > 1
    record = "raster" if rasters or several or against is not None else "counts"
    options = plugins.options_of("targets", targets, assignments, record=record)
    require(net, options)
    recording = None if against is None else load_trace(against, net, sample_count(net, samples))
    if recording is not None:
        samples = first_samples(net, samples, recording.trace.samples)
        recording.require_inputs(samples.x)
    if rasters or recording is not None or not several:
        traces = [_trace(plugins.target(name), net, samples.x, chosen, record) for name, chosen in options.items()]
        agreements = _compared(net, samples.x, traces, options, recording)
    else:
        traces, agreements = _side_by_side(net, samples, options)
    traces += [recording.trace] if recording is not None else []
    results = [Evaluation(t, _accuracy(predictions(t), samples) if t.readouts.shape[1] else None) for t in traces]
    return results, agreements


def _side_by_side(
    net: Network, samples: Samples, options: Mapping[str, BaseModel]
) -> tuple[list[Trace], list[Agreement]]:
    """Each target's trace and how it agrees with the first one's, some samples after the other."""
    inputs, direct, shapes = samples.x, net.input.encoding == "direct", infer_shapes(net)
    each = len(options) * net.timesteps * sum(math.prod(shapes[node.name]) for node in net.neurons)
    size = max(1, RASTERS // max(1, each))
    kept: list[list[Trace]] = []
    agreements: list[Agreement] = []
    for first in range(0, max(sample_count(net, samples), 1), size):
        piece = inputs[first : first + size] if direct else inputs[:, first : first + size]
        traces = [plugins.target(name).run(net, piece, chosen) for name, chosen in options.items()]
        found = _compared(net, piece, traces, options)
        agreements = [a.joined(b, first) for a, b in zip(agreements, found, strict=True)] if first else found
        kept.append([Trace.total([trace]) for trace in traces])
    return [Trace.total(parts) for parts in zip(*kept, strict=True)], agreements


def _compared(
    net: Network,
    inputs: Array,
    traces: Sequence[Trace],
    options: Mapping[str, BaseModel],
    recording: Recording | None = None,
) -> list[Agreement]:
    """How each but the first of the traces, and the recorded one, agrees with the first, and why not."""
    states = {name: _state(name, net, inputs) for name in options if hasattr(plugins.target(name), "state")}
    if recording is not None:
        traces = [*traces, recording.trace]
        states |= {recording.trace.target: recording.state} if recording.v else {}
    found = [(other, compare(net, traces[0], other)) for other in traces[1:]]
    return [diagnose(net, inputs, traces[0], other, agreement, states) for other, agreement in found]


def _trace(target: Any, net: Network, inputs: Array, options: BaseModel, record: str) -> Trace:
    """What a target did; without rasters in memory that does not grow with neurons times samples, where it can."""
    if record == "counts" and hasattr(target, "stream"):
        return Trace.total(trace for _, trace in target.stream(net, inputs, options))
    trace: Trace = target.run(net, inputs, options)
    return trace


def _state(name: str, net: Network, inputs: Array) -> State:
    return functools.partial(plugins.target(name).state, net, inputs)  # type: ignore[attr-defined]


def _accuracy(predicted: Array, samples: Samples) -> Accuracy | None:
    if samples.y is None:
        return None
    if len(samples.y) != len(predicted):
        raise DataError(f"{len(predicted)} samples have {len(samples.y)} labels", "give one label a sample")
    return Accuracy.of(predicted, samples.y)


def save_predictions(evaluation: Evaluation, path: PathLike) -> Path:
    """Writes ``predictions`` int64 [B] and ``readouts`` [B, classes] as an .npz file."""
    from snnkit.files import replacing

    path = Path(path)
    if path.suffix != ".npz":
        raise UsageError(f"'{path}' is not an .npz file", "give a name that ends with .npz")
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, predictions=predictions(evaluation.trace), readouts=evaluation.trace.readouts)
    return path


# --- energy -----------------------------------------------------------------------------------------------------------


def energy(
    net: Network, samples: Samples, models: Sequence[str], *, mapping: "ChipMapping | None" = None
) -> "tuple[OpCounts, list[Energy]]":
    """Operations and modelled energy of an inference, from the spikes of the reference target.

    A model with several precisions is given at each of them. With a mapping, the spikes between cores and the relays
    are priced, too. Memory does not grow with the number of samples.
    """
    from snnkit.analysis.counts import Counter
    from snnkit.analysis.energy import load_model
    from snnkit_targets import reference

    loaded = [load_model(name) for name in dict.fromkeys(models)]
    if not len(samples.x):
        raise NetworkError("energy needs at least one sample", "give more samples")
    counter = Counter(net)
    options = reference.Options(record="raster" if counter.needs_rasters else "counts")
    parts: list[OpCounts] = []
    total: list[Trace] = []
    for inputs, trace in reference.stream(net, samples.x, options):
        parts.append(counter.count(inputs, trace))
        if mapping is not None:
            total = [Trace.total([*total, trace])]
    routing = None if mapping is None else mapping.routing(total[0], net.timesteps)
    counts = functools.reduce(operator.add, parts)
    return counts, _estimates(net, counts, loaded, routing)


def _estimates(
    net: Network, counts: "OpCounts", models: "Sequence[EnergyModel]", routing: "Routing | None" = None
) -> "list[Energy]":
    """By each model, at each of its precisions."""
    from snnkit.analysis.energy import estimate

    depth = _depth(net)
    return [
        estimate(counts, model, precision=name, depth=depth, routing=routing)
        for model in models
        for name in model.precisions
    ]


def _depth(net: Network) -> int | None:
    """Steps that a pipelined chip needs beyond the timesteps; None where the network cannot be pipelined."""
    from snnkit.network.depth import latency

    try:
        return latency(net)
    except UnsupportedError:
        return None


def write_energy(
    path: PathLike,
    counts: "OpCounts",
    estimates: "Sequence[Energy]",
    rate: float | None = None,
    checked: "CrossCheck | None" = None,
) -> dict[str, Any]:
    """Counts and estimates as JSON, and into ``energy.json`` where ``path`` is a run directory.

    With ``rate``, the power at so many inferences a second; with ``checked``, what another simulator says.
    """
    content = {"counts": counts.to_json(), "models": [estimate.to_json(rate) for estimate in estimates]}
    content |= {} if checked is None else {"cross_check": checked.to_json()}
    if Path(path).is_dir():
        run_folder = Run.open(path)
        run_folder.write_json(run_folder.energy, {"schema": 1, **content})
    return content


# --- fewer timesteps --------------------------------------------------------------------------------------------------


def over_timesteps(
    net: Network, samples: Samples, models: Sequence[str], *, mapping: "ChipMapping | None" = None
) -> "list[AtTimesteps]":
    """Runs the same network for 1, 2, ... ``net.timesteps`` timesteps: accuracy, operations, modelled energy of each.

    One pass of the reference target answers for all of them, in bounded memory. An event input is cut after its
    first frames; nothing is trained or quantised again. A mapping is priced as by :func:`energy`.
    """
    from snnkit.analysis.counts import Counter
    from snnkit.analysis.energy import load_model
    from snnkit.analysis.timesteps import AtTimesteps
    from snnkit_targets import reference

    loaded = [load_model(name) for name in dict.fromkeys(models)]
    direct = net.input.encoding == "direct"
    shorter = {t: Counter(dataclasses.replace(net, timesteps=t)) for t in range(1, net.timesteps + 1)}
    counts: dict[int, OpCounts] = {}
    predicted: dict[int, list[Array]] = {t: [] for t in shorter}
    totals: dict[int, Trace] = {}
    for inputs, trace in reference.stream(net, samples.x, reference.Options(record="raster")):
        for t, counter in shorter.items():
            stopped = trace.until(t)
            counted = counter.count(inputs if direct else inputs[:t], stopped)
            counts[t] = counts[t] + counted if t in counts else counted
            predicted[t].append(predictions(stopped))
            if mapping is not None:
                totals[t] = Trace.total([totals[t], stopped] if t in totals else [stopped])
    return [
        AtTimesteps(
            timesteps=t,
            accuracy=_accuracy(np.concatenate(predicted[t]), samples),
            counts=counts[t],
            energies=tuple(
                _estimates(net, counts[t], loaded, None if mapping is None else mapping.routing(totals[t], t))
            ),
        )
        for t in shorter
    ]


def write_timesteps(path: PathLike, rows: "Sequence[AtTimesteps]") -> dict[str, Any]:
    """The rows and what each node did at each timestep as JSON, and into ``timesteps.json`` of a run directory."""
    from snnkit.analysis.timesteps import at_each_timestep

    layers = [layer.to_json() for layer in at_each_timestep(rows)]
    content = {"rows": [row.to_json() for row in rows], "layers": layers}
    if Path(path).is_dir():
        run_folder = Run.open(path)
        run_folder.write_json(run_folder.timesteps, {"schema": 1, **content})
    return content


# --- check ------------------------------------------------------------------------------------------------------------


def check(net: Network, chips: Sequence[str], samples: Samples | None = None, *, count: int = 1) -> "list[ChipMapping]":
    """The network on ``count`` of each chip, by name or file; with samples, also the spikes between its cores."""
    from snnkit.analysis.chips import load_chip
    from snnkit.analysis.mapping import map_network

    loaded = [load_chip(name) for name in dict.fromkeys(chips)]
    if len({chip.name for chip in loaded}) < len(loaded):
        raise UsageError(f"two of the chips {', '.join(chips)} have the same name", "give each file a name of its own")
    if samples is None:
        return [map_network(net, chip, chips=count) for chip in loaded]
    from snnkit_targets import reference

    trace = Trace.total(trace for _, trace in reference.stream(net, samples.x, reference.Options()))
    return [map_network(net, chip, trace, chips=count) for chip in loaded]


def carrier(mappings: "Sequence[ChipMapping]") -> "ChipMapping | None":
    """Of several mappings the one whose routing is priced: the first that fits, else the first."""
    return next((mapping for mapping in mappings if mapping.fits), next(iter(mappings), None))


def write_mapping(path: PathLike, mappings: "Sequence[ChipMapping]") -> dict[str, Any]:
    """The mappings as JSON, by the chip's name, and into ``mapping.json`` where ``path`` is a run directory."""
    content = {"chips": {mapping.chip.name: mapping.to_json() for mapping in mappings}}
    if Path(path).is_dir():
        run_folder = Run.open(path)
        run_folder.write_json(run_folder.mapping, {"schema": 1, **content})
    return content


# --- inspect ----------------------------------------------------------------------------------------------------------


def describe_file(path: PathLike) -> dict[str, Any]:
    """What is in a run directory or file, by its suffix: .onnx, .net, .nir, or a network; see :func:`describe`."""
    from snnkit.interchange import netx_read, nir_file, onnx_read

    readers = {".onnx": onnx_read.describe, ".net": netx_read.describe, ".nir": nir_file.describe}
    if Path(path).suffix.lower() in readers:
        return readers[Path(path).suffix.lower()](path)
    return describe(load(path))


def describe(net: Network) -> dict[str, Any]:
    """The network as JSON: kind, timesteps, input, metadata, and every node with what it reads and its output shape."""
    shapes = infer_shapes(net)
    nodes = []
    for node in net.nodes:
        arrays = {
            spec.name: value
            for spec in dataclasses.fields(node)
            if isinstance(value := getattr(node, spec.name), np.ndarray)
        }
        scalars = [f"{name} {array.item():g}" for name, array in arrays.items() if array.ndim == 0]
        shaped = [
            f"{name} {'x'.join(map(str, array.shape))} {array.dtype}" for name, array in arrays.items() if array.ndim
        ]
        nodes.append(
            {
                "node": node.name,
                "kind": type(node).__name__,
                "reads": ", ".join(e.source + (f" (t-{e.delay})" if e.delay else "") for e in node.inputs),
                "output": "x".join(map(str, shapes[node.name])),
                "parameters": ", ".join(shaped + scalars),
            }
        )
    return {"kind": verify(net), "timesteps": net.timesteps, "stem": net.stem, "nodes": nodes, "metadata": net.metadata}
