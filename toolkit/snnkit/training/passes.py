"""A model's forward passes together with what its taps see: operator by operator, or compiled."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from snnkit.errors import ConfigError


class Seen(NamedTuple):
    """Logits; of each tapped submodule what it put out and, where that was asked for, what entered it."""

    logits: Tensor
    outputs: list[Tensor]
    inputs: list[Tensor]


class Passes:
    """The forward passes of ``model``; with ``inputs`` the currents that enter tapped neurons are collected, too."""

    def __init__(self, model: nn.Module, *, inputs: bool = False) -> None:
        self.model, self._inputs = model, inputs
        self._compiled: Callable[[Tensor], Seen] | None = None

    def __call__(self, x: Tensor) -> Seen:
        if self._compiled is not None:
            return self._compiled(x)
        nothing: list[Tensor] = []
        entering = tapped(self.model, inputs=True) if self._inputs else nullcontext(nothing)
        with tapped(self.model) as outputs, entering as inputs:
            return Seen(self.model(x), outputs, inputs)

    def compile(self) -> None:
        """Compiles each kind of pass, and its gradient, where it first occurs: of a shape, a mode, timesteps.

        The hooks are compiled with the layers, and stay on the model.
        """
        outputs = _hooked(self.model, inputs=False)[0]
        inputs = _hooked(self.model, inputs=True)[0] if self._inputs else []
        compiled = torch.compile(self.model, dynamic=False)

        def run(x: Tensor) -> Seen:
            return Seen(compiled(x), list(outputs), list(inputs))

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
    found, handles = _hooked(model, inputs=inputs)
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _hooked(model: nn.Module, *, inputs: bool) -> tuple[list[Tensor], list[torch.utils.hooks.RemovableHandle]]:
    """The list that hooks on the tapped submodules fill, and the hooks."""
    names = [str(name) for name in getattr(model, "taps", ())]
    found: list[Tensor] = [torch.empty(0)] * len(names)
    handles = []
    for index, name in enumerate(names):
        try:
            module = model.get_submodule(name)
        except AttributeError:
            raise ConfigError(f"the model taps '{name}', which it does not have", "correct its 'taps'") from None

        def keep(_module: nn.Module, entering: tuple[Tensor, ...], output: Tensor, index: int = index) -> None:
            found[index] = entering[0] if inputs else output

        handles.append(module.register_forward_hook(keep))
    return found, handles
