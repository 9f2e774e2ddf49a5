"""The network: a graph in discrete time, named after NIR's primitives.

A node names the nodes that feed it; several inputs of a node are summed. An edge from the input or from
neurons may be delayed by whole timesteps; before its first value arrives it carries zeros. The same
structure holds the float network (as lowered from training) and the integer network (as quantised);
:func:`verify` says which.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from snnkit.errors import NetworkError

Array: TypeAlias = npt.NDArray[Any]
Shape: TypeAlias = tuple[int, ...]
Pair: TypeAlias = tuple[int, int]
Kind: TypeAlias = Literal["float", "integer"]

FORMAT_VERSION = 1
DECAY_ONE = 4096  # a decay of 1.0 on the 12-bit grid
V_THRESHOLD_MAX = 2**17 - 1  # Loihi's threshold mantissa (Davies et al. 2018)
BIAS_MIN, BIAS_MAX = -4096, 4095  # Loihi's bias mantissa, 12 bits and sign


@dataclass(frozen=True)
class Edge:
    """A connection from the node called ``source``, ``delay`` timesteps late."""

    source: str
    delay: int = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class Node:
    """Something with a name that sums its inputs and produces one value per timestep."""

    name: str
    inputs: tuple[Edge, ...] = ()

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):
            value = getattr(self, spec.name)
            if spec.type in (Array, Array | None) and value is not None:
                array = np.array(value, order="C")  # a copy of its own, so that nobody can change it
                array.flags.writeable = False
                object.__setattr__(self, spec.name, array)


@dataclass(frozen=True, eq=False, kw_only=True)
class Input(Node):
    """The raw sample: ``direct`` presents the same values at every timestep, ``events`` one frame a timestep.

    In an integer network values are ``clip(rint(x / scale) + zero_point, 0, 2**bits - 1)`` for direct
    encoding; events are integers already. ``bits`` 0 passes floats through (float networks).
    """

    shape: Shape
    encoding: Literal["direct", "events"] = "direct"
    bits: int = 0
    scale: float = 1.0
    zero_point: int = 0

    def encode(self, x: Array) -> Array:
        """Raw data, float [B, *shape] or integer events [T, B, *shape], as the float32 that enters the network."""
        if self.encoding == "events" or self.bits == 0:
            return x.astype(np.float32)
        levels: Array = np.divide(x, self.scale, dtype=np.float64)
        np.rint(levels, out=levels)
        levels += self.zero_point
        return np.clip(levels, 0, 2**self.bits - 1, out=levels).astype(np.float32)


@dataclass(frozen=True, eq=False, kw_only=True)
class Synapse(Node):
    """Abstract: weights (and biases, one per output channel) times ``2**weight_exponent``.

    The exponent applies to the weight alone; the bias is in the unit of the neuron's threshold.
    """

    weight: Array
    bias: Array | None = None
    weight_exponent: int = 0

    @property
    def effective_weight(self) -> Array:
        """Weights with the exponent applied, int32 for an integer network."""
        if self.weight.dtype == np.int8:
            return self.weight.astype(np.int32) << self.weight_exponent
        return self.weight


@dataclass(frozen=True, eq=False, kw_only=True)
class Conv2d(Synapse):
    """Cross-correlation as in torch; ``weight`` [O, I / groups, kh, kw], ``bias`` [O]; pairs are (y, x)."""

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class Affine(Synapse):
    """``weight`` [O, I] times a flat input, plus ``bias`` [O]."""


@dataclass(frozen=True, eq=False, kw_only=True)
class BatchNorm2d(Node):
    """Inference-time normalisation, all arrays [C]; float only, removed by ``fold_batchnorm``."""

    weight: Array
    bias: Array
    running_mean: Array
    running_var: Array
    eps: float = 1e-5


@dataclass(frozen=True, eq=False, kw_only=True)
class AvgPool2d(Node):
    """Average over windows without padding; float only, replaced before quantisation."""

    kernel_size: Pair
    stride: Pair


@dataclass(frozen=True, eq=False, kw_only=True)
class Flatten(Node):
    """[C, H, W] to [C * H * W], in torch's order."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LIF(Node):
    """A leaky integrate-and-fire neuron per element of its input.

    Float: ``u = u (1 - current_decay/4096) + input; v = v (1 - voltage_decay/4096) + u``, a spike where
    ``v > v_threshold``, then ``v = 0`` or ``v -= v_threshold``. Integer: Loihi's fixed point, defined by
    ``snnkit_targets.reference``. Parameters are scalars or [C]; ``voltage_decay`` 0 is IF,
    ``current_decay`` 4096 means no synaptic filter.
    """

    v_threshold: Array
    voltage_decay: Array
    current_decay: Array = field(default_factory=lambda: np.array(DECAY_ONE, np.int32))
    reset: Literal["zero", "subtract"] = "zero"


@dataclass(frozen=True, eq=False, kw_only=True)
class Readout(Node):
    """The answer, summed over the timesteps: ``membrane`` of weighted spikes, or ``count`` of spikes."""

    mode: Literal["membrane", "count"] = "membrane"


@dataclass(frozen=True, eq=False, kw_only=True)
class Network:
    """Nodes in topological order; ``metadata`` is JSON (teacher, dataset, classes, accuracies, scales, versions).

    ``stem``: whether the layer that sees the raw input is computed on the chip or by its host.
    """

    nodes: tuple[Node, ...]
    timesteps: int
    stem: Literal["chip", "host"] = "chip"
    format_version: int = FORMAT_VERSION
    metadata: dict[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __getitem__(self, name: str) -> Node:
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def consumers(self, name: str) -> tuple[Node, ...]:
        """The nodes that read the node called ``name``."""
        return tuple(node for node in self.nodes if any(edge.source == name for edge in node.inputs))

    @property
    def input(self) -> Input:
        return next(node for node in self.nodes if isinstance(node, Input))

    @property
    def readout(self) -> Readout:
        return next(node for node in self.nodes if isinstance(node, Readout))

    @property
    def neurons(self) -> tuple[LIF, ...]:
        return tuple(node for node in self.nodes if isinstance(node, LIF))

    @property
    def synapses(self) -> tuple[Synapse, ...]:
        return tuple(node for node in self.nodes if isinstance(node, Synapse))

    @property
    def recurrent(self) -> bool:
        """Whether some edge leads back to an earlier node (or to its own)."""
        position = {node.name: index for index, node in enumerate(self.nodes)}
        return any(position[edge.source] >= position[node.name] for node in self.nodes for edge in node.inputs)


def reads_input(net: Network, node: Node) -> bool:
    """Whether a node sees the raw input, directly, flattened or pooled."""
    sources = [net[edge.source] for edge in node.inputs]
    return any(
        isinstance(source, Input) or (isinstance(source, Flatten | AvgPool2d) and reads_input(net, source))
        for source in sources
    )


def same(a: Network, b: Network) -> bool:
    """Whether two networks hold the same graph, bit-identical arrays and the same metadata."""

    def equal(x: Any, y: Any) -> bool:
        if isinstance(x, np.ndarray) or isinstance(y, np.ndarray):
            return (
                isinstance(x, np.ndarray)
                and isinstance(y, np.ndarray)
                and x.dtype == y.dtype
                and x.shape == y.shape
                and x.tobytes() == y.tobytes()
            )
        return bool(x == y)

    def nodes_equal(x: Node, y: Node) -> bool:
        return type(x) is type(y) and all(
            equal(getattr(x, spec.name), getattr(y, spec.name)) for spec in dataclasses.fields(x)
        )

    return (
        len(a.nodes) == len(b.nodes)
        and (a.timesteps, a.stem, a.format_version) == (b.timesteps, b.stem, b.format_version)
        and a.metadata == b.metadata
        and all(nodes_equal(x, y) for x, y in zip(a.nodes, b.nodes, strict=True))
    )


def _fail(
    node: Node, message: str, hint: str = "fix the network, or make it again from the trained student"
) -> NetworkError:
    return NetworkError(f"node '{node.name}' ({type(node).__name__}): {message}", hint)


def conv_output_size(node: Conv2d, size: Pair) -> Pair:
    """Height and width of the output for an input of ``size`` (torch's formula)."""
    out = []
    for axis in (0, 1):
        span = node.dilation[axis] * (node.weight.shape[2 + axis] - 1) + 1
        out.append((size[axis] + 2 * node.padding[axis] - span) // node.stride[axis] + 1)
    return out[0], out[1]


def _conv_shape(node: Conv2d, shape: Shape) -> Shape:
    if node.weight.ndim != 4 or 0 in node.weight.shape:
        raise _fail(node, f"weight has shape {node.weight.shape}, expected [O, I / groups, kh, kw]")
    pairs = (*node.stride, *node.dilation, node.groups)
    if min(pairs) < 1 or min(node.padding) < 0:
        raise _fail(node, "stride, dilation and groups must be at least 1, padding at least 0")
    outputs, per_group = node.weight.shape[:2]
    if len(shape) != 3 or shape[0] != per_group * node.groups or outputs % node.groups:
        raise _fail(node, f"weight {node.weight.shape} with {node.groups} groups does not fit an input of {shape}")
    height, width = conv_output_size(node, (shape[1], shape[2]))
    if height < 1 or width < 1:
        raise _fail(node, f"the kernel is larger than the padded input of {shape}")
    return outputs, height, width


def _output_shape(node: Node, shape: Shape) -> Shape:
    match node:
        case Conv2d():
            return _conv_shape(node, shape)
        case Affine():
            if node.weight.ndim != 2 or 0 in node.weight.shape or shape != (node.weight.shape[1],):
                raise _fail(node, f"weight {node.weight.shape} does not fit an input of {shape}")
            return (node.weight.shape[0],)
        case BatchNorm2d():
            for name in ("weight", "bias", "running_mean", "running_var"):
                if len(shape) != 3 or getattr(node, name).shape != shape[:1]:
                    raise _fail(node, f"{name} {getattr(node, name).shape} does not fit an input of {shape}")
            return shape
        case AvgPool2d():
            if min(*node.kernel_size, *node.stride) < 1:
                raise _fail(node, "kernel_size and stride must be at least 1")
            if len(shape) != 3 or shape[1] < node.kernel_size[0] or shape[2] < node.kernel_size[1]:
                raise _fail(node, f"windows of {node.kernel_size} do not fit an input of {shape}")
            height, width = ((shape[1 + i] - node.kernel_size[i]) // node.stride[i] + 1 for i in (0, 1))
            return shape[0], height, width
        case Flatten():
            return (math.prod(shape),)
        case LIF():
            for name in ("v_threshold", "voltage_decay", "current_decay"):
                if getattr(node, name).shape not in ((), shape[:1]):
                    raise _fail(node, f"{name} has shape {getattr(node, name).shape}, expected a scalar or {shape[:1]}")
            return shape
        case Readout():
            if len(shape) != 1:
                raise _fail(node, f"reads {shape}, expected one value a class")
            return shape
    raise _fail(node, "is of an unknown kind")


def infer_shapes(net: Network) -> dict[str, Shape]:
    """Output shape of every node, without batch and time; raises :class:`NetworkError` where they do not fit."""
    shapes: dict[str, Shape] = {node.name: node.shape for node in net.nodes if isinstance(node, Input)}
    pending = [node for node in net.nodes if not isinstance(node, Input)]
    while pending:
        waiting = []
        for node in pending:
            operands = [shapes[edge.source] for edge in node.inputs if edge.source in shapes]
            if operands:
                shapes[node.name] = _output_shape(node, operands[0])
            else:  # it reads a later node through a delayed edge
                waiting.append(node)
        if len(waiting) == len(pending):
            raise _fail(waiting[0], "is not reached by the input")
        pending = waiting
    for node in net.nodes:
        if len(different := {shapes[edge.source] for edge in node.inputs}) > 1:
            raise _fail(node, f"its inputs have different shapes: {sorted(different)}")
    return shapes


def _verify_graph(net: Network) -> None:
    names = [node.name for node in net.nodes]
    if net.timesteps < 1:
        raise NetworkError(f"timesteps is {net.timesteps}", "a network needs at least one timestep")
    if net.stem not in ("chip", "host"):
        raise NetworkError(f"stem is '{net.stem}'", "it is 'chip' or 'host'")
    for kind in (Input, Readout):
        if sum(isinstance(node, kind) for node in net.nodes) != 1:
            raise NetworkError(f"a network needs exactly one {kind.__name__}", "fix the network")
    before: set[str] = set()
    for node in net.nodes:
        if not node.name or node.name in before:
            raise _fail(node, "names must be unique and not empty")
        if isinstance(node, Input) == bool(node.inputs):
            raise _fail(node, "has inputs" if node.inputs else "has no inputs")
        for edge in node.inputs:
            if edge.source not in names:
                raise _fail(node, f"reads '{edge.source}', which does not exist")
            if edge.delay < 0:
                raise _fail(node, f"the edge from '{edge.source}' has a negative delay")
            if edge.delay and not isinstance(net[edge.source], Input | LIF):
                raise _fail(node, f"the edge from '{edge.source}' is delayed; only inputs and spikes can be")
            if edge.delay == 0 and edge.source not in before:
                raise _fail(node, f"reads '{edge.source}' before it is computed; a cycle needs a delay of at least 1")
            if isinstance(net[edge.source], Readout):
                raise _fail(node, "reads the readout")
        before.add(node.name)
    for node in net.nodes:
        if not isinstance(node, Readout) and not net.consumers(node.name):
            raise _fail(node, "feeds nothing")


def _verify_input(node: Input, kind: Kind) -> None:
    if len(node.shape) not in (1, 3) or min(node.shape) < 1:
        raise _fail(node, f"has shape {node.shape}, expected (C, H, W) or (N,)")
    if node.encoding not in ("direct", "events"):
        raise _fail(node, f"has the unknown encoding '{node.encoding}'")
    if not (math.isfinite(node.scale) and node.scale > 0):
        raise _fail(node, f"has scale {node.scale}")
    if kind == "float" and node.bits:
        raise _fail(node, "a float network takes its input unquantised (bits 0)")
    if kind == "integer" and not 1 <= node.bits <= 8:
        raise _fail(node, f"has {node.bits} bits; an integer network takes 1 to 8")
    if not 0 <= node.zero_point < 2**node.bits:
        raise _fail(node, f"has zero_point {node.zero_point}, outside its {node.bits} bits")


def _verify_arrays(node: Node, kind: Kind) -> None:
    integers = {"weight": np.int8, "bias": np.int32, "v_threshold": np.int32}
    for spec in dataclasses.fields(node):
        value = getattr(node, spec.name)
        if not isinstance(value, np.ndarray):
            continue
        decay = spec.name in ("voltage_decay", "current_decay")
        expected = np.int32 if decay else integers[spec.name] if kind == "integer" else np.float32
        if value.dtype != expected:
            raise _fail(node, f"{spec.name} is {value.dtype}; in this {kind} network it must be {np.dtype(expected)}")
        if not np.isfinite(value).all():
            raise _fail(node, f"{spec.name} holds values that are not finite")
        if decay and (value.min() < 0 or value.max() > DECAY_ONE):
            raise _fail(node, f"{spec.name} is outside 0..{DECAY_ONE}")


def _verify_integer(net: Network, node: Node) -> None:
    sources = [net[edge.source] for edge in node.inputs]
    if isinstance(node, BatchNorm2d | AvgPool2d):
        raise _fail(node, "is float only; fold or replace it before quantisation")
    if isinstance(node, Synapse | Flatten) and not all(isinstance(s, Input | LIF | Flatten) for s in sources):
        raise _fail(node, "must read the input or spikes")
    if isinstance(node, LIF) and not all(isinstance(s, Synapse) for s in sources):
        raise _fail(node, "must read Conv2d or Affine nodes; use materialise_shortcuts for identity shortcuts")
    if isinstance(node, Synapse):
        if not 0 <= node.weight_exponent <= 7:
            raise _fail(node, f"weight_exponent {node.weight_exponent} is outside 0..7")
        if not all(isinstance(consumer, LIF | Readout) for consumer in net.consumers(node.name)):
            raise _fail(node, "must feed neurons or the readout")
        if node.bias is not None and (node.bias.min() < BIAS_MIN or node.bias.max() > BIAS_MAX):
            raise _fail(node, f"a bias is outside {BIAS_MIN}..{BIAS_MAX}", "quantise again: scales must fit the bias")
    if isinstance(node, LIF) and (node.v_threshold.min() < 0 or node.v_threshold.max() > V_THRESHOLD_MAX):
        raise _fail(node, f"v_threshold is outside 0..{V_THRESHOLD_MAX}")


def verify(net: Network) -> Kind:
    """Whether the network is ``float`` or ``integer``; raises :class:`NetworkError` at the first broken rule."""
    _verify_graph(net)
    kind: Kind = "integer" if any(s.weight.dtype.kind == "i" for s in net.synapses) else "float"
    infer_shapes(net)
    for node in net.nodes:
        _verify_arrays(node, kind)
        sources = [net[edge.source] for edge in node.inputs]
        match node:
            case Input():
                _verify_input(node, kind)
            case Synapse() if node.bias is not None and node.bias.shape != node.weight.shape[:1]:
                raise _fail(node, f"bias {node.bias.shape} does not fit the weight {node.weight.shape}")
            case LIF() if node.reset not in ("zero", "subtract"):
                raise _fail(node, f"has the unknown reset '{node.reset}'")
            case Readout(mode="membrane") if not all(isinstance(s, Affine) for s in sources):
                raise _fail(node, "a membrane readout reads Affine nodes")
            case Readout(mode="count") if not all(isinstance(s, LIF) for s in sources):
                raise _fail(node, "a count readout reads neurons")
            case Readout() if node.mode not in ("membrane", "count"):
                raise _fail(node, f"has the unknown mode '{node.mode}'")
        if kind == "integer":
            _verify_integer(net, node)
    return kind
