"""What cores hold and send, against an oracle that writes out every synapse, one by one."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snnkit.analysis.chips import Chip
from snnkit.analysis.layers import Afferent, Layer, read_layers
from snnkit.analysis.mapping import Mapping, map_network
from snnkit.analysis.partition import stored_bits
from snnkit.network import Edge, Flatten, Network, Trace, infer_shapes
from tests.chips import affine, changed, conv, lif, network
from tests.networks import integer_networks
from tests.test_mapping import LOIHI1, LOIHI2, layer, small_chips


def connected(reader: Layer, afferent: Afferent) -> np.ndarray:
    """Which neuron reaches which, bool [*reader volume, *source volume], synapse by synapse."""
    reaches = np.zeros((*reader.volume, *afferent.volume), bool)
    if not afferent.convolution:
        flat = reaches.reshape(reader.neurons, -1)
        flat[:] = True if afferent.reaches is None else afferent.reaches
        return reaches
    group_out, group_in = reader.volume[0] // afferent.groups, afferent.volume[0] // afferent.groups
    for c, y, x in np.ndindex(*reader.volume):
        for ky, kx in np.ndindex(*afferent.kernel):
            row = y * afferent.stride[0] - afferent.padding[0] + ky * afferent.dilation[0]
            column = x * afferent.stride[1] - afferent.padding[1] + kx * afferent.dilation[1]
            if 0 <= row < afferent.volume[1] and 0 <= column < afferent.volume[2]:
                group = c // group_out
                reaches[c, y, x, group * group_in : (group + 1) * group_in, row, column] = True
    return reaches


def core_of(mapping: Mapping, name: str, volume: tuple[int, int, int]) -> np.ndarray:
    """The core of each neuron of a layer, int [*volume]."""
    placed = layer(mapping, name)
    parts = [-(-total // size) for total, size in zip(volume, placed.cut, strict=True)]
    cores = np.zeros(volume, int)
    for c, y, x in np.ndindex(*volume):
        at = [position // size for position, size in zip((c, y, x), placed.cut, strict=True)]
        cores[c, y, x] = placed.first_core + (at[0] * parts[1] + at[1]) * parts[2] + at[2]
    return cores


def words(synapses: int, bits: int) -> int:
    total = 0
    while synapses > 0:
        total += -(-(min(synapses, 64) * bits + 10) // 64)
        synapses -= 64
    return total


def expected(net: Network, mapping: Mapping, chip: Chip) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Input axons, output axons and words of weights of each core."""
    layers = {layer.name: layer for layer in read_layers(net)}
    axons_in, axons_out, memory = np.zeros((3, len(mapping.cores)), int)
    slots = chip.synapse_format.population_slots
    for reader in layers.values():
        readers = core_of(mapping, reader.name, reader.volume)
        for afferent in reader.afferents:
            reaches = connected(reader, afferent)
            bits = stored_bits(afferent.weight_bits, chip)
            sources = None
            if afferent.source in layers and not afferent.external:
                sources = core_of(mapping, afferent.source, afferent.volume)
            for core in np.unique(readers):
                mine = reaches[readers == core]  # [neurons of the core, *source]
                neurons = len(mine)
                index = max(6, int(np.ceil(np.log2(neurons))))
                seen = mine.any(axis=0)
                if afferent.convolution:
                    axons_in[core] += seen.any(axis=0).sum()
                    memory[core] += _convolution_words(reader, afferent, readers == core, reaches, bits, index, chip)
                else:
                    axons_in[core] += seen.sum()
                    dense = afferent.reaches is None
                    lists = mine.reshape(neurons, -1).sum(axis=0)
                    memory[core] += sum(words(int(n), bits + (0 if dense else index)) for n in lists)
                if sources is None:
                    continue
                for source in np.unique(sources):
                    sent = seen & (sources == source)
                    axons_out[source] += slots * sent.any(axis=0).sum() if afferent.convolution else sent.sum()
        if reader.counted:
            for core in np.unique(readers):
                axons_out[core] += (readers == core).sum()
    return axons_in, axons_out, memory


def _convolution_words(reader, afferent, mine, reaches, bits, index, chip) -> int:
    """Lists of one core: for each input channel, one for each set of taps that some pixel's spikes reach it by."""
    channels = np.flatnonzero(mine.any(axis=(1, 2)))
    total = 0
    for source in range(afferent.volume[0]):
        targets = [c for c in channels if reaches[c, :, :, source].any()]
        if not targets:
            continue
        if chip.synapse_format.convolution == "kernel":
            total += words(len(targets) * afferent.kernel[0] * afferent.kernel[1], bits)
            continue
        taps = set()
        for row, column in np.ndindex(*afferent.volume[1:]):
            hit = np.argwhere(reaches[targets[0], :, :, source, row, column] & mine[targets[0]])
            taps.add(
                tuple(
                    (
                        row + afferent.padding[0] - y * afferent.stride[0],
                        column + afferent.padding[1] - x * afferent.stride[1],
                    )
                    for y, x in hit
                )
            )
        total += sum(words(len(pattern) * len(targets), bits + index) for pattern in taps)
    return total


def check_all(net: Network, chip: Chip) -> None:
    mapping = map_network(net, chip)
    axons_in, axons_out, memory = expected(net, mapping, chip)
    assert [core.axons_in for core in mapping.cores] == axons_in.tolist()
    assert [core.axons_out for core in mapping.cores] == axons_out.tolist()
    aligned = all(
        a.groups == 1 or layer(mapping, reader.name).cut[0] % (reader.volume[0] // a.groups) == 0
        for reader in read_layers(net)
        for a in reader.afferents
    )
    held = [core.synapse_words for core in mapping.cores]
    if aligned:
        assert held == memory.tolist()
    else:  # a block that ends inside a group is counted as if all its groups were whole
        assert all(mine >= least for mine, least in zip(held, memory, strict=True))


@settings(max_examples=40, deadline=None)
@given(integer_networks(), small_chips())
def test_cores_hold_what_the_synapses_say(net: Network, chip: Chip) -> None:
    check_all(net, chip)


def test_larger_cores_and_residual_networks() -> None:
    nodes = (
        conv("c0", "in", 6, 2),
        lif("l0", "c0"),
        conv("c1", "l0", 8, 6, stride=2),
        lif("l1", "c1"),
        conv("c2", "l1", 8, 8),
        conv("short", "l0", 8, 6, kernel=1, stride=2, groups=2),
        lif("l2", "c2", "short"),
        conv("c3", "l2", 8, 8, groups=4),
        conv("again", "l2", 8, 8, kernel=1, groups=8),
        lif("l3", "c3", "again"),
    )
    tail = (Flatten(name="flat", inputs=(Edge("l3"),)), affine("fc", "flat", 10, 8 * 4 * 4))
    net = network(*nodes, *tail, shape=(2, 8, 8))
    for base, neurons in itertools.product((LOIHI1, LOIHI2), (30, 70, 400)):
        check_all(net, changed(base, "neurons_per_core", neurons))


@pytest.mark.parametrize("neurons", [3, 5, 1024])
def test_recurrent_networks(neurons: int) -> None:
    """Neurons that read themselves two steps later, and an earlier layer that reads a later one."""
    back = dataclasses.replace(affine("back", "l1", 8, 6), inputs=(Edge("l1", 4),))
    again = dataclasses.replace(affine("again", "l0", 8, 8), inputs=(Edge("l0", 2),))
    nodes = (
        affine("a0", "in", 8, 5),
        back,
        again,
        lif("l0", "a0", "back", "again"),
        affine("a1", "l0", 6, 8),
        lif("l1", "a1"),
        affine("head", "l1", 3, 6),
    )
    chip = changed(LOIHI1, "neurons_per_core", neurons)
    net = network(*nodes, shape=(5,))
    check_all(net, chip)
    trace = random_trace(net, samples=2)
    mapping = map_network(net, chip, trace)
    assert mapping.fits
    assert {layer.kind for layer in mapping.layers} == {"neurons", "relay", "readout"}
    assert vars(mapping.routed) == pytest.approx(expected_routes(net, mapping, trace))


# --- spikes between cores ---------------------------------------------------------------------------------------------


def random_trace(net: Network, samples: int, seed: int = 0) -> Trace:
    """Spikes drawn at random: what routing counts does not depend on how they came about."""
    rng = np.random.default_rng(seed)
    shapes = infer_shapes(net)
    counts = {
        n.name: rng.integers(0, net.timesteps + 1, (samples, *shapes[n.name])).astype(np.int32) for n in net.neurons
    }
    return Trace(
        target="drawn", readouts=np.zeros((samples, 1), np.int64), spikes_per_step={}, spikes_per_neuron=counts
    )


def expected_routes(net: Network, mapping: Mapping, trace: Trace) -> dict[str, float]:
    layers = {layer.name: layer for layer in read_layers(net)}
    names = ("within_core", "within_tile", "between_tiles", "between_chips", "hops_east_west", "hops_north_south")
    total = dict.fromkeys((*names, "from_host", "to_host", "relayed"), 0.0)
    columns = mapping.chip.mesh.columns
    places = [(core.chip, core.row, core.column + core.chip * columns) for core in mapping.cores]
    for reader in layers.values():
        readers = core_of(mapping, reader.name, reader.volume)
        if reader.counted:
            total["to_host"] += trace.spikes_per_neuron[reader.name].sum()
        if reader.kind == "relay":
            assert reader.spikes_of is not None
            total["relayed"] += trace.spikes_per_neuron[reader.spikes_of].sum()
        for afferent in reader.afferents:
            reaches = connected(reader, afferent)
            source = layers.get(afferent.source)
            node = source.spikes_of if source else afferent.source
            if node not in trace.spikes_per_neuron:
                continue
            spikes = trace.spikes_per_neuron[node].sum(axis=0).reshape(afferent.volume)
            cores = core_of(mapping, afferent.source, afferent.volume) if source else None
            for at in np.ndindex(*afferent.volume):
                for target in np.unique(readers[reaches[(..., *at)]]):
                    if cores is None:
                        total["from_host"] += spikes[at]
                        continue
                    (chip_a, row_a, column_a), (chip_b, row_b, column_b) = places[cores[at]], places[target]
                    east, north = abs(column_a - column_b), abs(row_a - row_b)
                    total["hops_east_west"] += east * spikes[at]
                    total["hops_north_south"] += north * spikes[at]
                    total["between_chips"] += abs(chip_a - chip_b) * spikes[at]
                    where = (
                        "within_core" if cores[at] == target else "between_tiles" if east or north else "within_tile"
                    )
                    total[where] += spikes[at]
    return {name: value / trace.samples for name, value in total.items()}


@settings(max_examples=30, deadline=None)
@given(integer_networks(), small_chips(), st.integers(1, 128), st.booleans())
def test_spikes_go_where_the_synapses_are(net: Network, chip: Chip, cores: int, hosted: bool) -> None:
    if hosted and len(net.neurons) > 1:
        net = dataclasses.replace(net, stem="host")
    chip = changed(chip, "cores", cores)  # networks spread over several chips
    trace = random_trace(net, samples=2)
    mapping = map_network(net, chip, trace)
    assert mapping.routed is not None
    assert vars(mapping.routed) == pytest.approx(expected_routes(net, mapping, trace))
