"""Runs of many samples with counts: memory does not grow with them, and the numbers are those of batches of 1."""

import dataclasses
import functools
import json
import math
import operator
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snnkit import pipeline, plugins
from snnkit.analysis.chips import load_chip
from snnkit.analysis.counts import Counter, OpCounts, count
from snnkit.analysis.mapping import map_network
from snnkit.errors import DataError
from snnkit.network import LIF, Affine, Conv2d, Edge, Flatten, Input, Network, Readout, Trace, save, verify
from snnkit.network.ir import Array, infer_shapes
from snnkit.pipeline import Samples, check, energy, evaluate
from snnkit_targets import reference
from tests.golden import GOLDEN
from tests.networks import integer_networks, raw_inputs
from tests.test_data_files import real

LIMIT = 2 * 2**30  # bytes above what importing torch takes

MEASURE = """
import resource, sys
import torch
torch.set_num_threads(1)
peak = lambda: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
import json
from snnkit.network import load
from snnkit.training.data import load_dataset
from tests.test_memory import counts_of
counts = counts_of(load(sys.argv[1]), load_dataset("fashion-mnist").test.x)
print(json.dumps({"bytes": peak() - before, "counts": counts.to_json()}))
"""


def counts_of(net: Network, x: Array) -> OpCounts:
    return energy(net, Samples(x, None, "images"), ["loihi1-davies2018"])[0]


def fashion_network() -> Network:
    """Three convolutions of 16, 32 and 32 channels at T=4, as the example for Fashion-MNIST trains them."""
    rng = np.random.default_rng(0)

    def conv(name: str, source: str, outputs: int, inputs: int, stride: int) -> Conv2d:
        weight = rng.integers(-64, 65, (outputs, inputs, 3, 3)).astype(np.int8)
        return Conv2d(
            name=name,
            inputs=(Edge(source),),
            weight=weight,
            weight_exponent=1,
            stride=(stride, stride),
            padding=(1, 1),
        )

    def lif(name: str, source: str) -> LIF:
        threshold, decay = np.array(900, np.int32), np.array(1365, np.int32)
        return LIF(name=name, inputs=(Edge(source),), v_threshold=threshold, voltage_decay=decay)

    head = rng.integers(-64, 65, (10, 32 * 7 * 7)).astype(np.int8)
    return Network(
        timesteps=4,
        nodes=(
            Input(name="pixels", shape=(1, 28, 28), bits=4, scale=1 / 15),
            conv("conv1", "pixels", 16, 1, 1),
            lif("lif1", "conv1"),
            conv("conv2", "lif1", 32, 16, 2),
            lif("lif2", "conv2"),
            conv("conv3", "lif2", 32, 32, 2),
            lif("lif3", "conv3"),
            Flatten(name="flat", inputs=(Edge("lif3"),)),
            Affine(name="head", inputs=(Edge("flat"),), weight=head, weight_exponent=1),
            Readout(name="out", inputs=(Edge("head"),)),
        ),
    )


@given(integer_networks())
@settings(max_examples=20)
def test_counts_equal_those_of_single_samples(net: Network) -> None:
    inputs = raw_inputs(net, samples=7)
    direct = net.input.encoding == "direct"
    singles = [inputs[i : i + 1] if direct else inputs[:, i : i + 1] for i in range(7)]
    parts = [count(net, x, reference.run(net, x, reference.Options())) for x in singles]
    assert counts_of(net, inputs) == functools.reduce(operator.add, parts)


@given(integer_networks())
@settings(max_examples=20)
def test_one_target_alone_keeps_no_spikes_of_single_samples(net: Network) -> None:
    """What 'snnkit run' prints of one target is that of the whole trace, without its counts of every sample."""
    inputs = raw_inputs(net, samples=7)
    samples = Samples(inputs, np.arange(7) % 2, "random")
    whole = reference.run(net, inputs, reference.Options())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "PIECE_BYTES", 1)
        ((alone,), _) = evaluate(net, samples, ["reference"], ["reference.chunk=2"])
        (mapping,) = check(net, ["loihi2"], samples)
    for name, counts in alone.trace.spikes_per_neuron.items():
        np.testing.assert_array_equal(counts, whole.spikes_per_neuron[name].sum(axis=0, keepdims=True))
        np.testing.assert_array_equal(alone.trace.spikes_per_step[name], whole.spikes_per_step[name])
    np.testing.assert_array_equal(alone.trace.readouts, whole.readouts)
    assert alone.trace.firing_rates() == whole.firing_rates()
    assert alone.trace.spikes_per_inference == whole.spikes_per_inference
    assert (alone.trace.overflows, alone.trace.steps) == (whole.overflows, whole.steps)
    assert mapping == map_network(net, load_chip("loihi2"), whole)


@pytest.mark.parametrize("targets", [["reference"], ["reference", "onnxruntime"]])
@pytest.mark.parametrize(
    ("shape", "fault"), [((0, 1, 6, 6), "holds no samples"), ((1, 6, 6), r"shape \(1, 6, 6\)"), ((), r"shape \(\)")]
)
def test_samples_that_are_none_are_refused(targets: list[str], shape: tuple[int, ...], fault: str) -> None:
    net = next(net for net in GOLDEN.values() if net.input.shape == (1, 6, 6) and verify(net) == "integer")
    with pytest.raises(DataError, match=fault):
        evaluate(net, Samples(np.zeros(shape, np.float32), None, "mine"), targets)


@given(integer_networks(), st.integers(1, 3), st.lists(st.tuples(*[st.integers(0, 9)] * 4), max_size=4))
@settings(max_examples=30)
def test_targets_are_compared_in_pieces_as_they_are_at_once(
    net: Network, size: int, faults: list[tuple[int, int, int, int]]
) -> None:
    """With a target that is wrong about single spikes: at a timestep, of a node, of a sample, of a neuron."""
    inputs = raw_inputs(net, samples=7)
    samples = Samples(inputs, np.arange(7) % 2, "random")
    neurons = sum(math.prod(infer_shapes(net)[node.name]) for node in net.neurons)
    other = SimpleNamespace(**vars(reference))
    ran = 0

    def run(net: Network, x: np.ndarray, options: reference.Options) -> Trace:
        nonlocal ran
        trace = reference.run(net, x, options)
        rasters = {name: raster.copy() for name, raster in (trace.rasters or {}).items()}
        for t, node, sample, neuron in faults:
            if ran <= sample % 7 < ran + trace.samples:
                raster = rasters[net.neurons[node % len(net.neurons)].name]
                spike = raster[t % net.timesteps, sample % 7 - ran].reshape(-1)
                spike[neuron % len(spike)] ^= True
        ran = (ran + trace.samples) % 7
        return dataclasses.replace(trace, target="other", rasters=rasters)

    other.run = run
    module = plugins._module
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "_module", lambda kind, name: other if name == "other" else module(kind, name))
        whole, expected = evaluate(net, samples, ["reference", "other"], rasters=True)
        patch.setattr(pipeline, "RASTERS", 2 * net.timesteps * neurons * size)
        results, found = evaluate(net, samples, ["reference", "other"])
    assert [dataclasses.replace(a, diagnosis=None) for a in found] == [
        dataclasses.replace(a, diagnosis=None) for a in expected
    ]
    assert (found[0].diagnosis is None) == (expected[0].diagnosis is None)
    for one, all_at_once in zip(results, whole, strict=True):
        assert one.trace.rasters is None
        assert one.accuracy == all_at_once.accuracy
        assert one.to_json() | {"seconds": 0} == all_at_once.to_json() | {"seconds": 0}


def test_a_large_set_is_streamed(tmp_path: Path) -> None:
    """In a process of its own, whose peak is measured: what a trace of all samples would keep is 1 GB by itself."""
    images = real("fashion-mnist").test.x
    net = fashion_network()
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(save(net, tmp_path / "net.safetensors"))],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["counts"]["samples"] == len(images) == 10_000
    assert found["bytes"] < LIMIT


@pytest.mark.slow
def test_ten_thousand_samples_equal_ten_thousand_batches_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    images, net = real("fashion-mnist").test.x, fashion_network()
    whole, counter = counts_of(net, images), Counter(net)
    monkeypatch.setattr(reference, "PIECE_BYTES", 1)
    stream = reference.stream(net, images, reference.Options(chunk=1))
    singles = [counter.count(x, trace) for x, trace in stream]
    assert [counts.samples for counts in singles] == [1] * 10_000
    assert functools.reduce(operator.add, singles) == whole
