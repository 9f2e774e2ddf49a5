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
    Synapse,
    infer_shapes,
    verify,
)

Pass: TypeAlias = Callable[[Network], Network]
POOL_THRESHOLD = 0.5  # of neurons that stand for an average


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
    """Folds each AvgPool2d into what reads it, exactly, in float64, where everything that reads it can take it.

    A linear layer behind a Flatten gives each weight to all pixels of its window; a convolution becomes a larger and
    more strided one; neurons read the average as a depthwise convolution. Not exact, and left in place for
    :func:`replace_pooling`: a padded convolution whose padding would see pixels of the map, or another reader.
    """
    for pool in net.nodes:
        if isinstance(pool, AvgPool2d) and (replaced := _folded(net, pool)) is not None:
            nodes = [replaced.get(node.name, node) for node in net.nodes]
            read = {edge.source for node in nodes for edge in node.inputs}
            kept = tuple(node for node in nodes if node.name != pool.name or pool.name in read)
            net = dataclasses.replace(net, nodes=kept)
    return net


def _folded(net: Network, pool: AvgPool2d) -> dict[str, Node] | None:
    """What stands in place of the readers of ``pool`` (and of itself, for neurons); None where one cannot take it."""
    shapes = infer_shapes(net)
    pooled, source = shapes[pool.name], shapes[pool.inputs[0].source]
    replaced: dict[str, Node] = {}
    for reader in net.consumers(pool.name):
        affines = net.consumers(reader.name)
        if isinstance(reader, LIF):
            replaced[pool.name] = _depthwise(pool.name, pool, source[0])
        elif len(reader.inputs) > 1:
            return None
        elif isinstance(reader, Conv2d) and _sees_no_more(reader, pool, source):
            replaced[reader.name] = _composed(reader, pool)
        elif isinstance(reader, Flatten) and all(isinstance(n, Affine) and len(n.inputs) == 1 for n in affines):
            replaced[reader.name] = dataclasses.replace(reader, inputs=pool.inputs)
            for affine in affines:
                assert isinstance(affine, Affine)
                weight = _spread(affine.weight, pool, pooled, source).astype(np.float32)
                replaced[affine.name] = dataclasses.replace(affine, weight=weight)
        else:
            return None
    return replaced


def _sees_no_more(conv: Conv2d, pool: AvgPool2d, source: Shape) -> bool:
    """Whether the padding around the averages, spread over the map, still covers no pixel of it."""
    for kernel, stride, padding, size in zip(pool.kernel_size, pool.stride, conv.padding, source[1:], strict=True):
        windows = (size - kernel) // stride + 1
        if padding and (kernel > stride or windows * stride < size):
            return False
    return True


def _composed(conv: Conv2d, pool: AvgPool2d) -> Conv2d:
    """The convolution of averages as one of pixels."""
    outputs, inputs, *size = conv.weight.shape
    steps = [dilation * stride for dilation, stride in zip(conv.dilation, pool.stride, strict=True)]
    spans = [(k - 1) * step + window for k, step, window in zip(size, steps, pool.kernel_size, strict=True)]
    weight = np.zeros((outputs, inputs, *spans))
    share = conv.weight.astype(np.float64) / math.prod(pool.kernel_size)
    for y in range(size[0]):
        for x in range(size[1]):
            rows, columns = (
                slice(i * step, i * step + k) for i, step, k in zip((y, x), steps, pool.kernel_size, strict=True)
            )
            weight[:, :, rows, columns] += share[:, :, y, x, None, None]
    stride, padding = ((pair[0] * pool.stride[0], pair[1] * pool.stride[1]) for pair in (conv.stride, conv.padding))
    return dataclasses.replace(
        conv, inputs=pool.inputs, weight=weight.astype(np.float32), stride=stride, padding=padding, dilation=(1, 1)
    )


def _depthwise(name: str, pool: AvgPool2d, channels: int) -> Conv2d:
    """The average as a layer of synapses."""
    weight = np.full((channels, 1, *pool.kernel_size), 1 / math.prod(pool.kernel_size), np.float32)
    return Conv2d(name=name, inputs=pool.inputs, weight=weight, stride=pool.stride, groups=channels)


def replace_pooling(net: Network) -> Network:
    """Replaces each AvgPool2d by a strided depthwise layer with neurons of its own, which take the pool's name.

    They do not leak, fire at half a spike and stand for as much in the layers behind; their reset is that of the other
    neurons. This is not exact: the average is rounded over time.
    """
    shapes = infer_shapes(net)
    pools = {node.name for node in net.nodes if isinstance(node, AvgPool2d)}
    behind = {n.name for n in net.nodes if isinstance(n, Flatten) and {e.source for e in n.inputs} & pools}
    nodes: list[Node] = []
    for node in net.nodes:
        if isinstance(node, AvgPool2d):
            average = _depthwise(f"{node.name}.average", node, shapes[node.name][0])
            v_threshold = np.nextafter(np.float32(POOL_THRESHOLD), np.float32(-np.inf))
            reset = net.neurons[0].reset if net.neurons else "zero"
            decay = np.zeros((), np.int32)
            edges = (Edge(average.name),)
            nodes += [
                average,
                LIF(name=node.name, inputs=edges, v_threshold=v_threshold, voltage_decay=decay, reset=reset),
            ]
        elif isinstance(node, Synapse) and {edge.source for edge in node.inputs} & (pools | behind):
            nodes.append(dataclasses.replace(node, weight=node.weight * np.float32(POOL_THRESHOLD)))
        else:
            nodes.append(node)
    return dataclasses.replace(net, nodes=tuple(nodes))


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
