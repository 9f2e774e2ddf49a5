"""Saliency maps of teachers and students: SmoothGrad x input, through the surrogate gradient and all timesteps."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from spikingjelly.activation_based import surrogate
from torch import Tensor, nn

from snnkit.errors import UnsupportedError
from snnkit.training.neurons import reset_neurons

# surrogates whose width goes with 1/alpha at a constant area
SCALABLE = (
    *(surrogate.Sigmoid, surrogate.ATan, surrogate.PiecewiseQuadratic, surrogate.PiecewiseExp),
    *(surrogate.SoftSign, surrogate.Erf, surrogate.Rect),
)


@dataclass(frozen=True, eq=False)
class Maps:
    """Maps of N images, [N, H, W], and the predicted classes [N] that they explain.

    ``saliency``: mean over noisy copies of the sum over channels of |x dz_c/dx|; ``gradient``: the same without x.
    """

    saliency: Tensor
    gradient: Tensor
    predicted: Tensor


def saliency_maps(
    model: nn.Module, x: Tensor, *, copies: int = 8, noise: float = 0.15, seed: int = 0, batch_size: int = 256
) -> Maps:
    """The maps of images [N, C, H, W] for the classes that ``model`` predicts, on the CPU.

    z is the mean over time in a student. The noise is the same for every model and batch size.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    parts: list[tuple[Tensor, ...]] = []
    for images in x.split(batch_size):  # type: ignore[no-untyped-call]
        shape = (copies, *images.shape[1:])
        noises = torch.stack([torch.randn(shape, generator=generator) for _ in images], dim=1)
        batch = images.to(device)
        with torch.no_grad():
            predicted = mean_logits(model, batch).argmax(1)
        sums = torch.zeros(2, len(batch), *batch.shape[2:], device=device)
        for deviation in noises:
            noisy = (batch + noise * deviation.to(device)).requires_grad_()
            score = mean_logits(model, noisy).gather(1, predicted[:, None]).sum()
            (gradient,) = torch.autograd.grad(score, noisy)
            sums += torch.stack([(batch * gradient).abs().sum(1), gradient.abs().sum(1)])
        reset_neurons(model)
        parts.append((*(sums / copies).cpu().unbind(), predicted.cpu()))
    return Maps(*(torch.cat(part) for part in zip(*parts, strict=True)))


def mean_logits(model: nn.Module, x: Tensor) -> Tensor:
    """Logits [N, K]: a teacher's, or the mean over a student's timesteps."""
    reset_neurons(model)
    logits: Tensor = model(x)
    return logits.mean(0) if logits.dim() == 3 else logits


@contextmanager
def surrogate_width(model: nn.Module, factor: float) -> Iterator[None]:
    """Within the block the surrogate gradients are ``factor`` times as wide: their alpha is divided by it.

    Raises :class:`UnsupportedError` for surrogates of another kind than :data:`SCALABLE`, and for none at all.
    """
    if factor != 1 and not scalable(model):
        raise UnsupportedError("the surrogate's width cannot be changed", [describe(model)], "use one with an alpha")
    found = [(module, module.alpha) for module in surrogates(model) if isinstance(module, SCALABLE)]
    try:
        for module, alpha in found:
            module.alpha = alpha / factor
        yield
    finally:
        for module, alpha in found:
            module.alpha = alpha


def surrogates(model: nn.Module) -> list[Any]:
    """The surrogate functions of the model's neurons, each once."""
    return [module for module in model.modules() if isinstance(module, surrogate.SurrogateFunctionBase)]


def scalable(model: nn.Module) -> bool:
    """Whether :func:`surrogate_width` can change all of the model's surrogates."""
    return all(isinstance(module, SCALABLE) for module in surrogates(model)) and bool(surrogates(model))


def describe(model: nn.Module) -> str:
    """The model's surrogates by name, with their alpha; and whether their width can be changed."""
    names = dict.fromkeys(
        f"{type(module).__name__}, alpha {getattr(module, 'alpha', '-')}" for module in surrogates(model)
    )
    return ("; ".join(names) or "the model's own") + ("" if scalable(model) else " (of fixed width)")
