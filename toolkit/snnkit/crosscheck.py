"""Our counts and energy beside those of SANA-FE's own simulation of Loihi, on the same network, mapping and inputs."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from snnkit.analysis.chips import load_chip
from snnkit.analysis.counts import count
from snnkit.analysis.energy import Energy, estimate, load_model
from snnkit.analysis.layers import volume_of
from snnkit.analysis.mapping import LayerMapping, map_network
from snnkit.analysis.replay import REFERENCE, Layer
from snnkit.errors import UnsupportedError
from snnkit.network import Flatten, Input, Network, Trace, infer_shapes, verify
from snnkit.network.depth import depths, latency
from snnkit.network.inputs import encode_inputs
from snnkit.network.ir import Array, Synapse, reads_input
from snnkit.pipeline import Samples, run

MODEL, CHIP = "loihi1-sanafe", "loihi1"
MOST_SAMPLES = 8


@dataclass(frozen=True)
class Row:
    """One figure of an inference; ours may be a range (``high`` above ``ours``), or a bound."""

    name: str
    unit: str
    ours: float
    high: float
    theirs: float
    bound: str = ""


@dataclass(frozen=True)
class CrossCheck:
    """What both say of ``samples`` inferences of ``timesteps``, each run for ``steps`` with the pipeline filling.

    ``mismatches`` counts, by node, the spikes on which they differ. ``given`` names what SANA-FE was given as input.
    """

    samples: int
    timesteps: int
    steps: int
    given: str
    rows: tuple[Row, ...]
    mismatches: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"oracle": "sanafe"}

    def __getitem__(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)


def cross_check(net: Network, samples: Samples) -> CrossCheck:
    """Runs at most 8 of the samples on SANA-FE's Loihi, every layer on the cores that our mapping gives it.

    SANA-FE knows binary spikes alone: a network with a direct input is compared from the spikes of its first layer on.
    Raises ``UnsupportedError`` where it cannot be, ``UnavailableError`` where SANA-FE is not installed.
    """
    from snnkit_targets import _sanafe

    if verify(net) != "integer":
        raise UnsupportedError("SANA-FE cannot take this network", ["it is a float network"], "quantise it first")
    axis = 0 if net.input.encoding == "direct" else 1
    x = samples.x.take(np.arange(min(MOST_SAMPLES, samples.x.shape[axis])), axis=axis)
    net, events = binary_part(net, x)
    if reasons := _sanafe.check(net):
        raise UnsupportedError("SANA-FE cannot take this network", reasons, "leave out --cross-check")
    trace = run(net, events, "reference", record="raster")
    arriving = {net.input.name: events.sum(axis=0, dtype=np.int32)}
    everything = dataclasses.replace(trace, spikes_per_neuron=trace.spikes_per_neuron | arriving)
    mapping = map_network(net, load_chip(CHIP))
    if not mapping.fits:
        reasons = [f"{v.layer}: {v.what} {v.value:g}, limit {v.limit:g}" for v in mapping.violations]
        raise UnsupportedError("the network does not fit Loihi 1", reasons, f"see: snnkit check NET --chip {CHIP}")
    counts, routing = count(net, events, trace), mapping.routing(everything, net.timesteps)
    entering = sum(node.messages for node in counts.nodes if node.reads_input) / counts.samples
    routing = dataclasses.replace(routing, from_host=routing.from_host - entering)
    ours = estimate(counts, load_model(MODEL), depth=latency(net), routing=routing)
    cores = {layer.name: cores_of(layer) for layer in mapping.layers}
    theirs = _sanafe.run(net, events, cores, len(mapping.cores))
    assert trace.rasters is not None
    differ = {name: int((trace.rasters[name] != found).sum()) for name, found in theirs.rasters.items()}
    draining = _held_afterwards(net, events, trace, theirs.steps)
    rows = tuple(_rows(ours, theirs.means, theirs.steps / net.timesteps, draining))
    return CrossCheck(trace.samples, net.timesteps, theirs.steps, net.input.name, rows, differ)


def binary_part(net: Network, x: Array) -> tuple[Network, Array]:
    """The network from its first spikes on, and those spikes as its events [T, B, *shape]."""
    if net.input.encoding == "events":
        return net, x
    stem = [n for n in net.neurons if all(reads_input(net, net[edge.source]) for edge in n.inputs)]
    mine = {net.input.name}
    for node in net.nodes:
        if isinstance(node, Flatten | Synapse) and {edge.source for edge in node.inputs} <= mine:
            mine.add(node.name)
    others = {c.name for name in mine for c in net.consumers(name)} - mine
    if len(stem) != 1 or others != {stem[0].name}:
        reason = "its input goes to more than one layer of neurons"
        raise UnsupportedError("SANA-FE cannot take this network", [reason], "leave out --cross-check")
    rasters = run(net, x, "reference", record="raster").rasters
    assert rasters is not None
    entry = Input(name=stem[0].name, shape=infer_shapes(net)[stem[0].name], encoding="events", bits=1, scale=1.0)
    kept = tuple(node for node in net.nodes if node.name not in {*mine, entry.name})
    return Network(nodes=(entry, *kept), timesteps=net.timesteps), rasters[entry.name].astype(np.uint8)


def cores_of(layer: LayerMapping) -> Array:
    """The core of every neuron of a mapped layer, int64 [*shape]."""
    volume = volume_of(layer.shape)
    parts = [-(-total // size) for total, size in zip(volume, layer.cut, strict=True)]
    blocks = [np.arange(total) // size for total, size in zip(volume, layer.cut, strict=True)]
    numbers = layer.first_core + np.arange(np.prod(parts)).reshape(parts)
    return np.asarray(numbers[np.ix_(*blocks)]).reshape(layer.shape)


def _held_afterwards(net: Network, events: Array, trace: Trace, steps: int) -> float:
    """Updates of an inference while the pipeline drains: of neurons that still hold something."""
    depth, shapes, encoded = depths(net), infer_shapes(net), encode_inputs(net, events)
    assert trace.rasters is not None
    total = 0
    for node in net.neurons:
        if waiting := steps - net.timesteps - depth[node.name]:
            replay = Layer(net, node, encoded, trace.rasters, shapes[node.name]).run(REFERENCE)
            left = replay.v[-1] != 0
            if node.reset == "zero":
                left &= ~replay.spikes[-1]
            total += waiting * int(left.sum())
    return total / trace.samples


def _rows(ours: Energy, theirs: dict[str, float], longer: float, draining: float) -> list[Row]:
    """``longer``: by how much SANA-FE visits every neuron more often than in the timesteps alone."""
    terms: dict[str, list[Any]] = {}
    for term in ours.terms:
        terms.setdefault(term.operation, []).append(term)

    def counted(*operations: str) -> float:
        return float(sum(term.count for name in operations for term in terms.get(name, ())))

    def joules(*operations: str, end: str = "joules") -> float:
        return float(sum(getattr(term, end) for name in operations for term in terms.get(name, ())))

    events, hop = ("synaptic_event", "synaptic_event_conv"), terms["spike_hop"][0]
    updates, packets = counted("neuron_update") + draining, counted("spike_message")
    soma = joules("neuron_access") * longer + joules("neuron_spike")
    soma += updates * terms["neuron_update"][0].price.joules
    message = terms["spike_message"][0].price.joules
    hops = theirs["network energy"] - theirs["packets"] * message if theirs["hops"] else 0.0
    fixed = joules(*events) + soma + packets * message
    latency = ours.latency
    assert latency is not None
    seconds = latency.seconds(latency.first)
    assert seconds is not None
    first = [
        ("spikes", "", counted("neuron_spike"), theirs["spikes"], ""),
        ("synaptic events", "", counted(*events), theirs["synaptic events"], ""),
        ("packets", "", packets, theirs["packets"], ""),
        ("neuron updates", "", updates, theirs["updates"], "at most"),
        ("energy of synapses", "J", joules(*events), theirs["synapse energy"], ""),
        ("energy of neurons", "J", soma, theirs["soma energy"], "at most"),
        ("energy of packets", "J", packets * message, theirs["packets"] * message, ""),
    ]
    rows = [Row(name, unit, value, value, other, bound) for name, unit, value, other, bound in first]
    rows.append(Row("energy of hops", "J", hop.low, hop.high, hops))
    rows.append(Row("energy", "J", fixed + hop.low, fixed + hop.high, theirs["total energy"]))
    rows.append(Row("latency", "s", seconds[0], seconds[2], theirs["seconds"], "at least"))
    return rows
