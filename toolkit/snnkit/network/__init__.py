"""The spiking network as data: structure, storage, passes, quantisation, traces."""

from snnkit.network.ir import (
    LIF,
    Affine,
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    Edge,
    Flatten,
    Input,
    Network,
    Node,
    Readout,
    infer_shapes,
    same,
    verify,
)
from snnkit.network.passes import apply, fold_batchnorm, fold_pooling, materialise_shortcuts, replace_pooling
from snnkit.network.quantize import quantize
from snnkit.network.storage import load, save
from snnkit.network.trace import Trace, predictions

__all__ = [
    "LIF",
    "Affine",
    "AvgPool2d",
    "BatchNorm2d",
    "Conv2d",
    "Edge",
    "Flatten",
    "Input",
    "Network",
    "Node",
    "Readout",
    "Trace",
    "apply",
    "fold_batchnorm",
    "fold_pooling",
    "infer_shapes",
    "load",
    "materialise_shortcuts",
    "predictions",
    "quantize",
    "replace_pooling",
    "same",
    "save",
    "verify",
]
