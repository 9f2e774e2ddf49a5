"""Integer network to ONNX: time unrolled, exact, without this project at run time.

Synapses work on the timesteps folded into the batch, in float32, exact because every sum stays below 2**24.
Membranes are int64 and follow the fixed point that ``snnkit_targets.reference`` defines. The input is what
``Input.encode`` gives: float32 [batch, *shape], or [timesteps, batch, *shape] for events.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pydantic
from onnx import TensorProto, helper, numpy_helper

from snnkit.errors import UnsupportedError
from snnkit.files import write_atomically
from snnkit.network import LIF, Affine, Conv2d, Flatten, Input, Network, Node, Readout
from snnkit.network.ir import BIAS_MAX, DECAY_ONE, Array, Synapse, infer_shapes, verify
from snnkit.network.ranges import FRACTION_BITS, STATE_LIMIT, may_wrap, synaptic_bounds

SUFFIX = ".onnx"
OPSET = 18
IR_VERSION = 8
EXACT = 2**24  # float32 holds every integer below this


class Options(pydantic.BaseModel):
    """``trace`` adds an output ``NODE.spikes``, bool [timesteps, batch, *shape], for each neuron node."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    trace: bool = False


def check(net: Network, options: Options) -> list[str]:  # noqa: ARG001 - the contract of every exporter
    """Every reason why ``net`` cannot be written as ONNX; none for a network that can."""
    if verify(net) == "float":
        return ["the network is float; 'snnkit quantize' makes the integer network"]
    reasons = [
        f"node '{node.name}' reads '{edge.source}' {edge.delay} timesteps late; delays cannot be unrolled yet"
        for node in net.nodes
        for edge in node.inputs
        if edge.delay
    ]
    if not reasons:  # bounds are defined along edges without cycles
        reasons += [
            f"node '{name}' can reach a sum of {bound}, beyond the 2**24 that float32 holds exactly"
            for name, bound in synaptic_bounds(net).items()
            if bound >= EXACT
        ]
    return reasons


def export(net: Network, path: Path, options: Options) -> list[Path]:
    """Writes ``path``; raises :class:`UnsupportedError` with all reasons if the network cannot be written."""
    return [write_atomically(path, build(net, options).SerializeToString(deterministic=True))]


def build(net: Network, options: Options) -> onnx.ModelProto:
    """The checked model, without writing it."""
    if reasons := check(net, options):
        raise UnsupportedError("the network cannot be exported to ONNX", reasons, "'snnkit inspect' shows the network")
    model = _Builder(net).model(trace=options.trace)
    onnx.checker.check_model(model, full_check=True)
    return model


class _Builder:
    """Emits the graph, node by node. Values are constant in time ([batch, ...]) or sequences ([T * batch, ...])."""

    def __init__(self, net: Network) -> None:
        self.net, self.shapes, self.bounds = net, infer_shapes(net), synaptic_bounds(net)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.values: dict[str, str] = {}
        self.constant_in_time: set[str] = set()
        self.repeated: dict[str, str] = {}

    def model(self, *, trace: bool) -> onnx.ModelProto:
        outputs: list[tuple[str, int, list[int | str]]] = []
        for node in self.net.nodes:
            match node:
                case Input():
                    inputs = [self._input(node)]
                case LIF():
                    spikes = self._neurons(node)
                    if trace:
                        outputs.append(
                            (spikes, TensorProto.BOOL, [self.net.timesteps, "batch", *self.shapes[node.name]])
                        )
                case Readout():
                    self._readout(node)
                    outputs.insert(0, ("readout", TensorProto.INT64, ["batch", *self.shapes[node.name]]))
                case _:
                    self._stateless(node)
        graph = helper.make_graph(
            self.nodes,
            "snnkit",
            inputs,
            [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in outputs],
            list(self.constants.values()),
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        model.producer_name = "snnkit"
        model.producer_version = version("snnkit")
        helper.set_model_props(model, self._properties())
        return model

    def _properties(self) -> dict[str, str]:
        entry = self.net.input
        return {
            "timesteps": str(self.net.timesteps),
            "input_encoding": entry.encoding,
            "input_bits": str(entry.bits),
            "input_scale": repr(entry.scale),
            "input_zero_point": str(entry.zero_point),
            "classes": json.dumps(self.net.metadata.get("classes", [])),
            "dataset": str(self.net.metadata.get("dataset", "")),
        }

    def _emit(self, operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def _constant(self, name: str, values: Any, dtype: Any = np.int64) -> str:
        self.constants[name] = numpy_helper.from_array(np.asarray(values, dtype), name)
        return name

    def _input(self, node: Input) -> onnx.ValueInfoProto:
        if node.encoding == "direct":
            self.constant_in_time.add(node.name)
            self.values[node.name] = "input"
            return helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *node.shape])
        shape = self._constant(f"{node.name}.shape", [-1, *node.shape])
        self.values[node.name] = self._emit("Reshape", ["input", shape], f"{node.name}.folded")
        return helper.make_tensor_value_info("input", TensorProto.FLOAT, [self.net.timesteps, "batch", *node.shape])

    def _stateless(self, node: Node) -> None:
        """Synapses and Flatten, on all timesteps at once."""
        sources = [edge.source for edge in node.inputs]
        constant = all(source in self.constant_in_time for source in sources)
        if constant:
            self.constant_in_time.add(node.name)
        operands = [self.values[source] if constant else self._sequence(source) for source in sources]
        x = operands[0] if len(operands) == 1 else self._emit("Sum", operands, f"{node.name}.in")
        match node:
            case Conv2d():
                weight = self._constant(f"{node.name}.weight", node.effective_weight, np.float32)
                out = self._emit(
                    "Conv",
                    [x, weight],
                    f"{node.name}.sums",
                    strides=node.stride,
                    pads=[*node.padding, *node.padding],
                    dilations=node.dilation,
                    group=node.groups,
                    kernel_shape=node.weight.shape[2:],
                )
            case Affine():
                weight = self._constant(f"{node.name}.weight", node.effective_weight.T, np.float32)
                out = self._emit("MatMul", [x, weight], f"{node.name}.sums")
            case Flatten():
                out = self._emit("Flatten", [x], f"{node.name}.flat", axis=1)
            case _:
                raise AssertionError(f"unknown node {node!r}")
        self.values[node.name] = out

    def _sequence(self, name: str) -> str:
        """The value of a node for all timesteps, folded; repeats what is constant in time."""
        if name not in self.constant_in_time:
            return self.values[name]
        if name not in self.repeated:
            repeats = self._constant(f"{name}.repeats", [self.net.timesteps] + [1] * len(self.shapes[name]))
            self.repeated[name] = self._emit("Tile", [self.values[name], repeats], f"{name}.repeated")
        return self.repeated[name]

    def _currents(self, node: Node) -> list[str]:
        """The summed synaptic input of neurons at each timestep, int64 [1, batch, *shape]."""
        steps: list[list[str]] = [[] for _ in range(self.net.timesteps)]
        for edge in node.inputs:
            value, name = self.values[edge.source], f"{edge.source}.into.{node.name}"
            sums = self._emit("Cast", [value], name, to=TensorProto.INT64)
            if isinstance(self.net[edge.source], Conv2d) and self.bounds[edge.source] >= STATE_LIMIT:
                sums = self._wrap_sums(sums)
            if edge.source in self.constant_in_time:
                axis = self._constant("axis0", [0])
                parts = [self._emit("Unsqueeze", [sums, axis], f"{sums}.step")] * self.net.timesteps
            else:
                parts = self._split(sums, self.shapes[edge.source])
            for step, part in zip(steps, parts, strict=True):
                step.append(part)
        return [self._add(parts, f"{node.name}.sum.{t}") for t, parts in enumerate(steps)]

    def _split(self, folded: str, shape: tuple[int, ...]) -> list[str]:
        unfold = self._constant(f"{folded}.shape", [self.net.timesteps, -1, *shape])
        sequence = self._emit("Reshape", [folded, unfold], f"{folded}.unfolded")
        if self.net.timesteps == 1:
            return [sequence]
        parts = [f"{folded}.{t}" for t in range(self.net.timesteps)]
        self.nodes.append(
            helper.make_node("Split", [sequence], parts, name=f"{folded}.split", axis=0, num_outputs=len(parts))
        )
        return parts

    def _add(self, values: list[str], name: str) -> str:
        total = values[0]
        for index, value in enumerate(values[1:]):
            total = self._emit("Add", [total, value], name if index == 0 else f"{name}.{index}")
        return total

    def _wrap_sums(self, sums: str) -> str:
        limit, span = self._constant("limit", STATE_LIMIT), self._constant("span", 2 * STATE_LIMIT)
        shifted = self._emit("Add", [sums, limit], f"{sums}.shifted")
        wrapped = self._emit("Mod", [shifted, span], f"{sums}.mod")
        return self._emit("Sub", [wrapped, limit], f"{sums}.wrapped")

    def _parameter(self, node: LIF, field: str, values: Array) -> str:
        rank = len(self.shapes[node.name])
        return self._constant(f"{node.name}.{field}", values.reshape(-1, *[1] * (rank - 1)) if values.ndim else values)

    def _neurons(self, node: LIF) -> str:
        """Unrolls the neurons; returns the name of their spikes, bool [T, batch, *shape]."""
        name = node.name
        sources = [s for edge in node.inputs if isinstance(s := self.net[edge.source], Synapse)]
        biases = [s.bias.astype(np.int64) for s in sources if s.bias is not None]
        bias = self._parameter(node, "bias", np.sum(biases, axis=0) << FRACTION_BITS) if biases else None
        bound = sum(self.bounds[s.name] for s in sources) + BIAS_MAX * len(biases)
        saturates = bool((node.current_decay < DECAY_ONE).any()) or (
            (bound * self.net.timesteps) << FRACTION_BITS >= STATE_LIMIT - 1
        )
        threshold = self._parameter(node, "v_threshold", node.v_threshold.astype(np.int64) << FRACTION_BITS)
        unit, zero = self._constant("unit", 1 << FRACTION_BITS), self._constant("zero", 0)
        u: str | None = None
        v: str | None = None
        spikes = []
        for t, current in enumerate(self._currents(node)):
            scaled = self._emit("Mul", [current, unit], f"{name}.input.{t}")
            u = self._integrate(node, "current_decay", u, [scaled], t)
            if may_wrap(self.net, node):
                u = self._wrap_state(u)
            v = self._integrate(node, "voltage_decay", v, [u] if bias is None else [u, bias], t)
            if saturates:
                low, high = self._constant("v_min", 1 - STATE_LIMIT), self._constant("v_max", STATE_LIMIT - 1)
                v = self._emit("Clip", [v, low, high], f"{v}.clipped")
            spike = self._emit("Greater", [v, threshold], f"{name}.spike.{t}")
            spikes.append(spike)
            spent = zero if node.reset == "zero" else self._emit("Sub", [v, threshold], f"{name}.spent.{t}")
            v = self._emit("Where", [spike, spent, v], f"{name}.after.{t}")
        sequence = self._emit("Concat", spikes, f"{name}.spikes", axis=0)
        graded = self._emit("Cast", [sequence], f"{name}.values", to=TensorProto.FLOAT)
        fold = self._constant(f"{name}.fold", [-1, *self.shapes[name]])
        self.values[name] = self._emit("Reshape", [graded, fold], f"{name}.folded")
        return sequence

    def _integrate(self, node: LIF, decay: str, state: str | None, inputs: list[str], t: int) -> str:
        """State (4096 - decay) / 4096, rounded towards zero as ONNX divides, plus the inputs."""
        kept: Array = DECAY_ONE - getattr(node, decay).astype(np.int64)
        if state is not None and kept.any():
            if (kept != DECAY_ONE).any():
                factor = self._parameter(node, f"{decay}.kept", kept)
                product = self._emit("Mul", [state, factor], f"{node.name}.{decay}.product.{t}")
                state = self._emit(
                    "Div", [product, self._constant("one", DECAY_ONE)], f"{node.name}.{decay}.decayed.{t}"
                )
            inputs = [state, *inputs]
        return self._add(inputs, f"{node.name}.{decay}.sum.{t}")

    def _wrap_state(self, u: str) -> str:
        high, low = self._constant("limit", STATE_LIMIT), self._constant("low", -STATE_LIMIT)
        span = self._constant("span", 2 * STATE_LIMIT)
        above = self._emit("Greater", [u, high], f"{u}.above")
        u = self._emit("Where", [above, self._emit("Sub", [u, span], f"{u}.less"), u], f"{u}.wrapped")
        below = self._emit("LessOrEqual", [u, low], f"{u}.below")
        return self._emit("Where", [below, self._emit("Add", [u, span], f"{u}.more"), u], f"{u}.inside")

    def _readout(self, node: Readout) -> None:
        steps = self.net.timesteps
        totals = []
        for edge in node.inputs:
            source = self.net[edge.source]
            shape = self.shapes[edge.source]
            value = self._emit("Cast", [self._sequence(edge.source)], f"{edge.source}.out", to=TensorProto.INT64)
            unfold = self._constant(f"{value}.shape", [steps, -1, *shape])
            value = self._emit("Reshape", [value, unfold], f"{value}.unfolded")
            value = self._emit("ReduceSum", [value, self._constant("axis0", [0])], f"{value}.sum", keepdims=0)
            if isinstance(source, Synapse) and source.bias is not None:
                bias = self._constant(f"{edge.source}.bias", source.bias.astype(np.int64) * steps)
                value = self._emit("Add", [value, bias], f"{value}.biased")
            totals.append(value)
        self._emit("Identity", [self._add(totals, "readout.sum")], "readout")
