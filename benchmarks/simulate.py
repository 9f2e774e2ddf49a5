"""Simulation speed of integer networks: the reference, stock Lava, and Lava with its convolution as an exact product.

python benchmarks/simulate.py [--quick] [--json] [--rounds N] [--threads N] [--without-lava]

Everything is measured in turns in one run, and printed as ratios and as a share of the rate at which the same machine
multiplies large float32 matrices. Beside the reference stand the sums of its synapses alone, which no neuron update can
beat, and what counting the operations adds. Lava's start is not part of its time; its readouts must equal the
reference's. Exits 1 where they do not, or below the floors.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import snnkit
from snnkit.analysis.counts import Counter
from snnkit.network import LIF, Affine, Conv2d, Edge, Flatten, Input, Network, Node, Readout, infer_shapes
from snnkit.network.ir import Array
from snnkit_targets import lava, reference

TIMESTEPS = 4
DECAYS = {"IF": 0, "LIF, decay 2048": 2048, "LIF, decay 1365": 1365}
FLOOR_SHARE = 0.2  # of the matmul rate, by the reference on the largest network with IF neurons
MATMUL, SIZES = "matmul", (512, 1024, 1536)
ALONE, CHUNKS = "its synapses alone", (1, 2, 4, 8, 32, 128)
CEILING_COUNTS = 0.2  # of the reference's time, by counting


class Builder:
    """A chain of layers with random 8-bit weights, each with a threshold that some of its neurons reach."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[Node] = [Input(name="input", shape=shape, bits=4, scale=1 / 15)]

    def _last(self) -> tuple[Edge]:
        return (Edge(self.nodes[-1].name),)

    def _weight(self, *shape: int) -> Array:
        return self.rng.integers(-64, 65, shape).astype(np.int8)

    def _neurons(self, threshold: int) -> None:
        name, values = f"neurons{len(self.nodes)}", np.array(threshold, np.int32)
        self.nodes.append(LIF(name=name, inputs=self._last(), v_threshold=values, voltage_decay=np.array(0, np.int32)))

    def conv(self, inputs: int, outputs: int, stride: int, threshold: int) -> "Builder":
        """A 3x3 convolution and its neurons."""
        weight, pair = self._weight(outputs, inputs, 3, 3), (stride, stride)
        self.nodes.append(
            Conv2d(
                name=f"conv{len(self.nodes)}",
                inputs=self._last(),
                weight=weight,
                weight_exponent=1,
                stride=pair,
                padding=(1, 1),
            )
        )
        self._neurons(threshold)
        return self

    def dense(self, inputs: int, outputs: int, threshold: int) -> "Builder":
        """A dense layer and its neurons."""
        weight = self._weight(outputs, inputs)
        self.nodes.append(Affine(name=f"dense{len(self.nodes)}", inputs=self._last(), weight=weight, weight_exponent=1))
        self._neurons(threshold)
        return self

    def network(self, features: int, *, flatten: bool = True) -> Network:
        """With a dense head of 10 classes."""
        if flatten:
            self.nodes.append(Flatten(name="flatten", inputs=self._last()))
        head = Affine(name="head", inputs=self._last(), weight=self._weight(10, features), weight_exponent=1)
        return Network(nodes=(*self.nodes, head, Readout(name="out", inputs=(Edge("head"),))), timesteps=TIMESTEPS)


def networks() -> dict[str, Network]:
    """A small dense one, a small convolutional one, and one of CIFAR's size."""
    return {
        "784-128-10": Builder((784,)).dense(784, 128, 8000).network(128, flatten=False),
        "28x28, conv16 s2, conv32 s2, dense10": Builder((1, 28, 28))
        .conv(1, 16, 2, 1000)
        .conv(16, 32, 2, 1000)
        .network(32 * 49),
        "32x32x3, conv64, conv64 s2, conv64 s2, dense10": Builder((3, 32, 32))
        .conv(3, 64, 1, 3000)
        .conv(64, 64, 2, 1500)
        .conv(64, 64, 2, 1000)
        .network(64 * 64),
    }


def with_decay(net: Network, decay: int) -> Network:
    """The same network with leaky neurons."""
    values = np.array(decay, np.int32)
    nodes = tuple(dataclasses.replace(n, voltage_decay=values) if isinstance(n, LIF) else n for n in net.nodes)
    return dataclasses.replace(net, nodes=nodes)


def flop(net: Network) -> int:
    """Of an inference, two a multiply-accumulate, dense, the first layer once."""
    dense = list(Counter(net).dense.values())
    return 2 * (dense[0] + net.timesteps * sum(dense[1:]))


def in_turns(works: dict[str, tuple[Callable[[], object], float]], rounds: int) -> dict[str, float]:
    """Of each work, done ``amount`` at a time, the amount a second in its best of several rounds, after one more.

    All take turns, so that they see the same machine.
    """
    shortest = dict.fromkeys(works, float("inf"))
    for turn in range(1 + rounds):
        for label, (work, _) in works.items():
            start = time.perf_counter()
            work()
            if turn:
                shortest[label] = min(shortest[label], time.perf_counter() - start)
    return {label: amount / shortest[label] for label, (_, amount) in works.items()}


def synapses_alone(net: Network) -> dict[str, tuple[Callable[[], object], float]]:
    """The weighted sums by themselves, of 1 to 128 samples at once."""
    shapes = infer_shapes(net)
    works: dict[str, tuple[Callable[[], object], float]] = {}
    for chunk in CHUNKS:
        calls = []
        for index, node in enumerate(net.synapses):
            images = chunk * (1 if index == 0 else net.timesteps)
            x = (torch.rand(images, *shapes[node.inputs[0].source]) < 0.2).float()
            weight = torch.tensor(node.effective_weight, dtype=torch.float32)
            if isinstance(node, Conv2d):
                x, weight = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, weight))
            calls.append((node, x, weight))
        repeat = max(1, 32 // chunk)

        def work(calls: list[Any] = calls, repeat: int = repeat) -> None:
            with torch.inference_mode():
                for node, x, weight in calls * repeat:
                    if isinstance(node, Conv2d):
                        F.conv2d(x, weight, None, node.stride, node.padding)
                    else:
                        F.linear(x, weight)

        works[f"{ALONE}, {chunk} at once"] = work, repeat * chunk
    return works


def counting(net: Network, x: Array) -> float:
    """The time that counting takes, as a share of the time that the run takes."""
    counter, running, counted = Counter(net), 0.0, 0.0
    start = time.perf_counter()
    for inputs, trace in reference.stream(net, x, reference.Options()):
        middle = time.perf_counter()
        counter.count(inputs, trace)
        running, counted, start = running + middle - start, counted + time.perf_counter() - middle, time.perf_counter()
    return counted / running


def on_lava(net: Network, x: Array, convolution: str) -> float:
    """Samples a second, without Lava's start; raises where a readout differs from the reference's."""
    trace = snnkit.run(net, x, "lava", convolution=convolution)
    if not np.array_equal(trace.readouts, snnkit.run(net, x).readouts):
        raise SystemExit("Lava and the reference differ")
    return len(x) / trace.seconds


def measure(name: str, net: Network, *, quick: bool, rounds: int, with_lava: bool) -> dict[str, Any]:
    """Rates of one network, in samples a second, and what they amount to."""
    small = flop(net) < 2e7
    samples = (2000 if small else 64) // (8 if quick else 1)
    x = np.random.default_rng(1).random((samples, *net.input.shape), dtype=np.float32)
    works = synapses_alone(net)
    for label, decay in DECAYS.items():
        variant = with_decay(net, decay)
        works[f"reference, {label}"] = (lambda variant=variant: snnkit.run(variant, x)), samples
    for size in SIZES:
        a, b = torch.rand(2, size, size)
        works[f"{MATMUL} {size}"] = (lambda a=a, b=b: a @ b), 2 * size**3
    rates = in_turns(works, rounds)
    peak, alone = (max(rates.pop(label) for label in list(rates) if label.startswith(what)) for what in (MATMUL, ALONE))
    result: dict[str, Any] = {
        "network": name,
        "firing_rates": snnkit.run(net, x[:16]).firing_rates(),
        "mflop": flop(net) / 1e6,
        "matmul_gflops": peak / 1e9,
        "samples_per_second": rates | {ALONE: alone},
        "share_of_matmul": {label: rate * flop(net) / peak for label, rate in rates.items()}
        | {ALONE: alone * flop(net) / peak},
        "share_of_synapses": {label: rate / alone for label, rate in rates.items()},
        "counting": min(counting(net, x) for _ in range(rounds)),
        "ratios": {},
    }
    if with_lava:
        reference_rate = rates["reference, IF"]
        exact = on_lava(net, x[: 4 if quick else 40], "gemm")
        stock = on_lava(net, x[: 1 if quick else 40 if small else 2], "stock")
        result["samples_per_second"] |= {"Lava, exact matrix product": exact, "Lava, stock": stock}
        result["ratios"] = {
            "reference / Lava, exact matrix product": reference_rate / exact,
            "reference / Lava, stock": reference_rate / stock,
            "Lava, exact matrix product / stock": exact / stock,
        }
    return result


def show(result: dict[str, Any]) -> None:
    """A few lines for one network."""
    fired = ", ".join(f"{100 * rate:.0f} %" for rate in result["firing_rates"].values())
    print(f"{result['network']}: T={TIMESTEPS}, {result['mflop']:.1f} MFLOP a sample, firing rates {fired}")
    print(f"  large float32 matrix products: {result['matmul_gflops']:.0f} GFLOP/s")
    for label, rate in result["samples_per_second"].items():
        notes = []
        if label in result["share_of_matmul"]:
            notes.append(f"; {result['share_of_matmul'][label]:.3f} of the matmul rate")
        if label in result["share_of_synapses"]:
            notes.append(f"; {result['share_of_synapses'][label]:.2f} of {ALONE}")
        print(f"  {label}: {rate:,.1f} samples/s{''.join(notes)}")
    for label, ratio in result["ratios"].items():
        print(f"  {label}: {ratio:,.1f}")
    print(f"  counting the operations adds {100 * result['counting']:.1f} % to the reference's time")


def main() -> int:
    """Measures all three networks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few samples, no verdict on speed")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=9, help="the best of so many")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--without-lava", action="store_true", help="the reference alone")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    missing = "not asked for" if arguments.without_lava else lava.available()
    if missing and not arguments.json:
        print(f"Lava: not run, {missing}")
    results = []
    for name, net in networks().items():
        rounds = 1 if arguments.quick else arguments.rounds
        results.append(measure(name, net, quick=arguments.quick, rounds=rounds, with_lava=not missing))
        if not arguments.json:
            show(results[-1])
    share = results[-1]["share_of_matmul"]["reference, IF"]
    counted = results[-1]["counting"]
    passed = share >= FLOOR_SHARE and counted < CEILING_COUNTS
    if arguments.json:
        print(json.dumps({"threads": arguments.threads, "lava": missing, "networks": results, "passed": passed}))
    else:
        floor = f"floor {FLOOR_SHARE} of the matmul rate: {share:.2f}"
        print(f"{floor}; ceiling {CEILING_COUNTS} for counting: {counted:.3f}; {arguments.threads} threads")
    return 0 if passed or arguments.quick else 1


if __name__ == "__main__":
    sys.exit(main())
