"""How a layer is cut into cores, and what each core then holds.

A core holds a block of channels of a tile of rows and columns. It has one input axon for every pixel that its
neurons see through a convolution (an axon of a population: the spike says which channel it came from), one for every
neuron that they see through linear weights. A spike is sent to every core that holds a target of its neuron: a pixel's
channels on one core share their output axons to convolutions, every neuron has its own to linear layers. Weights are
counted by the words that their lists take; a convolution's are shared by the axons that see the same part of the
kernel, as nengo-loihi's ``conv2d_loihi_weights`` does, or stored once, if the chip can.
"""

import functools
import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from snnkit.analysis.chips import Chip, SynapseFormat
from snnkit.analysis.layers import Afferent, Layer, Volume
from snnkit.network.ir import Array

Cut: TypeAlias = tuple[int, int, int]  # the most channels, rows and columns of a core


@dataclass(frozen=True, eq=False)
class Axis:
    """One image axis of a convolution, cut into tiles of ``size`` outputs.

    ``seen`` bool [tiles, inputs]: which inputs a tile's neurons see. ``patterns`` int64 [tiles, taps + 1]: how many
    different parts of the kernel its inputs see, by their number of taps.
    """

    seen: Array
    patterns: Array


@functools.lru_cache(maxsize=4096)
def cut_axis(outputs: int, inputs: int, kernel: int, stride: int, padding: int, dilation: int, size: int) -> Axis:
    """An axis of ``outputs`` over ``inputs``, as :class:`Axis`."""
    tiles = -(-outputs // size)
    taps = np.zeros((tiles, inputs, kernel), bool)
    out, tap = (grid.ravel() for grid in np.mgrid[:outputs, :kernel])
    at = out * stride - padding + tap * dilation
    inside = (at >= 0) & (at < inputs)
    taps[out[inside] // size, at[inside], tap[inside]] = True
    patterns = np.zeros((tiles, kernel + 1), np.int64)
    for tile in range(tiles):
        for pattern in np.unique(taps[tile], axis=0):
            patterns[tile, int(pattern.sum())] += bool(pattern.any())
    seen = np.asarray(taps.any(axis=2))
    return Axis(seen, patterns)


def axes(layer: Volume, afferent: Afferent, cut: Cut) -> tuple[Axis, Axis]:
    """Rows and columns of an afferent convolution, cut as the layer is."""
    rows, columns = (
        cut_axis(
            layer[1 + i],
            afferent.volume[1 + i],
            afferent.kernel[i],
            afferent.stride[i],
            afferent.padding[i],
            afferent.dilation[i],
            cut[1 + i],
        )
        for i in (0, 1)
    )
    return rows, columns


def blocks(total: int, size: int) -> Array:
    """Start and end of each block, int64 [blocks, 2]."""
    starts = np.arange(0, total, size)
    return np.stack([starts, np.minimum(starts + size, total)], axis=1)


def list_words(synapses: Array, bits: Array | int, form: SynapseFormat) -> Array:
    """Words that lists of so many synapses take, each of ``bits``."""
    whole, rest = np.divmod(synapses, form.block_synapses)
    full = -(-(form.block_synapses * bits + form.block_header_bits) // form.word_bits)
    last = -(-(rest * bits + form.block_header_bits) // form.word_bits)
    words: Array = whole * full + np.where(rest > 0, last, 0)
    return words


def index_bits(neurons: Array, form: SynapseFormat) -> Array:
    """The width of an index that names so many neurons."""
    choices = np.array(sorted(form.index_bits))
    exact = np.ceil(np.log2(np.maximum(neurons, 1))).astype(np.int64)
    bits: Array = choices[np.minimum(np.searchsorted(choices, exact), len(choices) - 1)]
    return bits


def stored_bits(weight_bits: int, chip: Chip) -> int:
    """The width that the chip stores such weights in; its widest where it has none that is wide enough."""
    return min((bits for bits in chip.weight_bits.values if bits >= weight_bits), default=max(chip.weight_bits.values))


@dataclass(frozen=True, eq=False)
class Load:
    """What the cores of a cut layer hold, int64 arrays that broadcast to [channel blocks, row tiles, column tiles]."""

    neurons: Array
    axons_in: Array
    synapse_words: Array
    decays: Array  # different pairs of decays
    thresholds: Array  # different thresholds


def load(layer: Layer, cut: Cut, chip: Chip) -> Load:
    """What each core of the cut layer holds, but for its output axons."""
    channels, rows, columns = (blocks(total, size) for total, size in zip(layer.volume, cut, strict=True))
    sizes = [np.diff(part).ravel() for part in (channels, rows, columns)]
    neurons = sizes[0][:, None, None] * sizes[1][:, None] * sizes[2]
    axons, words = np.zeros_like(neurons), np.zeros_like(neurons)
    for afferent in layer.afferents:
        more_axons, more_words = (_convolution if afferent.convolution else _linear)(
            layer, afferent, cut, chip, channels, neurons
        )
        axons, words = axons + more_axons, words + more_words
    return Load(neurons, axons, words, _different(layer.decays, channels), _different(layer.thresholds, channels))


def _different(numbers: Array, channels: Array) -> Array:
    if not numbers.any():
        return np.ones((len(channels), 1, 1), np.int64)
    return np.array([len(set(numbers[first:end].tolist())) for first, end in channels])[:, None, None]


def _convolution(
    layer: Layer, afferent: Afferent, cut: Cut, chip: Chip, channels: Array, neurons: Array
) -> tuple[Array, Array]:
    form = chip.synapse_format
    rows, columns = axes(layer.volume, afferent, cut)
    axons = rows.seen.sum(axis=1)[:, None] * columns.seen.sum(axis=1)
    bits = stored_bits(afferent.weight_bits, chip)
    group_out, group_in = layer.volume[0] // afferent.groups, afferent.volume[0] // afferent.groups
    first, last = channels[:, 0] // group_out, (channels[:, 1] - 1) // group_out
    lists = (last - first + 1) * group_in  # input channels that the block reads
    targets = np.minimum(channels[:, 1] - channels[:, 0], group_out)  # most output channels behind one of them
    if form.convolution == "kernel":
        words = lists * list_words(targets * math.prod(afferent.kernel), bits, form)
        return axons[None], words[:, None, None]
    words = np.zeros_like(neurons)
    index = index_bits(neurons, form)
    for y in range(1, rows.patterns.shape[1]):
        for x in range(1, columns.patterns.shape[1]):
            shared = rows.patterns[:, y, None] * columns.patterns[:, x]
            if shared.any():
                words += shared * lists[:, None, None] * list_words(y * x * targets[:, None, None], bits + index, form)
    if form.shared_offset is not None:  # farther neurons need lists of their own
        words = words * -(-(neurons // (channels[:, 1] - channels[:, 0])[:, None, None]) // form.shared_offset)
    return axons[None], words


def _linear(
    layer: Layer,  # noqa: ARG001 - the same signature as for a convolution
    afferent: Afferent,
    cut: Cut,  # noqa: ARG001
    chip: Chip,
    channels: Array,
    neurons: Array,
) -> tuple[Array, Array]:
    form, bits = chip.synapse_format, stored_bits(afferent.weight_bits, chip)
    if afferent.reaches is None:
        inputs = np.full(len(channels), math.prod(afferent.volume))
        words = inputs * list_words(channels[:, 1] - channels[:, 0], bits, form)
    else:
        targets = targets_behind(afferent.reaches, channels)
        inputs = (targets > 0).sum(axis=1)
        words = list_words(targets, bits + index_bits(neurons.reshape(-1, 1), form), form).sum(axis=1)
    return inputs[:, None, None], words[:, None, None]


def targets_behind(reaches: Array, channels: Array) -> Array:
    """How many neurons of each block every input reaches, int64 [blocks, inputs]."""
    targets: Array = np.add.reduceat(reaches.astype(np.int64), channels[:, 0], axis=0)
    return targets


@dataclass(frozen=True, eq=False)
class Fan:
    """To how many cores of one reading layer the spikes go, as int64 [channels] x [rows] x [columns] of the source.

    ``population``: the channels of a pixel on one core share their output axons, of so many ``slots`` each.
    ``blocks`` int64 [channels, 2]: the first and last block of channels of the reading layer behind each channel.
    ``each`` int64 [channels, rows, columns] holds the numbers where they are no product.
    """

    rows: Array
    columns: Array
    first: Array
    last: Array
    slots: int
    population: bool
    each: Array | None = None


def fan(reader: Layer, afferent: Afferent, cut: Cut, chip: Chip) -> Fan:
    """Where the spikes of ``afferent``'s source go among the cores of the cut layer that reads them."""
    channels = blocks(reader.volume[0], cut[0])
    if afferent.convolution:
        rows, columns = (axis.seen.sum(axis=0) for axis in axes(reader.volume, afferent, cut))
        group_out, group_in = reader.volume[0] // afferent.groups, afferent.volume[0] // afferent.groups
        group = np.arange(afferent.volume[0]) // group_in
        first, last = group * group_out // cut[0], ((group + 1) * group_out - 1) // cut[0]
        return Fan(rows, columns, first, last, chip.synapse_format.population_slots, population=True)
    source = afferent.volume
    each = None
    if afferent.reaches is not None:
        each = (targets_behind(afferent.reaches, channels) > 0).sum(axis=0).reshape(source)
    first, last = np.zeros(source[0], np.int64), np.full(source[0], len(channels) - 1)
    ones = [np.ones(source[axis], np.int64) for axis in (1, 2)]
    return Fan(ones[0], ones[1], first, last, 1, population=False, each=each)


def axons_out(layer: Layer, cut: Cut, fans: list[Fan]) -> Array:
    """Output axons of each core of the cut layer, int64 [channel blocks, row tiles, column tiles]."""
    channels, rows, columns = (blocks(total, size) for total, size in zip(layer.volume, cut, strict=True))
    total = np.zeros((len(channels), len(rows), len(columns)), np.int64)
    for one in fans:
        if one.each is not None:
            total += summed(summed(summed(one.each, channels, 0), rows, 1), columns, 2)
            continue
        if one.population:
            reached = one.last[channels[:, 1] - 1] - one.first[channels[:, 0]] + 1
        else:
            reached = summed(one.last - one.first + 1, channels, 0)
        pixels = summed(one.rows, rows, 0)[:, None] * summed(one.columns, columns, 0)
        total += one.slots * reached[:, None, None] * pixels
    if layer.counted:
        sizes = [np.diff(part).ravel() for part in (channels, rows, columns)]
        total += sizes[0][:, None, None] * sizes[1][:, None] * sizes[2]
    return total


def summed(values: Array, parts: Array, axis: int) -> Array:
    """Sums over consecutive blocks along an axis."""
    total: Array = np.add.reduceat(values, parts[:, 0], axis=axis)
    return total
