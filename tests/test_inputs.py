"""Where an input is not zero, found without encoding it: the same as encoding it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snnkit.network import Affine, Edge, Input, Network, Readout
from snnkit.network.inputs import encode_inputs, nonzero_inputs


def network(entry: Input) -> Network:
    head = Affine(name="fc", inputs=(Edge("x"),), weight=np.ones((2, *entry.shape), np.int8))
    return Network(timesteps=2, nodes=(entry, head, Readout(name="out", inputs=(Edge("fc"),))))


@given(
    bits=st.integers(0, 8),
    scale=st.sampled_from([1.0, 0.1, 2.0, 1e-3, 1e9, 1 / 15, 1 / 255]) | st.floats(1e-6, 3),
    zero_point=st.integers(0, 2),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
)
def test_direct_inputs(bits: int, scale: float, zero_point: int, dtype: type[np.floating]) -> None:
    net = network(Input(name="x", shape=(9,), bits=bits, scale=scale, zero_point=min(zero_point, 2**bits - 1)))
    edge = np.array(min(scale / 2, 1), dtype)  # where rounding turns to 1
    around = [edge]
    for limit in (-1, 2):
        for _ in range(3):
            around.append(np.nextafter(around[-1] if len(around) % 3 != 1 else edge, np.array(limit, dtype)))
    x = np.clip(np.array([0, 1, *around], dtype), 0, 1).reshape(1, 9)
    np.testing.assert_array_equal(nonzero_inputs(net, x), encode_inputs(net, x) != 0)


@pytest.mark.parametrize("bits", [1, 3])
def test_events(bits: int) -> None:
    net = network(Input(name="x", shape=(4,), encoding="events", bits=bits))
    events = np.random.default_rng(0).integers(0, 2**bits, (2, 50, 4)).astype(np.uint8)
    np.testing.assert_array_equal(nonzero_inputs(net, events), encode_inputs(net, events) != 0)
