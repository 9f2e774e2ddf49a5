"""Networks on chips: hand-computed loads, every limit one unit under and one over, and properties of all mappings."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snnkit.analysis.chips import Chip, Limit, load_chip
from snnkit.analysis.layers import needed_bits
from snnkit.analysis.mapping import Mapping, map_network
from snnkit.analysis.partition import cut_axis, list_words
from snnkit.errors import NetworkError
from snnkit.network import Affine, Edge, Network, quantize
from tests.chips import affine, changed, conv, convolutional, dense, lif, network
from tests.networks import integer_networks
from tests.test_network import float_network

LOIHI1, LOIHI2 = load_chip("loihi1"), load_chip("loihi2")
CORES = "cores of the network"


def one_core(chip: Chip) -> Chip:
    """The chip with as many cores as the test network has layers, so that a split shows as a violation."""
    return changed(chip, "cores", 2)


def whats(mapping: Mapping) -> list[tuple[str, str, float, float]]:
    return [(v.layer, v.what.split(",")[0], v.value, v.limit) for v in mapping.violations]


def layer(mapping: Mapping, name: str):
    return next(layer for layer in mapping.layers if layer.name == name)


# --- loads by hand ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("synapses", "bits", "words"),
    [
        (1, 8, 1),  # 18 bits
        (6, 8, 1),  # 58
        (7, 8, 2),  # 66
        (3, 18, 1),  # 54 + 10 = 64
        (4, 18, 2),  # 82
        (64, 8, 9),  # 512 + 10 = 522
        (65, 8, 10),  # a second block
        (128, 8, 18),
        (0, 8, 0),
    ],
)
def test_words_of_a_list_by_hand(synapses: int, bits: int, words: int) -> None:
    assert list_words(np.array(synapses), bits, LOIHI1.synapse_format) == words


def test_a_dense_layer_by_hand() -> None:
    """20 inputs to 100 neurons, weights -1 and 1 (2 bits): a list holds 64 and 36 weights, 138 and 82 bits, 5 words."""
    mapping = map_network(dense(20, 100, 10), LOIHI1)
    assert mapping.fits
    hidden, readout = layer(mapping, "lif0"), layer(mapping, "out")
    assert (hidden.neurons_per_core, hidden.axons_in, hidden.axons_out) == (100, 20, 100)
    assert hidden.synapse_words == 20 * (3 + 2)
    assert (readout.axons_in, readout.axons_out, readout.synapse_words) == (100, 0, 100 * 1)  # 10 weights: 30 bits
    assert [core.layers for core in mapping.cores] == [{"lif0": 100}, {"out": 10}]
    assert hidden.utilisation == {
        "neurons": 100 / 1024,
        "axons_in": 20 / 4096,
        "axons_out": 100 / 4096,
        "memory": 100 / 16384,
    }


def test_a_convolution_by_hand() -> None:
    """2 channels of 4 x 4 to 3, 3x3, padded: every pixel has one axon, rows see 2, 3 or 2 taps, columns too.

    Lists of 3 outputs with 2 weight bits and an index of 6: 8 bits each. 4 parts of the kernel with 2 x 2 taps (12
    synapses, 106 bits), 4 with 2 x 3 (18, 154), 1 with 3 x 3 (27, 226); a list a channel.
    """
    mapping = map_network(convolutional((2, 3), 4), LOIHI1)
    hidden = layer(mapping, "lif0")
    assert (hidden.cores, hidden.neurons_per_core, hidden.axons_in) == (1, 48, 16)
    assert hidden.synapse_words == 2 * (4 * 2 + 4 * 3 + 1 * 4)
    assert hidden.axons_out == 48  # every neuron has an axon of its own to the linear layer
    on_loihi2 = layer(map_network(convolutional((2, 3), 4), LOIHI2), "lif0")
    assert on_loihi2.synapse_words == 2 * 1  # the kernel once: 27 weights, 64 bits
    assert on_loihi2.memory_words == 2 + 48 + 16 + 48


def test_taps_of_an_axis_by_hand() -> None:
    """5 outputs of a padded 3-tap row in tiles of 2: a tile sees its inputs and a neighbour on each side."""
    axis = cut_axis(5, 5, 3, 1, 1, 1, 2)
    assert axis.seen.sum(axis=1).tolist() == [3, 4, 2]
    # tile 0: inputs 0, 1 see taps {1, 0}, {2, 1}, input 2 sees {2}; and so on
    assert axis.patterns.tolist() == [[0, 1, 2, 0], [0, 2, 2, 0], [0, 1 + 1, 0, 0]]
    strided = cut_axis(2, 4, 1, 2, 0, 1, 2)
    assert strided.seen.tolist() == [[True, False, True, False]]
    assert strided.patterns.tolist() == [[0, 1]]


# --- one unit under and one over --------------------------------------------------------------------------------------


def test_neurons_of_a_core() -> None:
    chip = one_core(LOIHI1)
    assert map_network(dense(10, 1024, 2), chip).fits
    over = map_network(dense(10, 1025, 2), chip)
    assert layer(over, "lif0").cores == 2
    assert whats(over) == [("lif0", CORES, 3, 2)]


def test_input_axons_of_a_core() -> None:
    assert map_network(dense(4096, 3, 2), LOIHI1).fits
    over = map_network(dense(4097, 3, 2), LOIHI1)
    assert whats(over) == [("lif0", "input axons of a core", 4097, 4096)]
    assert "fewer channels" in over.violations[0].remedy
    assert "nengo-loihi" in over.violations[0].source


def test_output_axons_of_a_core() -> None:
    """1,024 neurons whose readers take four cores need 4,096 output axons; with a fifth, 5,120, they take two cores.

    A reader's core has 16 words for each of its 1,024 lists: 5 blocks of 3 words and one word, 347 weights of 2 bits.
    """
    for readers, cores, producers, axons in ((4 * 347, 4, 1, 4096), (4 * 347 + 1, 5, 2, 2560)):
        mapping = map_network(dense(10, 1024, readers, 1), LOIHI1)
        assert mapping.fits
        assert (layer(mapping, "lif1").cores, layer(mapping, "lif0").cores) == (cores, producers)
        assert layer(mapping, "lif0").axons_out == axons


def test_output_axons_of_one_neuron() -> None:
    chip = changed(LOIHI1, "output_axons", 4)
    readers = {n: map_network(dense(10, 20, n * 1024), chip) for n in (4, 5)}
    assert not [v for v in readers[4].violations if v.what.startswith("output axons")]
    assert ("lif0", "output axons of a core", 5, 4) in whats(readers[5])


def test_synapse_memory_of_a_core() -> None:
    """4,096 inputs: lists of 4 words fill the memory; 4 words hold 91 weights of 2 bits in two blocks."""
    chip = one_core(LOIHI1)
    fits = 64 + 27  # 138 bits are 3 words, 64 bits one
    mapping = map_network(dense(4096, fits, 2), chip)
    assert mapping.fits
    assert layer(mapping, "lif0").synapse_words == 16384
    assert whats(map_network(dense(4096, fits + 1, 2), chip)) == [("lif0", CORES, 3, 2)]


def test_synapse_memory_of_one_neuron() -> None:
    chip = changed(LOIHI1, "memory_words", 100)
    assert map_network(dense(100, 3, 2), chip).fits
    assert ("lif0", "memory words of a core", 101, 100) in whats(map_network(dense(101, 3, 2), chip))


def test_threshold_mantissa() -> None:
    assert map_network(dense(4, 3, 2, threshold=131071), LOIHI1).fits
    narrow = changed(LOIHI1, "threshold_bits", 16)
    assert map_network(dense(4, 3, 2, threshold=65535), narrow).fits
    assert whats(map_network(dense(4, 3, 2, threshold=65536), narrow)) == [("lif0", "threshold", 65536, 65535)]


def test_bias_mantissa_is_the_sum_of_a_neurons_synapses() -> None:
    def net(bias: int) -> Network:
        return network(
            affine("a", "in", 3, 4, bias=4000),
            affine("b", "in", 3, 4, bias=bias),
            lif("lif", "a", "b"),
            affine("head", "lif", 2, 3),
            shape=(4,),
        )

    assert map_network(net(95), LOIHI1).fits
    assert whats(map_network(net(96), LOIHI1)) == [("lif", "bias mantissa", 4096, 4095)]
    below = map_network(dense_with_bias(-4096), LOIHI1)
    assert below.fits
    coarse = LOIHI1.model_copy(update={"bias_exponent": LOIHI1.bias_exponent.model_copy(update={"high": 5})})
    assert map_network(dense_with_bias(2047), coarse).fits
    assert whats(map_network(dense_with_bias(2048), coarse)) == [("lif", "bias mantissa", 4096, 4095)]


def dense_with_bias(bias: int) -> Network:
    return network(affine("a", "in", 3, 4, bias=bias), lif("lif", "a"), affine("head", "lif", 2, 3), shape=(4,))


def with_weights(*values: int) -> Network:
    weight = np.array([values], np.int8)
    first = Affine(name="a", inputs=(Edge("in"),), weight=weight, weight_exponent=1)
    return network(first, lif("lif", "a"), affine("head", "lif", 2, 1), shape=(len(values),))


def test_weight_bits_and_the_mixed_sign() -> None:
    chip = changed(LOIHI1, "weight_bits", (1, 2, 3, 4))
    for low, high in ((-8, 7), (0, 15), (-15, 0)):
        assert needed_bits(np.array([low, high])) == 4
        assert map_network(with_weights(low, high), chip).fits
    for low, high in ((-9, 7), (-8, 8), (0, 16), (-16, 0)):
        assert whats(map_network(with_weights(low, high), chip)) == [("a", "weight bits", 5, 4)]
    assert map_network(with_weights(-128, 127), LOIHI1).fits
    assert needed_bits(np.array([-128, 127])) == 8


def test_weights_of_7_bits_are_stored_in_8() -> None:
    """Loihi 1 has no 7: 64 inputs to 7 neurons take lists of 66 bits, two words; a chip that has 7 takes 59, one."""
    net = network(
        Affine(name="a", inputs=(Edge("in"),), weight=np.full((7, 64), 100, np.int8), weight_exponent=0),
        lif("lif", "a"),
        affine("head", "lif", 2, 7),
        shape=(64,),
    )
    assert layer(map_network(net, LOIHI1), "lif").synapse_words == 128
    assert layer(map_network(net, LOIHI2), "lif").synapse_words == 64


def test_weight_exponent_counts_the_lost_bit_of_mixed_signs() -> None:
    """-1 and 1 with exponent 0 are stored as -2 and 2 with exponent -1; 1 and 1 as they are."""
    floor = LOIHI1.model_copy(update={"weight_exponent": LOIHI1.weight_exponent.model_copy(update={"low": 0})})
    mixed = dataclasses.replace(with_weights(-1, 1)["a"], weight_exponent=0)
    same = dataclasses.replace(with_weights(1, 1)["a"], weight_exponent=0)
    for first, expected in ((mixed, [("a", "weight exponent", -1, 0)]), (same, [])):
        net = network(first, lif("lif", "a"), affine("head", "lif", 2, 1, low=1), shape=(2,))
        net = dataclasses.replace(
            net, nodes=tuple(dataclasses.replace(n, weight_exponent=1) if n.name == "head" else n for n in net.nodes)
        )
        assert whats(map_network(net, floor)) == expected


def test_delay_of_a_path() -> None:
    def net(delay: int, timesteps: int = 100) -> Network:
        nodes = (
            affine("a", "in", 2, 2),
            lif("first", "a"),
            dataclasses.replace(affine("b", "first", 2, 2), inputs=(Edge("first", delay),)),
            lif("second", "b"),
            affine("head", "second", 2, 2),
        )
        return network(*nodes, shape=(2,), timesteps=timesteps)

    assert map_network(net(63), LOIHI1).fits  # the neurons behind the delay can start as early as those before it
    over = map_network(net(64), LOIHI1)
    assert whats(over) == [("second", "delay", 63, 62)]
    assert sum(layer.kind == "relay" for layer in over.layers) == 63
    never = map_network(net(64, timesteps=4), LOIHI1)  # arrives when the sample is over
    assert never.fits and not any(layer.kind == "relay" for layer in never.layers)


def test_cores_of_the_chip() -> None:
    chip = changed(LOIHI1, "cores", 5)
    assert map_network(dense(10, 4 * 1024, 2), chip).fits
    over = map_network(dense(10, 4 * 1024 + 1, 2), chip)
    assert (("lif0", CORES, 6, 5) in whats(over)) and over.chips == 2
    board = map_network(dense(10, 4 * 1024 + 1, 2), chip, chips=2)
    assert CORES not in {v.what for v in board.violations}


def test_decays() -> None:
    assert map_network(dense(4, 3, 2, decay=4095, current=1), LOIHI1).fits
    assert whats(map_network(dense(4, 3, 2, decay=4096), LOIHI1)) == [("lif0", "voltage decay", 4096, 4095)]
    assert whats(map_network(dense(4, 3, 2, current=0), LOIHI1)) == [("lif0", "current decay", 0, 1)]


def test_thresholds_of_a_core_split_the_layer() -> None:
    """Eight different thresholds fit a core's table; with nine the layer takes two cores."""

    def net(different: int) -> Network:
        channels = 2 * different
        threshold = np.arange(channels) // 2 + 100
        return network(
            affine("a", "in", channels, 2),
            lif("lif", "a", threshold=threshold),
            affine("h", "lif", 2, channels),
            shape=(2,),
        )

    assert layer(map_network(net(8), LOIHI1), "lif").cores == 1
    assert layer(map_network(net(9), LOIHI1), "lif").cores == 2
    assert layer(map_network(net(9), LOIHI2), "lif").cores == 1


def test_synapse_formats_of_a_core() -> None:
    """Each weight exponent is a format of its own."""
    chip = changed(LOIHI1, "synapse_configurations", 2)
    for count, expected in ((2, []), (3, [("lif", "synapse formats of a core", 3, 2)])):
        read = [dataclasses.replace(affine(f"a{n}", "in", 3, 2), weight_exponent=1 + n) for n in range(count)]
        names = [synapse.name for synapse in read]
        net = network(*read, lif("lif", *names), affine("head", "lif", 2, 3), shape=(2,))
        assert whats(map_network(net, chip)) == expected
        assert map_network(net, LOIHI1).fits


def test_graded_input_and_the_stem_on_the_host() -> None:
    nodes = (conv("c", "in", 3, 2), lif("first", "c"), conv("d", "first", 3, 3), lif("second", "d"))
    tail = convolutional((2, 3, 3), 4).nodes[-3:-1]
    nodes += (dataclasses.replace(tail[0], inputs=(Edge("second"),)), tail[1])
    assert map_network(network(*nodes, shape=(2, 4, 4), bits=1), LOIHI1).fits
    graded = network(*nodes, shape=(2, 4, 4), bits=4)
    found = map_network(graded, LOIHI1)
    assert whats(found) == [("in", "bits of an input value", 4, 1)]
    assert "--stem host" in found.violations[0].remedy
    assert map_network(graded, LOIHI2).fits
    hosted = map_network(dataclasses.replace(graded, stem="host"), LOIHI1)
    assert hosted.fits
    assert [layer.name for layer in hosted.layers] == ["second", "out"]
    assert hosted.latency_first.steps == found.latency_first.steps - 1


def test_graded_values_go_past_the_stem_of_the_host() -> None:
    """A neuron that reads the input and spikes is no stem: what it reads must be spikes, too."""
    nodes = (
        affine("a", "in", 3, 4),
        lif("first", "a"),
        affine("b", "first", 3, 3),
        affine("past", "in", 3, 4),
        lif("second", "b", "past"),
        affine("head", "second", 2, 3),
    )
    hosted = [network(*nodes, shape=(4,), bits=bits, stem="host") for bits in (1, 2)]
    assert map_network(hosted[0], LOIHI1).fits
    assert whats(map_network(hosted[1], LOIHI1)) == [("in", "bits of an input value", 2, 1)]


def test_nothing_is_left_for_the_chip() -> None:
    counting = (affine("a", "in", 3, 4), lif("lif", "a"))
    mapping = map_network(network(*counting, shape=(4,), stem="host", mode="count"), LOIHI1)
    assert mapping.fits
    assert mapping.cores == mapping.layers == ()
    assert mapping.to_json()["chips"] == 0


def test_reset_by_subtraction() -> None:
    nodes = (affine("a", "in", 3, 2), lif("lif", "a", reset="subtract"), affine("h", "lif", 2, 3))
    assert whats(map_network(network(*nodes, shape=(2,)), LOIHI1)) == [("lif", "reset by subtract", 1, 0)]
    assert map_network(network(*nodes, shape=(2,)), LOIHI2).fits


def test_all_violations_come_at_once() -> None:
    nodes = (
        affine("a", "in", 3, 4097, bias=4000),
        affine("b", "in", 3, 4097, bias=4000),
        lif("lif", "a", "b", decay=4096, reset="subtract"),
        affine("h", "lif", 2, 3),
    )
    found = {v[1] for v in whats(map_network(network(*nodes, shape=(4097,), bits=8), LOIHI1))}
    assert found == {
        "bits of an input value",
        "voltage decay",
        "reset by subtract",
        "bias mantissa",
        "input axons of a core",
    }


# --- latency, relays --------------------------------------------------------------------------------------------------


def test_latency_and_relays_of_a_residual_network() -> None:
    nodes = (
        conv("c0", "in", 3, 2),
        lif("l0", "c0"),
        conv("c1", "l0", 3, 3),
        lif("l1", "c1"),
        conv("c2", "l1", 3, 3),
        conv("short", "l0", 3, 3, kernel=1, groups=3),
        lif("l2", "c2", "short"),
    )
    tail = convolutional((2, 3), 4).nodes[-3:-1]
    net = network(*nodes, dataclasses.replace(tail[0], inputs=(Edge("l2"),)), tail[1], shape=(2, 4, 4), timesteps=5)
    mapping = map_network(net, LOIHI1)
    assert mapping.fits
    relay = layer(mapping, "l0.relay1")
    assert (relay.kind, relay.neurons, relay.axons_in) == ("relay", 48, 16)
    assert (mapping.latency_first.steps, mapping.latency_next.steps) == (5 + 4, 5)
    step = 1e-9 * (299 + 48 * 6.0)
    assert mapping.latency_first.seconds == pytest.approx(9 * step)
    assert mapping.throughput == pytest.approx(1 / (5 * step))
    # a pixel of l0 goes to the cores of l1 and of the relay by an axon of a population, of two slots each
    assert layer(mapping, "l0").axons_out == 16 * 2 + 16 * 2


def test_a_float_network_is_refused() -> None:
    with pytest.raises(NetworkError, match="float network"):
        map_network(float_network(), LOIHI1)
    assert map_network(quantize(float_network()), LOIHI2).fits


# --- properties -------------------------------------------------------------------------------------------------------


@st.composite
def small_chips(draw: st.DrawFn) -> Chip:
    """Chips with tight limits, so that small networks are cut, and some do not fit."""
    chip = draw(st.sampled_from([LOIHI1, LOIHI2]))
    for name, low, high in (("neurons_per_core", 1, 40), ("memory_words", 20, 400)):
        chip = changed(chip, name, draw(st.integers(low, high)))
    axons = {name: Limit(value=draw(st.integers(8, 120)), source="a test") for name in ("input_axons", "output_axons")}
    return chip.model_copy(update=axons)


@settings(max_examples=60, deadline=None)
@given(integer_networks(), small_chips())
def test_every_neuron_has_one_place_and_no_limit_is_passed_in_silence(net: Network, chip: Chip) -> None:
    mapping = map_network(net, chip)
    held: dict[str, int] = {}
    for core in mapping.cores:
        for name, neurons in core.layers.items():
            held[name] = held.get(name, 0) + neurons
        assert core.chip == core.core // chip.cores.value
        assert 0 <= core.row < chip.mesh.rows
        assert 0 <= core.column < chip.mesh.columns
    assert held == {layer.name: math.prod(layer.shape) for layer in mapping.layers}
    on_chip = {n.name for n in net.neurons} | ({net.readout.name} if net.readout.mode == "membrane" else set())
    assert {layer.name for layer in mapping.layers if layer.kind != "relay"} == on_chip
    broken = {v.layer for v in mapping.violations if "of a core" in v.what}
    for core in mapping.cores:
        if not broken & core.layers.keys():
            assert max(core.utilisation.values()) <= 1


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=2, max_size=4),
    st.integers(0, 2),
    st.integers(1, 40),
    st.sampled_from([1, 7, 30]),
)
def test_a_wider_network_never_takes_fewer_cores(sizes: list[int], where: int, more: int, neurons: int) -> None:
    chip = changed(LOIHI1, "neurons_per_core", neurons)
    wider = [size + more * (index == where) for index, size in enumerate(sizes)]
    assert len(map_network(dense(*sizes, 3), chip).cores) <= len(map_network(dense(*wider, 3), chip).cores)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=2, max_size=3),
    st.integers(0, 2),
    st.integers(1, 8),
    st.integers(3, 8),
    st.integers(8, 120),
    st.integers(150, 900),
)
def test_a_wider_convolutional_network_never_takes_fewer_cores(
    channels: list[int], where: int, more: int, size: int, neurons: int, memory: int
) -> None:
    chip = changed(changed(LOIHI1, "neurons_per_core", neurons), "memory_words", memory)
    wider = [count + more * (index == where) for index, count in enumerate(channels)]
    narrow, wide = (map_network(convolutional(tuple(counts), size), chip) for counts in (channels, wider))
    if not any("of a core" in violation.what for violation in wide.violations):  # a limit that nothing keeps is dropped
        assert len(narrow.cores) <= len(wide.cores)
