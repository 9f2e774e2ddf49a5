"""Ranges of the integer arithmetic: what a synaptic sum can reach in the worst case."""

import math

import numpy as np

from snnkit.network.ir import LIF, Input, Network, Node, Synapse

FRACTION_BITS = 6  # u and v carry 6 fractional bits below the unit of weights and thresholds
STATE_LIMIT = 2**23  # u and v are signed 24-bit numbers


def largest_value(net: Network, node: Node) -> int:
    """The largest integer that ``node`` (an input, neurons, or a view of them) can send."""
    match node:
        case LIF():
            return 1
        case Input():
            return int(2 ** max(1, node.bits) - 1)
    return sum(largest_value(net, net[edge.source]) for edge in node.inputs)


def synaptic_bounds(net: Network) -> dict[str, int]:
    """For each synapse of an integer network: max over outputs of sum |W|, times the largest input value."""
    bounds = {}
    for node in net.synapses:
        weight = np.abs(node.effective_weight.astype(np.int64))
        per_output = weight.reshape(weight.shape[0], math.prod(weight.shape[1:])).sum(axis=1)
        bounds[node.name] = int(per_output.max()) * sum(largest_value(net, net[edge.source]) for edge in node.inputs)
    return bounds


def may_wrap(net: Network, node: LIF) -> bool:
    """Whether the summed input of ``node`` could leave the range in which u neither wraps nor loses bits."""
    bounds = synaptic_bounds(net)
    total = sum(bounds[source.name] for edge in node.inputs if isinstance(source := net[edge.source], Synapse))
    return total << FRACTION_BITS >= STATE_LIMIT or bool((node.current_decay < 4096).any())
