"""The derivatives of SpikingJelly's surrogates of the same names."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def _sigmoid(x: Tensor, alpha: float) -> Tensor:
    s = torch.sigmoid(alpha * x)
    return (1 - s).mul_(s).mul_(alpha)


def _atan(x: Tensor, alpha: float) -> Tensor:
    return (alpha / 2) / (1 + (x * (math.pi / 2 * alpha)).square_())


def _triangle(x: Tensor, alpha: float) -> Tensor:
    return (alpha - x.abs().mul_(alpha * alpha)).clamp_min_(0)


# what stands in for the gradient of a spike, a function of v - v_threshold and alpha
SLOPES: dict[str, Callable[[Tensor, float], Tensor]] = {"sigmoid": _sigmoid, "triangle": _triangle, "atan": _atan}
