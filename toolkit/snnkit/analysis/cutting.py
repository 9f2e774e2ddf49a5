"""How many cores each layer takes: the cut that needs the fewest, then the least memory, of all that keep the limits.

Layers are cut from the last to the first, because a core's output axons depend on how its readers are cut.
"""

import math
from collections.abc import Callable, Iterator, Sequence

from snnkit.analysis.chips import Chip, Limit
from snnkit.analysis.layers import Layer
from snnkit.analysis.limits import Violation
from snnkit.analysis.partition import Cut, Fan, Load, axons_out, fan, load, stored_bits
from snnkit.network.ir import Array

REMEDIES = {
    "neurons": "use a chip with more neurons a core",
    "input axons": "let the layer read fewer neurons: fewer channels, or another layer of stride 2 before it",
    "output axons": "let fewer cores read the layer: fewer channels behind it",
    "memory words": "use fewer input channels, a smaller kernel or fewer weight bits",
    "decays": "use one tau for the layer",
    "thresholds": "use one threshold for the layer",
    "synapse formats": "let the neurons read fewer synapses, or give these the same number of weight bits",
}


def cut_all(layers: Sequence[Layer], chip: Chip) -> tuple[dict[str, Cut], list[Violation]]:
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


def fans(layer: Layer, layers: Sequence[Layer], cuts: dict[str, Cut], chip: Chip) -> list[Fan]:
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


def _most(layer: Layer, cut: Cut, reading: list[Fan], chip: Chip) -> dict[str, int]:
    """The fullest core's figures under each of :func:`_limits`."""
    held = load(layer, cut, chip)
    out = axons_out(layer, cut, reading)
    formats = {
        (stored_bits(a.weight_bits, chip), a.exponent, a.convolution, a.reaches is None) for a in layer.afferents
    }
    return {
        "neurons": int(held.neurons.max()),
        "input axons": int(held.axons_in.max()),
        "output axons": int(out.max()),
        "memory words": int(memory_words(held, out, chip).max()),
        "decays": int(held.decays.max()),
        "thresholds": int(held.thresholds.max()),
        "synapse formats": len(formats),
    }


def memory_words(held: Load, out: Array, chip: Chip) -> Array:
    """Words of each core: its weights, and where they share the memory, its neurons and axons."""
    neuron = chip.words_per_neuron.value if chip.words_per_neuron else 0
    axon = chip.words_per_axon.value if chip.words_per_axon else 0
    words: Array = held.synapse_words + neuron * held.neurons + axon * (held.axons_in + out)
    return words


def _cut_layer(layer: Layer, layers: Sequence[Layer], cuts: dict[str, Cut], chip: Chip) -> tuple[Cut, list[Violation]]:
    reading = fans(layer, layers, cuts, chip)
    limits = _limits(chip)
    least = _most(layer, (1, 1, 1), reading, chip)
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
        most = _most(layer, cut, reading, chip)
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
        key = (cores, int(load(layer, cut, chip).synapse_words.sum()), int(axons_out(layer, cut, reading).sum()))
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


def _largest(layer: Layer, rows: int, columns: int, fits: Callable[[Cut], bool], kept: dict[str, int]) -> int | None:
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
