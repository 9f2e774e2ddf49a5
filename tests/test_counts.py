"""Counts against hand-computed cases and against a brute-force oracle that visits every synapse."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from snnkit.analysis.counts import count, fan_out
from snnkit.errors import DataError, NetworkError, UnsupportedError
from snnkit.network import LIF, Affine, AvgPool2d, Conv2d, Edge, Flatten, Input, Network, Readout, Trace, infer_shapes

RNG = np.random.default_rng


def lif(name, source, *, decay=0, threshold=1.0, integer=False, **options):
    values = np.array(threshold, np.int32 if integer else np.float32)
    inputs = tuple(Edge(s) if isinstance(s, str) else s for s in ([source] if isinstance(source, str) else source))
    return LIF(name=name, inputs=inputs, v_threshold=values, voltage_decay=np.array(decay, np.int32), **options)


def sparse(rng, *shape, integer=False):
    """Weights with about a third of exact zeros."""
    weight = rng.integers(-9, 10, shape) * (rng.random(shape) < 0.7)
    return weight.astype(np.int8) if integer else weight.astype(np.float32)


def made_up_trace(net, rng, samples, *, rasters=True):
    """Random spikes: counting needs no simulation."""
    shapes = infer_shapes(net)
    raster = {n.name: rng.random((net.timesteps, samples, *shapes[n.name])) < 0.3 for n in net.neurons}
    return Trace.from_rasters(
        target="made up",
        readouts=np.zeros((samples, *shapes[net.readout.name]), np.float32),
        rasters=raster,
        keep_rasters=rasters,
        seconds=0.0,
        steps=samples * net.timesteps,
    )


def tiny(encoding="events", conv=None, **options):
    """A 3x3 convolution with stride 2 and padding 1 on 4x4: outputs at (0, 0), (0, 2), (2, 0), (2, 2)."""
    weight = np.ones((1, 1, 3, 3), np.float32) if conv is None else conv
    nodes = (
        Input(name="in", shape=(1, 4, 4), encoding=encoding),
        Conv2d(name="conv", inputs=(Edge("in"),), weight=weight, stride=(2, 2), padding=(1, 1)),
        lif("n", "conv"),
        Flatten(name="flat", inputs=(Edge("n"),)),
        Affine(name="head", inputs=(Edge("flat"),), weight=np.array([[1, 0, 2, 3], [4, 5, 0, 6]], np.float32)),
        Readout(name="out", inputs=(Edge("head"),)),
    )
    return Network(nodes=nodes, timesteps=2, **options)


def tiny_events(*positions):
    events = np.zeros((2, 1, 1, 4, 4), np.uint8)
    for t, y, x in positions:
        events[t, 0, 0, y, x] = 1
    return events


def tiny_trace(*spikes):
    raster = np.zeros((2, 1, 1, 2, 2), bool)
    for t, y, x in spikes:
        raster[t, 0, 0, y, x] = True
    return Trace.from_rasters(
        target="hand",
        readouts=np.zeros((1, 2), np.float32),
        rasters={"n": raster},
        keep_rasters=False,
        seconds=0.0,
        steps=2,
    )


def test_fan_out_by_hand():
    # rows 0 and 2 are the middle of one output row, row 1 lies between two, row 3 only in the last
    expected = np.outer([1, 2, 1, 1], [1, 2, 1, 1])
    assert np.array_equal(fan_out(tiny()["conv"], (1, 4, 4))[0], expected)


def test_hand_counted_network():
    # a spike in the corner (0, 0) reaches 1 output, one at (1, 1) reaches 4; then neuron (1, 0) spikes twice
    counts = count(tiny(), tiny_events((0, 0, 0), (1, 1, 1)), tiny_trace((0, 1, 0), (1, 1, 0)))
    conv, neurons, head, out = counts.nodes
    assert (conv.effective_acs, conv.effective_macs) == (5, 0)
    assert head.effective_acs == 2  # column 2 of the head holds one zero weight
    assert conv.dense == 2 * 25 and head.dense == 2 * 8
    assert (neurons.spikes, neurons.updates_active, neurons.updates_inactive) == (2, 2, 6)
    assert (neurons.state_additions, neurons.state_multiplications) == (8, 0)
    assert (out.updates_inactive, out.state_additions) == (4, 4)  # two integrators for two steps
    assert counts.ann_macs == 25 + 8
    assert counts.firing_rate == pytest.approx(2 / 8)
    assert counts.connection_sparsity == pytest.approx(2 / 17)
    assert counts.parameters == 17
    assert counts.footprint_bytes == 4 * (17 + 3)


def test_zero_weight_is_not_counted():
    weight = np.ones((1, 1, 3, 3), np.float32)
    weight[0, 0, 1, 1] = 0  # the tap by which an output sees its own position
    counts = count(tiny(conv=weight), tiny_events((0, 0, 0), (0, 1, 1)), tiny_trace())
    assert counts.nodes[0].effective_acs == 4
    assert counts.nodes[0].dense == 2 * 25


def test_direct_input_is_graded_and_counted_at_every_timestep():
    image = np.zeros((1, 1, 4, 4), np.float32)
    image[0, 0, 1, 1] = 1.0  # graded by its kind, whatever its value
    counts = count(tiny("direct"), image, tiny_trace())
    assert (counts.total("effective_macs"), counts.total("macs_once"), counts.total("effective_acs")) == (8, 4, 0)


def test_leaky_neurons_and_current_filters_cost_multiplications():
    net = tiny()
    for voltage, current, additions, multiplications in [(0, 4096, 1, 0), (1365, 4096, 1, 1), (1365, 2048, 2, 2)]:
        decays = {"voltage_decay": np.array([voltage], np.int32), "current_decay": np.array(current, np.int32)}
        nodes = tuple(dataclasses.replace(n, **decays) if isinstance(n, LIF) else n for n in net.nodes)
        neurons = count(dataclasses.replace(net, nodes=nodes), tiny_events(), tiny_trace()).nodes[1]
        assert (neurons.state_additions, neurons.state_multiplications) == (8 * additions, 8 * multiplications)


def test_host_stem():
    counts = count(tiny(stem="host"), tiny_events((0, 0, 0)), tiny_trace((0, 1, 0)))
    assert [node.place for node in counts.nodes] == ["host", "host", "chip", "chip"]
    assert counts.total("effective_acs", "host") == 1 and counts.total("effective_acs", "chip") == 1


def random_net(seed, *, encoding, integer):
    rng = RNG(seed)
    groups = int(rng.choice([1, 2]))
    options = {
        "stride": ((1, 2), (2, 1), (2, 2))[seed % 3],
        "padding": tuple(map(int, rng.integers(0, 3, 2))),
        "dilation": tuple(map(int, rng.integers(1, 3, 2))),
    }
    conv = Conv2d(name="c1", inputs=(Edge("in"),), weight=sparse(rng, 4, 2, 3, 2, integer=integer), **options)
    second = Conv2d(
        name="c2", inputs=(Edge("n1"),), weight=sparse(rng, 4, 4 // groups, 3, 3, integer=integer), groups=groups,
        padding=(1, 1),
    )  # fmt: skip
    shortcut = Conv2d(name="short", inputs=(Edge("n1"),), weight=sparse(rng, 4, 1, 1, 1, integer=integer), groups=4)
    entry = Input(name="in", shape=(2, 7, 6), encoding=encoding, bits=(4 if encoding == "direct" else 1) * integer)
    if integer and encoding == "direct":
        entry = dataclasses.replace(entry, scale=1 / 15)
    nodes = [
        entry, conv, lif("n1", "c1", integer=integer), second, shortcut,
        lif("n2", ["c2", "short"], decay=1365, integer=integer), Flatten(name="flat", inputs=(Edge("n2"),)),
    ]  # fmt: skip
    flat = int(np.prod(infer_shapes(Network(nodes=tuple(nodes), timesteps=1))["n2"]))
    head = Affine(name="head", inputs=(Edge("flat"),), weight=sparse(rng, 3, flat, integer=integer))
    return Network(nodes=(*nodes, head, Readout(name="out", inputs=(Edge("head"),))), timesteps=3)


def brute_force(synapse, frame):
    """Operations on one frame [*shape], by visiting every weight at every output position."""
    if isinstance(synapse, Affine):
        return sum(int(w != 0 and x != 0) for row in synapse.weight for w, x in zip(row, frame, strict=True))
    outputs, per_group, kernel_y, kernel_x = synapse.weight.shape
    height, width = frame.shape[1:]
    spans = [synapse.dilation[i] * (synapse.weight.shape[2 + i] - 1) for i in (0, 1)]
    rows, columns = (
        (frame.shape[1 + i] + 2 * synapse.padding[i] - spans[i] - 1) // synapse.stride[i] + 1 for i in (0, 1)
    )
    total = 0
    for o, i, ky, kx in itertools.product(range(outputs), range(per_group), range(kernel_y), range(kernel_x)):
        if synapse.weight[o, i, ky, kx] == 0:
            continue
        channel = o // (outputs // synapse.groups) * per_group + i
        for row, column in itertools.product(range(rows), range(columns)):
            y = row * synapse.stride[0] + ky * synapse.dilation[0] - synapse.padding[0]
            x = column * synapse.stride[1] + kx * synapse.dilation[1] - synapse.padding[1]
            total += 0 <= y < height and 0 <= x < width and frame[channel, y, x] != 0
    return int(total)


@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("encoding", ["direct", "events"])
@pytest.mark.parametrize("seed", range(3))
def test_equals_brute_force(seed, encoding, integer):
    net = random_net(seed, encoding=encoding, integer=integer)
    rng = RNG(100 + seed)
    if encoding == "direct":
        inputs = (rng.random((2, 2, 7, 6)) * (rng.random((2, 2, 7, 6)) < 0.6)).astype(np.float32)
    else:
        inputs = (rng.random((3, 2, 2, 7, 6)) < 0.4).astype(np.uint8)
    trace = made_up_trace(net, rng, 2)
    encoded = net.input.encode(inputs)
    counts = count(net, inputs, dataclasses.replace(trace, rasters=None))
    by_name = {node.name: node for node in counts.nodes}
    values = {"in": encoded if encoding == "events" else np.stack([encoded] * 3), **trace.rasters}
    values["flat"] = values["n2"].reshape(3, 2, -1)
    for synapse in net.synapses:
        frames = values[synapse.inputs[0].source]
        expected = sum(brute_force(synapse, frame) for step in frames for frame in step)
        record = by_name[synapse.name]
        graded = synapse.name == "c1" and encoding == "direct"
        assert expected > 0
        assert (record.effective_macs, record.effective_acs) == ((expected, 0) if graded else (0, expected))
    first = values["in"][0]
    if encoding == "direct":
        assert counts.total("macs_once") == sum(brute_force(net["c1"], frame) for frame in first)


def test_counts_of_batches_add_up():
    net = random_net(1, encoding="direct", integer=False)
    inputs = RNG(5).random((5, 2, 7, 6)).astype(np.float32)
    trace = made_up_trace(net, RNG(6), 5)

    def part(rows):
        return dataclasses.replace(
            trace,
            readouts=trace.readouts[rows],
            spikes_per_neuron={name: spikes[rows] for name, spikes in trace.spikes_per_neuron.items()},
            spikes_per_step={name: spikes[:, rows] for name, spikes in trace.spikes_per_step.items()},
        )

    halves = [count(net, inputs[rows], part(rows)) for rows in (slice(0, 2), slice(2, 5))]
    assert halves[0] + halves[1] == count(net, inputs, trace)
    with pytest.raises(NetworkError, match="different networks"):
        halves[0] + dataclasses.replace(halves[1], timesteps=4)


def delayed_net(delay=2):
    """Two neurons; the head reads them at once and, delayed, once more: values can be 2."""
    weight = np.array([[1, 1], [0, 1]], np.float32)
    nodes = (
        Input(name="in", shape=(2,), encoding="events"),
        Affine(name="a", inputs=(Edge("in", 1), Edge("n", 1)), weight=weight),
        lif("n", "a"),
        Affine(name="head", inputs=(Edge("n"), Edge("n", delay)), weight=weight),
        Readout(name="out", inputs=(Edge("head"),)),
    )
    return Network(nodes=nodes, timesteps=3)


def test_delayed_and_several_edges():
    net = delayed_net()
    raster = np.array([[[1, 0]], [[1, 1]], [[0, 1]]], bool)  # [T, B, 2]
    trace = Trace.from_rasters(
        target="hand",
        readouts=np.zeros((1, 2), np.float32),
        rasters={"n": raster},
        keep_rasters=True,
        seconds=0.0,
        steps=3,
    )
    events = np.array([[[1, 1]], [[0, 1]], [[1, 1]]], np.uint8)
    counts = {node.name: node for node in count(net, events, trace).nodes}
    # fan-out is 1 from position 0 and 2 from position 1; a delay of d loses the last d timesteps
    assert counts["a"].effective_acs == (1 + 2 + 2) + (1 + 1 + 2)
    assert counts["head"].effective_acs == (2 * 1 + 2 * 2) + 1
    with pytest.raises(DataError, match="times are needed") as caught:
        count(net, events, dataclasses.replace(trace, rasters=None))
    assert "raster" in caught.value.hint


@pytest.mark.parametrize("delay", [3, 7])
def test_delay_longer_than_the_run_carries_nothing(delay):
    net = delayed_net(delay)
    trace = made_up_trace(net, RNG(0), 2)
    head = count(net, np.zeros((3, 2, 2), np.uint8), trace).nodes[2]
    assert head.effective_acs == int((trace.spikes_per_neuron["n"] * [1, 2]).sum())


def pooled_net(source="n"):
    nodes = (
        Input(name="in", shape=(1, 4, 4)),
        Conv2d(name="c", inputs=(Edge("in"),), weight=np.ones((1, 1, 1, 1), np.float32)),
        lif("n", "c"),
        AvgPool2d(name="pool", inputs=(Edge(source),), kernel_size=(2, 2), stride=(2, 2)),
        Flatten(name="flat", inputs=(Edge("pool"),)),
        Affine(name="head", inputs=(Edge("flat"),), weight=np.ones((2, 4), np.float32)),
        Readout(name="out", inputs=(Edge("head"),)),
    )
    return Network(nodes=nodes, timesteps=2)


def test_averages_are_graded_and_need_rasters():
    net, image = pooled_net(), np.zeros((1, 1, 4, 4), np.float32)
    raster = np.zeros((2, 1, 1, 4, 4), bool)
    raster[0, 0, 0, :2, :2] = True  # four spikes in one window are one non-zero average
    raster[1, 0, 0, 0, 3] = raster[1, 0, 0, 3, 0] = True
    trace = Trace.from_rasters(
        target="hand",
        readouts=np.zeros((1, 2), np.float32),
        rasters={"n": raster},
        keep_rasters=True,
        seconds=0.0,
        steps=2,
    )
    head = count(net, image, trace).nodes[2]
    assert (head.effective_macs, head.effective_acs, head.macs_once) == (2 * 3, 0, 2 * 3)
    assert not head.reads_input
    with pytest.raises(DataError, match="pooling"):
        count(net, image, dataclasses.replace(trace, rasters=None))


def test_weights_without_a_neuron_between_are_refused():
    net = tiny("direct")
    nodes = [n for n in net.nodes if n.name != "n"]
    nodes[2] = Flatten(name="flat", inputs=(Edge("conv"),))
    trace = dataclasses.replace(tiny_trace(), spikes_per_neuron={})
    with pytest.raises(UnsupportedError, match="'conv'"):
        count(Network(nodes=tuple(nodes), timesteps=2), np.zeros((1, 1, 4, 4), np.float32), trace)


def test_foreign_inputs_and_traces_are_refused():
    with pytest.raises(DataError, match="inputs have shape"):
        count(tiny(), np.zeros((1, 1, 4, 4), np.float32), tiny_trace())
    with pytest.raises(DataError, match="2 inputs and a trace of 1"):
        count(tiny(), np.zeros((2, 2, 1, 4, 4), np.uint8), tiny_trace())
    with pytest.raises(DataError, match="no spikes for node 'n'"):
        count(tiny(), tiny_events(), dataclasses.replace(tiny_trace(), spikes_per_neuron={}))
    with pytest.raises(DataError, match="events"):
        count(tiny(), 2 * tiny_events((0, 0, 0)), tiny_trace())


def test_footprint_of_integers_is_in_real_bits():
    net = random_net(0, encoding="direct", integer=True)
    net = dataclasses.replace(net, metadata={"quantization": {"weight_bits": 4}})
    weights = sum(s.weight.size for s in net.synapses)
    counts = count(net, np.zeros((1, 2, 7, 6), np.float32), made_up_trace(net, RNG(0), 1))
    assert counts.footprint_bytes == (4 * weights + 2 * (17 + 12 + 12)) / 8
    assert counts.parameters == weights


def test_json_holds_means_per_sample():
    net = random_net(2, encoding="direct", integer=False)
    inputs = RNG(3).random((4, 2, 7, 6)).astype(np.float32)
    counts = count(net, inputs, made_up_trace(net, RNG(4), 4))
    record = json.loads(json.dumps(counts.to_json(), allow_nan=False))
    assert record["effective_macs"] == counts.total("effective_macs") / 4
    assert sum(node["effective_acs"] for node in record["nodes"]) == pytest.approx(record["effective_acs"])
    assert record["samples"] == 4 and record["kind"] == "float"
    assert record["effective_macs_stem_once"] == pytest.approx(record["effective_macs"] / 3)
