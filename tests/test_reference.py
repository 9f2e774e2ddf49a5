"""The reference target against an independent implementation of Lava's arithmetic, and against float torch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snnkit.errors import DataError
from snnkit.network import (
    LIF,
    Affine,
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    Edge,
    Flatten,
    Input,
    Network,
    Readout,
    Trace,
    apply,
    fold_batchnorm,
    materialise_shortcuts,
)
from snnkit_targets import reference
from snnkit_targets._arithmetic import convolve_by_matmul
from tests.networks import integer_networks, raw_inputs, threshold
from tests.oracle import simulate

RASTER = reference.Options(record="raster", chunk=2)


@given(integer_networks() | integer_networks(extreme=True))
def test_every_spike_equals_the_oracle(net: Network) -> None:
    inputs = raw_inputs(net, samples=3)
    trace = reference.run(net, inputs, RASTER)
    encoded = net.input.encode(inputs)
    assert trace.rasters is not None
    for sample in range(3):
        rasters, readout = simulate(net, encoded[sample] if net.input.encoding == "direct" else encoded[:, sample])
        for name, raster in rasters.items():
            np.testing.assert_array_equal(trace.rasters[name][:, sample], raster)
        np.testing.assert_array_equal(trace.readouts[sample], readout)


@given(integer_networks(), st.integers(1, 7))
def test_chunks_do_not_change_anything(net: Network, chunk: int) -> None:
    inputs = raw_inputs(net, samples=5)
    whole = reference.run(net, inputs, reference.Options(record="raster"))
    parts = reference.run(net, inputs, reference.Options(record="raster", chunk=chunk))
    np.testing.assert_array_equal(whole.readouts, parts.readouts)
    for name in whole.spikes_per_step:
        np.testing.assert_array_equal(whole.spikes_per_step[name], parts.spikes_per_step[name])
        np.testing.assert_array_equal(whole.rasters[name], parts.rasters[name])
        np.testing.assert_array_equal(whole.spikes_per_neuron[name], whole.rasters[name].sum(axis=0))
    assert whole.overflows == parts.overflows
    assert whole.steps == parts.steps == 5 * net.timesteps


@given(integer_networks() | integer_networks(extreme=True))
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_same_bits(net: Network) -> None:
    inputs = raw_inputs(net, samples=5)
    here, there = (
        reference.run(net, inputs, reference.Options(record="raster", device=device)) for device in ("cpu", "cuda")
    )
    np.testing.assert_array_equal(here.readouts, there.readouts)
    assert here.overflows == there.overflows
    for name, raster in here.rasters.items():
        np.testing.assert_array_equal(raster, there.rasters[name])


@given(st.data())
def test_the_convolution_of_gpus_is_exact(data: st.DataObject) -> None:
    """One matrix product a group, against torch's convolution of 64-bit integers in floats."""
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    groups, per_group = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    node = Conv2d(
        name="conv",
        weight=rng.integers(-128, 128, (groups * data.draw(st.integers(1, 3)), per_group, *data.draw(pair))),
        stride=data.draw(pair),
        padding=data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2))),
        dilation=data.draw(pair),
        groups=groups,
    )
    x = torch.tensor(rng.integers(0, 256, (2, groups * per_group, 9, 8)), dtype=torch.float32)
    bias = torch.tensor(rng.integers(-99, 99, len(node.weight)), dtype=torch.float32)
    sums = convolve_by_matmul(x, torch.tensor(node.weight, dtype=torch.float32), bias, node)
    geometry = (node.stride, node.padding, node.dilation, node.groups)
    exact = torch.nn.functional.conv2d(x.double(), torch.tensor(node.weight).double(), bias.double(), *geometry)
    np.testing.assert_array_equal(sums, exact)


@given(integer_networks(), st.integers(1, 7))
def test_a_stream_is_the_run_in_pieces(net: Network, chunk: int) -> None:
    inputs = raw_inputs(net, samples=5)
    axis = 0 if net.input.encoding == "direct" else 1
    whole = reference.run(net, inputs, reference.Options())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "PIECE_BYTES", 1)
        pieces = list(reference.stream(net, inputs, reference.Options(chunk=chunk)))
    assert len(pieces) == -(-5 // chunk)
    np.testing.assert_array_equal(np.concatenate([given for given, _ in pieces], axis=axis), inputs)
    joined = Trace.join([trace for _, trace in pieces])
    np.testing.assert_array_equal(joined.readouts, whole.readouts)
    assert joined.overflows == whole.overflows
    for name, counts in whole.spikes_per_neuron.items():
        np.testing.assert_array_equal(joined.spikes_per_neuron[name], counts)


def test_what_wraps_to_the_other_side_saturates_there() -> None:
    """u wraps from just above the 24 bits to the negative end, and a negative bias takes v beyond it."""
    head = Affine(name="head", inputs=(Edge("lif"),), weight=np.ones((2, 1), np.int8))
    synapse = Affine(
        name="fc", inputs=(Edge("x"),), weight=np.full((1, 1033), 127, np.int8), bias=np.array([-4096], np.int32)
    )
    sums = 127 * np.array([1033, 1000, 130])
    v = -(2**23 - 1) + 64 * (sums[1] + sums[2] - 2 * 4096)  # saturated first; 254,529 less if it were not
    net = Network(
        timesteps=3,
        nodes=(
            Input(name="x", shape=(1033,), bits=1, scale=1.0, encoding="events"),
            synapse,
            LIF(
                name="lif",
                inputs=(Edge("fc"),),
                v_threshold=np.array((v - 2**17) // 64, np.int32),
                voltage_decay=np.array(0, np.int32),
                current_decay=np.array(4096, np.int32),
            ),
            head,
            Readout(name="out", inputs=(Edge("head"),)),
        ),
    )
    x = (np.arange(1033) < sums[:, None, None] // 127).astype(np.uint8)
    trace = reference.run(net, x, reference.Options(record="raster"))
    rasters, readout = simulate(net, x[:, 0])
    assert rasters["lif"].ravel().tolist() == trace.rasters["lif"].ravel().tolist() == [False, False, True]
    np.testing.assert_array_equal(trace.readouts[0], readout)


def test_sums_near_the_limit_of_float32_are_exact() -> None:
    """513 inputs of 255 times 127 pass 2**24, where float32 loses the last bit."""
    weight = np.full((1, 514), 127, np.int8)
    weight[0, -1] = 1
    net = Network(
        timesteps=1,
        nodes=(
            Input(name="x", shape=(514,), bits=8, scale=1 / 255),
            Affine(name="fc", inputs=(Edge("x"),), weight=weight),
            Readout(name="out", inputs=(Edge("fc"),)),
        ),
    )
    x = np.ones((1, 514), np.float32)
    assert reference.run(net, x, reference.Options()).readouts[0, 0] == 513 * 127 * 255 + 255


def test_saturation_is_counted() -> None:
    net = Network(
        timesteps=4,
        nodes=(
            Input(name="x", shape=(4,), bits=8, scale=1 / 255),
            Affine(name="fc", inputs=(Edge("x"),), weight=np.full((2, 4), -128, np.int8)),
            LIF(
                name="lif",
                inputs=(Edge("fc"),),
                v_threshold=np.array(5, np.int32),
                voltage_decay=np.array(0, np.int32),
            ),
            Readout(name="out", mode="count", inputs=(Edge("lif"),)),
        ),
    )
    trace = reference.run(net, np.ones((1, 4), np.float32), reference.Options())
    # each step adds -130,560 to v, which holds no less than -131,071: steps 2, 3 and 4 saturate in both neurons
    assert trace.overflows == {"lif": 6}


def float_residual_network(rng: np.random.Generator) -> Network:
    def f(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    half = np.array(2048, np.int32)
    return Network(
        timesteps=4,
        nodes=(
            Input(name="x", shape=(2, 6, 6)),
            Conv2d(name="conv1", inputs=(Edge("x"),), weight=f(4, 2, 3, 3), padding=(1, 1)),
            BatchNorm2d(
                name="bn1",
                inputs=(Edge("conv1"),),
                weight=f(4),
                bias=f(4),
                running_mean=f(4),
                running_var=f(4) ** 2 + 0.1,
            ),
            LIF(name="lif1", inputs=(Edge("bn1"),), v_threshold=threshold(1.0), voltage_decay=half),
            Conv2d(name="conv2", inputs=(Edge("lif1"),), weight=f(4, 4, 3, 3) / 4, bias=f(4), padding=(1, 1)),
            LIF(
                name="lif2",
                inputs=(Edge("conv2"), Edge("lif1")),
                v_threshold=threshold(1.0),
                voltage_decay=half,
                reset="subtract",
            ),
            AvgPool2d(name="pool", inputs=(Edge("lif2"),), kernel_size=(2, 2), stride=(2, 2)),
            Flatten(name="flat", inputs=(Edge("pool"),)),
            Affine(name="fc", inputs=(Edge("flat"),), weight=f(3, 36), bias=f(3)),
            Readout(name="out", inputs=(Edge("fc"),)),
        ),
    )


def test_float_network_equals_torch() -> None:
    net = float_residual_network(np.random.default_rng(0))
    x = np.random.default_rng(1).random((5, 2, 6, 6)).astype(np.float32)
    trace = reference.run(net, x, RASTER)

    def t(name: str, field: str = "weight") -> torch.Tensor:
        return torch.tensor(getattr(net[name], field))

    current = torch.nn.functional.conv2d(torch.tensor(x), t("conv1"), padding=1)
    fields = ("running_mean", "running_var", "weight", "bias")
    current = torch.nn.functional.batch_norm(current, *(t("bn1", field) for field in fields))
    v1 = v2 = torch.zeros(5, 4, 6, 6)
    total = torch.zeros(5, 3)
    for step in range(4):
        v1 = v1 / 2 + current
        s1 = v1 >= 1
        v1 = torch.where(s1, 0.0, v1)
        v2 = v2 / 2 + torch.nn.functional.conv2d(s1.float(), t("conv2"), t("conv2", "bias"), padding=1) + s1.float()
        s2 = v2 >= 1
        v2 = torch.where(s2, v2 - 1, v2)
        pooled = torch.nn.functional.avg_pool2d(s2.float(), 2).flatten(1)
        total += pooled @ t("fc").T + t("fc", "bias")
        np.testing.assert_array_equal(trace.rasters["lif1"][step], s1)
        np.testing.assert_array_equal(trace.rasters["lif2"][step], s2)
    np.testing.assert_allclose(trace.readouts, total, rtol=1e-5, atol=1e-5)


def test_folding_and_explicit_shortcuts_keep_the_spikes() -> None:
    net = float_residual_network(np.random.default_rng(0))
    x = np.random.default_rng(1).random((20, 2, 6, 6)).astype(np.float32)
    folded = apply(net, [fold_batchnorm, materialise_shortcuts])
    assert not any(isinstance(node, BatchNorm2d) for node in folded)
    assert "lif2.shortcut_from.lif1" in [node.name for node in folded]
    before, after = reference.run(net, x, RASTER), reference.run(folded, x, RASTER)
    for name in ("lif1", "lif2"):
        assert (before.rasters[name] != after.rasters[name]).mean() < 1e-3  # folding moves the last bit only


def test_a_recurrent_edge_arrives_one_timestep_late() -> None:
    """One neuron that is driven over its threshold every step, and inhibited by its own spike one step later."""
    net = Network(
        timesteps=4,
        nodes=(
            Input(name="x", shape=(1,)),
            Affine(name="drive", inputs=(Edge("x"),), weight=np.array([[1.0]], np.float32)),
            Affine(name="inhibit", inputs=(Edge("lif", delay=1),), weight=np.array([[-5.0]], np.float32)),
            LIF(
                name="lif",
                inputs=(Edge("drive"), Edge("inhibit")),
                v_threshold=threshold(1.0),
                voltage_decay=np.array(4096, np.int32),
            ),
            Readout(name="out", mode="count", inputs=(Edge("lif"),)),
        ),
    )
    trace = reference.run(net, np.ones((1, 1), np.float32), RASTER)
    assert net.recurrent
    assert trace.rasters["lif"].ravel().tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.zeros((2, 3, 6, 6), np.float32), "shape"),
        (np.zeros((2, 2, 6, 6), np.uint8), "uint8"),
        (np.full((2, 2, 6, 6), 255, np.float32), "outside 0..1"),
        (np.full((2, 2, 6, 6), np.nan, np.float32), "outside 0..1"),
    ],
)
def test_inputs_that_do_not_fit_are_named(inputs: np.ndarray, message: str) -> None:
    net = float_residual_network(np.random.default_rng(0))
    with pytest.raises(DataError, match=message) as error:
        reference.run(net, inputs, reference.Options())
    assert error.value.hint
