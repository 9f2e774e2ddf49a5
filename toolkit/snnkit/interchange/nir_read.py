"""From NIR's graph to the Network.

A graph that this project has written, and that nobody has changed since, comes back exactly. Any other one is
read node by node: into a float network, whose decays are put on the 12-bit grid as ``lower`` does. What NIR leaves
open (how neurons reset, the timestep, how many of them) has to be said.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from snnkit.errors import NetworkError, UnsupportedError, UsageError
from snnkit.interchange import nir_file
from snnkit.interchange.nir_file import Graph, Record
from snnkit.interchange.nir_order import NEURONS, feedback, ordered
from snnkit.interchange.nir_records import (
    CLOSE,
    MAX_VALUES,
    NotTakenError,
    all_close,
    given_axes,
    numbers,
    one_if_close,
    padding,
    pair,
    per_channel,
    weights,
    whole_numbers,
)
from snnkit.interchange.nir_write import KEY, Dialect, nir_names, to_graph, unique
from snnkit.network import (
    LIF,
    Affine,
    AvgPool2d,
    Conv2d,
    Edge,
    Flatten,
    Input,
    Network,
    Node,
    Readout,
    infer_shapes,
    verify,
)
from snnkit.network.ir import DECAY_ONE, Array, Shape, Synapse, conv_output_size
from snnkit.network.storage import decode

Reset: TypeAlias = Literal["zero", "subtract"]
Encoding: TypeAlias = Literal["direct", "events"]
KNOWN = (
    *("Input", "Output", "Affine", "Linear", "Conv1d", "Conv2d", "SumPool2d", "AvgPool2d", "Flatten", "Scale"),
    *("Delay", "Threshold", "IF", "LIF", "CubaLIF", "LI", "I"),
)
MAX_TIMESTEPS = 10_000
HINT = "change these nodes where the graph was made, or leave them out"


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the file may leave open. ``dt`` in seconds; ``at_threshold``: whether v equal to the threshold fires.

    NIR says v > v_threshold; SpikingJelly fires at v >= v_threshold. ``dialect`` None recognises r = 1 and r = 1/dt.
    """

    reset: Reset | None = None
    dt: float | None = None
    timesteps: int | None = None
    encoding: Encoding | None = None
    dialect: Dialect | None = None
    at_threshold: Literal["silent", "fire"] = "silent"


@dataclass(frozen=True, eq=False)
class Imported:
    """The network, whether it is exactly the one that was exported, and what a user should know about it."""

    network: Network
    exact: bool
    notes: tuple[str, ...] = ()


def read(path: str | os.PathLike[str], choices: Choices | None = None) -> Imported:
    """The network in a .nir file.

    Raises :class:`NetworkError` for a damaged file, :class:`UnsupportedError` with every node that cannot be taken,
    :class:`UsageError` where a choice is missing.
    """
    with np.errstate(all="ignore"):  # what overflows or is not a number is found out by its value
        return from_graph(nir_file.read(path), choices or Choices(), Path(path))


def from_graph(graph: Graph, choices: Choices, path: Path) -> Imported:
    """The network of a graph; ``path`` is named in errors."""
    notes = []
    if KEY in graph.metadata:
        restored = _restored(graph, path)
        if restored is not None:
            if choices.timesteps:
                restored = replace(restored, timesteps=choices.timesteps)
                verify(restored)
            return Imported(restored, exact=True)
        notes.append("the graph was changed after snnkit wrote it, so it is read as any other")
    return _Importer(graph, choices, path, notes).imported()


def _restored(graph: Graph, path: Path) -> Network | None:
    """The network that was exported; None where the graph is no longer that network's."""
    try:
        stored = json.loads(graph.metadata[KEY])
        net = decode(stored["network"], _original_arrays(graph, stored), path)
        settings = stored["settings"]
        if not _as_large(net, graph) or not to_graph(net, **settings).same_as(graph):
            return None
    except (NetworkError, KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RecursionError):
        return None
    return net


def _original_arrays(graph: Graph, stored: dict[str, Any]) -> dict[str, Array]:
    """Neurons' parameters as the metadata lists them; weights and biases from the records that stand for them."""
    exponents = {node["name"]: node.get("weight_exponent", 0) for node in json.loads(stored["network"])["nodes"]}
    arrays = {}
    for key, (kind, shape, values) in stored["arrays"].items():
        if kind not in ("|i1", "<i4", "<f4"):
            raise ValueError("an array is of another type than a network's")
        name, _, parameter = key.rpartition(".")
        if values is None:
            exact = graph.nodes[stored["names"][name]][parameter]
            if parameter == "weight":
                exact = _grouped(exact, shape) / 2.0 ** exponents[name]
        else:
            exact = np.array(values)
        arrays[key] = exact.astype(np.dtype(kind)).reshape(shape)
    return arrays


def _as_large(net: Network, graph: Graph) -> bool:
    """Whether the network's graph would have the sizes of ``graph``, so that it can be built to compare."""
    shapes, names = infer_shapes(net), nir_names(net)
    for node in net.nodes:
        record = graph.nodes[names[node.name]]
        if isinstance(node, LIF) and math.prod(shapes[node.name]) != record["v_threshold"].size:
            return False
        if isinstance(node, Conv2d) and node.weight.size * node.groups > record["weight"].size * max(
            1, int(record["groups"])
        ):
            return False
    delayed = {edge.source for node in net.nodes for edge in node.inputs if edge.delay}
    return sum(math.prod(shapes[name]) for name in delayed) <= MAX_VALUES


def _grouped(weight: Array, shape: Sequence[int]) -> Array:
    """One group's weights [O, I, ...] as the grouped ones of ``shape`` that were expanded to them."""
    if list(weight.shape) == shape:
        return weight
    outputs, inputs = shape[:2]
    if len(shape) != weight.ndim or outputs != len(weight):
        raise ValueError("weights of another shape")
    groups = weight.shape[1] // inputs
    rows = np.arange(outputs) // (outputs // groups)
    return np.stack([weight[o, r * inputs : (r + 1) * inputs] for o, r in enumerate(rows)])


@dataclass(frozen=True, eq=False)
class _Value:
    """What a NIR node sends: the sum of IR edges, of a shape (None: unknown, after an obstacle).

    A leaky integrator is no node here: ``decay`` of its state (0..1, scalar or [C]) and ``gain`` of its input wait
    for the neuron or the readout behind it.
    """

    edges: tuple[Edge, ...] = ()
    shape: Shape | None = None
    decay: Array | None = None
    gain: Array | None = None


class _Importer:
    def __init__(self, graph: Graph, choices: Choices, path: Path, notes: list[str]) -> None:
        self.graph, self.path, self.notes = graph, path, notes
        self.said = _said(graph.metadata, path)
        self.choices = choices
        self.nodes: dict[str, Node] = {}
        self.values: dict[str, _Value] = {}
        self.reasons: list[str] = []
        given = (record.get("weight") for record in graph.nodes.values())
        self.allowance = MAX_VALUES + sum(w.size for w in given if isinstance(w, np.ndarray))

    def imported(self) -> Imported:
        self._check_structure()
        self._choose()
        sources = self._sources()
        self.late, back = feedback(self.graph.nodes, self.graph.edges)
        following: dict[str, list[str]] = {name: [] for name in self.graph.nodes}
        for edge in self.graph.edges:
            if edge not in back:
                following[edge[0]].append(edge[1])
        for name in ordered(following):
            self._convert(name, sources[name])
        if self.reasons:
            raise self._unsupported()
        net = Network(
            nodes=tuple(self._needed()),
            timesteps=self.timesteps,
            metadata={"imported": {"format": "nir", "file": self.path.name}},
        )
        verify(net)
        return Imported(net, exact=False, notes=tuple(self.notes))

    # --- before anything is built ---

    def _check_structure(self) -> None:
        """Finds every node that cannot be taken whatever its parameters are."""
        nodes, edges = self.graph.nodes, self.graph.edges
        for name, record in nodes.items():
            if record["type"] == "NIRGraph":
                self._reason(name, "is a graph of its own; nested graphs are not taken")
            elif record["type"] not in KNOWN:
                self._reason(name, "is of an unknown kind")
        missing = {name for edge in edges for name in edge if name not in nodes}
        self.reasons += [f"an edge names '{name}', which does not exist" for name in sorted(missing)]
        if len(set(edges)) < len(edges):
            self.reasons.append("two nodes are connected twice")
        for kind in ("Input", "Output"):
            if (count := sum(record["type"] == kind for record in nodes.values())) != 1:
                self.reasons.append(f"it has {count} nodes of kind {kind}; one is taken")
        ends = [[name for name, record in nodes.items() if record["type"] == kind] for kind in ("Input", "Output")]
        if not missing and all(len(names) == 1 for names in ends):
            (entry,), (end,) = ends
            forwards, backwards = _reached(entry, edges), _reached(end, [(b, a) for a, b in edges])
            for name in nodes:
                if name not in forwards:
                    self._reason(name, "is not reached by the input")
                elif name not in backwards:
                    self._reason(name, "does not lead to the output")
            if any(target == entry for _, target in edges) or any(source == end for source, _ in edges):
                self.reasons.append("an edge leads into the input or out of the output")
        if self.reasons:
            raise self._unsupported()

    def _choose(self) -> None:
        """Settles what NIR leaves open, from the choices and from what the file says of itself."""
        kinds = {record["type"] for record in self.graph.nodes.values()}
        self.reset, self.dt = self._chosen("reset"), self._chosen("dt")
        self.encoding: Encoding = self._chosen("encoding") or "direct"
        timesteps = self._chosen("timesteps")
        missing = []
        if self.reset is None and kinds & {"IF", "LIF", "CubaLIF"}:
            missing.append("how its neurons reset (--reset zero or subtract)")
        if self.dt is None and (kinds & {"LIF", "CubaLIF", "LI", "Delay"} or self._needs_dt()):
            missing.append("how long a timestep is (--dt, in seconds; most frameworks write 1e-4)")
        if timesteps is None:
            missing.append("how many timesteps there are (--timesteps)")
        if missing:
            raise UsageError(f"'{self.path}' does not say {', or '.join(missing)}", "give these options")
        if not 1 <= timesteps <= MAX_TIMESTEPS:
            raise UsageError(f"{timesteps} timesteps are outside 1..{MAX_TIMESTEPS}", "give --timesteps")
        if self.dt is not None and not (math.isfinite(self.dt) and self.dt > 0):
            raise UsageError(f"a timestep of {self.dt} seconds is not possible", "give --dt above 0")
        self.timesteps: int = timesteps

    def _chosen(self, name: str) -> Any:
        chosen, said = getattr(self.choices, name), self.said.get(name)
        if chosen is not None and said is not None and chosen != said and name != "timesteps":
            self.notes.append(f"the file says {name} {said}; {chosen} was asked for and is used")
        return said if chosen is None else chosen

    def _needs_dt(self) -> bool:
        """Whether an IF or I counts in seconds: its r is not 1."""
        if self.choices.dialect is not None:
            return self.choices.dialect == "r=1/dt"
        found = (record.get("r") for record in self.graph.nodes.values() if record["type"] in ("IF", "I"))
        return any(isinstance(r, np.ndarray) and not all_close(r, 1.0) for r in found)

    def _sources(self) -> dict[str, list[str]]:
        sources: dict[str, list[str]] = {name: [] for name in self.graph.nodes}
        for source, target in self.graph.edges:
            sources[target].append(source)
        return sources

    # --- node by node ---

    def _convert(self, name: str, sources: list[str]) -> None:
        record = self.graph.nodes[name]
        try:
            operand = self._operand(name, sources)
            if operand is not None:
                self.values[name] = getattr(self, f"_{record['type'].lower()}")(name, record, operand)
        except NotTakenError as error:
            self._reason(name, str(error))
        except RecursionError:
            self._reason(name, "stands behind too long a chain of layers without neurons")
        if name not in self.values:
            self.values[name] = _Value()

    def _operand(self, name: str, sources: list[str]) -> _Value | None:
        """The sum of what a node reads; None where a source is unknown because of an obstacle."""
        edges: list[Edge] = []
        shapes, waiting = set(), []
        for source in sources:
            if (source, name) in self.late:
                edges.append(Edge(source, 1))
            elif source not in self.values:  # a neuron behind a delay that leads back
                edges.append(Edge(source))
            else:
                value = self.values[source]
                if value.shape is None:
                    return None
                edges += value.edges
                shapes.add(value.shape)
                if value.decay is not None:
                    waiting.append(value)
        if len(shapes) > 1:
            raise NotTakenError(f"sums values of different shapes, {sorted(shapes)}")
        if waiting and (len(sources) > 1 or self.graph.nodes[name]["type"] not in (*NEURONS, "Output")):
            raise NotTakenError("reads a leaky integrator; only a neuron alone behind it, or the output, can")
        if waiting:
            return waiting[0]
        return _Value(tuple(edges), shapes.pop() if shapes else self._declared(name, sources))

    def _declared(self, name: str, sources: list[str]) -> Shape | None:
        """The shape of what a node reads that reads late spikes only, as it or the neuron says."""
        record = self.graph.nodes[name]
        if record["type"] in ("Affine", "Linear"):
            return weights(record).shape[1:]
        if record["type"] == "Conv2d" and "input_shape" in record:
            channels = weights(record).shape[1] * math.prod(whole_numbers(record, "groups"))
            return (channels, *whole_numbers(record, "input_shape"))
        said = (self.graph.nodes[source].get("v_threshold") for source in sources)
        shapes = {threshold.shape for threshold in said if isinstance(threshold, np.ndarray)}
        shape = shapes.pop() if len(shapes) == 1 else ()
        return shape if len(shape) in (1, 3) else None

    def _add(self, node: Node) -> str:
        if isinstance(node, Synapse):
            self.allowance -= node.weight.size
            if self.allowance < 0:
                raise NotTakenError("makes the network too large: more weights than the file holds")
        self.nodes[node.name] = node
        return node.name

    def _free(self, name: str) -> str:
        return unique(name, {*self.nodes, *self.graph.nodes, "input", "output"})

    def _input(self, name: str, record: Record, _operand: _Value) -> _Value:
        given = whole_numbers(record, "shape")
        shape = (given[0], 1, given[1]) if len(given) == 2 else given  # a sequence is an image of one row
        if len(shape) not in (1, 3) or min(shape) < 1 or math.prod(shape) > MAX_VALUES:
            raise NotTakenError(f"has shape {given}; (N,), (C, L) and (C, H, W) are taken")
        self._add(Input(name=name, shape=shape, encoding=self.encoding))
        return _Value((Edge(name),), shape)

    def _affine(self, name: str, record: Record, operand: _Value) -> _Value:
        weight = weights(record)
        bias = numbers(record, "bias") if record["type"] == "Affine" else None
        if weight.ndim != 2 or operand.shape != (weight.shape[1],):
            raise NotTakenError(f"has weights {weight.shape}, which do not fit an input of {operand.shape}")
        if bias is not None and bias.shape != weight.shape[:1]:
            raise NotTakenError(f"has a bias {bias.shape} for weights {weight.shape}")
        bias = None if bias is None else bias.astype(np.float32)
        return self._synapse(Affine(name=name, inputs=operand.edges, weight=weight, bias=bias), (weight.shape[0],))

    _linear = _affine

    def _conv2d(self, name: str, record: Record, operand: _Value) -> _Value:
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

    def _sumpool2d(self, name: str, record: Record, operand: _Value) -> _Value:
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
        return _Value((Edge(self._add(AvgPool2d(**place, kernel_size=kernel, stride=stride) if plain else conv)),), out)

    _avgpool2d = _sumpool2d

    def _flatten(self, name: str, record: Record, operand: _Value) -> _Value:
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
        return _Value((Edge(self._add(Flatten(name=name, inputs=operand.edges))),), (math.prod(shape),))

    def _scale(self, name: str, record: Record, operand: _Value) -> _Value:
        """Into the weights before it; else a layer of its own with one weight a channel or neuron."""
        shape = operand.shape
        assert shape is not None
        factor = np.atleast_1d(per_channel(record, "scale", shape))
        source = self.nodes.get(operand.edges[0].source)
        if len(operand.edges) == 1 and isinstance(source, Synapse) and self._readers(source.name) == 1:
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
        if shape[0] ** 2 > MAX_VALUES:
            raise NotTakenError(f"scales {shape[0]} values one by one, too many for a layer of its own")
        return Affine(name=name, inputs=edges, weight=np.diag(factor))

    def _delay(self, _name: str, record: Record, operand: _Value) -> _Value:
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

    # --- neurons ---

    def _threshold(self, name: str, record: Record, operand: _Value) -> _Value:
        """A neuron that forgets everything: v is its input."""
        if operand.decay is not None:
            raise NotTakenError("reads a leaky integrator, which only neurons and the output can")
        shape = self._shape(record, "threshold", operand)
        theta = per_channel(record, "threshold", shape)
        return self._neuron(name, operand, shape, theta, np.ones(()), np.ones(()), "zero")

    def _if(self, name: str, record: Record, operand: _Value) -> _Value:
        return self._fires(name, record, operand, np.zeros(()), self._input_gain(record, operand))

    def _lif(self, name: str, record: Record, operand: _Value) -> _Value:
        leak = self._rate(record, "tau", operand)
        return self._fires(name, record, operand, leak, leak * self._parameter(record, "r", operand))

    def _cubalif(self, name: str, record: Record, operand: _Value) -> _Value:
        if operand.decay is not None:
            raise NotTakenError("filters its current twice")
        leak, drain = self._rate(record, "tau_mem", operand), self._rate(record, "tau_syn", operand)
        w_in = self._parameter(record, "w_in", operand) if "w_in" in record else 1.0
        filtered = replace(operand, decay=drain, gain=drain * w_in)
        return self._fires(name, record, filtered, leak, leak * self._parameter(record, "r", operand))

    def _li(self, _name: str, record: Record, operand: _Value) -> _Value:
        if operand.decay is not None:
            raise NotTakenError("integrates twice")
        shape = self._shape(record, "r", operand)
        if "tau" in record:
            self._zero(record, "v_leak", operand)
            decay = self._rate(record, "tau", operand)
            gain = decay * self._parameter(record, "r", operand)
        else:
            decay, gain = np.zeros(()), self._input_gain(record, operand)
        return _Value(operand.edges, shape, decay, one_if_close(gain))

    _i = _li

    def _fires(self, name: str, record: Record, operand: _Value, leak: Array, gain: Array) -> _Value:
        """An IF, LIF or CubaLIF with a leak of 0..1 and its input scaled by ``gain``, which goes into the threshold."""
        shape = self._shape(record, "v_threshold", operand)
        for key in ("v_leak", "v_reset"):  # v_reset may be left out
            if key in record:
                self._zero(record, key, operand)
        drain = np.ones(()) if operand.decay is None else operand.decay
        gain = one_if_close(gain * (1.0 if operand.gain is None else operand.gain))
        if not (gain > 0).all():
            raise NotTakenError("scales its input by 0 or less")
        theta = per_channel(record, "v_threshold", shape) / gain
        return self._neuron(name, replace(operand, decay=None), shape, theta, leak, drain, self.reset)

    def _neuron(
        self, name: str, operand: _Value, shape: Shape, theta: Array, leak: Array, drain: Array, reset: Reset
    ) -> _Value:
        v_threshold = np.asarray(theta, np.float32)
        if self.choices.at_threshold == "fire":
            v_threshold = np.nextafter(v_threshold, np.float32(-np.inf))
        if not np.isfinite(v_threshold).all():
            raise NotTakenError("has a threshold beyond float32")
        self._add(
            LIF(
                name=name,
                inputs=operand.edges,
                v_threshold=np.asarray(v_threshold),
                voltage_decay=self._on_grid(name, leak, "membrane"),
                current_decay=self._on_grid(name, drain, "current"),
                reset=reset,
            )
        )
        return _Value((Edge(name),), shape)

    def _on_grid(self, name: str, decay: Array, what: str) -> Array:
        steps = np.rint(decay * DECAY_ONE)
        if not all_close(decay * DECAY_ONE, steps, absolute=DECAY_ONE * CLOSE):
            worst = float(decay.flat[np.abs(decay * DECAY_ONE - steps).argmax()])
            self.notes.append(
                f"node '{name}': the {what} decay {worst:.6g} is {np.rint(worst * DECAY_ONE):.0f}/4096 here, "
                "so some spikes may differ from the framework that wrote the file"
            )
        return np.asarray(steps, np.int32)

    def _rate(self, record: Record, key: str, operand: _Value) -> Array:
        """The share that leaks in a timestep, dt / tau: 0..1."""
        assert self.dt is not None
        tau = self._parameter(record, key, operand)
        with np.errstate(divide="ignore", over="ignore"):
            rate = np.asarray(self.dt / tau)
        if not np.isfinite(tau).all() or (tau <= 0).any() or (rate > 1 + CLOSE).any():
            raise NotTakenError(f"has a {key} of {float(tau.flat[0]):.6g} s, not at least a timestep of {self.dt:g} s")
        return np.asarray(np.minimum(rate, 1.0))

    def _input_gain(self, record: Record, operand: _Value) -> Array:
        """What one timestep adds of its input, r dt; an r of 1 is taken as one a timestep."""
        r = self._parameter(record, "r", operand)
        if self.choices.dialect == "r=1" or (self.choices.dialect is None and all_close(r, 1.0)):
            return r
        assert self.dt is not None
        gain: Array = r * self.dt
        if self.choices.dialect is None and not all_close(gain, 1.0):
            raise NotTakenError(
                f"has an r of {float(r.flat[0]):.6g}, neither 1 nor 1/dt = {1 / self.dt:.6g}; "
                "say which it is (--dialect)"
            )
        return gain

    def _shape(self, record: Record, key: str, operand: _Value) -> Shape:
        """The operand's shape; behind nothing but late edges, that of the parameter."""
        if operand.shape is not None:
            return operand.shape
        shape = numbers(record, key).shape
        if len(shape) not in (1, 3):
            raise NotTakenError(f"has parameters of shape {shape}, so its size is unknown")
        return shape

    def _parameter(self, record: Record, key: str, operand: _Value) -> Array:
        return per_channel(record, key, self._shape(record, key, operand))

    def _zero(self, record: Record, key: str, operand: _Value) -> None:
        if self._parameter(record, key, operand).any():
            raise NotTakenError(f"has a {key} other than 0")

    # --- the end ---

    def _output(self, _name: str, _record: Record, operand: _Value) -> _Value:
        readout = self._free("readout")
        edges = operand.edges if operand.decay is None else self._integrated(operand)
        sources = [self.nodes.get(edge.source) for edge in edges]
        mode: Literal["membrane", "count"]
        if all(isinstance(source, Affine) for source in sources):
            mode = "membrane"
        elif all(isinstance(source, LIF) for source in sources):
            mode = "count"
        else:
            raise NotTakenError("must read Linear or Affine nodes, or spikes")
        if operand.shape is None or len(operand.shape) != 1:
            raise NotTakenError(f"has shape {operand.shape}; the answer is one value a class")
        self._add(Readout(name=readout, inputs=edges, mode=mode))
        return _Value((Edge(readout),), operand.shape)

    def _integrated(self, operand: _Value) -> tuple[Edge, ...]:
        """The sum over time of a leaky integrator's state, as layers that read ever earlier spikes.

        In T timesteps an input of time t is seen T - t times, weakened by the decay each time: one layer a delay. A
        bias is the same at every timestep, so its whole sum is spread evenly.
        """
        assert operand.decay is not None
        assert operand.gain is not None
        sources = [self.nodes[edge.source] for edge in operand.edges]
        keep, steps = 1.0 - operand.decay, self.timesteps
        if not all(isinstance(source, Affine) for source in sources):
            raise NotTakenError("integrates something else than Linear or Affine nodes")
        if keep.any() and sum(s.weight.size for s in sources if isinstance(s, Affine)) * steps > MAX_VALUES:
            raise NotTakenError(f"integrates with a leak over {steps} timesteps, which is too much to unroll")
        self.notes.append("the readout is the sum over time of the leaky integrator's state")
        edges = []
        for source in sources:
            assert isinstance(source, Affine)
            plain = replace(source, bias=None)
            for step in range(steps if keep.any() else 1):
                factor = np.broadcast_to(operand.gain * keep**step, source.weight.shape[:1])
                bias = None
                if step == 0 and source.bias is not None:
                    whole = sum((steps - k) * keep**k for k in range(steps)) * operand.gain
                    bias = (source.bias * whole / steps).astype(np.float32)
                weight = (source.weight * factor[:, None]).astype(np.float32)
                inputs = tuple(self._delayed(edge, step) for edge in plain.inputs)
                tap = replace(plain, name=self._free(source.name), inputs=inputs, weight=weight, bias=bias)
                edges.append(Edge(self._add(tap)))
        return tuple(edges)

    def _needed(self) -> list[Node]:
        """The nodes that lead to the readout, in an order in which only late edges lead back."""
        needed: dict[str, Node] = {}
        pending = [name for name, node in self.nodes.items() if isinstance(node, Readout)]
        while pending:
            name = pending.pop()
            if name not in needed:
                needed[name] = self.nodes[name]
                pending += [edge.source for edge in needed[name].inputs]
        following: dict[str, list[str]] = {name: [] for name in self.nodes if name in needed}
        for node in needed.values():
            for edge in node.inputs:
                if not edge.delay:
                    following[edge.source].append(node.name)
        return [needed[name] for name in ordered(following)]

    def _synapse(self, node: Synapse, shape: Shape) -> _Value:
        return _Value((Edge(self._add(node)),), shape)

    def _readers(self, name: str) -> int:
        return sum(source == name for source, _ in self.graph.edges)

    def _reason(self, name: str, reason: str) -> None:
        self.reasons.append(f"node '{name}' ({self.graph.nodes[name]['type']}) {reason}")

    def _unsupported(self) -> UnsupportedError:
        return UnsupportedError(f"'{self.path}' cannot be imported", self.reasons, HINT)


def _said(metadata: dict[str, Any], path: Path) -> dict[str, Any]:
    """What a file says about itself: reset, dt, timesteps, encoding; only what can be understood."""
    said: dict[str, Any] = {}
    for key, known in (("reset", ("zero", "subtract")), ("encoding", ("direct", "events"))):
        if metadata.get(key) in known and isinstance(metadata[key], str):
            said[key] = metadata[key]
    for key in ("dt", "timesteps"):
        value = metadata.get(key)
        if isinstance(value, np.ndarray) and value.size == 1:
            number = float(value.flat[0])
            if not math.isfinite(number) or number <= 0 or (key == "timesteps" and number != int(number)):
                raise NetworkError(f"'{path}' says that {key} is {number}", "write the file again")
            said[key] = number if key == "dt" else int(number)
    return said


def _reached(start: str, edges: list[tuple[str, str]]) -> set[str]:
    following: dict[str, list[str]] = {}
    for source, target in edges:
        following.setdefault(source, []).append(target)
    seen, pending = {start}, [start]
    while pending:
        for target in following.get(pending.pop(), []):
            if target not in seen:
                seen.add(target)
                pending.append(target)
    return seen
