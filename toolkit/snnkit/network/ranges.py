"""Ranges of the integer arithmetic: what synaptic sums, currents and voltages can reach in the worst case."""

import math
from dataclasses import dataclass

import numpy as np

from snnkit.network.ir import DECAY_ONE, LIF, Array, Input, Network, Node, Readout, Synapse

FRACTION_BITS = 6  # u and v carry 6 fractional bits below the unit of weights and thresholds
STATE_LIMIT = 2**23  # u and v are signed 24-bit numbers
SUM_LIMIT = (STATE_LIMIT >> FRACTION_BITS) - 1  # of what enters u in one timestep


def largest_value(net: Network, node: Node) -> int:
    """The largest integer that ``node`` (an input, neurons, or a view of them) can send."""
    match node:
        case LIF():
            return 1
        case Input():
            return int(2 ** max(1, node.bits) - 1)
    return sum(largest_value(net, net[edge.source]) for edge in node.inputs)


def synaptic_bounds(net: Network) -> dict[str, int]:
    """For each synapse of an integer network: the largest size of its sums, and of all they consist of.

    No input is negative, so that an output reaches at most the sum of its positive weights, or of its negative ones.
    """
    bounds = {}
    for node in net.synapses:
        weight = node.effective_weight.astype(np.int64).reshape(len(node.weight), -1)
        reach = np.maximum(weight.clip(min=0).sum(axis=1), -weight.clip(max=0).sum(axis=1))
        bounds[node.name] = int(reach.max()) * sum(largest_value(net, net[edge.source]) for edge in node.inputs)
    return bounds


def may_wrap(net: Network, node: LIF) -> bool:
    """Whether the summed input of ``node`` could leave the range in which u neither wraps nor loses bits."""
    bounds = synaptic_bounds(net)
    total = sum(bounds[source.name] for edge in node.inputs if isinstance(source := net[edge.source], Synapse))
    return total << FRACTION_BITS >= STATE_LIMIT or bool((node.current_decay < 4096).any())


@dataclass(frozen=True)
class Range:
    """From the smallest to the largest value; what is beyond ``limit`` on either side wraps or saturates."""

    low: int
    high: int
    limit: int

    @property
    def fits(self) -> bool:
        return -self.limit <= self.low and self.high <= self.limit


@dataclass(frozen=True)
class Ranges:
    """Of a neuron node: the weighted sum that enters in a timestep, without biases, and u and v with their 6 fractional
    bits, before the reset. The sum's limit is that of the current it becomes. Of a membrane readout, which a chip
    computes with neurons that never fire, v is the answer so far.
    """

    sum: Range
    u: Range
    v: Range

    @property
    def fits(self) -> bool:
        return self.sum.fits and self.u.fits and self.v.fits


def worst_case(net: Network) -> dict[str, Ranges]:
    """What no input can exceed, for each neuron node of an integer network and a membrane readout, before any wrapping
    or saturation.
    """
    found = {}
    for node in net.nodes:
        if not isinstance(node, LIF | Readout) or (isinstance(node, Readout) and node.mode == "count"):
            continue
        layers = [source for edge in node.inputs if isinstance(source := net[edge.source], Synapse)]
        outputs = len(layers[0].weight)
        low, high, bias = (np.zeros(outputs, np.int64) for _ in range(3))
        for layer in layers:
            largest = sum(largest_value(net, net[edge.source]) for edge in layer.inputs)
            weight = layer.effective_weight.astype(np.int64).reshape(outputs, -1) * largest
            low, high = low + np.minimum(weight, 0).sum(axis=1), high + np.maximum(weight, 0).sum(axis=1)
            if layer.bias is not None:
                bias = bias + layer.bias.astype(np.int64)
        # of convolutions and dense layers alike a parameter has one value, or one an output channel
        decays = np.array(DECAY_ONE), np.array(0)
        if isinstance(node, LIF):
            decays = node.current_decay, node.voltage_decay
        keep_u, keep_v = ((DECAY_ONE - decay) / DECAY_ONE for decay in decays)
        u_low = low * 2.0**FRACTION_BITS * _accumulated(keep_u, net.timesteps)
        u_high = high * 2.0**FRACTION_BITS * _accumulated(keep_u, net.timesteps)
        v_low = np.minimum(u_low + bias * 2.0**FRACTION_BITS, 0) * _accumulated(keep_v, net.timesteps)
        v_high = np.maximum(u_high + bias * 2.0**FRACTION_BITS, 0) * _accumulated(keep_v, net.timesteps)
        if isinstance(node, LIF) and node.reset == "zero":  # what is left from the step before is at most the threshold
            left = keep_v * node.v_threshold * 2.0**FRACTION_BITS
            v_high = np.minimum(v_high, left + np.maximum(u_high + bias * 2.0**FRACTION_BITS, 0))
        found[node.name] = Ranges(
            Range(int(low.min()), int(high.max()), SUM_LIMIT),
            Range(math.floor(u_low.min()), math.ceil(u_high.max()), STATE_LIMIT - 1),
            Range(math.floor(v_low.min()), math.ceil(v_high.max()), STATE_LIMIT - 1),
        )
    return found


def _accumulated(keep: Array, timesteps: int) -> Array:
    """``1 + keep + keep^2 + ...`` over the timesteps."""
    total: Array = np.sum([keep**t for t in range(timesteps)], axis=0)
    return total
