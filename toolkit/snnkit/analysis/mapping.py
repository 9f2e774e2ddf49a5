"""Does a network fit a chip: its layers on cores, what every core holds, latency, and everything that is in the way.

The model: every layer of neurons has cores of its own and is cut into equal blocks of channels, rows and columns, the
cut that takes the fewest cores (then the least memory). Layers are cut from the readout backwards, because a core's
output axons depend on how its readers are cut. Cores are filled in the order of the layers, tiles row by row, chips
one east of the other. What it leaves out: layers that share a core, learning, the chip's own management, and the time
that spikes take. Two programs of a chip's maker may well cut otherwise; what is counted here is published.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from snnkit.analysis.chips import Chip, Limit
from snnkit.analysis.layers import Layer, read_layers
from snnkit.analysis.limits import Violation, violations_of_values, warnings_of_ranges
from snnkit.analysis.partition import Cut, Fan, Load, axons_out, fan, load, stored_bits
from snnkit.analysis.routing import Placement, Routed, place, route
from snnkit.errors import NetworkError
from snnkit.network.depth import latency
from snnkit.network.ir import Array, Network, Shape, infer_shapes, verify
from snnkit.network.trace import Trace

REMEDIES = {
    "neurons": "use a chip with more neurons a core",
    "input axons": "let the layer read fewer neurons: fewer channels, or another layer of stride 2 before it",
    "output axons": "let fewer cores read the layer: fewer channels behind it",
    "memory words": "use fewer input channels, a smaller kernel or fewer weight bits",
    "decays": "use one tau for the layer",
    "thresholds": "use one threshold for the layer",
    "synapse formats": "let the neurons read fewer synapses, or give these the same number of weight bits",
}


@dataclass(frozen=True, kw_only=True)
class LayerMapping:
    """One layer on its cores, ``first_core`` and those after it; figures of a core are those of its fullest one.

    ``cut`` is the most channels, rows and columns of a core, ``spikes`` those of an inference, if known.
    """

    name: str
    kind: str
    shape: Shape
    neurons: int
    first_core: int
    cores: int
    cut: Cut
    neurons_per_core: int
    axons_in: int
    axons_out: int
    synapse_words: int
    memory_words: int
    utilisation: dict[str, float]
    spikes: float | None = None


@dataclass(frozen=True, kw_only=True)
class Core:
    """What a core holds; ``utilisation`` is the share of each of its limits, 0..1 (above 1: a violation)."""

    core: int
    chip: int
    row: int
    column: int
    layers: dict[str, int]
    neurons: int
    axons_in: int
    axons_out: int
    synapse_words: int
    memory_words: int
    utilisation: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Steps, and the shortest time that they take in seconds, where the chip's file says how long a step is."""

    steps: int
    seconds: float | None

    def to_json(self) -> dict[str, Any]:
        return {"steps": self.steps, "seconds": self.seconds}


@dataclass(frozen=True, kw_only=True)
class Mapping:
    """A network on a chip; it fits where there are no violations.

    ``latency_first``: from the first input to its answer, with the pipeline filling; ``latency_next``: from an answer
    to the next, when samples follow each other. ``routed`` needs a trace. ``unchecked`` names limits that the chip's
    file leaves out. ``warnings`` could happen, but need not.
    """

    chip: Chip
    chips_allowed: int
    layers: tuple[LayerMapping, ...]
    cores: tuple[Core, ...]
    violations: tuple[Violation, ...]
    warnings: tuple[str, ...]
    latency_first: Latency
    latency_next: Latency
    routed: Routed | None

    @property
    def fits(self) -> bool:
        return not self.violations

    @property
    def chips(self) -> int:
        """How many chips the cores would fill."""
        return -(-len(self.cores) // self.chip.cores.value)

    @property
    def throughput(self) -> float | None:
        """Inferences a second at most, where the time of a step is known."""
        return 1 / self.latency_next.seconds if self.latency_next.seconds else None

    @property
    def unchecked(self) -> tuple[str, ...]:
        optional = ("input_axons", "output_axons", "compartment_configurations", "threshold_configurations")
        names = (*optional, "synapse_configurations")
        return tuple(name.replace("_", " ") for name in names if getattr(self.chip, name) is None)

    def total(self, name: str) -> int:
        """The sum of a :class:`Core` field over the cores."""
        return sum(getattr(core, name) for core in self.cores)

    def to_json(self) -> dict[str, Any]:
        mesh = self.chip.mesh
        return {
            "chip": self.chip.name,
            "title": self.chip.title,
            "approximate": self.chip.approximate,
            "fits": self.fits,
            "cores_used": len(self.cores),
            "cores_available": self.chip.cores.value * self.chips_allowed,
            "chips": self.chips,
            "grid": {"rows": mesh.rows, "columns": mesh.columns, "cores_per_tile": mesh.cores_per_tile},
            "neurons": self.total("neurons"),
            "relay_neurons": sum(layer.neurons for layer in self.layers if layer.kind == "relay"),
            "synapse_words": self.total("synapse_words"),
            "latency_first": self.latency_first.to_json(),
            "latency_next": self.latency_next.to_json(),
            "throughput": self.throughput,
            "spikes_between_cores": None if self.routed is None else self.routed.to_json(),
            "violations": [violation.to_json() for violation in self.violations],
            "warnings": list(self.warnings),
            "unchecked": list(self.unchecked),
            "layers": [_plain(layer) for layer in self.layers],
            "cores": [_plain(core) for core in self.cores],
        }


def _plain(record: LayerMapping | Core) -> dict[str, Any]:
    return dict(vars(record))


def map_network(net: Network, chip: Chip, trace: Trace | None = None, *, chips: int = 1) -> Mapping:
    """The integer network ``net`` on ``chips`` chips; with a trace also the spikes that its cores send each other.

    Raises :class:`NetworkError` for a float network; what does not fit is in the mapping's violations, all at once.
    """
    if verify(net) != "integer":
        raise NetworkError("a float network has no place on a chip", "quantise it first: snnkit quantize RUN")
    layers = read_layers(net)
    cuts, found = _cut(layers, chip)
    placed: list[LayerMapping] = []
    cores: list[Core] = []
    where: dict[str, Placement] = {}
    shapes = infer_shapes(net)
    for layer in layers:
        first = len(cores)
        held = load(layer, cuts[layer.name], chip)
        out = axons_out(layer, cuts[layer.name], _fans(layer, layers, cuts, chip))
        cores += _cores(layer, first, held, out, chip)
        mine = cores[first:]
        where[layer.name] = Placement(layer, cuts[layer.name], first, len(mine))
        names = ("neurons", "axons_in", "axons_out", "synapse_words", "memory_words")
        most = {name: max(getattr(core, name) for core in mine) for name in names}
        shape = layer.volume if layer.volume[1:] != (1, 1) else layer.volume[:1]
        placed.append(
            LayerMapping(
                name=layer.name,
                kind=layer.kind,
                shape=shapes.get(layer.name, shape),
                neurons=layer.neurons,
                first_core=first,
                cores=len(mine),
                cut=cuts[layer.name],
                neurons_per_core=most["neurons"],
                axons_in=most["axons_in"],
                axons_out=most["axons_out"],
                synapse_words=most["synapse_words"],
                memory_words=most["memory_words"],
                utilisation={key: max(core.utilisation[key] for core in mine) for key in mine[0].utilisation},
                spikes=_spikes(layer, trace),
            )
        )
    violations = [*violations_of_values(net, chip), *found, *_too_many_cores(placed, len(cores), chip, chips)]
    step = None if chip.step is None else _step_seconds(cores, chip)
    steps = net.timesteps + latency(net), net.timesteps
    answers = [Latency(steps=count, seconds=None if step is None else count * step) for count in steps]
    return Mapping(
        chip=chip,
        chips_allowed=chips,
        layers=tuple(placed),
        cores=tuple(cores),
        violations=tuple(violations),
        warnings=tuple(warnings_of_ranges(net, chip)),
        latency_first=answers[0],
        latency_next=answers[1],
        routed=None if trace is None else route(where, trace, chip),
    )


def _spikes(layer: Layer, trace: Trace | None) -> float | None:
    if trace is None or layer.spikes_of is None:
        return None
    return float(trace.spikes_per_neuron[layer.spikes_of].sum(dtype=np.int64) / trace.samples)


def _step_seconds(cores: Sequence[Core], chip: Chip) -> float:
    assert chip.step is not None
    return 1e-9 * (chip.step.barrier_ns + chip.step.update_ns * max(core.neurons for core in cores))


# --- cutting ----------------------------------------------------------------------------------------------------------


def _cut(layers: Sequence[Layer], chip: Chip) -> tuple[dict[str, Cut], list[Violation]]:
    """A cut for each layer, and what no cut of it could keep.

    From the last layer to the first, so that readers are cut before those whose spikes they read. A second round
    knows the readers along recurrent edges, too.
    """
    cuts: dict[str, Cut] = {}
    recurrent = _reads_later(layers)
    for _ in range(2 if recurrent else 1):
        found = {}
        for layer in reversed(layers):
            cuts[layer.name], found[layer.name] = _cut_layer(layer, layers, cuts, chip)
    return cuts, [violation for layer in layers for violation in found[layer.name]]


def _reads_later(layers: Sequence[Layer]) -> bool:
    before: set[str] = set()
    for layer in layers:
        if any(not a.external and a.source not in before for a in layer.afferents):
            return True
        before.add(layer.name)
    return False


def _fans(layer: Layer, layers: Sequence[Layer], cuts: dict[str, Cut], chip: Chip) -> list[Fan]:
    return [
        fan(reader, afferent, cuts[reader.name], chip)
        for reader in layers
        if reader.name in cuts
        for afferent in reader.afferents
        if afferent.source == layer.name and not afferent.external
    ]


def _limits(chip: Chip) -> dict[str, Limit]:
    named = {
        "neurons": chip.neurons_per_core,
        "input axons": chip.input_axons,
        "output axons": chip.output_axons,
        "memory words": chip.memory_words,
        "decays": chip.compartment_configurations,
        "thresholds": chip.threshold_configurations,
        "synapse formats": chip.synapse_configurations,
    }
    return {name: limit for name, limit in named.items() if limit is not None}


def _most(layer: Layer, cut: Cut, fans: list[Fan], chip: Chip) -> dict[str, int]:
    """The fullest core's figures under each of :func:`_limits`."""
    held = load(layer, cut, chip)
    out = axons_out(layer, cut, fans)
    formats = {
        (stored_bits(a.weight_bits, chip), a.exponent, a.convolution, a.reaches is None) for a in layer.afferents
    }
    return {
        "neurons": int(held.neurons.max()),
        "input axons": int(held.axons_in.max()),
        "output axons": int(out.max()),
        "memory words": int(_memory(held, out, chip).max()),
        "decays": int(held.decays.max()),
        "thresholds": int(held.thresholds.max()),
        "synapse formats": len(formats),
    }


def _memory(held: Load, out: Array, chip: Chip) -> Array:
    """Words of each core: its weights, and where they share the memory, its neurons and axons."""
    neuron = chip.words_per_neuron.value if chip.words_per_neuron else 0
    axon = chip.words_per_axon.value if chip.words_per_axon else 0
    words: Array = held.synapse_words + neuron * held.neurons + axon * (held.axons_in + out)
    return words


def _cut_layer(layer: Layer, layers: Sequence[Layer], cuts: dict[str, Cut], chip: Chip) -> tuple[Cut, list[Violation]]:
    fans = _fans(layer, layers, cuts, chip)
    limits = _limits(chip)
    least = _most(layer, (1, 1, 1), fans, chip)
    found = [
        Violation(
            layer=layer.name,
            what=f"{name} of a core, for a single neuron",
            value=least[name],
            limit=limits[name].value,
            source=limits[name].source,
            remedy=REMEDIES[name],
        )
        for name in limits
        if least[name] > limits[name].value
    ]
    kept = {name: limit.value for name, limit in limits.items() if least[name] <= limit.value}

    def fits(cut: Cut) -> bool:
        most = _most(layer, cut, fans, chip)
        return all(most[name] <= limit for name, limit in kept.items())

    best: tuple[int, int, int] | None = None
    chosen: Cut = (1, 1, 1)
    for fewest, rows, columns in sorted(_tiles(layer, kept)):
        if best is not None and fewest > best[0]:
            break
        channels = _largest(layer, rows, columns, fits, kept)
        if channels is None:
            continue
        cut = (channels, rows, columns)
        cores = math.prod(-(-total // size) for total, size in zip(layer.volume, cut, strict=True))
        if best is not None and cores > best[0]:
            continue
        key = (cores, int(load(layer, cut, chip).synapse_words.sum()), int(axons_out(layer, cut, fans).sum()))
        if best is None or key < best:
            best, chosen = key, cut
    return chosen, found


def _sizes(total: int) -> list[int]:
    """Sizes of equal parts: the smallest one for each number of parts, ascending."""
    return sorted({-(-total // parts) for parts in range(1, total + 1)})


def _tiles(layer: Layer, kept: dict[str, int]) -> Iterator[tuple[int, int, int]]:
    """The fewest cores that tiles of so many rows and columns could do with, by their neurons alone."""
    channels, height, width = layer.volume
    neurons = kept.get("neurons", layer.neurons)
    for rows in _sizes(height):
        for columns in _sizes(width):
            most = min(channels, neurons // (rows * columns))
            if most:
                yield -(-channels // most) * -(-height // rows) * -(-width // columns), rows, columns


def _largest(layer: Layer, rows: int, columns: int, fits: Any, kept: dict[str, int]) -> int | None:
    """The largest block of channels that fits with such tiles, by bisection."""
    sizes = [n for n in _sizes(layer.volume[0]) if n * rows * columns <= kept.get("neurons", layer.neurons)]
    low, high = 0, len(sizes)  # sizes[:low] fit
    while low < high:
        middle = (low + high + 1) // 2
        if fits((sizes[middle - 1], rows, columns)):
            low = middle
        else:
            high = middle - 1
    return sizes[low - 1] if low else None


def _too_many_cores(layers: Sequence[LayerMapping], used: int, chip: Chip, chips: int) -> list[Violation]:
    if used <= chip.cores.value * chips:
        return []
    largest = max(layers, key=lambda layer: layer.cores)
    return [
        Violation(
            layer=largest.name,
            what="cores of the network",
            value=used,
            limit=chip.cores.value * chips,
            source=chip.cores.source,
            remedy=f"use fewer channels (this layer takes {largest.cores} cores), or "
            f"{-(-used // chip.cores.value)} chips",
        )
    ]


# --- cores ------------------------------------------------------------------------------------------------------------


def _cores(layer: Layer, first: int, held: Load, out: Array, chip: Chip) -> Iterator[Core]:
    shape = held.neurons.shape
    memory = _memory(held, out, chip)
    fields = (held.neurons, held.axons_in, out, held.synapse_words, memory)
    columns = [np.broadcast_to(field, shape).ravel().tolist() for field in fields]
    limits = (chip.neurons_per_core, chip.input_axons, chip.output_axons, chip.memory_words)
    names = ("neurons", "axons_in", "axons_out", "memory")
    for index, (neurons, axons_in, axons_sent, words, words_all) in enumerate(zip(*columns, strict=True)):
        number = first + index
        used = (neurons, axons_in, axons_sent, words_all)
        chip_number, row, column = (int(part) for part in place(np.array(number), chip))
        yield Core(
            core=number,
            chip=chip_number,
            row=row,
            column=column,
            layers={layer.name: neurons},
            neurons=neurons,
            axons_in=axons_in,
            axons_out=axons_sent,
            synapse_words=words,
            memory_words=words_all,
            utilisation={
                name: value / limit.value
                for name, value, limit in zip(names, used, limits, strict=True)
                if limit is not None
            },
        )
