"""Does a network fit a chip: its layers on cores, what every core holds, latency, and everything that is in the way.

The model: every layer of neurons has cores of its own and is cut into equal blocks of channels, rows and columns, the
cut that takes the fewest cores (then the least memory). Layers are cut from the readout backwards, because a core's
output axons depend on how its readers are cut. Cores are filled in the order of the layers, tiles row by row, chips
one east of the other. What it leaves out: layers that share a core, learning, the chip's own management, and the time
that spikes take. A compiler of the chip's maker may cut otherwise; what is counted here follows published sources.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from snnkit.analysis.chips import Chip
from snnkit.analysis.cutting import cut_all, fans, memory_words
from snnkit.analysis.energy_terms import Routing
from snnkit.analysis.layers import Layer, read_layers
from snnkit.analysis.limits import Violation, violations_of_values, warnings_of_ranges
from snnkit.analysis.partition import Cut, Load, axons_out, load
from snnkit.analysis.routing import Placement, Routed, place, route
from snnkit.errors import NetworkError
from snnkit.network.depth import latency
from snnkit.network.ir import Array, Network, Shape, infer_shapes, verify
from snnkit.network.trace import Trace


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
    placed: dict[str, Placement] = field(repr=False, compare=False)

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

    def routing(self, trace: Trace, timesteps: int) -> Routing:
        """The way of the spikes of a trace of so many timesteps, and the work of the relays, to be priced."""
        routed = route(self.placed, trace, self.chip)
        relays = sum(layer.neurons for layer in self.layers if layer.kind == "relay")
        return Routing(
            messages=routed.within_core + routed.between_cores,
            hops=routed.hops_east_west + routed.hops_north_south,
            from_host=routed.from_host,
            relay_updates=relays * timesteps,
            relay_spikes=routed.relayed,
            chip=self.chip.title if self.fits else f"{self.chip.title}, which the network does not fit",
        )

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
    cuts, uncuttable = cut_all(layers, chip)
    shapes = infer_shapes(net)
    mapped: list[LayerMapping] = []
    cores: list[Core] = []
    where: dict[str, Placement] = {}
    for layer in layers:
        held = load(layer, cuts[layer.name], chip)
        sent = axons_out(layer, cuts[layer.name], fans(layer, layers, cuts, chip))
        mine = list(_cores(layer, len(cores), held, sent, chip))
        where[layer.name] = Placement(layer, cuts[layer.name], len(cores), len(mine))
        mapped.append(_layer(layer, where[layer.name], mine, shapes[layer.spikes_of or layer.name], trace))
        cores += mine
    steps = {"first": net.timesteps + latency(net), "next": net.timesteps}
    step = None if chip.step is None else _step_seconds(cores, chip)
    answers = {
        name: Latency(steps=count, seconds=None if step is None else count * step) for name, count in steps.items()
    }
    return Mapping(
        chip=chip,
        chips_allowed=chips,
        layers=tuple(mapped),
        cores=tuple(cores),
        violations=(
            *violations_of_values(net, chip),
            *uncuttable,
            *_too_many_cores(mapped, len(cores), chip, chips),
        ),
        warnings=tuple(warnings_of_ranges(net, chip)),
        latency_first=answers["first"],
        latency_next=answers["next"],
        routed=None if trace is None else route(where, trace, chip),
        placed=where,
    )


def _layer(layer: Layer, placed: Placement, cores: Sequence[Core], shape: Shape, trace: Trace | None) -> LayerMapping:
    def most(name: str) -> int:
        highest: int = max(getattr(core, name) for core in cores)
        return highest

    return LayerMapping(
        name=layer.name,
        kind=layer.kind,
        shape=shape,
        neurons=layer.neurons,
        first_core=placed.first,
        cores=placed.cores,
        cut=placed.cut,
        neurons_per_core=most("neurons"),
        axons_in=most("axons_in"),
        axons_out=most("axons_out"),
        synapse_words=most("synapse_words"),
        memory_words=most("memory_words"),
        utilisation={name: max(core.utilisation[name] for core in cores) for name in cores[0].utilisation},
        spikes=_spikes(layer, trace),
    )


def _spikes(layer: Layer, trace: Trace | None) -> float | None:
    if trace is None or layer.spikes_of is None:
        return None
    return float(trace.spikes_per_neuron[layer.spikes_of].sum(dtype=np.int64) / trace.samples)


def _step_seconds(cores: Sequence[Core], chip: Chip) -> float:
    assert chip.step is not None
    return 1e-9 * (chip.step.barrier_ns + chip.step.update_ns * max((core.neurons for core in cores), default=0))


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


def _cores(layer: Layer, first: int, held: Load, out: Array, chip: Chip) -> Iterator[Core]:
    shape = held.neurons.shape
    memory = memory_words(held, out, chip)
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
