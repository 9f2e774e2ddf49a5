"""Structure, storage, passes and quantisation."""

import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from snnkit.errors import NetworkError, UnsupportedError
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
    apply,
    fold_batchnorm,
    fold_pooling,
    load,
    materialise_shortcuts,
    quantize,
    same,
    save,
    verify,
)
from snnkit.network.storage import HEADER
from snnkit_targets import reference
from tests.networks import integer_networks, threshold


def float_network(*, theta: float = 1.0, weight: float = 0.5, bias: float = 0.1) -> Network:
    rng = np.random.default_rng(0)
    kernel = rng.uniform(-weight, weight, (3, 1, 3, 3)).astype(np.float32)
    kernel.flat[0] = weight
    return Network(
        timesteps=4,
        metadata={"dataset": "digits", "classes": ["a", "b"]},
        nodes=(
            Input(name="x", shape=(1, 4, 4)),
            Conv2d(name="conv", inputs=(Edge("x"),), weight=kernel, bias=np.full(3, bias, np.float32), padding=(1, 1)),
            LIF(
                name="lif", inputs=(Edge("conv"),), v_threshold=threshold(theta), voltage_decay=np.array(2048, np.int32)
            ),
            Flatten(name="flat", inputs=(Edge("lif"),)),
            Affine(name="fc", inputs=(Edge("flat"),), weight=rng.normal(size=(2, 48)).astype(np.float32)),
            Readout(name="out", inputs=(Edge("fc"),)),
        ),
    )


def replace(net: Network, name: str, **changes: object) -> Network:
    nodes = tuple(dataclasses.replace(node, **changes) if node.name == name else node for node in net.nodes)
    return dataclasses.replace(net, nodes=nodes)


@given(integer_networks())
def test_a_file_holds_the_network_exactly(net: Network) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = save(net, Path(folder) / "net.safetensors")
        assert same(load(path), net)
        assert [file.name for file in Path(folder).iterdir()] == ["net.safetensors"]


def test_same_sees_every_field() -> None:
    net = quantize(float_network())
    assert same(net, quantize(float_network()))
    for other in (
        dataclasses.replace(net, timesteps=5),
        dataclasses.replace(net, stem="host"),
        dataclasses.replace(net, metadata={}),
        replace(net, "conv", stride=(2, 2)),
        replace(net, "conv", weight=net["conv"].weight ^ np.int8(1)),
        replace(net, "lif", reset="subtract"),
    ):
        assert not same(net, other)


def test_arrays_are_read_only() -> None:
    net = float_network()
    with pytest.raises(ValueError, match="read-only"):
        net["conv"].weight[0] = 1


@given(st.data())
def test_a_damaged_file_is_an_error_and_never_a_crash(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = save(quantize(float_network()), Path(folder) / "net.safetensors")
        content = bytearray(path.read_bytes())
        if data.draw(st.booleans()):
            content = content[: data.draw(st.integers(0, len(content) - 1))]
        else:
            header = int.from_bytes(content[:8], "little")
            for _ in range(data.draw(st.integers(1, 8))):
                content[data.draw(st.integers(0, header + 8))] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        try:
            verify(load(path))  # a changed name or number may still be a valid network
        except NetworkError as error:
            assert error.hint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "format version 99; this snnkit reads up to 1"),
        ({"timesteps": "four"}, "timesteps is not int"),
        ({"timesteps": True}, "timesteps is not int"),
        ({"nodes": []}, "holds the unknown array"),
        ({"nodes": 3}, "damaged header"),
        ({"metadata": {"x": float("nan")}}, "damaged header .*not JSON compliant"),
        ({"stem": "moon"}, "stem is 'moon'"),
    ],
)
def test_headers_that_break_a_rule_are_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = save(quantize(float_network()), tmp_path / "net.safetensors")
    arrays = load_file(path)
    graph = header_of(path)
    save_file(arrays, path, metadata={HEADER: json.dumps({**graph, **change})})
    with pytest.raises(NetworkError, match=message):
        load(path)


def header_of(path: Path) -> dict[str, object]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(json.loads(content[8 : 8 + length])["__metadata__"][HEADER])


def test_foreign_and_missing_files_are_named(tmp_path: Path) -> None:
    save_file({"weight": np.zeros(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(NetworkError, match="holds no snnkit network"):
        load(tmp_path / "foreign.safetensors")
    with pytest.raises(NetworkError, match="there is no network file"):
        load(tmp_path / "missing.safetensors")


def bad_networks() -> dict[str, Network]:
    net, integer = float_network(), quantize(float_network())
    ghost = (Edge("ghost"),)
    return {
        "'lif' .* reads 'ghost', which does not exist": replace(net, "lif", inputs=ghost),
        "'conv' .* reads 'lif' before it is computed": replace(net, "conv", inputs=(Edge("x"), Edge("lif"))),
        "'lif' .* is delayed; only inputs and spikes": replace(net, "lif", inputs=(Edge("conv", 1),)),
        "'conv' .* has no inputs": replace(net, "conv", inputs=()),
        "'conv' .* feeds nothing": replace(net, "lif", inputs=(Edge("x"),)),
        "'conv' .* bias is float64": replace(net, "conv", bias=np.zeros(3)),
        "'conv' .* bias .2,. does not fit": replace(net, "conv", bias=np.zeros(2, np.float32)),
        "'conv' .* weight holds values that are not finite": replace(
            net, "conv", weight=np.full((3, 1, 3, 3), np.nan, np.float32)
        ),
        "'conv' .* does not fit an input": replace(net, "conv", weight=np.zeros((3, 2, 3, 3), np.float32)),
        "'fc' .* does not fit an input": replace(net, "fc", weight=np.zeros((2, 47), np.float32)),
        "'lif' .* voltage_decay is outside 0..4096": replace(net, "lif", voltage_decay=np.array(5000, np.int32)),
        "'lif' .* v_threshold has shape": replace(net, "lif", v_threshold=np.ones(2, np.float32)),
        "'out' .* count readout reads neurons": replace(net, "out", mode="count"),
        "'x' .* takes its input unquantised": replace(net, "x", bits=4),
        "'x' .* integer network takes 1 to 8": replace(integer, "x", bits=0),
        "'conv' .* a bias is outside": replace(integer, "conv", bias=np.full(3, 5000, np.int32)),
        "'lif' .* v_threshold is outside": replace(integer, "lif", v_threshold=np.array(2**17, np.int32)),
        "timesteps is 0": dataclasses.replace(net, timesteps=0),
        "exactly one Readout": dataclasses.replace(net, nodes=net.nodes[:-1]),
    }


@pytest.mark.parametrize("message", bad_networks())
def test_verify_names_the_node_that_breaks_a_rule(message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        verify(bad_networks()[message])


def test_quantize_by_hand() -> None:
    """Largest weight 0.5 of a threshold of 1, input of 15 levels: 127 steps a weight are 3,810 a threshold."""
    net = float_network(bias=0.25)
    integer = quantize(net, input_bits=4)
    conv, lif = integer["conv"], integer["lif"]
    assert integer.input.bits == 4
    assert integer.input.scale == pytest.approx(1 / 15)
    assert conv.weight.dtype == np.int8
    assert conv.weight_exponent == 1
    assert int(lif.v_threshold) == 2 * 3810 - 1
    np.testing.assert_array_equal(conv.weight, np.rint(net["conv"].weight.astype(float) * 254))
    np.testing.assert_array_equal(conv.bias, np.full(3, round(0.25 * 2 * 3810)))
    assert int(lif.voltage_decay) == 2048
    assert np.abs(integer["fc"].weight).max() == 127


def test_a_large_bias_lowers_the_scale() -> None:
    integer = quantize(float_network(bias=2.0))
    assert np.abs(integer["conv"].bias).max() <= 4095
    assert int(integer["lif"].v_threshold) == 2 * (4095 // 4) - 1
    assert np.abs(integer["conv"].weight).max() < 127


def test_quantize_names_all_obstacles_at_once() -> None:
    net = float_network()
    batchnorm = BatchNorm2d(
        name="bn",
        inputs=(Edge("conv"),),
        weight=np.ones(3, np.float32),
        bias=np.zeros(3, np.float32),
        running_mean=np.zeros(3, np.float32),
        running_var=np.ones(3, np.float32),
    )
    pool = AvgPool2d(name="pool", inputs=(Edge("lif"),), kernel_size=(1, 1), stride=(1, 1))
    nodes = list(replace(replace(net, "lif", inputs=(Edge("bn"),)), "flat", inputs=(Edge("pool"),)).nodes)
    nodes.insert(2, batchnorm)
    nodes.insert(4, pool)
    with pytest.raises(UnsupportedError) as error:
        quantize(dataclasses.replace(net, nodes=tuple(nodes)))
    assert len(error.value.reasons) == 3
    assert all(name in str(error.value) for name in ("'bn'", "'pool'", "'lif'"))


def test_quantize_refuses_what_no_integer_can_hold() -> None:
    with pytest.raises(UnsupportedError, match=r"threshold of \d levels, limited by its weights"):
        quantize(replace(float_network(), "x", encoding="events"), weight_bits=2)
    with pytest.raises(NetworkError, match="quantised already"):
        quantize(quantize(float_network()))
    with pytest.raises(NetworkError, match="9-bit"):
        quantize(float_network(), weight_bits=9)


def pooled_network(kernel_size, stride, size=(5, 6)) -> Network:
    """Spikes, averages, a flattened view, two linear layers into one readout."""
    rng = np.random.default_rng(1)
    rows, columns = ((size[i] - kernel_size[i]) // stride[i] + 1 for i in (0, 1))
    features = 3 * rows * columns
    head = {"inputs": (Edge("flat"),), "bias": rng.normal(size=2).astype(np.float32)}
    return Network(
        timesteps=4,
        nodes=(
            Input(name="x", shape=(3, *size), encoding="events"),
            LIF(name="lif", inputs=(Edge("x"),), v_threshold=threshold(1.0), voltage_decay=np.array(0, np.int32)),
            AvgPool2d(name="pool", inputs=(Edge("lif"),), kernel_size=kernel_size, stride=stride),
            Flatten(name="flat", inputs=(Edge("pool"),)),
            Affine(name="a", weight=rng.normal(size=(2, features)).astype(np.float32), **head),
            Affine(name="b", weight=rng.normal(size=(2, features)).astype(np.float32), **head),
            Readout(name="out", inputs=(Edge("a"), Edge("b"))),
        ),
    )


@pytest.mark.parametrize(
    ("kernel_size", "stride"),
    [((5, 6), (5, 6)), ((2, 3), (2, 3)), ((3, 2), (1, 2)), ((2, 2), (3, 4))],
    ids=["global", "tiles", "overlapping", "gaps"],
)
def test_averages_fold_into_the_linear_layers_behind_them(kernel_size, stride) -> None:
    net = pooled_network(kernel_size, stride)
    folded = apply(net, [fold_pooling])
    assert [node.name for node in folded] == ["x", "lif", "flat", "a", "b", "out"]
    assert folded["a"].weight.shape == (2, 90)
    np.testing.assert_array_equal(folded["a"].bias, net["a"].bias)
    events = np.random.default_rng(2).integers(0, 2, (4, 7, 3, 5, 6)).astype(np.uint8)
    before, after = (reference.run(n, events, reference.Options()).readouts for n in (net, folded))
    np.testing.assert_allclose(after, before, atol=1e-5)
    assert before.std() > 0.1


def test_averages_with_several_readers_fold_into_all_or_none() -> None:
    net = pooled_network((5, 6), (5, 6))
    weight = np.ones((3, 3, 1, 1), np.float32)
    fire = {"v_threshold": threshold(1.0), "voltage_decay": np.array(0, np.int32)}
    more = (
        Conv2d(name="conv", inputs=(Edge("pool"),), weight=weight),
        LIF(name="lif2", inputs=(Edge("conv"), Edge("pool")), **fire),
        Flatten(name="flat2", inputs=(Edge("lif2"),)),
    )
    nodes = (*net.nodes[:4], *more, *replace(net, "b", inputs=(Edge("flat2"),)).nodes[4:])
    shared = dataclasses.replace(net, nodes=nodes)
    folded = apply(shared, [fold_pooling])
    assert folded["conv"].weight.shape == (3, 3, 5, 6)
    assert isinstance(folded["pool"], Conv2d)  # the neurons read the average through synapses of their own
    assert folded["pool"].groups == 3
    assert folded["flat"].inputs == (Edge("lif"),)
    events = np.random.default_rng(2).integers(0, 2, (4, 7, 3, 5, 6)).astype(np.uint8)
    before, after = (reference.run(n, events, reference.Options()).readouts for n in (shared, folded))
    np.testing.assert_allclose(after, before, atol=1e-5)
    both = replace(net, "a", inputs=(Edge("flat"), Edge("flat")))
    assert same(apply(both, [fold_pooling]), both)
    with pytest.raises(UnsupportedError, match=r"'pool' \(AvgPool2d\) is float only"):
        quantize(both)


def test_shortcuts_share_the_scale_of_the_neuron_they_enter() -> None:
    net = float_network(weight=0.25)
    second = Conv2d(
        name="conv2",
        inputs=(Edge("lif"),),
        weight=np.full((3, 3, 1, 1), 0.25, np.float32),
        bias=np.zeros(3, np.float32),
    )
    joined = LIF(
        name="lif2",
        inputs=(Edge("conv2"), Edge("lif")),
        v_threshold=threshold(1.0),
        voltage_decay=np.array(0, np.int32),
    )
    nodes = list(replace(net, "flat", inputs=(Edge("lif2"),)).nodes)
    nodes[3:3] = [second, joined]
    integer = quantize(apply(dataclasses.replace(net, nodes=tuple(nodes)), [fold_batchnorm, materialise_shortcuts]))
    assert int(integer["lif2"].v_threshold) == 2 * 127 - 1
    assert set(np.unique(integer["lif2.shortcut_from.lif"].weight)) == {127}
    assert set(np.unique(integer["conv2"].weight)) == {32}
