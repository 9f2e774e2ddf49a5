"""The integer network in torch: the reference's spikes, sums and ranges exactly, and gradients that train it."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from snnkit.network import Network
from snnkit.network.ranges import STATE_LIMIT, worst_case
from snnkit.quantization import observe
from snnkit.training.integer import IntegerNetwork, key
from snnkit_targets import reference
from tests.networks import integer_networks, raw_inputs

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
    for what in ("sum", "u", "v"):
        seen, bound = getattr(observed[first], what), getattr(worst[first], what)
        if observed[first].sum.fits:
            assert bound.low <= seen.low
            assert seen.high <= bound.high
    for name, ranges in observed.items():
        if ranges.sum.fits and ranges.u.high != STATE_LIMIT:  # which does not wrap yet
            assert (overflows[name] > 0) == (not (ranges.u.fits and ranges.v.fits))
