"""Small integer networks for the limits of chips, made by hand."""

from itertools import pairwise

import numpy as np

from snnkit.analysis.chips import Chip
from snnkit.network import LIF, Affine, Conv2d, Edge, Flatten, Input, Network, Node, Readout, verify


def changed(chip: Chip, name: str, value: object) -> Chip:
    """The chip with another limit."""
    limit = getattr(chip, name)
    key = "values" if hasattr(limit, "values") else "value"
    return chip.model_copy(update={name: limit.model_copy(update={key: value})})


def lif(name: str, *sources: str, threshold: object = 100, decay: int = 0, current: int = 4096, reset="zero") -> LIF:
    return LIF(
        name=name,
        inputs=tuple(Edge(source) for source in sources),
        v_threshold=np.array(threshold, np.int32),
        voltage_decay=np.array(decay, np.int32),
        current_decay=np.array(current, np.int32),
        reset=reset,
    )


def affine(name: str, source: str, outputs: int, inputs: int, *, low: int = -1, bias: int | None = None) -> Affine:
    """Weights ``low`` and 1 in turns."""
    weight = np.ones((outputs, inputs), np.int8)
    weight.flat[::2] = low
    biases = None if bias is None else np.full(outputs, bias, np.int32)
    return Affine(name=name, inputs=(Edge(source),), weight=weight, bias=biases, weight_exponent=1)


def conv(name: str, source: str, outputs: int, inputs: int, kernel: int = 3, *, stride=1, groups=1, bias=None):
    """A padded convolution with weights -1 and 1 in turns."""
    weight = np.ones((outputs, inputs // groups, kernel, kernel), np.int8)
    weight.flat[::2] = -1
    return Conv2d(
        name=name,
        inputs=(Edge(source),),
        weight=weight,
        bias=None if bias is None else np.full(outputs, bias, np.int32),
        weight_exponent=1,
        stride=(stride, stride),
        padding=(kernel // 2, kernel // 2),
        groups=groups,
    )


def network(*nodes: Node, shape: tuple[int, ...], timesteps: int = 4, bits: int = 1, stem="chip", mode="membrane"):
    """The nodes between an input of spikes called ``in`` and a readout of the last one."""
    entry = Input(name="in", shape=shape, encoding="events", bits=bits)
    readout = Readout(name="out", inputs=(Edge(nodes[-1].name),), mode=mode)
    net = Network(nodes=(entry, *nodes, readout), timesteps=timesteps, stem=stem)
    assert verify(net) == "integer"
    return net


def dense(*sizes: int, **settings: int) -> Network:
    """Layers of neurons of these sizes, the first the input's, the last the readout's."""
    nodes: list[Node] = []
    before = "in"
    for index, (inputs, outputs) in enumerate(pairwise(sizes)):
        nodes.append(affine(f"fc{index}", before, outputs, inputs))
        if index < len(sizes) - 2:
            nodes.append(lif(f"lif{index}", nodes[-1].name, **settings))
        before = nodes[-1].name
    return network(*nodes, shape=(sizes[0],))


def convolutional(channels: tuple[int, ...], size: int, *, strides: tuple[int, ...] | None = None) -> Network:
    """Padded 3x3 convolutions on images of ``size``, then 10 classes."""
    nodes: list[Node] = []
    before, edge = "in", size
    for index, outputs in enumerate(channels[1:]):
        stride = strides[index] if strides else 1
        nodes += [
            conv(f"conv{index}", before, outputs, channels[index], stride=stride),
            lif(f"lif{index}", f"conv{index}"),
        ]
        before, edge = f"lif{index}", -(-edge // stride)
    nodes += [Flatten(name="flat", inputs=(Edge(before),)), affine("fc", "flat", 10, channels[-1] * edge * edge)]
    return network(*nodes, shape=(channels[0], size, size))
