"""The integer network in torch: the reference's spikes, sums and ranges exactly, and gradients that train it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snnkit.errors import NetworkError, UnsupportedError
from snnkit.network import Edge, Network
from snnkit.network.inputs import encode_inputs
from snnkit.training.integer import IntegerNetwork, Neurons, key
from snnkit_targets import reference
from tests.networks import integer_networks, raw_inputs
from tests.oracle import simulate
from tests.test_network import float_network, replace


def spikes_of(model: IntegerNetwork, x: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Rasters bool [T, B, *shape] by node, and readouts int64 [B, classes]."""
    rasters: dict[str, np.ndarray] = {}
    for node in model.net.neurons:

        def keep(_module: object, _inputs: object, out: torch.Tensor, name: str = node.name) -> None:
            rasters[name] = out.detach().numpy().astype(bool)

        model.layers[key(node.name)].register_forward_hook(keep)
    readout = model.readouts(torch.from_numpy(x)).sum(0).detach().numpy()
    return rasters, readout.astype(np.int64)


@given(st.one_of(integer_networks(), integer_networks(extreme=True)), st.integers(0, 9))
def test_spikes_and_readouts_are_the_references(net: Network, seed: int) -> None:
    """Also where sums wrap and voltages saturate, and while gradients are recorded."""
    x = raw_inputs(net, 3, seed)
    rasters, readout = spikes_of(IntegerNetwork(net), x)
    expected = reference.run(net, x, reference.Options(record="raster"))
    assert expected.rasters is not None
    for name, raster in expected.rasters.items():
        np.testing.assert_array_equal(rasters[name], raster, err_msg=name)
    np.testing.assert_array_equal(readout, expected.readouts)
