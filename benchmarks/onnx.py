"""ONNX Runtime on ResNet-18, T=4, CIFAR's shapes: every form beside eager torch and the machine's matrix products.

python benchmarks/onnx.py [--quick] [--json] [--threads N] [--batch N ...]

All are measured in turns in one run: images a second, and the share of the rate at which the same machine multiplies
large matrices, as many as take an inference's operations, in torch or in ONNX Runtime, whichever is faster. A step is
one timestep; its time stands against a quarter of the unrolled form's. Exits 1 where a goal is missed.
"""

import sys

sys.path.pop(0)  # this folder, in which this file would be found as the package onnx

import argparse
import json
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper

from snnkit.config import load_config
from snnkit.network import Network, apply, fold_batchnorm, fold_pooling, infer_shapes, materialise_shortcuts, quantize
from snnkit.training.lower import lower
from snnkit.training.models import build_student
from snnkit_exporters import onnx as exporter
from snnkit_targets.onnxruntime import DTYPES

TIMESTEPS, CLASSES = 4, 100
SHARE_FLOOR, STEP_CEILING = 0.9, 1.3  # of matrix products, unrolled float32 from batch 16; a step against unrolled
MATRIX = 1536


def student() -> torch.nn.Module:
    """ResNet-18 with random weights, normalised so that every layer fires."""
    torch.manual_seed(0)
    config = load_config(None, ["student.model=resnet18", f"student.timesteps={TIMESTEPS}"])
    net = build_student((3, 32, 32), CLASSES, config.student).train()
    norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # plain means
    with torch.no_grad():
        for _ in range(5):
            net(torch.rand(8, 3, 32, 32))
    for norm in norms:
        norm.weight.data *= 2.5
    return net.eval()


def caller(net: Network, form: Any, synapses: Any, threads: int, batch: int) -> Callable[[], object]:
    """One call of the exported graph: a whole inference, or one timestep of ``step``."""
    running = session(exporter.build(net, exporter.Options(form=form, synapses=synapses)), threads)
    x = net.input.encode(np.random.default_rng(0).random((batch, 3, 32, 32), dtype=np.float32))
    known = {i.name: np.zeros((batch, *i.shape[1:]), DTYPES[i.type]) for i in running.get_inputs()}
    feeds = {**known, "input": x}
    if "timesteps" in known:
        feeds["timesteps"] = np.array([TIMESTEPS])
    return lambda: running.run(None, feeds)


def product(a: torch.Tensor, b: torch.Tensor, threads: int, times: int) -> Callable[[], object]:
    """ONNX Runtime's products of two square matrices, which take other instructions than torch's on some processors."""
    size = list(a.shape)
    left, right, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name in "abc")
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", [left, right], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    running = session(model, threads)
    feeds = {"a": a.numpy(), "b": b.numpy()}
    return lambda: [running.run(None, feeds) for _ in range(times)]


def session(model: onnx.ModelProto, threads: int) -> ort.InferenceSession:
    """A session whose threads rest between calls, or they slow the next contender."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])


def flop_per_image(net: Network) -> float:
    """Multiplications and additions of all synapses at every timestep, the stem's too."""
    shapes = infer_shapes(net)
    positions = {node.name: math.prod(shapes[node.name][1:]) for node in net.synapses}
    return 2.0 * net.timesteps * sum(node.weight.size * positions[node.name] for node in net.synapses)


def seconds(work: Callable[[], object]) -> float:
    """The time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(nets: dict[str, Network], model: torch.nn.Module, batch: int, threads: int, rounds: int) -> dict[str, Any]:
    """The best time of each contender over ``rounds`` turns."""
    a, b = torch.rand(MATRIX, MATRIX), torch.rand(MATRIX, MATRIX)
    images = torch.rand(batch, 3, 32, 32)
    flop = flop_per_image(nets["float"])
    products = math.ceil(batch * flop / (2 * MATRIX**3))  # as long as an inference, so that a busy machine slows both
    contenders: dict[str, Callable[[], object]] = {
        "matrix products, torch": lambda: [a @ b for _ in range(products)],
        "matrix products, ONNX Runtime": product(a, b, threads, products),
        "torch eager, float": lambda: model(images),
    }
    for kind, net in nets.items():
        for form in ("unrolled", "step", "scan"):
            for synapses in ("float32", "int8") if kind == "integer" else ("float32",):
                contenders[f"{form}, {kind}, {synapses}"] = caller(net, form, synapses, threads, batch)
    best = dict.fromkeys(contenders, float("inf"))
    with torch.inference_mode():
        for turn in range(1 + rounds):  # the first turn warms up
            for name, work in contenders.items():
                taken = seconds(work)
                best[name] = min(best[name], taken if turn else float("inf"))
    rates = {
        name: 2 * MATRIX**3 * products / best.pop(name) for name in list(best) if name.startswith("matrix products")
    }
    peak = max(rates.values())
    images_per_second = {
        name: batch / (taken * (TIMESTEPS if name.startswith("step") else 1)) for name, taken in best.items()
    }
    return {
        "batch": batch,
        "threads": threads,
        "matmul_gflops": {name: rate / 1e9 for name, rate in rates.items()},
        "images_per_second": images_per_second,
        "share_of_matmul": {name: rate * flop / peak for name, rate in images_per_second.items()},
        "step_over_unrolled": {
            kind: images_per_second[f"unrolled, {kind}, float32"] / images_per_second[f"step, {kind}, float32"]
            for kind in nets
        },
    }


def main() -> int:
    """Measures every batch size, prints, and says whether the goals are met."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="batch 2, one round, no verdict")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    batches, rounds = ([2], 1) if arguments.quick else (arguments.batch, arguments.rounds)
    torch.set_num_threads(arguments.threads)
    model = student()
    net = lower(model, (3, 32, 32), timesteps=TIMESTEPS)
    folded = apply(net, [fold_batchnorm, materialise_shortcuts, fold_pooling])
    nets = {"float": net, "integer": quantize(folded)}
    results = []
    for batch in batches:
        result = measure(nets, model, batch, arguments.threads, rounds)
        results.append(result)
        if not arguments.json:
            print(f"batch {batch}, {arguments.threads} threads")
            for name, rate in result["matmul_gflops"].items():
                print(f"  {name:28s} {rate:7.0f} GFLOP/s")
            for name, rate in result["images_per_second"].items():
                print(
                    f"  {name:28s} {rate:7.2f} images/s, {result['share_of_matmul'][name]:.2f} of the faster products"
                )
            for kind, ratio in result["step_over_unrolled"].items():
                print(f"  a step of the {kind} network over a timestep unrolled: {ratio:.2f}")
    large = [result for result in results if result["batch"] >= 16]
    shares = [result["share_of_matmul"][f"unrolled, {kind}, float32"] for result in large for kind in nets]
    ratios = [ratio for result in large for ratio in result["step_over_unrolled"].values()]
    passed = min(shares, default=1.0) >= SHARE_FLOOR and max(ratios, default=1.0) <= STEP_CEILING
    if arguments.json:
        print(json.dumps({"results": results, "passed": passed}))
    elif large:
        goals = f"{SHARE_FLOOR} of matrix products, a step within {STEP_CEILING}"
        print(f"goals, {goals}: {'met' if passed else 'NOT MET'}")
    return 0 if passed or arguments.quick else 1


if __name__ == "__main__":
    sys.exit(main())
