"""Augmentation of training batches on their device, drawn from the run's own generator: a resumed run repeats it."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from snnkit.config import AugmentConfig
from snnkit.errors import ConfigError
from snnkit.training import autoaugment
from snnkit.training.devices import sent
from snnkit.training.encoding import as_floats

Labels: TypeAlias = Tensor | tuple[Tensor, Tensor, float | Tensor]  # [N]; or labels, other labels, weight of the first
Mix: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Labels]]


class Drawn(NamedTuple):
    """What chance decides for a batch, on the CPU; None for what the configuration leaves out."""

    moves: Tensor | None
    flipped: Tensor | None
    operations: autoaugment.Drawn | None
    centres: Tensor | None
    mix: Mix | None


class Augmentation:
    """Everything that ``config`` asks for, on batches as they are stored, with ``generator`` (on the CPU) for chance.

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
        (batch,) = self.batches(x, y, 1)
        return batch

    def batches(self, x: Tensor, y: Tensor, count: int) -> list[tuple[Tensor, Labels]]:
        """What ``count`` calls give for equal batches that lie one after the other in ``x`` and ``y``.

        Many images cost a GPU little more than few: the time goes into launching the kernels.
        """
        config = self.config
        events = x.dim() == 5
        steps, size = x.shape[1], (x.shape[-2], x.shape[-1])
        drawn = [self._drawn(len(x) // count, size, events=events) for _ in range(count)]
        moves, flipped, operations, centres, mixes = zip(*drawn, strict=True)
        if events:  # time into the channels: every frame of a recording is moved alike
            x = x.flatten(1, 2)
        if config.crop:
            x = shift(x, config.crop, torch.cat(moves, 1))
        if config.flip:
            x = flip(x, torch.cat(flipped))
        if config.autoaugment:
            parts = (torch.cat(part, -1) for part in zip(*operations, strict=True))
            x = autoaugment.autoaugment(x, autoaugment.Drawn(*parts))
        x = as_floats(x) if not events else x.float()
        if config.cutout:
            x = cutout(x, config.cutout, torch.cat(centres, 1))
        found: list[tuple[Tensor, Labels]] = []
        for images, labels, mix in zip(x.chunk(count), y.chunk(count) if count > 1 else (y,), mixes, strict=True):
            mixed: tuple[Tensor, Labels] = (images, labels) if mix is None else mix(images, labels)
            if events:
                mixed = mixed[0].unflatten(1, (steps, -1)).transpose(0, 1), mixed[1]  # type: ignore[no-untyped-call]
            found.append(mixed)
        return found

    def _drawn(self, samples: int, size: tuple[int, int], *, events: bool) -> Drawn:
        config, generator = self.config, self.generator
        if events and config.autoaugment:
            raise ConfigError("AutoAugment is for images, not for events", "leave out data.augment.autoaugment")
        moves = draw_moves(samples, config.crop, generator) if config.crop else None
        flipped = draw_flips(samples, generator) if config.flip else None
        operations = autoaugment.draw(samples, generator) if config.autoaugment else None
        centres = draw_centres(samples, size, generator) if config.cutout else None
        mix: Mix | None = None
        if (config.mixup or config.cutmix) and _draw(generator) < config.p:
            if config.mixup and (not config.cutmix or _draw(generator) < 0.5):
                if events:
                    raise ConfigError("mixup makes events of half a spike", "use data.augment.cutmix")
                mix = draw_mixup(samples, config.mixup, generator)
            else:
                mix = draw_cutmix(samples, size, config.cutmix, generator)
        return Drawn(moves, flipped, operations, centres, mix)


def over_labels(loss: Callable[[Tensor], Tensor], labels: Labels) -> Tensor:
    """``loss`` of the labels; of mixed images the weighted mean over both labels."""
    if isinstance(labels, Tensor):
        return loss(labels)
    first, other, weight = labels
    return weight * loss(first) + (1 - weight) * loss(other)


def draw_moves(samples: int, pixels: int, generator: torch.Generator) -> Tensor:
    """Rows and columns, 0..2 ``pixels``, where a crop of each image begins: [2, N]."""
    return torch.randint(0, 2 * pixels + 1, (2, samples), generator=generator)


def shift(x: Tensor, pixels: int, moves: Tensor) -> Tensor:
    """Moves each image of [N, C, H, W] by -``pixels``..``pixels`` rows and columns of its own; zeros move in.

    The same as a crop at ``moves`` after ``pixels`` of zero padding.
    """
    samples, _, height, width = x.shape
    dy, dx = sent(moves[..., None, None], x.device)
    rows = dy + torch.arange(height, device=x.device)[:, None]
    columns = dx + torch.arange(width, device=x.device)
    padded = F.pad(x, (pixels,) * 4)
    sample = torch.arange(samples, device=x.device)[:, None, None]
    return padded[sample, :, rows, columns].permute(0, 3, 1, 2).contiguous()


def draw_flips(samples: int, generator: torch.Generator) -> Tensor:
    """True for half of the images, [N]."""
    return torch.rand(samples, generator=generator) < 0.5


def flip(x: Tensor, flipped: Tensor) -> Tensor:
    """Exchanges left and right of those images [N, C, H, W]."""
    return torch.where(sent(flipped, x.device)[:, None, None, None], x.flip(-1), x)


def draw_centres(samples: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """A pixel of each image of ``size`` (H, W): [2, N]."""
    return torch.stack([torch.randint(0, edge, (samples,), generator=generator) for edge in size])


def cutout(x: Tensor, size: int, centres: Tensor) -> Tensor:
    """Zeros in a square of ``size`` pixels around the centre in each image, cut off at the border.

    After DeVries and Taylor, 2017 (arXiv:1708.04552).
    """
    top, left = centres - size // 2
    return x * ~_boxes(x, top, top + size, left, left + size)


def draw_mixup(samples: int, alpha: float, generator: torch.Generator) -> Mix:
    """Each image blended with another of the batch; the weight is Beta(alpha, alpha), one a batch.

    After Zhang et al. 2018 (arXiv:1710.09412).
    """
    weight, order = _beta(alpha, generator), torch.randperm(samples, generator=generator)

    def mixup(x: Tensor, y: Tensor) -> tuple[Tensor, Labels]:
        other = sent(order, x.device)
        return weight * x + (1 - weight) * x[other], (y, y[other], weight)

    return mixup


def draw_cutmix(samples: int, size: tuple[int, int], alpha: float, generator: torch.Generator) -> Mix:
    """A rectangle of each image replaced by another image's, at the same place in the whole batch.

    Its share of the area is 1 - Beta(alpha, alpha) where it is not cut off at the border; the weight is what is left.
    After Yun et al. 2019 (arXiv:1905.04899).
    """
    weight, order = _beta(alpha, generator), torch.randperm(samples, generator=generator)
    height, width = size
    rows, columns = (round(edge * (1 - weight) ** 0.5) for edge in size)
    top = int(torch.randint(0, height, (), generator=generator)) - rows // 2
    left = int(torch.randint(0, width, (), generator=generator)) - columns // 2
    area = slice(max(top, 0), min(top + rows, height)), slice(max(left, 0), min(left + columns, width))
    covered = (area[0].stop - area[0].start) * (area[1].stop - area[1].start)

    def cutmix(x: Tensor, y: Tensor) -> tuple[Tensor, Labels]:
        other = sent(order, x.device)
        mixed = x.clone()
        mixed[..., area[0], area[1]] = x[other][..., area[0], area[1]]
        return mixed, (y, y[other], 1 - covered / (height * width))

    return cutmix


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
