"""The nodes of one timestep: synapses, neurons and readout, float or in the fixed point of the reference target."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from snnkit.network import LIF, Affine, AvgPool2d, BatchNorm2d, Conv2d, Flatten, Input, Node, Readout
from snnkit.network.ir import DECAY_ONE, Array, Edge, Synapse
from snnkit.network.ranges import FRACTION_BITS, STATE_LIMIT
from snnkit_exporters._onnx.graph import BOOL, DOUBLE, FLOAT, INT32, INT64, UINT8, Graph
from snnkit_exporters._onnx.plan import Plan, is_identity_shaped

ZERO_POINT = 128  # of 8-bit weights: unsigned, which ONNX Runtime multiplies faster than signed ones


@dataclass
class Timestep:
    """Emits timestep after timestep into ``graph``; ``values`` maps nodes to values, ``state`` states to values.

    A state that is missing is zero. ``spikes`` are those of the last timestep, bool [batch, *shape].
    """

    plan: Plan
    graph: Graph
    values: dict[str, str] = field(default_factory=dict)
    state: dict[str, str] = field(default_factory=dict)
    spikes: dict[str, str] = field(default_factory=dict)

    def static(self) -> None:
        """Emits what does not change with time, once."""
        for node in self.plan.net.nodes:
            if node.name in self.plan.static and not isinstance(node, Input):
                self.values[node.name] = self._stateless(node, [self.values[e.source] for e in node.inputs], "")

    def run(self, arriving: Callable[[Edge], str], suffix: str) -> None:
        """Emits one timestep; ``arriving`` gives the value at the end of a delayed edge, ``suffix`` tells the names."""
        for node in self.plan.net.nodes:
            if isinstance(node, Input) or (node.name in self.plan.static and node.name in self.values):
                continue
            operands = [arriving(edge) if edge.delay else self.values[edge.source] for edge in node.inputs]
            match node:
                case LIF():
                    self._neurons(node, operands, suffix)
                case Readout():
                    self._readout(node, operands, suffix)
                case _:
                    self.values[node.name] = self._stateless(node, operands, suffix)

    # --- without memory ---

    def _stateless(self, node: Node, operands: list[str], suffix: str) -> str:
        x = self._sum(operands, f"{node.name}.in{suffix}")
        match node:
            case Conv2d() | Affine():
                return self._synapses(node, x, f"{node.name}.sums{suffix}")
            case Flatten():
                return self.graph.emit("Flatten", [x], f"{node.name}.flat{suffix}", axis=1)
            case AvgPool2d():
                shape: dict[str, Any] = {"kernel_shape": node.kernel_size, "strides": node.stride}
                return self.graph.emit("AveragePool", [x], f"{node.name}.mean{suffix}", **shape)
            case BatchNorm2d():
                arrays = [
                    self.graph.constant(f"{node.name}.{name}", getattr(node, name), FLOAT)
                    for name in ("weight", "bias", "running_mean", "running_var")
                ]
                inputs = [x, *arrays]
                return self.graph.emit("BatchNormalization", inputs, f"{node.name}.out{suffix}", epsilon=node.eps)
        raise AssertionError(f"unknown node {node!r}")

    def _sum(self, operands: list[str], name: str) -> str:
        """The sum of signals; 8-bit ones are added as 32-bit integers, which ONNX Runtime can."""
        if len(operands) > 1 and self.graph.types[operands[0]] == UINT8:
            wide = [self.graph.cast(operand, INT32) for operand in operands]
            return self.graph.cast(self.graph.add(wide, name), UINT8)
        return self.graph.add(operands, name)

    def _synapses(self, node: Synapse, x: str, name: str) -> str:
        if is_identity_shaped(node):
            return self._factors(node, x, name)
        if self.plan.quantized:
            return self._quantized_synapses(node, x, name)
        unit = self.plan.unit if node.name in self.plan.scaled else 1
        inputs = [x, self.graph.constant(f"{node.name}.weight", node.effective_weight * np.float32(unit), FLOAT)]
        if node.bias is not None and node.name in self.plan.merged:
            inputs.append(self.graph.constant(f"{node.name}.bias", node.bias * np.float32(unit), FLOAT))
        if isinstance(node, Conv2d):
            return self.graph.emit("Conv", inputs, name, **_geometry(node))
        return self.graph.emit("Gemm", inputs, name, transB=1)

    def _factors(self, node: Synapse, x: str, name: str) -> str:
        """One weight a channel, as an identity shortcut has."""
        graph, kind = self.graph, INT32 if self.plan.quantized else FLOAT
        unit = self.plan.unit if node.name in self.plan.scaled else 1
        weight = node.weight.astype(np.int32) if self.plan.quantized else node.effective_weight * np.float32(unit)
        factors = graph.constant(f"{node.name}.weight", weight.reshape(-1, 1, 1), kind)
        if node.bias is None or node.name not in self.plan.merged:
            return graph.emit("Mul", [graph.cast(x, kind), factors], name)
        bias = graph.constant(f"{node.name}.bias", (node.bias * np.float32(unit)).reshape(-1, 1, 1), FLOAT)
        return graph.emit("Add", [graph.emit("Mul", [x, factors], f"{name}:products"), bias], name)

    def _quantized_synapses(self, node: Synapse, x: str, name: str) -> str:
        """The sums of inputs times weights without their exponent, int32."""
        weight = (node.weight if isinstance(node, Conv2d) else node.weight.T).astype(np.int32) + ZERO_POINT
        zero, middle = self.graph.constant("x_zero", 0, UINT8), self.graph.constant("w_zero", ZERO_POINT, UINT8)
        inputs = [x, self.graph.constant(f"{node.name}.weight", weight, UINT8), zero, middle]
        if isinstance(node, Conv2d):
            return self.graph.emit("ConvInteger", inputs, name, INT32, **_geometry(node))
        return self.graph.emit("MatMulInteger", inputs, name, INT32)

    # --- neurons ---

    def _neurons(self, node: LIF, operands: list[str], suffix: str) -> None:
        """The state v is what the next timestep starts from: reset and decayed."""
        plan, graph, name, kind = self.plan, self.graph, node.name, self.plan.formats[node.name]
        currents = [self._current(node, edge, value, suffix) for edge, value in zip(node.inputs, operands, strict=True)]
        parts = [self._synaptic(node, graph.add(currents, f"{name}.current{suffix}"), suffix)]
        if biases := plan.biases(node):
            parts.append(self._parameter(node, "bias", np.sum(biases, axis=0) << FRACTION_BITS, kind))
        if before := self.state.get(f"{name}.v"):
            parts.append(before)
        v = graph.add(parts, f"{name}.v{suffix}")
        if plan.saturates(node):
            low, high = (graph.constant(f"v_{word}:{kind}", sign * (STATE_LIMIT - 1), kind) for word, sign in LIMITS)
            v = graph.emit("Clip", [v, low, high], f"{name}.clipped{suffix}")
        scaled = node.v_threshold * node.v_threshold.dtype.type(plan.unit)
        threshold = self._parameter(node, "v_threshold", scaled, kind)
        self.spikes[name] = spikes = graph.emit("Greater", [v, threshold], f"{name}.spikes{suffix}", BOOL)
        fired = self._step(node, v, f"{name}.fired{suffix}") if plan.quick(node) else graph.cast(spikes, kind)
        self.values[name] = fired if plan.signal == kind else graph.cast(spikes, plan.signal)
        if (node.voltage_decay < DECAY_ONE).any():
            self.state[f"{name}.v"] = self._left(node, v, fired, threshold, suffix)

    def _step(self, node: LIF, v: str, name: str) -> str:
        """Whether v is above the threshold, as 0 or 1: so steep a ramp that the least excess gives 1.

        Of all operators ONNX Runtime computes this one with all its threads and in the layout of its convolutions.
        """
        theta = float(node.v_threshold) * self.plan.unit
        steepness = 1.0 if self.plan.integer else 2.0 ** (FLOAT_DIGITS - math.frexp(theta)[1])
        return self.graph.emit("HardSigmoid", [v], name, alpha=steepness, beta=-steepness * theta)

    def _left(self, node: LIF, v: str, fired: str, threshold: str, suffix: str) -> str:
        """What reset and decay leave of v; by arithmetic, because ONNX Runtime's Where is twenty times slower."""
        graph, name, kind = self.graph, node.name, self.plan.formats[node.name]
        kept = DECAY_ONE - node.voltage_decay.astype(np.int64)
        if node.reset == "subtract":
            spent = graph.emit("Mul", [fired, threshold], f"{name}.spent{suffix}")
            return self._decayed(node, "v", graph.emit("Sub", [v, spent], f"{name}.after{suffix}"), kept, suffix)
        if self.plan.quick(node) and kept.ndim == 0:  # what is kept of v: k (1 - fired)
            exact = not self.plan.integer or _is_power_of_two(kept)
            k = float(kept) / DECAY_ONE if exact else 1.0
            keep = graph.emit("HardSigmoid", [fired], f"{name}.keep{suffix}", alpha=-k, beta=k)
            left = graph.emit("Mul", [v, keep], f"{name}.left{suffix}")
            if k == 1.0:
                return self._decayed(node, "v", left, kept, suffix)
            return self._truncated(left, f"{name}.v_decayed{suffix}") if self.plan.integer else left
        silent = graph.emit("Sub", [graph.constant(f"one:{kind}", 1, kind), fired], f"{name}.silent{suffix}")
        return self._decayed(node, "v", graph.emit("Mul", [v, silent], f"{name}.after{suffix}"), kept, suffix)

    def _current(self, node: LIF, edge: Edge, value: str, suffix: str) -> str:
        """What arrives through one edge in the neuron's format, in 1/64 of the unit of an integer threshold."""
        plan, graph, kind, source = self.plan, self.graph, self.plan.formats[node.name], self.plan.net[edge.source]
        if not plan.integer or edge.source in plan.scaled:
            return value
        assert isinstance(source, Synapse)
        exponent = source.weight_exponent if plan.quantized else 0
        name = f"{edge.source}.into.{node.name}{suffix}"
        value = graph.cast(value, kind)
        if kind == INT64 and isinstance(source, Conv2d) and plan.bounds[source.name] >= STATE_LIMIT:
            value = self._times(value, 1 << exponent, f"{source.name}.mantissa{suffix}")
            value, exponent = self._wrap_sums(value, f"{source.name}.wrapped{suffix}"), 0
        return self._times(value, plan.unit << exponent, name)

    def _times(self, value: str, factor: int, name: str) -> str:
        kind = self.graph.types[value]
        if factor == 1:
            return value
        return self.graph.emit("Mul", [value, self.graph.constant(f"times_{factor}:{kind}", factor, kind)], name)

    def _wrap_sums(self, sums: str, name: str) -> str:
        """The sum of a convolution in 24 bits, int64."""
        graph = self.graph
        limit, span = graph.constant("limit", STATE_LIMIT, INT64), graph.constant("span", 2 * STATE_LIMIT, INT64)
        shifted = graph.emit("Add", [sums, limit], f"{name}:shifted")
        turned = graph.emit("Mod", [shifted, span], f"{name}:turned")
        return graph.emit("Sub", [turned, limit], name)

    def _synaptic(self, node: LIF, arrived: str, suffix: str) -> str:
        """The state u: decayed, plus what arrived; that of an integer neuron wraps once."""
        key, kept = f"{node.name}.u", DECAY_ONE - node.current_decay.astype(np.int64)
        total, before = arrived, self.state.get(key)
        if before is not None and kept.any():
            decayed = self._decayed(node, "u", before, kept, suffix)
            total = self.graph.add([decayed, arrived], f"{key}{suffix}")
        if self.plan.integer and self.plan.u_bound(node) >= STATE_LIMIT:
            total = self._wrap_state(total)
        self.state[key] = total
        return total

    def _decayed(self, node: LIF, field: str, state: str, kept: Array, suffix: str) -> str:
        """State times ``kept`` / 4096; of an integer neuron rounded towards zero, as casts and divisions round."""
        graph, kind, name = self.graph, self.plan.formats[node.name], f"{node.name}.{field}_decayed{suffix}"
        if (kept == DECAY_ONE).all():
            return state
        key = f"{field}_kept"
        if kind == INT64:
            product = graph.emit("Mul", [state, self._parameter(node, key, kept, INT64)], f"{name}:product")
            return graph.emit("Div", [product, graph.constant("one_decay", DECAY_ONE, INT64)], name)
        if not self.plan.integer:
            return graph.emit("Mul", [state, self._parameter(node, key, kept / DECAY_ONE, FLOAT)], name)
        wide = FLOAT if all(map(_is_power_of_two, kept.flat)) else DOUBLE  # 24 bits times 12 need 36
        factor = self._parameter(node, key, kept / DECAY_ONE, wide)
        return self._truncated(graph.emit("Mul", [graph.cast(state, wide), factor], f"{name}:product"), name)

    def _truncated(self, value: str, name: str) -> str:
        """Rounded towards zero, float32."""
        return self.graph.emit("Cast", [self.graph.cast(value, INT32)], name, FLOAT, to=FLOAT)

    def _parameter(self, node: LIF, field: str, values: Array, kind: int) -> str:
        """A constant that is a scalar or one value a channel."""
        values = np.asarray(values)
        rank = len(self.plan.shapes[node.name])
        shaped = values.reshape(-1, *[1] * (rank - 1)) if values.ndim else values
        return self.graph.constant(f"{node.name}.{field}", shaped, kind)

    def _wrap_state(self, u: str) -> str:
        """One turn of the 24-bit u, int64; +2**23 itself stays."""
        graph = self.graph
        for word, operator, limit, turn in (
            ("above", "Greater", STATE_LIMIT, "Sub"),
            ("below", "LessOrEqual", -STATE_LIMIT, "Add"),
        ):
            beyond = graph.emit(operator, [u, graph.constant(f"limit_{word}", limit, INT64)], f"{u}:{word}", BOOL)
            turns = self._times(graph.cast(beyond, INT64), 2 * STATE_LIMIT, f"{u}:{word}_turn")
            u = graph.emit(turn, [u, turns], f"{u}:{word}_inside")
        return u

    # --- readout ---

    def _readout(self, node: Readout, operands: list[str], suffix: str) -> None:
        """Adds what arrives to the sum since the first timestep, int64 or float32."""
        plan, graph = self.plan, self.graph
        parts = []
        for edge, value in zip(node.inputs, operands, strict=True):
            source = plan.net[edge.source]
            if plan.integer:
                exponent = source.weight_exponent if isinstance(source, Synapse) and plan.quantized else 0
                name = f"{edge.source}.into.{node.name}{suffix}"
                value = self._times(graph.cast(value, INT64), 1 << exponent, name)
                if isinstance(source, Synapse) and source.bias is not None:
                    bias = graph.constant(f"{source.name}.readout_bias", source.bias, INT64)
                    value = graph.add([value, bias], f"{source.name}.biased{suffix}")
            else:
                value = graph.cast(value, FLOAT)
            parts.append(value)
        total = graph.add(parts, f"{node.name}.part{suffix}")
        before = self.state.get("readout.sum")
        if before is not None:
            total = graph.add([before, total], f"{node.name}.total{suffix}")
        self.state["readout.sum"] = total


LIMITS = (("min", -1), ("max", 1))
FLOAT_DIGITS = 24  # binary, of a float32


def _is_power_of_two(kept: Array) -> bool:
    """Whether all values are the same power of two."""
    first = int(np.asarray(kept).flat[0])
    return bool((kept == first).all()) and first & (first - 1) == 0


def _geometry(node: Conv2d) -> dict[str, Any]:
    return {
        "strides": node.stride,
        "pads": (*node.padding, *node.padding),
        "dilations": node.dilation,
        "group": node.groups,
        "kernel_shape": node.weight.shape[2:],
    }
