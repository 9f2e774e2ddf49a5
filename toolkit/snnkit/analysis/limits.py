"""Which numbers of a network a chip cannot hold: weights, thresholds, biases, decays, delays, graded values, resets."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from snnkit.analysis.chips import Chip, Span
from snnkit.analysis.layers import needed_bits
from snnkit.network.depth import depths, held_back, paths, stem_neurons
from snnkit.network.ir import LIF, Array, Input, Network, Readout, Synapse
from snnkit.network.ranges import FRACTION_BITS, synaptic_bounds


@dataclass(frozen=True, kw_only=True)
class Violation:
    """A limit that is not kept: the layer, what, the number and the limit, who says so, and what to change."""

    layer: str
    what: str
    value: float
    limit: float
    source: str
    remedy: str

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def violations_of_values(net: Network, chip: Chip) -> list[Violation]:
    """Every number of an integer network that the chip cannot hold, in the order of the nodes."""
    found: list[Violation] = []
    hosted = stem_neurons(net)
    used = [path for path in paths(net) if path.target not in hosted]
    on_chip = {name for path in used for name in (path.source, path.via, path.target)} - hosted
    for node in net.nodes:
        match node:
            case Input() if node.name in on_chip:
                found += _graded(node, chip)
            case Synapse() if node.name in on_chip:
                found += _weights(node, chip)
            case LIF() if node.name in on_chip:
                found += [*_neurons(node, chip), *_biases(net, node, chip)]
            case Readout(mode="membrane"):
                found += _biases(net, node, chip)
    return [*found, *_delays(net, chip)]


def warnings_of_ranges(net: Network, chip: Chip) -> list[str]:
    """Sums that would leave the chip's accumulator if every input came at once; whether they do, only runs show."""
    limit = 2 ** (chip.accumulator_bits.value - 1)
    bounds, hosted = synaptic_bounds(net), stem_neurons(net)
    beyond = []
    for node in net.nodes:
        total = sum(bounds.get(edge.source, 0) for edge in node.inputs)
        if isinstance(node, LIF | Readout) and node.name not in hosted and total >= limit:
            beyond.append(f"'{node.name}' {total:,}")
    if not beyond:
        return []
    return [
        f"if all inputs came at once, sums could reach {', '.join(beyond)}; the accumulator holds less than {limit:,} "
        f"({chip.accumulator_bits.source})"
    ]


def _graded(node: Input, chip: Chip) -> Iterator[Violation]:
    if node.bits <= 1:
        return
    limit = chip.graded_spike_bits
    if limit is None:
        yield Violation(
            layer=node.name,
            what="bits of an input value",
            value=node.bits,
            limit=1,
            source=f"{chip.source}: spikes carry no value",
            remedy="let the host compute the first layer (quantize --stem host), or give spikes (data.encoding: rate)",
        )
    elif node.bits > limit.value:
        remedy = "use fewer input bits"
        yield _above(node.name, "bits of an input value", node.bits, limit.value, limit.source, remedy)


def _weights(node: Synapse, chip: Chip) -> Iterator[Violation]:
    bits, widest = needed_bits(node.weight), max(chip.weight_bits.values)
    if bits > widest:
        yield _above(
            node.name, "weight bits", bits, widest, chip.weight_bits.source, f"quantise with --weight-bits {widest}"
        )
    mixed = bool(node.weight.min() < 0 < node.weight.max()) and chip.weight_bits.mixed_sign_loses_lowest_bit
    exponent = node.weight_exponent - mixed  # with both signs the stored number is twice the weight
    yield from _outside(node.name, "weight exponent", exponent, chip.weight_exponent, "use another weight exponent")


def _neurons(node: LIF, chip: Chip) -> Iterator[Violation]:
    most, threshold = 2**chip.threshold_bits.value - 1, int(node.v_threshold.max())
    if threshold > most:
        remedy = "quantise with fewer weight bits, so that thresholds become smaller"
        yield _above(node.name, "threshold", threshold, most, chip.threshold_bits.source, remedy)
    decay, current = int(node.voltage_decay.max()), int(node.current_decay.min())
    most = 2**chip.decay_bits.value - 1
    if decay > most:
        remedy = f"a voltage decay of {most} forgets almost as fast"
        yield _above(node.name, "voltage decay", decay, most, chip.decay_bits.source, remedy)
    if current < 1:  # the chip adds one to what it stores
        span = Span(low=1, high=most + 1, source=chip.decay_bits.source)
        yield from _outside(node.name, "current decay", current, span, "use a shorter time constant of the current")
    if node.reset not in chip.resets.values:
        yield Violation(
            layer=node.name,
            what=f"reset by {node.reset}",
            value=1,
            limit=0,
            source=chip.resets.source,
            remedy="train with student.reset: zero",
        )


def _biases(net: Network, node: LIF | Readout, chip: Chip) -> Iterator[Violation]:
    """A neuron's bias is one number: the sum of those of its synapses, ``mantissa 2**exponent`` in units of v."""
    synapses = [source for edge in node.inputs if isinstance(source := net[edge.source], Synapse)]
    terms = [s.bias.astype(np.int64) for s in synapses if s.bias is not None]
    if not terms:
        return
    total: Array = sum(terms, np.zeros(1, np.int64)) << max(0, FRACTION_BITS - chip.bias_exponent.high)
    most = 2**chip.bias_bits.value
    span = Span(low=-most, high=most - 1, source=chip.bias_bits.source)
    for mantissa in {int(total.max()), int(total.min())}:
        remedy = "quantise with fewer weight bits, or train with a smaller bias"
        yield from _outside(node.name, "bias mantissa", mantissa, span, remedy)


def _delays(net: Network, chip: Chip) -> Iterator[Violation]:
    depth, hosted = depths(net), stem_neurons(net)
    for path in paths(net):
        if not isinstance(net[path.source], LIF) or path.source in hosted:
            continue  # the host sends its values when they are wanted
        held = held_back(net, path, depth)
        if held > chip.delay.value:
            remedy = f"the path from '{path.source}' waits for a longer one, or is delayed: shorten either"
            yield _above(path.target, "delay", held, chip.delay.value, chip.delay.source, remedy)


def _above(layer: str, what: str, value: float, limit: float, source: str, remedy: str) -> Violation:
    return Violation(layer=layer, what=what, value=value, limit=limit, source=source, remedy=remedy)


def _outside(layer: str, what: str, value: int, span: Span, remedy: str) -> Iterator[Violation]:
    if not span.low <= value <= span.high:
        limit = span.high if value > span.high else span.low
        yield _above(layer, what, value, limit, span.source, remedy)
