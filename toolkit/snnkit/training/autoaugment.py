"""AutoAugment's CIFAR-10 policy (Cubuk et al. 2019, arXiv:1805.09501) on whole batches of uint8 images.

Every image draws a pair of operations of its own. What maps levels to levels is a table of 256 entries an image and
channel, what moves pixels an affine map an image; both are applied to the whole batch at once. Each operation equals
torchvision's of the same name; pixels that move in are black, as there.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from snnkit.errors import ConfigError
from snnkit.network.ir import Array
from snnkit.training.devices import sent

CIFAR10 = (  # (operation, probability, magnitude 0..9), twice; torchvision lists the same
    (("Invert", 0.1, 0), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 0), ("Equalize", 0.9, 0)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 0), ("Equalize", 0.5, 0)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 0), ("AutoContrast", 0.4, 0)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 0)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 0), ("Equalize", 0.6, 0)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 0)),
    (("AutoContrast", 0.8, 0), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 0)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 0), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 0), ("Invert", 0.1, 0)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 0)),
)
GREY = (0.2989, 0.587, 0.114)  # ITU-R BT.601, with torchvision's digits


def magnitude(operation: str, level: int, sign: float, size: tuple[int, int]) -> float:
    """The argument of an operation at ``level`` 0..9 on images of ``size`` (H, W); signed operations take ``sign``.

    Shear as a slope, translation in whole pixels, rotation in degrees, factors about 1, bits to keep, a threshold.
    """
    match operation:
        case "ShearX" | "ShearY":
            return sign * 0.3 * level / 9
        case "TranslateX" | "TranslateY":
            return sign * int(150 / 331 * size[operation == "TranslateX"] * level / 9)
        case "Rotate":
            return sign * 30.0 * level / 9
        case "Brightness" | "Color" | "Contrast" | "Sharpness":
            return 1 + sign * 0.9 * level / 9
        case "Posterize":
            return 8 - round(level * 4 / 9)
        case "Solarize":
            return 255 * (1 - level / 9)
        case _:
            return 0.0


class Drawn(NamedTuple):
    """What chance decides for N images: the pair of operations [N]; of each stage [2, N] whether, and the sign."""

    policy: Tensor
    chance: Tensor
    positive: Tensor


def draw(samples: int, generator: torch.Generator) -> Drawn:
    """For so many images."""
    policy = torch.randint(len(CIFAR10), (samples,), generator=generator)
    chance = torch.rand(2, samples, generator=generator)
    return Drawn(policy, chance, torch.rand(2, samples, generator=generator) < 0.5)


def autoaugment(x: Tensor, drawn: Drawn) -> Tensor:
    """Applies the policy to images [N, 1 or 3, H, W], uint8 or float 0..1 (rounded to 8 bits first); uint8 again."""
    if x.shape[1] not in (1, 3):
        raise ConfigError(
            f"AutoAugment takes images of 1 or 3 channels, not {x.shape[1]}", "leave out data.augment.autoaugment"
        )
    if x.is_floating_point():
        x = (x * 255).round().to(torch.uint8)
    policy, chance, positive = (tensor.numpy() for tensor in drawn)
    for stage in (0, 1):
        operations, probabilities, magnitudes = _policies(stage, (x.shape[2], x.shape[3]))
        happens, values = chance[stage] < probabilities[policy], magnitudes[policy, positive[stage].astype(int)]
        chosen = {}
        for name in np.unique(operations[policy[happens]]):
            samples = (happens & (operations[policy] == name)).nonzero()[0]
            chosen[str(name)] = (samples, values[samples])
        x = apply(x, chosen)
    return x


@cache
def _policies(stage: int, size: tuple[int, int]) -> tuple[Array, Array, Array]:
    """Of all 25 pairs the operation, its probability and its arguments [25, 2], the second with a positive sign."""
    operations, probabilities, levels = zip(*(pair[stage] for pair in CIFAR10), strict=True)
    arguments = [
        [magnitude(name, level, sign, size) for sign in (-1.0, 1.0)]
        for name, level in zip(operations, levels, strict=True)
    ]
    return np.array(operations), np.array(probabilities), np.array(arguments)


def apply(x: Tensor, chosen: Mapping[str, tuple[Sequence[int] | Array, Sequence[float] | Array]]) -> Tensor:
    """Operations on the images they were ``chosen`` for: name -> (samples, magnitudes); an image has one at most."""
    table = torch.arange(256, dtype=torch.uint8, device=x.device).repeat(*x.shape[:2], 1)
    maps = torch.eye(2, 3).repeat(len(x), 1, 1)  # on the CPU, in pixels from the centre
    result = x.clone()
    for operation, (samples, magnitudes) in chosen.items():
        index = sent(torch.as_tensor(samples), x.device)
        # a blend takes value and 1 - value; the difference is taken in full precision, as torchvision does
        pairs = torch.tensor([(value, 1 - value) for value in magnitudes], dtype=torch.float32)
        arguments = sent(pairs, x.device)
        if operation in TABLES:
            table[index] = TABLES[operation](x[index], *arguments.T[..., None, None])
        elif operation in FILTERS:
            result[index] = FILTERS[operation](x[index], *arguments.T[..., None, None, None])
        else:
            different, which = np.unique(magnitudes, return_inverse=True)
            maps[samples] = torch.stack([affine_map(operation, value, x.shape[2:]) for value in different])[which]
    if chosen.keys() & TABLES.keys():
        result = table.gather(2, result.flatten(2).long()).view_as(x)  # the identity for all others
    if chosen.keys() - TABLES.keys() - FILTERS.keys():
        result = moved(result, sent(maps, x.device))
    return result


def affine_map(operation: str, value: float, size: tuple[int, ...]) -> Tensor:
    """Where each pixel comes from, [2, 3], in pixels from the centre: (x, y, 1) of the output to (x, y) of the input.

    A shear keeps the first row or column of the image in place.
    """
    match operation:
        case "ShearX":
            rows = [[1, value, value * size[0] / 2], [0, 1, 0]]
        case "ShearY":
            rows = [[1, 0, 0], [value, 1, value * size[1] / 2]]
        case "TranslateX":
            rows = [[1, 0, -value], [0, 1, 0]]
        case "TranslateY":
            rows = [[1, 0, 0], [0, 1, -value]]
        case _:  # Rotate, counter-clockwise
            cosine, sine = math.cos(math.radians(value)), math.sin(math.radians(value))
            rows = [[cosine, -sine, 0], [sine, cosine, 0]]
    return torch.tensor(rows, dtype=torch.float32)


def moved(x: Tensor, maps: Tensor) -> Tensor:
    """The nearest pixel of x, uint8 [N, C, H, W], at the places that ``maps`` [N, 2, 3] gives; black outside."""
    height, width = x.shape[2:]
    rows = torch.arange(height, device=x.device)[:, None] - (height - 1) / 2
    columns = torch.arange(width, device=x.device) - (width - 1) / 2
    # no matrix product, which a GPU may be set to compute with few digits
    (xx, xy, x0), (yx, yy, y0) = (row.unbind(1) for row in maps[..., None, None].unbind(1))
    grid = torch.stack(
        ((xx * columns + xy * rows + x0) / (width / 2), (yx * columns + yy * rows + y0) / (height / 2)), -1
    )
    return F.grid_sample(x.float(), grid, mode="nearest", align_corners=False).to(torch.uint8)


def _blended(x: Tensor, other: Tensor, factor: Tensor, rest: Tensor) -> Tensor:
    """``factor x + rest other`` as levels, cut off to uint8; fused as torchvision's, so that no level differs."""
    return torch.addcmul(x * factor, other, rest).clamp(0, 255).to(torch.uint8)


# --- tables: images uint8 [n, C, H, W], arguments and 1 - arguments [n, 1, 1] to levels [n, C or 1, 256] --------------


def _levels(x: Tensor) -> Tensor:
    return torch.arange(256, device=x.device).expand(len(x), 1, 256)


def _invert(x: Tensor, *_: Tensor) -> Tensor:
    return (255 - _levels(x)).to(torch.uint8)


def _solarize(x: Tensor, threshold: Tensor, *_: Tensor) -> Tensor:
    levels = _levels(x)
    return torch.where(levels >= threshold, 255 - levels, levels).to(torch.uint8)


def _posterize(x: Tensor, bits: Tensor, *_: Tensor) -> Tensor:
    dropped = (8 - bits).long()
    return ((_levels(x) >> dropped) << dropped).to(torch.uint8)


def _brightness(x: Tensor, factor: Tensor, *_: Tensor) -> Tensor:
    return (_levels(x) * factor).clamp(0, 255).to(torch.uint8)


def _contrast(x: Tensor, factor: Tensor, rest: Tensor) -> Tensor:
    return _blended(_levels(x), _grey(x).mean((2, 3), keepdim=True)[:, 0], factor, rest)


def _autocontrast(x: Tensor, *_: Tensor) -> Tensor:
    low, high = (edge.float()[..., None] for edge in (x.flatten(2).amin(2), x.flatten(2).amax(2)))
    levels = _levels(x).float()
    stretched = ((levels - low) / ((high - low) * (1 / 255)).clamp(min=1e-6)).clamp(0, 255)
    return torch.where(high > low, stretched, levels).to(torch.uint8)


def _equalize(x: Tensor, *_: Tensor) -> Tensor:
    """As Pillow: the cumulative histogram below each level, in steps of a 255th of all but the brightest pixels."""
    flat = x.flatten(2).long()
    counts = torch.zeros(*flat.shape[:2], 256, dtype=torch.int64, device=x.device)
    counts.scatter_add_(2, flat, torch.ones_like(flat))
    brightest = counts.gather(2, flat.amax(2, keepdim=True))
    step = (flat.shape[2] - brightest) // 255
    below = counts.cumsum(2) - counts
    levels = ((below + step // 2) // step.clamp(min=1)).clamp(0, 255)
    return torch.where(step > 0, levels, _levels(x)).to(torch.uint8)


TABLES: dict[str, Callable[..., Tensor]] = {
    "Invert": _invert,
    "Solarize": _solarize,
    "Posterize": _posterize,
    "Brightness": _brightness,
    "Contrast": _contrast,
    "AutoContrast": _autocontrast,
    "Equalize": _equalize,
}

# --- filters: images uint8 [n, C, H, W], factors and 1 - factors [n, 1, 1, 1] to images -------------------------------


def _grey(x: Tensor) -> Tensor:
    """Whole grey levels, float [n, 1, H, W]."""
    if x.shape[1] == 1:
        return x.float()
    red, green, blue = x.float().unbind(1)
    return (red * GREY[0] + green * GREY[1] + blue * GREY[2]).floor()[:, None]


def _color(x: Tensor, factor: Tensor, rest: Tensor) -> Tensor:
    return x if x.shape[1] == 1 else _blended(x, _grey(x), factor, rest)


def _sharpness(x: Tensor, _: Tensor, rest: Tensor) -> Tensor:
    """Away from, or towards, the image smoothed by 1 1 1, 1 5 1, 1 1 1 over 13; the border stays."""
    result = x.float()
    if min(x.shape[2:]) > 2:
        inner = result[..., 1:-1, 1:-1]
        smooth = ((F.avg_pool2d(result, 3, 1, divisor_override=1) + 4 * inner) / 13).round()
        result[..., 1:-1, 1:-1] = torch.addcmul(inner, smooth - inner, rest)
    return result.clamp(0, 255).to(torch.uint8)


FILTERS: dict[str, Callable[..., Tensor]] = {"Color": _color, "Sharpness": _sharpness}
