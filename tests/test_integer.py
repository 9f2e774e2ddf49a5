"""The integer network in torch: the reference's spikes, sums and ranges exactly, and gradients that train it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spikingjelly.activation_based import functional

from snnkit.errors import NetworkError, UnsupportedError
from snnkit.network import LIF, Affine, Edge, Input, Network, Readout, predictions, same
from snnkit.network.ranges import STATE_LIMIT, worst_case
from snnkit.quantization import observe
from snnkit.training.integer import IntegerNetwork, Neurons, key
from snnkit.training.neurons import SURROGATES
from snnkit_targets import reference
from tests.networks import integer_networks, raw_inputs
from tests.test_network import float_network

ANY = st.one_of(integer_networks(), integer_networks(extreme=True))


def spikes_of(model: IntegerNetwork, x: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Rasters bool [T, B, *shape] by node, and readouts int64 [B, classes]."""
    rasters: dict[str, np.ndarray] = {}
    for node in model.net.neurons:

        def keep(_module: object, _inputs: object, out: torch.Tensor, name: str = node.name) -> None:
            rasters[name] = out.detach().numpy().astype(bool)

        model.layers[key(node.name)].register_forward_hook(keep)
    readout = model.readouts(torch.from_numpy(x)).sum(0).detach().numpy()
    return rasters, readout.astype(np.int64)


@given(ANY, st.integers(0, 9))
def test_spikes_and_readouts_are_the_references(net: Network, seed: int) -> None:
    """Also where sums wrap and voltages saturate, and while gradients are recorded."""
    x = raw_inputs(net, 3, seed)
    rasters, readout = spikes_of(IntegerNetwork(net), x)
    expected = reference.run(net, x, reference.Options(record="raster"))
    assert expected.rasters is not None
    for name, raster in expected.rasters.items():
        np.testing.assert_array_equal(rasters[name], raster, err_msg=name)
    np.testing.assert_array_equal(readout, expected.readouts)


@given(ANY, st.integers(0, 9))
def test_what_is_observed_lies_within_the_worst_case_and_says_where_the_reference_overflows(
    net: Network, seed: int
) -> None:
    x = raw_inputs(net, 3, seed)
    observed, worst = observe(net, x), worst_case(net)
    overflows = reference.run(net, x, reference.Options()).overflows
    first = net.neurons[0].name  # behind the first that overflows, another input arrives than in the worst case
    wrapped = False  # the worst case is that without wrapping
    for what in ("sum", "u", "v"):
        seen, bound = getattr(observed[first], what), getattr(worst[first], what)
        wrapped |= what != "v" and not seen.fits
        if not wrapped:
            assert bound.low <= seen.low
            assert seen.high <= bound.high
        else:
            assert not worst[first].fits
    for name, count in overflows.items():
        ranges = observed[name]
        if ranges.sum.fits and ranges.u.high != STATE_LIMIT:  # which does not wrap yet
            assert (count > 0) == (not (ranges.u.fits and ranges.v.fits))


@given(ANY, st.integers(0, 9))
def test_the_range_of_the_readout_is_that_of_the_answers_so_far(net: Network, seed: int) -> None:
    x = raw_inputs(net, 3, seed)
    observed, worst, name = observe(net, x), worst_case(net), net.readout.name
    if net.readout.mode == "count":
        assert name not in observed.keys() | worst.keys()
        return
    answers = reference.run(net, x, reference.Options(record="raster")).readouts_per_step
    assert (observed[name].v.low, observed[name].v.high) == (64 * answers.min(), 64 * answers.max())
    for what in ("sum", "u", "v"):
        seen, bound = getattr(observed[name], what), getattr(worst[name], what)
        assert bound.low <= seen.low
        assert seen.high <= bound.high


@given(integer_networks(), st.integers(0, 9))
def test_what_is_trained_is_exported_as_it_is(net: Network, seed: int) -> None:
    """Weights and biases anywhere between integers, as training leaves them."""
    x = raw_inputs(net, 3, seed)
    model = IntegerNetwork(net)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.clip()
    rasters, readout = spikes_of(model, x)
    exported = model.network()
    assert not same(exported, net)
    expected = reference.run(exported, x, reference.Options(record="raster"))
    for name, raster in expected.rasters.items():
        np.testing.assert_array_equal(rasters[name], raster, err_msg=name)
    np.testing.assert_array_equal(readout, expected.readouts)
    np.testing.assert_array_equal(model.predict(torch.from_numpy(x), batch_size=2), predictions(expected))


@pytest.mark.parametrize("reset", ["zero", "subtract"])
@pytest.mark.parametrize("surrogate", list(SURROGATES))
@pytest.mark.parametrize("decay", [0, 2048, 1365])
def test_gradients_are_those_of_spikingjelly(decay: int, surrogate: str, reset: str) -> None:
    """In float units, up to what the fixed point truncates; the current is static in the second case."""
    scale = 5000.0
    node = LIF(
        name="lif",
        v_threshold=np.array(2 * scale - 1, np.int32),
        voltage_decay=np.array(decay, np.int32),
        reset=reset,
    )
    neurons = Neurons(node, 4, scale, surrogate, 3.0)
    generator = torch.Generator().manual_seed(0)
    for static in (False, True):
        current = torch.randn(1 if static else 4, 5, 6, generator=generator) * 0.8
        seeds = torch.randn(4, 5, 6, generator=generator)
        sums = (current * 2 * scale).round().requires_grad_()
        bias = torch.zeros(6, requires_grad=True)
        (neurons(sums, bias) * seeds).sum().backward()
        floats = (sums.detach() / (2 * scale)).requires_grad_()
        arguments = {"surrogate_function": SURROGATES[surrogate](alpha=3.0), "detach_reset": True}
        v_reset = 0.0 if reset == "zero" else None
        sequence, rest = floats.expand(4, 5, 6), torch.zeros(5, 6)
        if decay:
            spikes, _, _ = functional.lif_multi_step(sequence, rest, 4096 / decay, False, 1.0, v_reset, **arguments)
        else:
            spikes, _, _ = functional.if_multi_step(sequence, rest, 1.0, v_reset, **arguments)
        (spikes * seeds).sum().backward()
        torch.testing.assert_close(sums.grad * 2 * scale, floats.grad, atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(bias.grad, sums.grad.sum((0, 1)))


def test_recurrent_and_float_networks_are_refused() -> None:
    net = float_network()
    with pytest.raises(NetworkError, match="not quantised"):
        IntegerNetwork(net)
    loop = Affine(name="loop", inputs=(Edge("hidden", 1),), weight=np.eye(3, dtype=np.int8))
    way = Affine(name="way", inputs=(Edge("x"),), weight=np.eye(3, dtype=np.int8))
    lif = {"v_threshold": np.array(5, np.int32), "voltage_decay": np.array(0, np.int32)}
    hidden = LIF(name="hidden", inputs=(Edge("way"), Edge("loop")), **lif)
    nodes = (Input(name="x", shape=(3,), bits=1, encoding="events"), way, loop, hidden)
    recurrent = Network(nodes=(*nodes, Readout(name="out", mode="count", inputs=(Edge("hidden"),))), timesteps=3)
    with pytest.raises(UnsupportedError, match="recurrent"):
        IntegerNetwork(recurrent)
    assert observe(recurrent, np.ones((3, 2, 3), np.uint8)) == {}
