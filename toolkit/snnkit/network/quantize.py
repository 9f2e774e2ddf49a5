"""From float to the integers that a chip holds: threshold-scaled weights, thresholds, biases and input.

All synapses into one neuron share one scale n, so that an integer membrane is 2 n times the float one:
W_int = round(n W), doubled by ``weight_exponent`` 1 because mixed-sign 8-bit weights on Loihi have no lowest
bit; v >= theta becomes v > 2n - 1. n is the largest that fits the weights, thresholds and biases.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from snnkit.errors import NetworkError, UnsupportedError
from snnkit.network.ir import (
    BIAS_MAX,
    DECAY_ONE,
    LIF,
    V_THRESHOLD_MAX,
    AvgPool2d,
    BatchNorm2d,
    Input,
    Network,
    Node,
    Readout,
    Synapse,
    reads_input,
    verify,
)

MIN_SCALE = 4  # below this a threshold has fewer than three bits


def quantize(net: Network, *, weight_bits: int = 8, input_bits: int = 4) -> Network:
    """The integer network of a folded float one.

    ``weight_bits`` 2..8 for every synapse, ``input_bits`` 1..8 for a direct input in 0..1 (scale
    ``1 / (2**input_bits - 1)``). The scales are recorded in ``metadata["quantization"]``. Raises
    :class:`UnsupportedError` with all reasons at once.
    """
    if not 2 <= weight_bits <= 8 or not 1 <= input_bits <= 8:
        raise NetworkError(
            f"cannot quantise to {weight_bits}-bit weights and {input_bits}-bit input",
            "weights take 2 to 8 bits, the input 1 to 8",
        )
    if verify(net) == "integer":
        raise NetworkError("the network is quantised already", "give the float network")
    if reasons := _obstacles(net):
        raise UnsupportedError("the network cannot be quantised", reasons, "fold or replace these nodes first")
    entry = net.input
    if entry.encoding == "direct":
        entry = dataclasses.replace(entry, bits=input_bits, scale=1.0 / (2**input_bits - 1), zero_point=0)
    else:
        entry = dataclasses.replace(entry, bits=1)
    q_max = 2 ** (weight_bits - 1) - 1
    quantised: dict[str, Node] = {entry.name: entry}
    scales: dict[str, float] = {}
    for node in net.nodes:
        if not isinstance(node, LIF | Readout):
            continue
        synapses = [source for edge in node.inputs if isinstance(source := net[edge.source], Synapse)]
        if not synapses:  # a readout that counts spikes
            continue
        scale = scales[node.name] = _scale(net, node, synapses, entry, q_max)
        for synapse in synapses:
            gain = entry.scale if reads_input(net, synapse) else 1.0
            quantised[synapse.name] = dataclasses.replace(
                synapse,
                weight=np.rint(synapse.weight.astype(np.float64) * gain * scale).astype(np.int8),
                bias=None if synapse.bias is None else _rounded(synapse.bias, 2 * scale),
                weight_exponent=1,
            )
        if isinstance(node, LIF):
            theta = np.nextafter(node.v_threshold, np.float32(np.inf))
            quantised[node.name] = dataclasses.replace(
                node, v_threshold=np.asarray(_rounded(theta, 2 * scale) - 1, np.int32)
            )
    metadata: dict[str, Any] = {
        **net.metadata,
        "quantization": {"weight_bits": weight_bits, "input_bits": entry.bits, "scales": scales},
    }
    nodes = tuple(quantised.get(node.name, node) for node in net.nodes)
    result = dataclasses.replace(net, nodes=nodes, metadata=metadata)
    verify(result)
    return result


def _rounded(x: Any, scale: float) -> Any:
    return np.asarray(np.rint(np.asarray(x, np.float64) * scale), np.int32)


def _obstacles(net: Network) -> list[str]:
    reasons = []
    for node in net.nodes:
        kind = type(node).__name__
        sources = [net[edge.source] for edge in node.inputs]
        if isinstance(node, BatchNorm2d | AvgPool2d):
            reasons.append(f"node '{node.name}' ({kind}) is float only")
        if isinstance(node, LIF) and not all(isinstance(source, Synapse) for source in sources):
            reasons.append(f"node '{node.name}' ({kind}) reads something else than Conv2d or Affine nodes")
        if isinstance(node, LIF) and (node.current_decay != DECAY_ONE).any():
            biased = [s.name for s in sources if isinstance(s, Synapse) and s.bias is not None and s.bias.any()]
            if biased:
                reasons.append(
                    f"node '{node.name}' filters its current, which a chip's bias bypasses; '{biased[0]}' has a bias"
                )
        if isinstance(node, Synapse) and not node.weight.any():
            reasons.append(f"node '{node.name}' ({kind}) has no weight other than zero")
    return reasons


def _scale(net: Network, node: Node, synapses: list[Synapse], entry: Input, q_max: int) -> float:
    """The shared scale n of everything that enters ``node``: the largest integer that fits all limits."""
    largest = max(float(np.abs(s.weight).max()) * (entry.scale if reads_input(net, s) else 1.0) for s in synapses)
    bias = np.abs(sum(np.abs(s.bias.astype(np.float64)) for s in synapses if s.bias is not None)).max()
    limits = {"weights": q_max / largest}
    if bias:  # an accumulating readout holds the bias of all timesteps
        steps = net.timesteps if isinstance(node, Readout) else 1
        limits["bias"] = BIAS_MAX / (2 * steps * float(bias))
    if isinstance(node, LIF):
        theta = np.nextafter(node.v_threshold, np.float32(np.inf)).astype(np.float64)
        limits["threshold"] = (V_THRESHOLD_MAX + 1) / (2 * float(theta.max()))
        # n theta is made an integer (exact for IF), so the limits are counted in thresholds
        levels = math.floor(min(limits.values()) * float(theta.max()) + 1e-9)
        if levels < MIN_SCALE:
            raise UnsupportedError(
                "the network cannot be quantised",
                [
                    f"node '{node.name}' would have a threshold of {levels} levels, limited by its "
                    f"{min(limits, key=lambda name: limits[name])}"
                ],
                "train with a smaller weight norm or a larger threshold, or use more weight bits",
            )
        return levels / float(theta.max())
    return min(limits.values())
