"""SANA-FE's Loihi as an oracle: the network with every synapse written out, in a process of its own.

SANA-FE (Boyle et al., IEEE TCAD 44(8), 2025) is under the GPL-3; nothing of it is imported here. Its Loihi takes binary
spikes and integrates without rounding, so what it is given are events and neurons without a current filter.
"""

import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from snnkit.errors import UnavailableError, UnsupportedError, WorkerError
from snnkit.network.depth import depths, origins, relays, stem_neurons
from snnkit.network.ir import (
    DECAY_ONE,
    LIF,
    Affine,
    Array,
    Conv2d,
    Input,
    Network,
    Readout,
    Shape,
    Synapse,
    infer_shapes,
)
from snnkit_targets._processes import workplace

WORKER = Path(__file__).parent / "workers" / "sanafe_loihi.py"
MOST_SYNAPSES = 5_000_000  # 2.4 GB a million
START, PER_STEP = 60.0, 2e-6  # seconds to start, and of each synapse at each step, generously


@dataclass(frozen=True, eq=False)
class Outcome:
    """Means per inference over ``steps`` steps, by the worker's names, and the spikes bool [T, B, *shape]."""

    steps: int
    means: dict[str, float]
    rasters: dict[str, Array]


def check(net: Network) -> list[str]:
    """All reasons why SANA-FE cannot take an integer network."""
    reasons = []
    if net.input.encoding != "events" or net.input.bits != 1:
        reasons.append(f"node '{net.input.name}' (Input): only binary events are spikes")
    if net.recurrent or any(edge.delay for node in net.nodes for edge in node.inputs):
        reasons.append("recurrent and delayed edges are not translated")
    elif late := relays(net):
        reasons += [f"node '{name}' needs relays, because its paths differ in length" for name in late]
    if stem_neurons(net):
        reasons.append("the stem is computed on the host")
    for node in net.neurons:
        if (node.current_decay != DECAY_ONE).any():
            reasons.append(f"node '{node.name}' (LIF): there is no current filter")
        if node.voltage_decay.ndim and len(np.unique(node.voltage_decay)) > 1:
            reasons.append(f"node '{node.name}' (LIF): channels decay differently")
    synapses = sum(_size(net, node) for node in net.synapses)
    if synapses > MOST_SYNAPSES:
        reasons.append(f"at most {synapses:,} synapses, and {MOST_SYNAPSES:,} is what fits its memory")
    return reasons


def run(net: Network, events: Array, cores: Mapping[str, Array], free_core: int) -> Outcome:
    """Runs binary events [T, B, *shape] sample by sample.

    ``cores`` holds the core of every neuron, [*shape], of each LIF node and a membrane readout; the inputs stand on
    the cores from ``free_core`` on. Raises ``UnavailableError``, ``UnsupportedError`` or ``WorkerError``.
    """
    if importlib.util.find_spec("sanafe") is None:
        raise UnavailableError("SANA-FE is not installed", "pip install 'snnkit[sanafe]'")
    if reasons := check(net):
        raise UnsupportedError("SANA-FE cannot take this network", reasons, "leave out --cross-check")
    shapes, depth = infer_shapes(net), depths(net)
    arrays: dict[str, Array] = {"input": events.reshape(*events.shape[:2], -1).astype(bool)}
    layers: list[dict[str, object]] = []
    edges: list[tuple[str, str]] = []
    for node in net.nodes:
        if not isinstance(node, LIF | Readout) or node.name not in cores:
            continue
        shape = shapes[node.name]
        bias = np.zeros(shape, np.int64)
        for edge in node.inputs:
            synapse = net[edge.source]
            assert isinstance(synapse, Synapse)
            if synapse.bias is not None:
                bias += synapse.bias.reshape(-1, *[1] * (len(shape) - 1))
            for source in synapse.inputs:
                ((origin, _),) = origins(net, source)
                ends, weight = synapses(synapse, shapes[source.source], shape)
                arrays |= {f"edge{len(edges)}.ends": ends, f"edge{len(edges)}.weight": weight}
                edges.append(("input" if isinstance(net[origin], Input) else f"n.{origin}", f"n.{node.name}"))
        threshold, keep, reset = np.array(1e300), 1.0, "hard"
        if isinstance(node, LIF):
            threshold = np.reshape(node.v_threshold, (-1, *[1] * (len(shape) - 1))).astype(np.float64)
            keep = 1 - float(node.voltage_decay.flat[0]) / DECAY_ONE
            reset = "hard" if node.reset == "zero" else "soft"
        name = f"n.{node.name}"
        arrays[f"{name}.threshold"] = np.broadcast_to(threshold, shape).ravel()
        arrays[f"{name}.bias"], arrays[f"{name}.core"] = bias.ravel(), cores[node.name].ravel()
        kind = "conv" if any(isinstance(net[edge.source], Conv2d) for edge in node.inputs) else "dense"
        layers.append(
            {
                "name": name,
                "neurons": bias.size,
                "depth": depth[node.name],
                "keep": keep,
                "reset": reset,
                "synapse": f"loihi_{kind}_synapse",
            }
        )
    job = {"layers": layers, "edges": edges, "timesteps": net.timesteps, "free_core": free_core}
    size = sum(len(array) for name, array in arrays.items() if name.endswith(".weight"))
    with workplace() as place:
        np.savez(place.folder / "job.npz", **arrays)  # type: ignore[arg-type]
        (place.folder / "job.json").write_text(json.dumps(job))
        seconds = START + PER_STEP * (size + 1e4) * (net.timesteps + len(layers)) * events.shape[1] + 1e-4 * size
        command = [sys.executable, "-I", str(WORKER), str(place.folder)]
        place.run(command, dict(os.environ), seconds, "SANA-FE")
        try:
            report = json.loads((place.folder / "result.json").read_text())
            with np.load(place.folder / "result.npz", allow_pickle=False) as file:
                found = {name.removeprefix("n."): file[name] for name in file.files}
            rasters = {n.name: found[n.name].reshape(*events.shape[:2], *shapes[n.name]) for n in net.neurons}
            return Outcome(report["steps"], report["means"], rasters)
        except (OSError, ValueError, KeyError, TypeError) as error:
            message = f"SANA-FE's process wrote a damaged result: {error}"
            raise WorkerError(message, "run it again; is the temporary folder full?") from None


def synapses(node: Synapse, source: Shape, target: Shape) -> tuple[Array, Array]:
    """Every synapse whose weight is not zero: (source, target) as flat numbers int64 [S, 2], and weights int64 [S]."""
    weight = node.effective_weight.astype(np.int64)
    if isinstance(node, Affine):
        outputs, inputs = np.nonzero(weight)
        return np.stack([inputs, outputs], axis=1), weight[outputs, inputs]
    assert isinstance(node, Conv2d)
    from_, to = (np.arange(np.prod(shape)).reshape(shape) for shape in (source, target))
    outputs, per_group, *kernel = weight.shape
    ends, values = [], []
    for output in range(outputs):
        first = output // (outputs // node.groups) * per_group
        for channel in range(per_group):
            for tap in np.ndindex(*kernel):
                if value := weight[(output, channel, *tap)]:
                    spots = [
                        np.arange(target[1 + axis]) * node.stride[axis]
                        + tap[axis] * node.dilation[axis]
                        - node.padding[axis]
                        for axis in (0, 1)
                    ]
                    inside = [(spot >= 0) & (spot < source[1 + axis]) for axis, spot in enumerate(spots)]
                    sources = from_[first + channel][np.ix_(spots[0][inside[0]], spots[1][inside[1]])]
                    targets = to[output][np.ix_(*inside)]
                    ends.append(np.stack([sources.ravel(), targets.ravel()], axis=1))
                    values.append(np.full(sources.size, value))
    return np.concatenate(ends), np.concatenate(values)


def _size(net: Network, node: Synapse) -> int:
    """Synapses at most: without regard to borders."""
    present = int(np.count_nonzero(node.weight))
    return present * (int(np.prod(infer_shapes(net)[node.name][1:])) if isinstance(node, Conv2d) else 1)
