"""Planted faults are found: layer, timestep and cause, in a simulator that shares no code with the diagnosis."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snnkit.analysis.compare import compare
from snnkit.analysis.diagnose import diagnose
from snnkit.analysis.replay import REFERENCE, Layer
from snnkit.network import LIF, Affine, Conv2d, Edge, Flatten, Input, Network, Readout, infer_shapes, verify
from snnkit.network.inputs import encode_inputs
from snnkit_targets import reference
from tests.faulty import Fault, simulate
from tests.networks import integer_networks, raw_inputs

RASTER = reference.Options(record="raster")


@settings(max_examples=40)
@given(net=integer_networks(), extreme=integer_networks(extreme=True), seed=st.integers(0, 100))
def test_a_replayed_layer_is_the_reference(net, extreme, seed):
    for network in (net, extreme):
        raw = raw_inputs(network, 3, seed)
        trace = reference.run(network, raw, RASTER)
        shapes = infer_shapes(network)
        for node in network.neurons:
            layer = Layer(network, node, encode_inputs(network, raw), trace.rasters, shapes[node.name])
            np.testing.assert_array_equal(layer.run(REFERENCE).spikes, trace.rasters[node.name])


def test_the_faulty_simulator_without_a_fault_is_the_reference():
    for reset in ("zero", "subtract"):
        for encoding in ("direct", "events"):
            net = network(encoding=encoding, reset=reset, delay=1)
            raw = raw_inputs(net, 6)
            assert compare(net, reference.run(net, raw, RASTER), simulate(net, raw, Fault())).identical


def network(
    *, encoding="events", reset="zero", decay=1365, current=4096, delay=0, exponent=0, last=None, bias=True, weights=90
):
    """Two convolutions with a shortcut between, and a head; ``delay`` on the shortcut, ``last`` the last threshold."""
    rng = np.random.default_rng(3)

    def weight(*shape):
        return rng.integers(-2 * weights // 3, weights, shape).astype(np.int8)

    def lif(name, theta, *sources):
        return LIF(
            name=name,
            inputs=tuple(Edge(source) for source in sources),
            v_threshold=np.array(theta, np.int32),
            voltage_decay=np.array(decay, np.int32),
            current_decay=np.array(current, np.int32),
            reset=reset,
        )

    def biases(size):
        return rng.integers(-weights // 3, weights // 2, size).astype(np.int32) if bias else None

    direct = encoding == "direct"
    scale = 2**exponent * weights / 90
    entry = Input(
        name="in", shape=(2, 6, 6), encoding=encoding, bits=4 if direct else 1, scale=1 / 15 if direct else 1.0
    )
    nodes = (
        entry,
        Conv2d(name="c1", inputs=(Edge("in"),), weight=weight(4, 2, 3, 3), bias=biases(4), padding=(1, 1),
               weight_exponent=exponent),
        lif("n1", round((1500 if direct else 150) * scale), "c1"),
        Conv2d(name="c2", inputs=(Edge("n1"),), weight=weight(4, 4, 3, 3), bias=biases(4), padding=(1, 1),
               weight_exponent=exponent),
        Conv2d(name="skip", inputs=(Edge("n1", delay),), weight=weight(4, 4, 1, 1), weight_exponent=exponent),
        lif("n2", last or round(260 * scale), "c2", "skip"),
        Flatten(name="flat", inputs=(Edge("n2"),)),
        Affine(name="head", inputs=(Edge("flat"),), weight=weight(5, 144), bias=biases(5)),
        Readout(name="out", inputs=(Edge("head"),)),
    )  # fmt: skip
    net = Network(nodes=nodes, timesteps=5)
    assert verify(net) == "integer"
    return net


class NotStrict(Fault):
    def fires(self, v, limit):
        return v >= limit


class Higher(Fault):
    def fires(self, v, limit):
        return v > limit + 64


class OtherReset(Fault):
    def reset(self, v, limit, kind):
        return v - limit if kind == "zero" else 0 * v


class NoReset(Fault):
    def reset(self, v, limit, kind):
        return v


class NeverCleared(Fault):
    def clears(self):
        return False


class Floor(Fault):
    def decay(self, x, factor):
        return (x * (4096 - factor)) >> 12


class Nearest(Fault):
    def decay(self, x, factor):
        return (x * (4096 - factor) + 2048) >> 12


class NoLeak(Fault):
    def decay(self, x, factor):
        return x if factor < 4096 else 0 * x


class VoltageWraps(Fault):
    def voltage(self, v):
        return (v + 2**23) % 2**24 - 2**23


class SixteenBits(Fault):
    def voltage(self, v):
        return np.clip(v, 1 - 2**15, 2**15 - 1)

    def current(self, u):
        return np.clip(u, 1 - 2**15, 2**15 - 1)

    def sums(self, a):
        return (a + 2**15) % 2**16 - 2**15


class CurrentSaturates(Fault):
    def current(self, u):
        return np.clip(u, 1 - 2**23, 2**23 - 1)


class NothingWraps(Fault):
    def current(self, u):
        return u

    def sums(self, a):
        return a


class Late(Fault):
    def arrived(self, t, name, values):
        return values[t - 1] if t else 0 * values[t]


class Truncated(Fault):
    def encode(self, net, raw):
        return np.clip(np.floor(raw.astype(np.float64) / net.input.scale), 0, 15)


class Transposed(Fault):
    def encode(self, net, raw):
        return encode_inputs(net, np.swapaxes(raw, -1, -2))


class Swapped(Fault):
    def encode(self, net, raw):
        return encode_inputs(net, raw[..., ::-1, :, :].copy())


class NoBias(Fault):
    def bias(self, bias, t):
        return 0 * bias


class BiasOnce(Fault):
    def bias(self, bias, t):
        return bias * (t == 0)


HUGE = {"exponent": 7, "last": 100_000}
SMALL = {"weights": 9, "decay": 700, "current": 3000}
CASES = {
    "fires at the threshold": (NotStrict, ["n1"], {"bias": False, "decay": 0}, "n1", "threshold"),
    "fires at the threshold, everywhere": (NotStrict, [], {"decay": 0}, "n1", "threshold"),
    "a threshold too high": (Higher, ["n2"], {}, "n2", "threshold"),
    "soft reset": (OtherReset, ["n2"], {}, "n2", "reset"),
    "hard reset": (OtherReset, ["n1"], {"reset": "subtract"}, "n1", "reset"),
    "no reset": (NoReset, ["n1"], {}, "n1", "reset"),
    "never cleared": (NeverCleared, [], {}, "n1", "reset"),
    "decay rounded down": (Floor, ["n1", "n2"], SMALL, None, "rounding"),
    "decay rounded to nearest": (Nearest, ["n2"], SMALL, "n2", "rounding"),
    "no leak": (NoLeak, ["n2"], {}, "n2", "decay"),
    "v wraps": (VoltageWraps, ["n2"], {**HUGE, "decay": 0}, "n2", "saturation"),
    "16 bits": (SixteenBits, ["n1", "c1"], {"exponent": 1}, "n1", "saturation"),
    "u saturates": (CurrentSaturates, ["n2"], {**HUGE, "current": 200}, "n2", "wrap"),
    "nothing wraps": (NothingWraps, ["n2", "c2"], {**HUGE, "current": 200}, "n2", "wrap"),
    "one layer late": (Late, ["c1"], {}, "n1", "delay"),
    "the shortcut late": (Late, ["skip"], {}, "n2", "delay"),
    "input cut off": (Truncated, [], {"encoding": "direct"}, "n1", "input"),
    "input transposed": (Transposed, [], {}, "n1", "input"),
    "polarities swapped": (Swapped, [], {}, "n1", "input"),
    "no bias": (NoBias, ["n2"], {}, "n2", "bias"),
    "bias once": (BiasOnce, ["n1"], {}, "n1", "bias"),
}


@pytest.mark.parametrize("name", CASES)
def test_planted_faults_are_named(name):
    fault, layers, options, node, cause = CASES[name]
    net = network(**options)
    raw = raw_inputs(net, 48)
    right = reference.run(net, raw, RASTER)
    wrong = simulate(net, raw, fault(layers=tuple(layers)))
    agreement = compare(net, right, wrong)
    found = diagnose(net, raw, right, wrong, agreement)
    assert not agreement.identical
    first = min(
        int(np.argwhere(right.rasters[n.name] != wrong.rasters[n.name])[:, 0].min(initial=99)) for n in net.neurons
    )
    assert found.divergence.timestep == first
    assert found.divergence.node == (node or found.divergence.node)
    assert found.diagnosis.cause == cause, found.diagnosis
    assert found.diagnosis.faulty == "faulty"
    assert not found.diagnosis.also, found.diagnosis
    ours, theirs = found.diagnosis.sides
    assert ours.spike != theirs.spike
    assert (ours.v > found.diagnosis.threshold) == ours.spike
    mirrored = diagnose(net, raw, wrong, right, compare(net, wrong, right)).diagnosis
    assert (mirrored.cause, mirrored.faulty) == (cause, "faulty")
