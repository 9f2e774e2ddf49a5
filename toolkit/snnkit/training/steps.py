"""The forward and backward pass of one training step: as it is written or, on a GPU, replayed as one CUDA graph."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from snnkit.errors import ConfigError
from snnkit.training.augment import Labels
from snnkit.training.objective import Objective

WARM_UP = 3  # steps of a kind before it is captured: kernels are compiled and chosen in them


@dataclass(frozen=True)
class Outcome:
    """Logits [N, K], the losses by name and their weighted sum, without a graph; the next step may overwrite them."""

    logits: Tensor
    values: Mapping[str, Tensor]
    loss: Tensor


Step: TypeAlias = Callable[[Tensor, Labels], Outcome]  # leaves the gradients in the parameters, which had none
Work: TypeAlias = Callable[[], Outcome]


def eager(trained: nn.Module, weights: Mapping[str, float]) -> Step:
    """Kernel by kernel; ``trained`` is an :class:`Objective` or what wraps it."""

    def step(x: Tensor, labels: Labels) -> Outcome:
        logits, values = trained(x, labels)
        loss = torch.stack([weights[name] * value for name, value in values.items()]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return Outcome(logits.detach(), {name: value.detach() for name, value in values.items()}, loss.detach())

    return step


def named(step: Step) -> Step:
    """The same step, of which the compiler's failure is named."""
    from torch._dynamo.exc import TorchDynamoException  # takes seconds to import

    def run(x: Tensor, labels: Labels) -> Outcome:
        try:
            return step(x, labels)
        except TorchDynamoException as error:
            reason = str(error).split("\n")[0]
            raise ConfigError(
                f"the networks cannot be compiled: {reason}",
                "compiling needs a C++ compiler; set train.compile to false without one",
            ) from None

    return run


class Recorder:
    """Where work runs that is captured later, and how it is captured."""

    def __init__(self, device: torch.device) -> None:
        self.stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def run(self, work: Work) -> Outcome:
        """On a stream of its own, as capturing needs it."""
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            outcome = work()
        current.wait_stream(self.stream)
        return outcome

    def capture(self, work: Work) -> tuple[Outcome, Callable[[], None]]:
        """What ``work`` will have computed, always in the same memory, and the function that computes it."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                outcome = work()
        except RuntimeError as error:
            reason = str(error).split("\n")[0]
            raise ConfigError(
                f"a training step cannot be captured as a CUDA graph: {reason}", "set train.cuda_graph to false"
            ) from None
        return outcome, graph.replay


@dataclass
class _Recorded:
    """Steps of one shape and number of timesteps: the memory they read, and how many there were."""

    x: Tensor
    labels: tuple[Tensor, Tensor, Tensor]
    steps: int = 0
    outcome: Outcome | None = None
    replay: Callable[[], None] = lambda: None
    gradients: list[Tensor | None] = field(default_factory=list)


class Graphed:
    """A :data:`Step` that launches one graph instead of some thousand kernels, which a processor is too slow for.

    For an objective whose forward pass is the same kernels every time: it asks the device nothing, and what it draws
    comes from the device's generator. A batch that is not mixed counts as mixed with itself.
    """

    def __init__(self, objective: Objective, recorder: Any) -> None:
        self.objective, self.recorder = objective, recorder
        self.parameters = list(objective.parameters())
        self._step = eager(objective, objective.weights)
        self._recorded: dict[tuple[Any, ...], _Recorded] = {}

    def __call__(self, x: Tensor, labels: Labels) -> Outcome:
        first, other, weight = labels if isinstance(labels, tuple) else (labels, labels, 1.0)
        kind = (getattr(self.objective.model, "timesteps", None), *x.shape)
        if kind not in self._recorded:
            share = torch.ones((), dtype=x.dtype, device=x.device)
            memory = torch.empty_like(x), (torch.empty_like(first), torch.empty_like(other), share)
            self._recorded[kind] = _Recorded(*memory)
        recorded = self._recorded[kind]
        recorded.x.copy_(x)
        recorded.labels[0].copy_(first), recorded.labels[1].copy_(other), recorded.labels[2].fill_(weight)
        recorded.steps += 1

        def work() -> Outcome:
            return self._step(recorded.x, recorded.labels)

        if recorded.steps <= WARM_UP:
            return self.recorder.run(work)  # type: ignore[no-any-return]
        if recorded.outcome is None:
            recorded.outcome, recorded.replay = self.recorder.capture(work)
            recorded.gradients = [parameter.grad for parameter in self.parameters]
        recorded.replay()
        for parameter, gradient in zip(self.parameters, recorded.gradients, strict=True):
            parameter.grad = gradient
        return recorded.outcome
