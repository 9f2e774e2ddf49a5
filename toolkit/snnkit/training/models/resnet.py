"""Residual networks for small images with binary outputs: the shortcut enters the last neuron of a block as current.

He et al., CVPR 2016, with neurons where the ReLUs are: conv-norm-neuron-conv-norm + shortcut, then neuron. No pooling
but the global average at the end, which folds into the classifier.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from snnkit.training.models.parts import (
    Classifier,
    ConvNorm,
    Kind,
    Shape,
    Size,
    Stage,
    image_shape,
    initialise_convolutions,
    strides,
    widths,
)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut around them, [N, C, H, W], in a spiking network [T, N, C, H, W]."""

    def __init__(self, kind: Kind, before: int, after: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.kind = kind
        self.first = Stage(kind, before, after, stride)
        self.second = ConvNorm(kind, after, after)
        self.shortcut: nn.Module | None = None
        if stride > 1 or before != after:
            make = subsampling if shortcut == "A" else projection
            self.shortcut = make(kind, before, after, stride)
        self.neuron = kind.neuron()
        if kind.student:
            self._pass_on(kind.student.v_threshold)

    def _pass_on(self, threshold: float) -> None:
        """Lets the block begin by firing where its input does, with few exceptions: depth costs nothing at first.

        The current is a spike or none, and an offset that puts the first 0.4 above the threshold, the second 0.6 below,
        beside what the convolutions add, of standard deviation 0.3. With values, a last normalisation of weight 0 does
        this (Goyal et al., 2017).
        """
        nn.init.constant_(self.second.norm.weight, 0.3)
        if self.second.norm.bias is not None:  # filtered currents have none
            nn.init.constant_(self.second.norm.bias, threshold - 0.6)

    def current(self, x: Tensor, inner: Tensor) -> Tensor:
        """What enters the last neurons, [N, C, H, W] of any N: ``x`` past the ``inner`` spikes and through them."""
        around: Tensor = x if self.shortcut is None else self.shortcut(x)
        through: Tensor = self.second(inner)
        return through + around

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.neuron(self.kind.folded(self.current, x, self.first(x)))
        return out


def projection(kind: Kind, before: int, after: int, stride: int) -> nn.Module:
    """Option B: a 1x1 convolution and normalisation."""
    return ConvNorm(kind, before, after, 1, stride)


def subsampling(_kind: Kind, before: int, after: int, stride: int) -> nn.Module:
    """Option A, without parameters to train: every ``stride``-th pixel, zeros in the added channels on both sides.

    As a fixed 1x1 convolution, which is what a chip would hold, too.
    """
    conv = nn.Conv2d(before, after, 1, stride, bias=False).requires_grad_(False)
    kept, first = min(before, after), max(after - before, 0) // 2
    with torch.no_grad():
        conv.weight.zero_()
        for channel in range(kept):
            conv.weight[first + channel, channel] = 1.0
    return conv


def _resnet(
    kind: Kind,
    input_shape: Shape,
    classes: int,
    size: Size,
    model: str,
    channels: Sequence[int],
    blocks: Sequence[int],
) -> Classifier:
    after = widths(size, channels, model)
    stages: list[nn.Module] = [Stage(kind, image_shape(input_shape, model)[0], after[0])]
    before = after[0]
    for count, width, stride in zip(blocks, after, strides(len(after)), strict=True):
        sizes = [(before, stride)] + [(width, 1)] * (count - 1)
        stages.append(nn.Sequential(*(Block(kind, wide, width, step, size.shortcut) for wide, step in sizes)))
        before = width
    taps = [f"stages.{index + 1}.{count - 1}.neuron" for index, count in enumerate(blocks)]
    net = Classifier(kind, input_shape, stages, before, classes, average=True, taps=taps)
    initialise_convolutions(net, kind.gain)
    return net


def resnet18(kind: Kind, input_shape: Shape, classes: int, size: Size) -> Classifier:
    """ResNet-18 for 32x32 images: 3x3 stem, stages of 64-128-256-512 channels, two blocks each."""
    return _resnet(kind, input_shape, classes, size, "resnet18", (64, 128, 256, 512), (2, 2, 2, 2))


def resnet19(kind: Kind, input_shape: Shape, classes: int, size: Size) -> Classifier:
    """ResNet-19 for 32x32 images: 3x3 stem, stages of 128-256-512 channels, 3, 3 and 2 blocks (Zheng et al. 2021)."""
    return _resnet(kind, input_shape, classes, size, "resnet19", (128, 256, 512), (3, 3, 2))


def resnet20(kind: Kind, input_shape: Shape, classes: int, size: Size) -> Classifier:
    """ResNet-20 for 32x32 images: 3x3 stem, stages of 16-32-64 channels, three blocks each (He et al. 2016)."""
    return _resnet(kind, input_shape, classes, size, "resnet20", (16, 32, 64), (3, 3, 3))
