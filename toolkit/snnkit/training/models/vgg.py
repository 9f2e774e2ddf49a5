"""VGG for small images: 3x3 convolutions in groups, the first of each group but the first one with stride 2.

The strides stand where Simonyan and Zisserman (2015) pool, and one linear layer on the global average stands for their
three, as is usual for 32x32 images.
"""

from collections.abc import Sequence
from itertools import accumulate

from snnkit.training.models.parts import (
    Classifier,
    Kind,
    Shape,
    Size,
    Stage,
    image_shape,
    initialise_convolutions,
    strides,
    widths,
)


def _vgg(
    kind: Kind,
    input_shape: Shape,
    classes: int,
    size: Size,
    model: str,
    channels: Sequence[int],
    convolutions: Sequence[int],
) -> Classifier:
    after = widths(size, channels, model)
    stages = []
    before = image_shape(input_shape, model)[0]
    for count, width, stride in zip(convolutions, after, strides(len(after)), strict=True):
        for step in (stride, *[1] * (count - 1)):
            stages.append(Stage(kind, before, width, step))
            before = width
    taps = [f"stages.{last - 1}.neuron" for last in accumulate(convolutions)]
    net = Classifier(kind, input_shape, stages, before, classes, average=True, taps=taps)
    initialise_convolutions(net, kind.gain)
    return net


def vgg9(kind: Kind, input_shape: Shape, classes: int, size: Size) -> Classifier:
    """VGG-9: groups of 64-128-256 channels, 2, 2 and 3 convolutions."""
    return _vgg(kind, input_shape, classes, size, "vgg9", (64, 128, 256), (2, 2, 3))


def vgg11(kind: Kind, input_shape: Shape, classes: int, size: Size) -> Classifier:
    """VGG-11: groups of 64-128-256-512-512 channels, 1, 1, 2, 2 and 2 convolutions."""
    return _vgg(kind, input_shape, classes, size, "vgg11", (64, 128, 256, 512, 512), (1, 1, 2, 2, 2))


def vgg16(kind: Kind, input_shape: Shape, classes: int, size: Size) -> Classifier:
    """VGG-16: groups of 64-128-256-512-512 channels, 2, 2, 3, 3 and 3 convolutions."""
    return _vgg(kind, input_shape, classes, size, "vgg16", (64, 128, 256, 512, 512), (2, 2, 3, 3, 3))
