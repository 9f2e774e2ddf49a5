"""Small networks: a convolutional one, and one of linear layers only."""

import math
from itertools import pairwise

from snnkit.training.models.parts import Classifier, Kind, LinearStage, Shape, Size, Stage, image_shape, strides, widths


def convnet(kind: Kind, input_shape: Shape, classes: int, size: Size) -> Classifier:
    """Stages of one 3x3 convolution, each but the first of stride 2, and a linear layer on the last map."""
    channels, height, width = image_shape(input_shape, "convnet")
    after = widths(size, (16, 32, 32) if kind.spiking else (32, 64, 64))
    steps = strides(len(after))
    stages = [Stage(kind, *pair, stride) for pair, stride in zip(pairwise((channels, *after)), steps, strict=True)]
    for stride in steps:
        height, width = (height - 1) // stride + 1, (width - 1) // stride + 1
    taps = [f"stages.{index}.neuron" for index in range(len(stages))]
    return Classifier(kind, input_shape, stages, after[-1] * height * width, classes, average=False, taps=taps)


def mlp(kind: Kind, input_shape: Shape, classes: int, size: Size) -> Classifier:
    """Hidden linear layers of ``channels`` neurons (two of 512) on the flattened input, and one more."""
    hidden = widths(size, (512, 512))
    stages = [LinearStage(kind, *pair) for pair in pairwise((math.prod(input_shape), *hidden))]
    return Classifier(kind, input_shape, stages, hidden[-1], classes, average=False, taps=())
