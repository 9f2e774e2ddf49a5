"""What a saliency map is worth: does the network use those pixels (M1), and do two networks use the same (M2)?

Maps are [N, H, W]; every measure gives one value an image, so that :func:`bootstrap` can tell how certain the mean is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from snnkit.network.ir import Array

Logits: TypeAlias = Callable[[Tensor], Tensor]  # images [N, C, H, W] -> [N, K]


@dataclass(frozen=True)
class Estimate:
    """A mean over images and its 95 % interval. The interval is about the images, not about the training's seed."""

    mean: float
    low: float
    high: float


def bootstrap(values: Array, *, seed: int = 0, resamples: int = 1000) -> Estimate:
    """The mean of ``values`` [N] with its percentile bootstrap interval (Efron, Ann. Statist. 7, 1979).

    The same ``seed`` draws the same images, so the estimate of a difference of two measures is a paired one.
    """
    values = np.asarray(values, np.float64)
    generator = np.random.default_rng(seed)
    means = [values[generator.integers(0, len(values), len(values))].mean() for _ in range(resamples)]
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float(values.mean()), float(low), float(high))


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of [N, C, H, W]; at the border the weights within the image are scaled to a sum of 1."""

    def weights(size: int) -> Tensor:
        position = torch.arange(size, dtype=x.dtype, device=x.device)
        return torch.softmax(-((position[:, None] - position) ** 2) / (2 * sigma**2), dim=1)

    return weights(x.shape[2]) @ x @ weights(x.shape[3]).T


def ranking(maps: Tensor, generator: torch.Generator) -> Tensor:
    """The rank of every pixel, int64 [N, H, W], 0 for the most salient; ties are broken at random."""
    flat = maps.flatten(1)
    shuffle = torch.rand(flat.shape, generator=generator).argsort(1)
    order = shuffle.gather(1, flat.gather(1, shuffle).argsort(dim=1, descending=True, stable=True))
    return order.argsort(1).view(maps.shape)


@torch.no_grad()
def insertion_minus_deletion(logits: Logits, x: Tensor, other: Tensor, ranks: Tensor, steps: int) -> Tensor:
    """AUC_insertion - AUC_deletion of the probability of the class predicted for ``x``, -1..1, [N].

    The k most salient pixels are replaced by those of ``other`` (deletion), or all others (insertion), for k from 0
    to all in ``steps`` (Petsiuk et al., BMVC 2018).
    """
    predicted = logits(x).argmax(1, keepdim=True)
    pixels = ranks[0].numel()
    counts = sorted({round(pixels * step / steps) for step in range(steps + 1)})
    curve = []
    for count in counts:
        top = (ranks < count).unsqueeze(1)
        inserted, deleted = (
            logits(torch.where(top, a, b)).softmax(1).gather(1, predicted) for a, b in ((x, other), (other, x))
        )
        curve.append((inserted - deleted).squeeze(1).double())
    return torch.trapezoid(torch.stack(curve).cpu(), torch.tensor(counts) / pixels, dim=0)


@torch.no_grad()
def prediction_stays(logits: Logits, x: Tensor, other: Tensor, ranks: Tensor, share: float) -> Tensor:
    """Whether the prediction is the same when only the top ``share`` of the pixels is kept, bool [N]."""
    top = (ranks < _count(ranks, share)).unsqueeze(1)
    return (logits(torch.where(top, x, other)).argmax(1) == logits(x).argmax(1)).cpu()


def spearman(a: Tensor, b: Tensor) -> Array:
    """Rank correlation of two maps of the same image, -1..1, [N]; 0 where a map is constant."""
    x, y = _centred_ranks(a), _centred_ranks(b)
    norm = np.sqrt((x**2).sum(1) * (y**2).sum(1))
    found: Array = (x * y).sum(1) / np.where(norm > 0, norm, 1.0)
    return found


def overlap(a: Tensor, b: Tensor, share: float) -> Array:
    """Intersection over union of the top ``share`` of the pixels of two rankings, 0..1, [N].

    Two rankings that have nothing to do with each other reach about ``share / (2 - share)``.
    """
    count = _count(a, share)
    x, y = a < count, b < count
    both, either = (x & y).flatten(1).sum(1), (x | y).flatten(1).sum(1)
    return (both / either).double().numpy()


def _count(ranks: Tensor, share: float) -> int:
    return max(round(share * ranks[0].numel()), 1)


def _centred_ranks(maps: Tensor) -> Array:
    """Ranks from the least salient on, minus their mean; ties get the mean of their ranks."""
    centred = []
    for values in maps.flatten(1).numpy():
        ordered = np.sort(values)
        ranks = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
        centred.append((ranks - ranks.mean()) / 2)
    return np.stack(centred)
