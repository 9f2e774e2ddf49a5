"""NIR's layers without neurons as nodes of the Network: one method a kind, called by its name in lower case."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from snnkit.interchange.nir_choices import Choices, Encoding, Reset
from snnkit.interchange.nir_file import Graph, Record
from snnkit.interchange.nir_records import (
    MAX_VALUES,
    NotTakenError,
    all_close,
    as_image,
    given_axes,
    numbers,
    padding,
    pair,
    per_channel,
    weights,
    whole_numbers,
)
from snnkit.interchange.nir_write import unique
from snnkit.network import LIF, Affine, AvgPool2d, Conv2d, Edge, Flatten, Input, Node
from snnkit.network.ir import Array, Shape, Synapse, conv_output_size

MAX_TIMESTEPS = 10_000
MAX_NODES = 1000
MAX_DIAGONAL = 2048  # values that are scaled one by one, by a matrix


@dataclass(frozen=True, eq=False)
class Value:
    """What a NIR node sends: the sum of IR edges, of a shape (None: unknown, after an obstacle).

    A leaky integrator is no node here: ``decay`` of its state (0..1, scalar or [C]) and ``gain`` of its input wait
    for the neuron or the readout behind it.
    """

    edges: tuple[Edge, ...] = ()
    shape: Shape | None = None
    decay: Array | None = None
    gain: Array | None = None


class Layers:
    """The nodes made so far, and how layers are added to them."""

    def __init__(self, graph: Graph, choices: Choices, path: Path, notes: list[str]) -> None:
        self.graph, self.path, self.notes = graph, path, notes
        self.choices = choices
        self.dt: float | None = None
        self.reset: Reset = "zero"
        self.encoding: Encoding = "direct"
        self.timesteps = 0
        self.nodes: dict[str, Node] = {}
        self.values: dict[str, Value] = {}
        self.reasons: list[str] = []
        given = (record.get("weight") for record in graph.nodes.values())
        self.allowance = MAX_VALUES + sum(w.size for w in given if isinstance(w, np.ndarray))

    def _add(self, node: Node) -> str:
        if len(self.nodes) >= MAX_NODES + 2:
            raise NotTakenError(f"needs more than {MAX_NODES} nodes")
        if isinstance(node, Synapse):
            self._afford(node.weight.size)
        self.nodes[node.name] = node
        return node.name

    def _afford(self, weights: int) -> None:
        """Counts weights that are made or changed, so that a small file cannot ask for much."""
        self.allowance -= weights
        if self.allowance < 0:
            raise NotTakenError("makes the network too large: more weights than the file holds")

    def _free(self, name: str) -> str:
        return unique(name, {*self.nodes, *self.graph.nodes, "input", "output"})

    def _input(self, name: str, record: Record, _operand: Value) -> Value:
        given = whole_numbers(record, "shape")
        shape = as_image(given)
        if len(shape) not in (1, 3) or min(shape) < 1 or math.prod(shape) > MAX_VALUES:
            raise NotTakenError(f"has shape {given}; (N,), (C, L) and (C, H, W) are taken")
        self._add(Input(name=name, shape=shape, encoding=self.encoding))
        return Value((Edge(name),), shape)

    def _affine(self, name: str, record: Record, operand: Value) -> Value:
        weight = weights(record)
        bias = numbers(record, "bias") if record["type"] == "Affine" else None
        if weight.ndim != 2 or operand.shape != (weight.shape[1],):
            raise NotTakenError(f"has weights {weight.shape}, which do not fit an input of {operand.shape}")
        if bias is not None and bias.shape != weight.shape[:1]:
            raise NotTakenError(f"has a bias {bias.shape} for weights {weight.shape}")
        bias = None if bias is None else bias.astype(np.float32)
        return self._synapse(Affine(name=name, inputs=operand.edges, weight=weight, bias=bias), (weight.shape[0],))

    _linear = _affine

    def _conv2d(self, name: str, record: Record, operand: Value) -> Value:
        flat = record["type"] == "Conv1d"
        weight, bias = weights(record), numbers(record, "bias")
        if weight.ndim != (3 if flat else 4) or operand.shape is None or len(operand.shape) != 3:
            raise NotTakenError(f"has weights {weight.shape}, which do not fit an input of {operand.shape}")
        weight = weight[:, :, None] if flat else weight
        stride, dilation = (pair(record, key, flat=flat, fill=1) for key in ("stride", "dilation"))
        border = padding(record, weight.shape[2:], stride, dilation, flat=flat)
        groups = whole_numbers(record, "groups")
        if len(groups) != 1 or min(*stride, *dilation, *groups) < 1 or min(border) < 0:
            raise NotTakenError("has a stride, dilation, padding or number of groups that is not possible")
        if bias.shape != weight.shape[:1]:
            raise NotTakenError(f"has a bias {bias.shape} for weights {weight.shape}")
        node = Conv2d(
            name=name,
            inputs=operand.edges,
            weight=weight,
            bias=bias.astype(np.float32) if bias.any() else None,
            stride=stride,
            padding=border,
            dilation=dilation,
            groups=groups[0],
        )
        if operand.shape[0] != weight.shape[1] * node.groups or weight.shape[0] % node.groups:
            raise NotTakenError(f"has weights {weight.shape}, which do not fit an input of {operand.shape}")
        return self._synapse(node, self._map_shape(node, weight.shape[0], operand.shape))

    _conv1d = _conv2d

    def _map_shape(self, node: Conv2d, channels: int, shape: Shape) -> Shape:
        height, width = conv_output_size(node, (shape[1], shape[2]))
        if min(height, width) < 1 or channels * height * width > MAX_VALUES:
            raise NotTakenError(f"makes {channels} x {height} x {width} of {shape}")
        return channels, height, width

    def _sumpool2d(self, name: str, record: Record, operand: Value) -> Value:
        shape = operand.shape
        if shape is None or len(shape) != 3:
            raise NotTakenError(f"pools {shape}, which is not (C, H, W)")
        kernel = pair(record, "kernel_size", flat=False, fill=1)
        stride, border = (pair(record, key, flat=False, fill=fill) for key, fill in (("stride", 1), ("padding", 0)))
        average = record["type"] == "AvgPool2d"
        if min(*kernel, *stride) < 1 or min(border) < 0 or math.prod(kernel) * shape[0] > MAX_VALUES:
            raise NotTakenError("has a kernel, stride or padding that is not possible")
        weight = np.full((shape[0], 1, *kernel), 1 / math.prod(kernel) if average else 1.0, np.float32)
        place: dict[str, Any] = {"name": name, "inputs": operand.edges}
        conv = Conv2d(**place, weight=weight, stride=stride, padding=border, groups=shape[0])
        out = self._map_shape(conv, shape[0], shape)
        plain = average and border == (0, 0)
        return Value((Edge(self._add(AvgPool2d(**place, kernel_size=kernel, stride=stride) if plain else conv)),), out)

    _avgpool2d = _sumpool2d

    def _flatten(self, name: str, record: Record, operand: Value) -> Value:
        shape = operand.shape
        assert shape is not None
        start, end = (whole_numbers(record, key) for key in ("start_dim", "end_dim"))
        axes = 2 if len(shape) == 3 and shape[1] == 1 and given_axes(record) == 2 else len(shape)
        if len(start) != 1 or len(end) != 1 or not -axes <= start[0] < axes or not -axes <= end[0] < axes:
            raise NotTakenError("flattens axes that do not exist")
        kept = [size for size in shape[: start[0] % axes] if size > 1]
        if kept or end[0] % axes != axes - 1:
            raise NotTakenError(f"flattens axes {start[0]}..{end[0]} of {shape}; only all of them can be")
        if len(shape) == 1:
            return operand
        return Value((Edge(self._add(Flatten(name=name, inputs=operand.edges))),), (math.prod(shape),))

    def _scale(self, name: str, record: Record, operand: Value) -> Value:
        """Into the weights before it; else a layer of its own with one weight a channel or neuron."""
        shape = operand.shape
        assert shape is not None
        factor = np.atleast_1d(per_channel(record, "scale", shape))
        source = self.nodes.get(operand.edges[0].source)
        if len(operand.edges) == 1 and isinstance(source, Synapse) and self._readers(source.name) == 1:
            self._afford(source.weight.size)
            rows = factor.reshape(-1, *[1] * (source.weight.ndim - 1))
            bias = None if source.bias is None else (source.bias * factor).astype(np.float32)
            self.nodes[source.name] = replace(source, weight=(source.weight * rows).astype(np.float32), bias=bias)
            return operand
        if (factor == 1).all():
            return operand
        return self._synapse(self._diagonal(name, operand.edges, factor, shape), shape)

    def _diagonal(self, name: str, edges: tuple[Edge, ...], factor: Array, shape: Shape) -> Synapse:
        factor = np.broadcast_to(factor, shape[:1]).astype(np.float32)
        if len(shape) == 3:
            return Conv2d(name=name, inputs=edges, weight=factor.reshape(-1, 1, 1, 1), groups=shape[0])
        if shape[0] > MAX_DIAGONAL:
            raise NotTakenError(f"scales {shape[0]} values one by one, too many for a layer of its own")
        return Affine(name=name, inputs=edges, weight=np.diag(factor))

    def _delay(self, _name: str, record: Record, operand: Value) -> Value:
        assert self.dt is not None
        steps = np.unique(numbers(record, "delay")) / self.dt
        whole = np.rint(steps)
        if len(steps) != 1 or not 0 <= whole[0] <= MAX_TIMESTEPS or not all_close(steps, whole[0], absolute=1e-3):
            raise NotTakenError(f"delays by {steps[:3]} timesteps; one whole number for all is taken")
        return replace(operand, edges=tuple(self._delayed(edge, int(whole[0])) for edge in operand.edges))

    def _delayed(self, edge: Edge, steps: int) -> Edge:
        """The same value later. What is not an input or spikes is computed again from what came earlier."""
        source = self.nodes.get(edge.source)
        if steps == 0 or source is None or isinstance(source, Input | LIF):
            return replace(edge, delay=edge.delay + steps)
        if isinstance(source, Synapse) and source.bias is not None and source.bias.any():
            raise NotTakenError(f"delays '{source.name}', whose bias would start late; delay what it reads")
        inputs = tuple(self._delayed(earlier, steps) for earlier in source.inputs)
        return Edge(self._add(replace(source, name=self._free(f"{source.name}_{steps}_late"), inputs=inputs)))

    def _synapse(self, node: Synapse, shape: Shape) -> Value:
        return Value((Edge(self._add(node)),), shape)

    def _readers(self, name: str) -> int:
        return sum(source == name for source, _ in self.graph.edges)
