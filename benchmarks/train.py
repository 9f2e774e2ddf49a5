"""Training speed on ResNet-18, T=4, CIFAR's shapes: SpikingJelly's neurons in a loop over time, and snnkit's path.

python benchmarks/train.py [--quick] [--json] [--device cpu|cuda] [--batch N] [--steps N] [--compile]

A step is forward, backward and optimiser. Both are measured in turns in one run and printed as a ratio, and as a share
of the rate at which the same machine multiplies large matrices at that precision. Exits 1 below the floor.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from spikingjelly.activation_based.model import spiking_resnet
from torch import Tensor, nn

from snnkit.config import load_config
from snnkit.training import losses
from snnkit.training.augment import Labels, over_labels
from snnkit.training.models import build_student
from snnkit.training.objective import Objective, Values
from snnkit.training.passes import Passes
from snnkit.training.schedule import build_optimizer
from snnkit.training.steps import Graphed, Recorder, eager
from snnkit.training.trainer import fast

TIMESTEPS, CLASSES = 4, 100
FLOP_PER_IMAGE = 3 * 2 * 0.5555e9 * TIMESTEPS  # forward and backward; the stem counted at every timestep
FLOORS = {"cpu": 1.2, "cuda": 3.0}


def node_loop() -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]:
    """SpikingJelly's ResNet-18 with the stem for small images, float32, one timestep after the other."""
    net = spiking_resnet.spiking_resnet18(
        spiking_neuron=neuron.LIFNode,
        surrogate_function=surrogate.Sigmoid(),
        detach_reset=True,
        decay_input=False,
        num_classes=CLASSES,
    )
    net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    net.maxpool = nn.Identity()

    def forward(net: nn.Module, x: Tensor) -> Tensor:
        functional.reset_net(net)
        return torch.stack([net(x) for _ in range(TIMESTEPS)])

    return net, forward


def ours(*, bf16: bool, compiled: bool = False) -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]:
    """The student ``resnet18``: stem once, time folded into the batch, fused neurons; autocast on a GPU."""
    config = load_config(None, ["student.model=resnet18", f"student.timesteps={TIMESTEPS}"])
    net = build_student((3, 32, 32), CLASSES, config.student)
    passes = Passes(net)
    if compiled:
        passes.compile()

    def forward(_net: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            logits = passes(x).logits
        return logits.float()

    return net, forward


class CrossEntropy(Objective):
    """What all contenders minimise."""

    def __init__(self, net: nn.Module, answer: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__(net, {"cross_entropy": 1.0}, bf16=False)
        self.answer = answer

    def forward(self, x: Tensor, labels: Labels) -> tuple[Tensor, Values]:
        logits = self.answer(self.model, x)
        return logits.mean(0), {"cross_entropy": over_labels(partial(losses.cross_entropy, logits), labels)}


class Contender:
    """One way to train: ``step`` runs a whole optimiser step on random images; ``precision`` as in a run's settings."""

    def __init__(
        self,
        made: tuple[nn.Module, Callable[..., Tensor]],
        device: str,
        batch: int,
        layout: Any,
        *,
        precision: str | None = None,
        graph: bool = False,
    ) -> None:
        self.device, self.precision = torch.device(device), precision
        self.net = made[0].to(device).to(memory_format=layout).train()
        objective = CrossEntropy(self.net, made[1])
        self.backward = (
            Graphed(objective, Recorder(torch.device(device))) if graph else eager(objective, objective.weights)
        )
        settings = load_config(None, ["train.optimizer=sgd", "train.weight_decay=5e-4"]).train
        self.optimizer = build_optimizer(self.net, settings)
        self.x = torch.rand(batch, 3, 32, 32, device=device).contiguous(memory_format=layout)
        self.y = torch.randint(CLASSES, (batch,), device=device)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.backward(self.x, self.y)
        self.optimizer.step()

    def seconds(self, steps: int, warm_up: int = 1) -> float:
        """A step's time, the mean of ``steps``, under the conditions that ``snnkit distill`` sets up if it is ours."""
        with fast(self.device, self.precision) if self.precision else nullcontext():
            seconds(self.step, warm_up, self.device.type)
            return seconds(self.step, steps, self.device.type)


def seconds(work: Callable[[], object], repeat: int, device: str) -> float:
    """The time of one call, the mean of ``repeat``."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeat):
        work()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeat


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product, the best of five."""
    size = 8192 if device == "cuda" else 1536
    a, b = (torch.rand(size, size, device=device, dtype=dtype) for _ in range(2))
    repeat = 20 if device == "cuda" else 1
    return 2 * size**3 / min(seconds(lambda: a @ b, repeat, device) for _ in range(6))


def measure(device: str, batch: int, steps: int, rounds: int, *, compiling: bool) -> dict[str, Any]:
    """Images a second of each contender on ``device``, the best round, and their ratio."""
    gpu = device == "cuda"
    last, first = torch.channels_last, torch.contiguous_format
    ways = [("bf16, channels_last", True, last, False, False)]  # name, bf16, layout, compiled, as a graph
    if gpu:
        ways += [
            ("bf16, CUDA graph", True, last, False, True),
            ("bf16, compiled", True, last, True, False),
            ("bf16, compiled, CUDA graph", True, last, True, True),
        ]
    else:  # where bf16 pays depends on the processor
        ways += [
            ("fp32, channels_last", False, last, False, False),
            ("fp32", False, first, False, False),
            ("bf16, compiled", True, last, True, False),
            ("fp32, compiled", False, last, True, False),
        ]
    contenders = {"node loop, fp32": Contender(node_loop(), device, batch, first)}
    for name, bf16, layout, compiled, graph in ways:
        if compiling or not compiled:
            made = ours(bf16=bf16, compiled=compiled)
            precision = "bf16" if bf16 else "fp32"
            contenders[f"snnkit, {name}"] = Contender(made, device, batch, layout, precision=precision, graph=graph)
    best = dict.fromkeys(contenders, float("inf"))
    for contender in contenders.values():
        contender.seconds(1, warm_up=10 if gpu else 1)
    for _ in range(rounds):  # in turns, so that all see the same machine
        for name, contender in contenders.items():
            best[name] = min(best[name], contender.seconds(steps))
    rates = {name: batch / value for name, value in best.items()}
    loop, *others = rates.values()
    peaks = {"bf16": matmul_rate(device, torch.bfloat16), "fp32": matmul_rate(device, torch.float32)}
    share = {name: rate * FLOP_PER_IMAGE / peaks["bf16" if "bf16" in name else "fp32"] for name, rate in rates.items()}
    return {
        "device": torch.cuda.get_device_name() if gpu else f"cpu, {torch.get_num_threads()} threads",
        "batch": batch,
        "images_per_second": rates,
        "ratio": max(others) / loop,
        "floor": FLOORS[device],
        "matmul_tflops": {precision: peak / 1e12 for precision, peak in peaks.items()},
        "share_of_matmul": share,
        "epoch_seconds": 50_000 / max(others),
    }


def main() -> int:
    """Measures every device of this machine, or the one asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one step each, no verdict")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--device", choices=list(FLOORS))
    parser.add_argument("--batch", type=int, help="default 8 on a CPU, 256 on a GPU")
    parser.add_argument("--steps", type=int, help="a round; default 1 on a CPU, 20 on a GPU")
    parser.add_argument("--compile", action="store_true", help="compiled steps, too: minutes more")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    results = []
    devices = [arguments.device] if arguments.device else list(FLOORS)[: 1 + torch.cuda.is_available()]
    for device in devices:
        gpu = device == "cuda"
        batch, steps = arguments.batch or (256 if gpu else 8), arguments.steps or (20 if gpu else 1)
        steps, rounds = (1, 1) if arguments.quick else (steps, 2)
        result = measure(device, batch, steps, rounds, compiling=arguments.compile)
        results.append(result)
        if not arguments.json:
            products = ", ".join(f"{rate:.3f} TFLOP/s {name}" for name, rate in result["matmul_tflops"].items())
            print(f"{result['device']}, batch {batch}: large matrix products {products}")
            for name, rate in result["images_per_second"].items():
                share = result["share_of_matmul"][name]
                print(f"  {name}: {rate:.1f} images/s, {100 * share:.0f} % of that")
            print(
                f"  ratio {result['ratio']:.2f} (floor {result['floor']}), {result['epoch_seconds']:.1f} s / 50k images"
            )
    passed = all(result["ratio"] >= result["floor"] for result in results)
    if arguments.json:
        print(json.dumps({"results": results, "passed": passed}))
    return 0 if passed or arguments.quick else 1


if __name__ == "__main__":
    sys.exit(main())
