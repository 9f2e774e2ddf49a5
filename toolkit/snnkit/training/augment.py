"""Augmentation of training batches on their device, drawn from the run's own generator: a resumed run repeats it."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from snnkit.config import AugmentConfig
from snnkit.errors import ConfigError
from snnkit.training.autoaugment import autoaugment
from snnkit.training.devices import sent
from snnkit.training.encoding import as_floats

Labels: TypeAlias = Tensor | tuple[Tensor, Tensor, float | Tensor]  # [N]; or labels, other labels, weight of the first


class Augmentation:
    """Everything that ``config`` asks for, on a batch as it is stored, with ``generator`` (on the CPU) for chance.

    Order: crop, flip, AutoAugment, cutout, then mixup or CutMix. Raises :class:`ConfigError` for what the data
    cannot take.
    """

    def __init__(self, config: AugmentConfig, generator: torch.Generator) -> None:
        self.config, self.generator = config, generator

    @classmethod
    def none(cls) -> "Augmentation":
        """Images as they are, as floats."""
        return cls(AugmentConfig(crop=0), torch.Generator())

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Labels]:
        """From images [N, C, H, W], uint8 0..255 or float 0..1, or event frames [N, T, C, H, W], and labels [N].

        Returns float images in 0..1 or event frames [T, N, C, H, W], and the labels: as they are, or where images
        were mixed (labels, the other images' labels, weight of the first).
        """
        config, generator = self.config, self.generator
        events = x.dim() == 5
        steps = x.shape[1]
        if events:  # time into the channels: every frame of a recording is moved alike
            x = x.flatten(1, 2)
        x = shift(x, config.crop, generator)
        if config.flip:
            x = flip(x, generator)
        if config.autoaugment:
            if events:
                raise ConfigError("AutoAugment is for images, not for events", "leave out data.augment.autoaugment")
            x = autoaugment(x, generator)
        x = as_floats(x) if not events else x.float()
        if config.cutout:
            x = cutout(x, config.cutout, generator)
        labels: Labels = y
        if (config.mixup or config.cutmix) and _draw(generator) < config.p:
            if config.mixup and (not config.cutmix or _draw(generator) < 0.5):
                if events:
                    raise ConfigError("mixup makes events of half a spike", "use data.augment.cutmix")
                x, labels = mixup(x, y, config.mixup, generator)
            else:
                x, labels = cutmix(x, y, config.cutmix, generator)
        if events:
            x = x.unflatten(1, (steps, -1)).transpose(0, 1)  # type: ignore[no-untyped-call]
        return x, labels


def over_labels(loss: Callable[[Tensor], Tensor], labels: Labels) -> Tensor:
    """``loss`` of the labels; of mixed images the weighted mean over both labels."""
    if isinstance(labels, Tensor):
        return loss(labels)
    first, other, weight = labels
    return weight * loss(first) + (1 - weight) * loss(other)


def shift(x: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Moves each image of [N, C, H, W] by -``pixels``..``pixels`` rows and columns of its own; zeros move in.

    The same as a random crop after ``pixels`` of zero padding.
    """
    if not pixels:
        return x
    samples, _, height, width = x.shape
    dy, dx = sent(torch.randint(0, 2 * pixels + 1, (2, samples, 1, 1), generator=generator), x.device)
    rows = dy + torch.arange(height, device=x.device)[:, None]
    columns = dx + torch.arange(width, device=x.device)
    padded = F.pad(x, (pixels,) * 4)
    sample = torch.arange(samples, device=x.device)[:, None, None]
    return padded[sample, :, rows, columns].permute(0, 3, 1, 2).contiguous()


def flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Exchanges left and right of each image [N, C, H, W] with probability 1/2."""
    chosen = sent(torch.rand(len(x), 1, 1, 1, generator=generator), x.device) < 0.5
    return torch.where(chosen, x.flip(-1), x)


def cutout(x: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Zeros in a square of ``size`` pixels around a random pixel of each image, cut off at the border.

    After DeVries and Taylor, 2017 (arXiv:1708.04552).
    """
    y, x_centre = (torch.randint(0, edge, (len(x),), generator=generator) for edge in x.shape[-2:])
    top, left = y - size // 2, x_centre - size // 2
    return x * ~_boxes(x, top, top + size, left, left + size)


def mixup(x: Tensor, y: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Labels]:
    """Each image blended with another of the batch; the weight is Beta(alpha, alpha), one a batch.

    After Zhang et al. 2018 (arXiv:1710.09412).
    """
    weight = _beta(alpha, generator)
    other = sent(torch.randperm(len(x), generator=generator), x.device)
    return weight * x + (1 - weight) * x[other], (y, y[other], weight)


def cutmix(x: Tensor, y: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Labels]:
    """A rectangle of each image replaced by another image's, at the same place in the whole batch.

    Its share of the area is 1 - Beta(alpha, alpha) where it is not cut off at the border; the weight is what is left.
    After Yun et al. 2019 (arXiv:1905.04899).
    """
    weight = _beta(alpha, generator)
    other = sent(torch.randperm(len(x), generator=generator), x.device)
    height, width = x.shape[-2:]
    rows, columns = (round(edge * (1 - weight) ** 0.5) for edge in (height, width))
    top = int(torch.randint(0, height, (), generator=generator)) - rows // 2
    left = int(torch.randint(0, width, (), generator=generator)) - columns // 2
    area = slice(max(top, 0), min(top + rows, height)), slice(max(left, 0), min(left + columns, width))
    mixed = x.clone()
    mixed[..., area[0], area[1]] = x[other][..., area[0], area[1]]
    covered = (area[0].stop - area[0].start) * (area[1].stop - area[1].start)
    return mixed, (y, y[other], 1 - covered / (height * width))


def _boxes(x: Tensor, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Masks [N, 1, H, W], true inside each image's rectangle."""
    top, bottom, left, right = sent(torch.stack((top, bottom, left, right)), x.device)[..., None, None, None]
    rows = torch.arange(x.shape[-2], device=x.device)[:, None]
    columns = torch.arange(x.shape[-1], device=x.device)
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


def _draw(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _beta(alpha: float, generator: torch.Generator) -> float:
    """From numpy, seeded by the generator, because torch draws no Beta from a generator of one's own."""
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha))
