"""Network to network: each pass is a function, and the result of each is verified."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from snnkit.network.ir import (
    LIF,
    Affine,
    Array,
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    Edge,
    Flatten,
    Input,
    Network,
    Node,
    Shape,
    infer_shapes,
    verify,
)

Pass: TypeAlias = Callable[[Network], Network]


def apply(net: Network, passes: Sequence[Pass]) -> Network:
    """Runs the passes in order; verifies the network before and after each."""
    verify(net)
    for step in passes:
        net = step(net)
        verify(net)
    return net


def _rewire(node: Node, renamed: dict[str, str]) -> Node:
    edges = tuple(dataclasses.replace(edge, source=renamed.get(edge.source, edge.source)) for edge in node.inputs)
    return dataclasses.replace(node, inputs=edges)


def fold_batchnorm(net: Network) -> Network:
    """Folds each BatchNorm2d into the convolution before it, in float64: W' = W g/s, b' = (b - mean) g/s + beta.

    A normalisation whose input is not one convolution of its own is left in place; ``quantize`` names it.
    """
    folded: dict[str, Node] = {}
    renamed: dict[str, str] = {}
    for node in net.nodes:
        if not isinstance(node, BatchNorm2d) or len(node.inputs) != 1:
            continue
        conv = net[node.inputs[0].source]
        if not isinstance(conv, Conv2d) or len(net.consumers(conv.name)) != 1:
            continue
        gain = node.weight.astype(np.float64) / np.sqrt(node.running_var.astype(np.float64) + node.eps)
        bias = np.zeros(gain.shape) if conv.bias is None else conv.bias.astype(np.float64)
        folded[conv.name] = dataclasses.replace(
            conv,
            weight=(conv.weight * gain[:, None, None, None]).astype(np.float32),
            bias=((bias - node.running_mean) * gain + node.bias).astype(np.float32),
        )
        renamed[node.name] = conv.name
    nodes = tuple(_rewire(folded.get(node.name, node), renamed) for node in net.nodes if node.name not in renamed)
    return dataclasses.replace(net, nodes=nodes)


def fold_pooling(net: Network) -> Network:
    """Folds each AvgPool2d into the Affine nodes behind it, in float64: each weight goes to all pixels of its window.

    Only where nothing but a Flatten stands between them and nothing else reads the average; any other is left in
    place, and ``quantize`` names it.
    """
    shapes = infer_shapes(net)
    replaced: dict[str, Node] = {}
    folded: set[str] = set()
    for pool in net.nodes:
        if not isinstance(pool, AvgPool2d):
            continue
        flattens = net.consumers(pool.name)
        affines = [affine for flatten in flattens for affine in net.consumers(flatten.name)]
        if not all(isinstance(node, Flatten) and len(node.inputs) == 1 for node in flattens):
            continue
        if not all(isinstance(node, Affine) and len(node.inputs) == 1 for node in affines):
            continue
        folded.add(pool.name)
        replaced |= {node.name: dataclasses.replace(node, inputs=pool.inputs) for node in flattens}
        source = shapes[pool.inputs[0].source]
        for affine in affines:
            assert isinstance(affine, Affine)
            weight = _spread(affine.weight, pool, shapes[pool.name], source)
            replaced[affine.name] = dataclasses.replace(affine, weight=weight.astype(np.float32))
    return dataclasses.replace(
        net, nodes=tuple(replaced.get(node.name, node) for node in net.nodes if node.name not in folded)
    )


def _spread(weight: Array, pool: AvgPool2d, pooled: Shape, source: Shape) -> Array:
    """Weights [O, C h w] on averages ``pooled`` as weights [O, C H W] on the map ``source``, float64."""
    (kernel_y, kernel_x), (stride_y, stride_x) = pool.kernel_size, pool.stride
    share = weight.astype(np.float64).reshape(len(weight), *pooled) / (kernel_y * kernel_x)
    spread = np.zeros((len(weight), *source))
    for y in range(pooled[1]):
        for x in range(pooled[2]):
            window = np.s_[:, :, y * stride_y : y * stride_y + kernel_y, x * stride_x : x * stride_x + kernel_x]
            spread[window] += share[:, :, y, x, None, None]
    return spread.reshape(len(weight), -1)


def materialise_shortcuts(net: Network) -> Network:
    """Makes each identity shortcut into a neuron explicit: a depthwise 1x1 Conv2d (or an Affine) of weight 1."""
    shapes = infer_shapes(net)
    nodes: list[Node] = []
    for node in net.nodes:
        if isinstance(node, LIF):
            edges = []
            for edge in node.inputs:
                if isinstance(net[edge.source], LIF | Input):
                    shortcut = _identity(f"{node.name}.shortcut_from.{edge.source}", edge, shapes[edge.source])
                    nodes.append(shortcut)
                    edge = Edge(shortcut.name)
                edges.append(edge)
            node = dataclasses.replace(node, inputs=tuple(edges))
        nodes.append(node)
    return dataclasses.replace(net, nodes=tuple(nodes))


def _identity(name: str, edge: Edge, shape: tuple[int, ...]) -> Node:
    if len(shape) == 3:
        weight = np.ones((shape[0], 1, 1, 1), np.float32)
        return Conv2d(name=name, inputs=(edge,), weight=weight, groups=shape[0])
    return Affine(name=name, inputs=(edge,), weight=np.eye(math.prod(shape), dtype=np.float32))
