"""What is known of a network before its graph is written: ranges, number formats, and what must be remembered.

An integer neuron computes in float32 where its range proves that exact, which ONNX Runtime does three to twenty times
faster than int64: sums below 2**24, u that cannot wrap, v clipped to 24 bits. Otherwise it computes in int64.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import TensorProto

from snnkit.network import LIF, Conv2d, Input, Network, Node, Readout, infer_shapes, verify
from snnkit.network.ir import DECAY_ONE, Array, Synapse
from snnkit.network.ranges import FRACTION_BITS, STATE_LIMIT, largest_value, synaptic_bounds

EXACT = 2**24  # float32 holds every integer up to this
Synapses = Literal["float32", "int8"]


@dataclass(frozen=True)
class State:
    """A value that one timestep leaves for the next, per sample; zeros before the first."""

    name: str
    type: int
    shape: tuple[int, ...]

    @property
    def following(self) -> str:
        """The name of the value that it takes at the next timestep."""
        return f"{self.name}.next"


class Plan:
    """``timesteps`` is how many the graph can run: a number, or None for any number."""

    def __init__(self, net: Network, synapses: Synapses, timesteps: int | None) -> None:
        self.net, self.timesteps = net, timesteps
        self.integer = verify(net) == "integer"
        self.shapes = infer_shapes(net)
        self.bounds = synaptic_bounds(net) if self.integer else {}
        self.quantized = self.integer and synapses == "int8"
        self.unit = 1 << FRACTION_BITS if self.integer else 1
        self.signal: int = TensorProto.UINT8 if self.quantized else TensorProto.FLOAT
        self.formats = {node.name: self._format(node) for node in net.neurons}
        self.scaled = {node.name for node in net.synapses if self._is_scaled(node)}
        self.merged = {node.name for node in net.synapses if self._is_merged(node)}
        self.static = self._static()

    # --- ranges of integer neurons, in 1/64 of the unit of a threshold ---

    def u_bound(self, node: LIF) -> float:
        total = sum(self.bounds[source.name] for source in self.sources(node)) << FRACTION_BITS
        return self._accumulated(total, node.current_decay)

    def saturates(self, node: LIF) -> bool:
        """Whether v of an integer neuron could reach the end of its 24 bits."""
        if not self.integer:
            return False
        biases = [np.abs(s.bias.astype(np.int64)).max() for s in self.sources(node) if s.bias is not None]
        total = self.u_bound(node) + (int(sum(biases)) << FRACTION_BITS)
        return self._accumulated(total, node.voltage_decay) >= STATE_LIMIT - 1

    def _accumulated(self, each: float, decay: Array) -> float:
        """What a sum that decays can reach when ``each`` is added at every timestep."""
        kept = (DECAY_ONE - int(decay.min())) / DECAY_ONE
        forever = each / (1 - kept) if kept < 1 else math.inf
        return forever if self.timesteps is None else min(forever, each * self.timesteps)

    def _format(self, node: LIF) -> int:
        if not self.integer:
            return TensorProto.FLOAT
        wraps = any(self.bounds[s.name] >= STATE_LIMIT for s in self.sources(node)) or self.u_bound(node) >= STATE_LIMIT
        return TensorProto.INT64 if wraps else TensorProto.FLOAT

    def quick(self, node: LIF) -> bool:
        """Whether firing is a single operator, which takes one threshold."""
        if node.v_threshold.ndim or self.formats[node.name] != TensorProto.FLOAT:
            return False
        return self.integer or float(node.v_threshold) > 1e-6

    # --- synapses ---

    def sources(self, node: Node) -> list[Synapse]:
        return [source for edge in node.inputs if isinstance(source := self.net[edge.source], Synapse)]

    def biases(self, node: Node) -> list[Array]:
        """The biases that ``node`` still has to add itself."""
        return [s.bias.astype(np.int64) for s in self.sources(node) if s.bias is not None and s.name not in self.merged]

    def _is_scaled(self, node: Synapse) -> bool:
        """Whether the weights can carry the factor of 64: only float32 neurons read the sums."""
        consumers = self.net.consumers(node.name)
        return (
            self.integer
            and not self.quantized
            and all(isinstance(c, LIF) and self.formats[c.name] == TensorProto.FLOAT for c in consumers)
        )

    def _is_merged(self, node: Synapse) -> bool:
        """Whether the bias can be added with the sums: exact, and no filter of the current comes in between."""
        if not self.integer:
            return True
        consumers = self.net.consumers(node.name)
        largest = 0 if node.bias is None else int(np.abs(node.bias).max())
        return (
            node.name in self.scaled
            and all(isinstance(c, LIF) and (c.current_decay == DECAY_ONE).all() for c in consumers)
            and self.bounds[node.name] + largest < EXACT
        )

    def _static(self) -> set[str]:
        """Nodes with the same value at every timestep: a direct input, and what sees nothing else."""
        static: set[str] = set()
        for node in self.net.nodes:
            if isinstance(node, Input):
                if node.encoding == "direct":
                    static.add(node.name)
            elif not isinstance(node, LIF | Readout) and all(e.source in static and not e.delay for e in node.inputs):
                static.add(node.name)
        return static

    # --- states ---

    def delay(self, name: str) -> int:
        """How many past values of a node are read."""
        return max((e.delay for node in self.net.nodes for e in node.inputs if e.source == name), default=0)

    def states(self) -> list[State]:
        """Everything that one timestep leaves for the next, the readout's sum first."""
        readout = self.net.readout.name
        total = TensorProto.INT64 if self.integer else TensorProto.FLOAT
        found = [State("readout.sum", total, self.shapes[readout])]
        for node in self.net.nodes:
            shape = self.shapes[node.name]
            if isinstance(node, LIF):
                fields = {"u": node.current_decay, "v": node.voltage_decay}
                kept = [field for field, decay in fields.items() if (decay < DECAY_ONE).any()]
                found += [State(f"{node.name}.{field}", self.formats[node.name], shape) for field in kept]
            found += [State(f"{node.name}.late{d}", self.signal, shape) for d in range(1, 1 + self.delay(node.name))]
        return found


def obstacles(net: Network, synapses: Synapses) -> list[str]:
    """Every reason why the arithmetic of ``net`` cannot be written exactly."""
    if verify(net) == "float":
        return ["the network is float; 8-bit synapses need the integer network"] if synapses == "int8" else []
    reasons = []
    bounds = synaptic_bounds(net)
    for node in net.synapses:
        if synapses == "float32" and bounds[node.name] >= EXACT:
            reach = f"node '{node.name}' can reach a sum of {bounds[node.name]}"
            reasons.append(f"{reach}, beyond the 2**24 that float32 holds exactly")
        elif synapses == "int8":
            if bounds[node.name] >> node.weight_exponent >= 2**31:
                reasons.append(f"node '{node.name}' can reach a sum of {bounds[node.name]}, beyond 32 bits")
            largest = sum(largest_value(net, net[edge.source]) for edge in node.inputs)
            if largest > 255:
                reasons.append(f"node '{node.name}' reads sums of up to {largest}, beyond 8 bits")
    return reasons


def is_identity_shaped(node: Synapse) -> bool:
    """Whether a synapse is one factor a channel: a depthwise convolution of one pixel."""
    return (
        isinstance(node, Conv2d)
        and node.groups == node.weight.shape[0]
        and node.weight.shape[1:] == (1, 1, 1)
        and (node.stride, node.padding) == ((1, 1), (0, 0))
    )
