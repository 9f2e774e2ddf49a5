"""A model's forward passes together with what its taps see: operator by operator, or compiled."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from snnkit.errors import ConfigError

T = TypeVar("T")


class Seen(NamedTuple):
    """Logits; of each tapped submodule, where that was asked for, what it put out and what entered it."""

    logits: Tensor
    outputs: list[Tensor]
    inputs: list[Tensor]


class Passes:
    """The forward passes of ``model``, with the ``outputs`` of its taps, ``inputs`` (a neuron's currents), or both."""

    def __init__(self, model: nn.Module, *, outputs: bool = False, inputs: bool = False) -> None:
        self.model, self._outputs, self._inputs = model, outputs, inputs
        self._compiled: Callable[[Tensor], Seen] | None = None

    def __call__(self, x: Tensor) -> Seen:
        if self._compiled is not None:
            return self._compiled(x)
        nothing: list[Tensor] = []
        leaving = tapped(self.model) if self._outputs else nullcontext(nothing)
        entering = tapped(self.model, inputs=True) if self._inputs else nullcontext(nothing)
        with leaving as outputs, entering as inputs:
            return Seen(self.model(x), outputs, inputs)

    def compile(self) -> None:
        """Compiles each kind of pass, and its gradient, where it first occurs: of a shape, a mode, timesteps.

        The hooks are compiled with the layers, and stay on the model. What they collect leaves the compiled part
        without an axis of time: torch knows a layout for images, and the gradients that come back get it.
        """
        outputs = _hooked(self.model, _folded)[0] if self._outputs else []
        inputs = _hooked(self.model, _folded, inputs=True)[0] if self._inputs else []
        compiled = torch.compile(self.model, dynamic=False)

        def run(x: Tensor) -> Seen:
            return Seen(compiled(x), _unfolded(outputs), _unfolded(inputs))

        self._compiled = run

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Operator by operator within: the taps see what hooks that were set before make of the outputs."""
        compiled, self._compiled = self._compiled, None
        try:
            yield
        finally:
            self._compiled = compiled


@contextmanager
def tapped(model: nn.Module, *, inputs: bool = False) -> Iterator[list[Tensor]]:
    """Collects the outputs of the submodules that ``model.taps`` names, in order, during a forward pass.

    Or their ``inputs``: of a neuron the current that enters it.
    """
    found, handles = _hooked(model, lambda seen: seen, inputs=inputs)
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _folded(seen: Tensor) -> tuple[Tensor, torch.Size]:
    """Images [N, C, H, W] of any N, and the axes that N stands for; anything smaller as it is."""
    axes = max(seen.dim() - 3, 1)
    return seen.flatten(0, axes - 1), seen.shape[:axes]


def _unfolded(taps: list[tuple[Tensor, torch.Size]]) -> list[Tensor]:
    return [images.unflatten(0, axes) for images, axes in taps]  # type: ignore[no-untyped-call]


def _hooked(
    model: nn.Module, kept: Callable[[Tensor], T], *, inputs: bool = False
) -> tuple[list[T], list[torch.utils.hooks.RemovableHandle]]:
    """The list that hooks on the tapped submodules fill with what is ``kept`` of each tensor, and the hooks."""
    names = [str(name) for name in getattr(model, "taps", ())]
    found = [kept(torch.empty(0))] * len(names)
    handles = []
    for index, name in enumerate(names):
        try:
            module = model.get_submodule(name)
        except AttributeError:
            raise ConfigError(f"the model taps '{name}', which it does not have", "correct its 'taps'") from None

        def keep(_module: nn.Module, entering: tuple[Tensor, ...], output: Tensor, index: int = index) -> None:
            found[index] = kept(entering[0] if inputs else output)

        handles.append(module.register_forward_hook(keep))
    return found, handles
