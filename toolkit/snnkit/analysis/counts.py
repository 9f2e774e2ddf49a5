"""How many operations a network does, counted exactly from the network, its inputs and its spikes.

A value that is not zero costs one operation for every non-zero weight that leaves its position, so the
operations of a synapse are the activity of its source times the fan-out of each position. Names and
definitions are NeuroBench's (Yik et al., Nature Communications 16, 2025): zero weights, padding and biases are
not counted. Unlike there, accumulate (AC) or multiply-accumulate (MAC) is a static property of what a synapse
reads, spikes and binary values or graded ones, so that the size of a batch changes nothing.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from snnkit.errors import DataError, NetworkError, UnsupportedError
from snnkit.network.inputs import nonzero_inputs
from snnkit.network.ir import (
    DECAY_ONE,
    LIF,
    Affine,
    Array,
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    Edge,
    Flatten,
    Input,
    Kind,
    Network,
    Node,
    Readout,
    Shape,
    Synapse,
    conv_output_size,
    infer_shapes,
    reads_input,
    verify,
)
from snnkit.network.trace import Trace

# Bits that an integer network's fields take on Loihi (Davies et al. 2018); weights say theirs in the metadata.
FIELD_BITS = {"bias": 13, "v_threshold": 17, "voltage_decay": 12, "current_decay": 12}


@dataclass(frozen=True, kw_only=True)
class NodeCounts:
    """What one node did, summed over all samples and timesteps.

    ``acs_once`` and ``macs_once`` count what a direct input repeats at every timestep only once. An update is a
    neuron at a timestep; ``updates_active`` are those that spike, ``updates_reached`` those from the first timestep
    on at which a sample's input (or a bias) has reached the layer: before, nothing is held. A membrane readout is
    counted as the integrators that a chip builds it from. ``state_*`` is the arithmetic of the updates: one addition
    for the membrane and for a current filter each, and a multiplication where it decays. ``messages`` are the binary
    values other than zero that arrive at a synapse, each once however many weights it meets.
    """

    name: str
    kind: str
    place: Literal["chip", "host"] = "chip"
    effective_acs: int = 0
    effective_macs: int = 0
    acs_once: int = 0
    macs_once: int = 0
    dense: int = 0
    reads_input: bool = False
    spikes: int = 0
    updates_active: int = 0
    updates_inactive: int = 0
    updates_reached: int = 0
    state_additions: int = 0
    state_multiplications: int = 0
    messages: int = 0

    def __add__(self, other: "NodeCounts") -> "NodeCounts":
        sums = {name: getattr(self, name) + getattr(other, name) for name in TOTALS}
        return dataclasses.replace(self, **sums)


TOTALS = tuple(spec.name for spec in dataclasses.fields(NodeCounts) if type(spec.default) is int)


@dataclass(frozen=True, kw_only=True)
class OpCounts:
    """The counts of all synapses, neurons and the readout over ``samples``; ``counts.mean(name)`` is per sample.

    Counts of further samples of the same network are added with ``+``. Static figures: ``ann_macs`` (the same
    topology as an ANN: NeuroBench's Dense of one pass), ``parameters`` (weights and biases), ``footprint_bytes``
    (all arrays at their real bit widths), ``connection_sparsity`` (zeros among the weights).
    """

    kind: Kind
    samples: int
    timesteps: int
    neurons: int
    ann_macs: int
    parameters: int
    footprint_bytes: float
    connection_sparsity: float
    nodes: tuple[NodeCounts, ...]

    def __add__(self, other: "OpCounts") -> "OpCounts":
        mine, theirs = (dataclasses.replace(c, samples=0, nodes=()) for c in (self, other))
        if mine != theirs or [n.name for n in self.nodes] != [n.name for n in other.nodes]:
            raise NetworkError("operation counts of different networks were added", "add counts of one network only")
        nodes = tuple(a + b for a, b in zip(self.nodes, other.nodes, strict=True))
        return dataclasses.replace(self, samples=self.samples + other.samples, nodes=nodes)

    def total(self, name: str, place: Literal["chip", "host"] | None = None) -> int:
        """The sum of a :class:`NodeCounts` field over the nodes, or over those in one place."""
        return sum(getattr(node, name) for node in self.nodes if place in (None, node.place))

    def mean(self, name: str, place: Literal["chip", "host"] | None = None) -> float:
        """The same per sample."""
        return self.total(name, place) / self.samples

    @property
    def firing_rate(self) -> float:
        """Spikes per neuron and timestep, 0..1."""
        return self.mean("spikes") / max(1, self.neurons * self.timesteps)

    @property
    def activation_sparsity(self) -> float:
        """Zeros among all outputs of all neurons at all timesteps."""
        return 1.0 - self.firing_rate

    def to_json(self) -> dict[str, Any]:
        """Per-sample means, totals first and then every node, under NeuroBench's names in lower case."""
        return {
            "kind": self.kind,
            "samples": self.samples,
            "timesteps": self.timesteps,
            "effective_acs": self.mean("effective_acs"),
            "effective_macs": self.mean("effective_macs"),
            "effective_acs_stem_once": self.mean("acs_once"),
            "effective_macs_stem_once": self.mean("macs_once"),
            "dense": self.mean("dense"),
            "spikes": self.mean("spikes"),
            "updates_active": self.mean("updates_active"),
            "updates_inactive": self.mean("updates_inactive"),
            "updates_reached": self.mean("updates_reached"),
            "messages": self.mean("messages"),
            "state_additions": self.mean("state_additions"),
            "state_multiplications": self.mean("state_multiplications"),
            "neurons": self.neurons,
            "firing_rate": self.firing_rate,
            "activation_sparsity": self.activation_sparsity,
            "connection_sparsity": self.connection_sparsity,
            "parameters": self.parameters,
            "footprint_bytes": self.footprint_bytes,
            "ann_macs": self.ann_macs,
            "nodes": [
                {"name": node.name, "kind": node.kind, "place": node.place, "reads_input": node.reads_input}
                | {name: getattr(node, name) / self.samples for name in TOTALS}
                for node in self.nodes
            ],
        }


def count(net: Network, inputs: Array, trace: Trace) -> OpCounts:
    """Counts the operations of the run that ``trace`` recorded, every node at every timestep.

    ``inputs`` is what was run: direct float [B, *shape], events [T, B, *shape]. Several inputs of a synapse
    count on their own, as a chip receives them. Raises :class:`DataError` where inputs, trace and network do
    not fit, or where delayed edges or pooling need the rasters that the trace lacks, and
    :class:`UnsupportedError` for a synapse that reads neither the input nor spikes.
    """
    return Counter(net).count(inputs, trace)


class Counter:
    """Counts the runs of one network, such as the pieces of a stream, whose counts are added.

    What does not depend on a run is computed once: the fan-out of every position, sizes, places.
    """

    def __init__(self, net: Network) -> None:
        self.net, self.kind, self.shapes = net, verify(net), infer_shapes(net)
        self.on_host = _on_host(net)
        self.leaving, self.dense = {}, {}
        for synapse in net.synapses:
            shape = self.shapes[synapse.inputs[0].source]
            self.leaving[synapse.name] = fan_out(synapse, shape)
            self.dense[synapse.name] = int(fan_out(synapse, shape, dense=True).sum())
        weights = [synapse.weight for synapse in net.synapses]
        self.nothing = OpCounts(
            kind=self.kind,
            samples=0,
            timesteps=net.timesteps,
            neurons=sum(math.prod(self.shapes[neuron.name]) for neuron in net.neurons),
            ann_macs=sum(self.dense.values()),
            parameters=_parameters(net),
            footprint_bytes=_footprint(net, self.kind),
            connection_sparsity=1.0 - sum(map(np.count_nonzero, weights)) / sum(array.size for array in weights),
            nodes=(),
        )

    @property
    def needs_rasters(self) -> bool:
        """Whether some spikes pass a delay or a pooling, so that their times count."""
        pooled = any(isinstance(node, AvgPool2d) for node in self.net.nodes)
        return pooled or any(e.delay and isinstance(self.net[e.source], LIF) for n in self.net.nodes for e in n.inputs)

    def count(self, inputs: Array, trace: Trace) -> OpCounts:
        """The operations of one run; see :func:`count`."""
        sources = _Sources(self.net, inputs, trace, self.shapes)
        nodes = []
        for node in self.net.nodes:
            place: Literal["chip", "host"] = "host" if node.name in self.on_host else "chip"
            record = NodeCounts(name=node.name, kind=type(node).__name__, place=place)
            match node:
                case Synapse():
                    nodes.append(self._synapse(node, record, sources))
                case LIF():
                    nodes.append(_count_neurons(node, record, sources, self.shapes[node.name]))
                case Readout(mode="membrane"):
                    updates = math.prod(self.shapes[node.name]) * self.net.timesteps * trace.samples
                    reached = sources.reached(node)
                    nodes.append(
                        dataclasses.replace(
                            record, updates_inactive=updates, updates_reached=reached, state_additions=updates
                        )
                    )
        return dataclasses.replace(self.nothing, samples=trace.samples, nodes=tuple(nodes))

    def _synapse(self, node: Synapse, record: NodeCounts, sources: "_Sources") -> NodeCounts:
        leaving = self.leaving[node.name].ravel()
        acs = macs = acs_once = macs_once = messages = 0
        for edge in node.inputs:
            for signal in sources.arriving(edge):
                operations, once = (int(np.vdot(times, leaving)) for times in (signal.active, signal.once))
                if signal.graded:
                    macs, macs_once = macs + operations, macs_once + once
                else:
                    acs, acs_once = acs + operations, acs_once + once
                    messages += int(signal.active.sum())
        return dataclasses.replace(
            record,
            effective_acs=acs,
            effective_macs=macs,
            acs_once=acs_once,
            macs_once=macs_once,
            dense=self.dense[node.name] * self.net.timesteps * sources.trace.samples,
            reads_input=reads_input(self.net, node),
            messages=messages,
        )


def fan_out(synapse: Synapse, shape: Shape, *, dense: bool = False) -> Array:
    """Weights that leave each position of an input of ``shape``, int64: the non-zero ones, or all (``dense``)."""
    present = np.ones(synapse.weight.shape, np.int64) if dense else (synapse.weight != 0).astype(np.int64)
    if not isinstance(synapse, Conv2d):
        leaving: Array = present.sum(axis=0)
        return leaving
    kernel: Shape = present.shape[2:]
    per_group = present.reshape(synapse.groups, -1, *present.shape[1:])
    taps = per_group.sum(axis=1).reshape(shape[0], *kernel)
    (pad_y, pad_x), (step_y, step_x), (gap_y, gap_x) = synapse.padding, synapse.stride, synapse.dilation
    rows, columns = conv_output_size(synapse, (shape[1], shape[2]))
    padded = np.zeros((shape[0], shape[1] + 2 * pad_y, shape[2] + 2 * pad_x), np.int64)
    for y, x in np.ndindex(*kernel):  # each tap reads one strided grid of the padded input
        grid_y = slice(y * gap_y, y * gap_y + step_y * (rows - 1) + 1, step_y)
        grid_x = slice(x * gap_x, x * gap_x + step_x * (columns - 1) + 1, step_x)
        padded[:, grid_y, grid_x] += taps[:, y, x, None, None]
    return padded[:, pad_y : pad_y + shape[1], pad_x : pad_x + shape[2]]


@dataclass(frozen=True, eq=False)
class _Signal:
    """How often each position of an edge carried a non-zero value; ``once`` without the repeats of a direct input."""

    active: Array  # int64 [*shape], over samples and timesteps
    once: Array
    graded: bool


class _Sources:
    """Answers what arrived over an edge, from the inputs and the trace."""

    def __init__(self, net: Network, inputs: Array, trace: Trace, shapes: dict[str, Shape]) -> None:
        self.net, self.trace, self.shapes = net, trace, shapes
        self.present = nonzero_inputs(net, inputs)
        samples = self.present.shape[0 if net.input.encoding == "direct" else 1]
        if samples != trace.samples or samples < 1:
            raise DataError(
                f"{samples} inputs and a trace of {trace.samples} samples do not belong together",
                "give the inputs that the trace was made from, at least one sample",
            )
        self.sums: dict[str, Array] = {}

    def spikes(self, name: str) -> Array:
        """How often each neuron of a node fired, int64 [*shape], over samples and timesteps."""
        if name not in self.sums:
            counts = self._spikes_per_neuron(name)
            small = len(counts) * self.net.timesteps < 2**31
            self.sums[name] = counts.sum(axis=0, dtype=np.int32 if small else np.int64).astype(np.int64)
        return self.sums[name]

    def _spikes_per_neuron(self, name: str) -> Array:
        counts = self.trace.spikes_per_neuron.get(name)
        expected = (self.trace.samples, *self.shapes[name])
        if counts is None or counts.shape != expected:
            found = "no spikes" if counts is None else f"spikes of shape {counts.shape}"
            raise DataError(f"the trace holds {found} for node '{name}', expected {expected}", "run the network again")
        return counts

    def reached(self, node: Node) -> int:
        """The updates of a neuron node or readout at and after the first timestep at which something reached it."""
        shape, steps = self.shapes[node.name], self.net.timesteps
        biased = np.zeros(shape, bool)
        for edge in node.inputs:
            source = self.net[edge.source]
            if isinstance(source, BatchNorm2d):
                biased[:] = True
            elif isinstance(source, Synapse) and source.bias is not None:
                biased |= np.asarray(source.bias != 0).reshape(-1, *[1] * (len(shape) - 1))
        always = int(np.count_nonzero(biased))
        since = int(np.count_nonzero(np.maximum.accumulate(self._arrival(node), axis=0)))
        return always * steps * self.trace.samples + (biased.size - always) * since

    def _arrival(self, node: Node) -> Array:
        """Whether anything other than zero arrived at a node, bool [T, B]."""
        steps, samples = self.net.timesteps, self.trace.samples
        arrival = np.zeros((steps, samples), bool)
        for edge in node.inputs:
            source = self.net[edge.source]
            match source:
                case Input(encoding="direct"):
                    sent = np.broadcast_to(self.present.reshape(samples, -1).any(axis=1), (steps, samples))
                case Input():
                    sent = np.asarray(self.present.reshape(steps, samples, -1).any(axis=2))
                case LIF():
                    steps_of = self.trace.spikes_per_step.get(source.name)
                    if steps_of is None or steps_of.shape != arrival.shape:
                        message = f"the trace holds no spikes per timestep for node '{source.name}'"
                        raise DataError(message, "run the network again")
                    sent = steps_of > 0
                case _:
                    sent = self._arrival(source)
            late = min(edge.delay, steps)
            arrival[late:] |= sent[: steps - late]
        return arrival

    def arriving(self, edge: Edge) -> Iterator[_Signal]:
        """What came over an edge, once for each input or neuron behind it."""
        source = self.net[edge.source]
        match source:
            case LIF() if edge.delay == 0:
                active = self.spikes(source.name)
                yield _Signal(active, active, graded=False)
            case LIF() | Input() | AvgPool2d():
                active, once = np.zeros((2, *self.shapes[source.name]), np.int64)
                for values, repeats in self.frames(edge):
                    present = np.count_nonzero(values, axis=0)
                    active += repeats * present
                    once += min(repeats, 1) * present
                yield _Signal(active, once, graded=_graded(source))
            case Flatten():
                for inner in source.inputs:
                    yield from self.arriving(inner)
            case _:
                raise UnsupportedError(
                    "operations cannot be counted",
                    [f"'{source.name}' ({type(source).__name__}) feeds a layer of weights without a neuron between"],
                    "count the folded network",
                )

    def frames(self, edge: Edge) -> Iterator[tuple[Array, int]]:
        """The values [B, *shape] that came over an edge, and for how many timesteps each; a delay drops the last."""
        source, steps = self.net[edge.source], max(0, self.net.timesteps - edge.delay)
        match source:
            case Input(encoding="direct"):
                yield self.present, steps
            case Input():
                yield from ((frame, 1) for frame in self.present[:steps])
            case LIF():
                if self.trace.rasters is None or source.name not in self.trace.rasters:
                    raise DataError(
                        f"the spikes of '{source.name}' pass a delay or a pooling, so their times are needed",
                        "run the target with record='raster', or fold the pooling",
                    )
                yield from ((frame, 1) for frame in self.trace.rasters[source.name][:steps])
            case AvgPool2d() if len(source.inputs) == 1:
                for values, repeats in self.frames(source.inputs[0]):
                    windows = np.lib.stride_tricks.sliding_window_view(values, source.kernel_size, axis=(2, 3))
                    yield windows[:, :, :: source.stride[0], :: source.stride[1]].sum(axis=(4, 5)), repeats
            case _:
                raise UnsupportedError(
                    "operations cannot be counted",
                    [f"a pooling reads '{source.name}' ({type(source).__name__}), not one input or neuron"],
                    "count the folded network",
                )


def _graded(source: Node) -> bool:
    if isinstance(source, Input):
        return source.bits > 1 or (source.bits == 0 and source.encoding == "direct")
    return isinstance(source, AvgPool2d)


def _count_neurons(node: LIF, record: NodeCounts, sources: _Sources, shape: Shape) -> NodeCounts:
    spikes = int(sources.spikes(node.name).sum())
    passes = sources.net.timesteps * sources.trace.samples
    additions = multiplications = 0
    for decay in (node.voltage_decay, node.current_decay):
        neurons = np.broadcast_to(decay.reshape(-1, *[1] * (len(shape) - 1)), shape)
        additions += int((neurons < DECAY_ONE).sum()) * passes
        multiplications += int(((neurons > 0) & (neurons < DECAY_ONE)).sum()) * passes
    return dataclasses.replace(
        record,
        spikes=spikes,
        updates_active=spikes,
        updates_inactive=math.prod(shape) * passes - spikes,
        updates_reached=sources.reached(node),
        state_additions=additions,
        state_multiplications=multiplications,
    )


def _on_host(net: Network) -> set[str]:
    """The synapses that read the raw input, and the neurons that read nothing else than those, if a host has them."""
    host: set[str] = set()
    if net.stem == "host":
        for node in net.nodes:
            stem = isinstance(node, Synapse) and reads_input(net, node)
            after = not isinstance(node, Input | Synapse | Readout) and all(
                edge.source in host and not isinstance(net[edge.source], LIF) for edge in node.inputs
            )
            if stem or after:
                host.add(node.name)
    return host


def _parameters(net: Network) -> int:
    trained = [(s.weight, s.bias) for s in net.nodes if isinstance(s, Affine | Conv2d | BatchNorm2d)]
    return sum(array.size for arrays in trained for array in arrays if array is not None)


def _footprint(net: Network, kind: Kind) -> float:
    weight_bits = net.metadata.get("quantization", {}).get("weight_bits", 8)
    bits = 0
    for node in net.nodes:
        for spec in dataclasses.fields(node):
            value = getattr(node, spec.name)
            if isinstance(value, np.ndarray):
                width = 8 * value.itemsize if kind == "float" else FIELD_BITS.get(spec.name, weight_bits)
                bits += width * value.size
    return bits / 8
