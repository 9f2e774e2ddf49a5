"""From float to the integers that a chip holds: threshold-scaled weights, thresholds, biases and input.

All synapses into one neuron share one scale n, so that an integer membrane is 2 n times the float one:
W_int = round(n W), doubled by ``weight_exponent`` 1 because mixed-sign 8-bit weights on Loihi have no lowest
bit; v >= theta becomes v > 2n - 1. n is the largest that fits the weights, thresholds and biases or, with
calibration statistics, the one of least error: a larger one clips the largest weights and rounds the others finer.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from snnkit.errors import NetworkError, UnsupportedError
from snnkit.network.ir import (
    BIAS_MAX,
    BIAS_MIN,
    DECAY_ONE,
    LIF,
    V_THRESHOLD_MAX,
    Array,
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    Flatten,
    Network,
    Node,
    Readout,
    Synapse,
    reads_input,
    verify,
)

MIN_SCALE = 4  # below this a threshold has fewer than three bits
FACTORS = np.geomspace(0.7, 4.0, 48)  # of the scale at which the largest weight fits: what the search tries


@dataclass(frozen=True, eq=False)
class Moments:
    """What a node sends in the float network, over calibration samples and timesteps: ``mean`` and mean ``square``,
    both of the node's output shape.
    """

    mean: Array
    square: Array


def quantize(
    net: Network,
    *,
    weight_bits: int = 8,
    input_bits: int = 6,
    per_channel: bool = False,
    stem: Literal["chip", "host"] = "chip",
    moments: Mapping[str, Moments] | None = None,
    ceilings: Mapping[str, float] | None = None,
) -> Network:
    """The integer network of a folded float one.

    ``weight_bits`` 2..8 for every synapse, ``input_bits`` 1..8 for a direct input in 0..1 (scale
    ``1 / (2**input_bits - 1)``). ``per_channel`` gives each channel of neurons a scale and threshold of its own. With
    ``moments`` of the input and all neurons, scales are searched for the least mean square error of the synaptic sums,
    and biases take out its mean. ``ceilings`` limit the scales of single neuron nodes. ``stem`` says where the
    first layer is computed. The scales are recorded in ``metadata["quantization"]``. Raises
    :class:`UnsupportedError` with all reasons at once.
    """
    if not 2 <= weight_bits <= 8 or not 1 <= input_bits <= 8:
        raise NetworkError(
            f"cannot quantise to {weight_bits}-bit weights and {input_bits}-bit input",
            "weights take 2 to 8 bits, the input 1 to 8",
        )
    if stem not in ("chip", "host"):
        raise NetworkError(f"the stem cannot be computed on '{stem}'", "it is computed on 'chip' or 'host'")
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
    scales: dict[str, Any] = {}
    for node in net.nodes:
        if not isinstance(node, LIF | Readout):
            continue
        layers = [
            _Layer(net, synapse, entry.scale if reads_input(net, synapse) else 1.0, moments)
            for edge in node.inputs
            if isinstance(synapse := net[edge.source], Synapse)
        ]
        if not layers:  # a readout that counts spikes
            continue
        ceiling = (ceilings or {}).get(node.name, np.inf)
        scale = _scale(net, node, layers, q_max, per_channel=per_channel and isinstance(node, LIF), ceiling=ceiling)
        scales[node.name] = scale.tolist()
        for layer in layers:
            quantised[layer.node.name] = layer.rounded(scale, q_max)
        if isinstance(node, LIF):
            theta = np.nextafter(node.v_threshold, np.float32(np.inf))
            quantised[node.name] = dataclasses.replace(
                node, v_threshold=np.asarray(_rounded(theta, 2 * scale) - 1, np.int32)
            )
    vanished = [node.name for node in quantised.values() if isinstance(node, Synapse) and not node.weight.any()]
    if vanished:
        raise UnsupportedError(
            "the network cannot be quantised",
            [
                f"all weights of node '{name}' round to 0 at the scale of the neurons that they enter"
                for name in vanished
            ],
            "use more weight bits, or train with weights of one size in all paths into these neurons",
        )
    facts = {"weight_bits": weight_bits, "input_bits": entry.bits, "per_channel": per_channel, "scales": scales}
    nodes = tuple(quantised.get(node.name, node) for node in net.nodes)
    result = dataclasses.replace(net, nodes=nodes, stem=stem, metadata={**net.metadata, "quantization": facts})
    verify(result)
    return result


def _rounded(x: Any, scale: Any) -> Any:
    return np.asarray(np.rint(np.asarray(x, np.float64) * scale), np.int32)


class _Layer:
    """A synapse in float64: weights [O, K] for the encoded input; of what they read, mean and variance [1 or O, K]."""

    def __init__(self, net: Network, node: Synapse, gain: float, moments: Mapping[str, Moments] | None) -> None:
        self.node = node
        self.weight = node.weight.astype(np.float64).reshape(len(node.weight), -1) * gain
        self.known = moments is not None
        if moments is not None:
            read = [moments[_sender(net, edge.source)] for edge in node.inputs]
            mean, variance = sum(m.mean for m in read) / gain, sum(m.square - m.mean**2 for m in read) / gain**2
            self.mean, self.variance = (_columns(node, np.asarray(values, np.float64)) for values in (mean, variance))

    def scaled(self, scale: Array, q_max: int) -> Array:
        """Integer weights [O, K] as float64, clipped to the format; ``scale`` has shape () or (O,)."""
        clipped: Array = np.clip(np.rint(self.weight * scale.reshape(-1, 1)), -q_max, q_max)
        return clipped

    def error(self, scale: Array, q_max: int) -> Array:
        """Mean square error [O] of the sums, for inputs that do not depend on each other; a bias takes out its mean."""
        off = self.scaled(scale, q_max) / scale.reshape(-1, 1) - self.weight
        squares: Array = (off**2 * self.variance).sum(axis=1)
        return squares if self.node.bias is not None else squares + (off * self.mean).sum(axis=1) ** 2

    def rounded(self, scale: Array, q_max: int) -> Synapse:
        """The integer node."""
        weight, bias = self.scaled(scale, q_max), self.node.bias
        if bias is not None:
            exact = bias.astype(np.float64)
            if self.known:
                exact = exact - ((weight / scale.reshape(-1, 1) - self.weight) * self.mean).sum(axis=1)
            bias = np.clip(_rounded(exact, 2 * scale), BIAS_MIN, BIAS_MAX)
        return dataclasses.replace(
            self.node, weight=weight.astype(np.int8).reshape(self.node.weight.shape), bias=bias, weight_exponent=1
        )


def _sender(net: Network, name: str) -> str:
    """The input or neurons whose values a node passes on."""
    node = net[name]
    return _sender(net, node.inputs[0].source) if isinstance(node, Flatten) else name


def _columns(node: Synapse, values: Array) -> Array:
    """Values of each input element as [1 or O, K], one for each weight; of a map [C, H, W] the mean over its pixels."""
    if not isinstance(node, Conv2d):
        return values.reshape(1, -1)
    channels = values.mean(axis=(1, 2)).reshape(node.groups, -1)
    if node.groups > 1:
        channels = channels.repeat(len(node.weight) // node.groups, axis=0)
    columns: Array = channels.repeat(node.weight.shape[2] * node.weight.shape[3], axis=1)
    return columns


def _scale(
    net: Network, node: LIF | Readout, layers: Sequence[_Layer], q_max: int, *, per_channel: bool, ceiling: float
) -> Array:
    """The scale n, of shape () or (C,), of everything that enters ``node``."""

    def common(values: Array) -> Array:
        return values if per_channel else values.max(keepdims=True)

    largest = np.max([np.abs(layer.weight).max(axis=1) for layer in layers], axis=0)
    largest = common(np.where(largest > 0, largest, largest.max()))  # a channel may have no weights of its own
    limits = {"weights": q_max / largest, "range": np.array([ceiling])}
    biases = [np.abs(layer.node.bias.astype(np.float64)) for layer in layers if layer.node.bias is not None]
    if biases:  # an accumulating readout holds the bias of all timesteps
        bias = common(np.sum(biases, axis=0)) * (net.timesteps if isinstance(node, Readout) else 1)
        limits["bias"] = BIAS_MAX / (2 * np.maximum(bias, 1e-30))
    theta = np.ones(1)
    if isinstance(node, LIF):
        theta = common(np.nextafter(node.v_threshold, np.float32(np.inf)).astype(np.float64).reshape(-1))
        limits["threshold"] = (V_THRESHOLD_MAX + 1) / (2 * theta)
    searched = layers[0].known
    cap = np.min(np.broadcast_arrays(*(limit for name, limit in limits.items() if name != "weights")), axis=0)
    factors = FACTORS if searched else np.ones(1)
    scales = np.stack([np.minimum(limits["weights"] * factor, cap) for factor in factors])
    if isinstance(node, LIF):
        # n theta is made an integer (exact for IF), so that a scale is counted in thresholds
        levels = np.floor(scales * theta + 1e-9)
        if searched:
            levels = np.maximum(levels, np.minimum(MIN_SCALE, np.floor(cap * theta + 1e-9)))
        if levels.max(axis=0).min() < MIN_SCALE:
            reached = {name: float(np.min(limit * theta)) for name, limit in limits.items()}
            raise UnsupportedError(
                "the network cannot be quantised",
                [
                    f"node '{node.name}' would have a threshold of {levels.max(axis=0).min():.0f} levels, limited by "
                    f"its {min(reached, key=lambda name: reached[name])}"
                ],
                "train with a smaller weight norm or a larger threshold, or use more weight bits",
            )
        scales = levels / theta
    if searched:
        errors = np.stack([sum(layer.error(scale, q_max) for layer in layers) for scale in scales])
        best = errors.argmin(axis=0) if per_channel else np.array([errors.sum(axis=1).argmin()])
        scales = scales[best, np.arange(scales.shape[1])][None]
    chosen: Array = scales[0] if per_channel else scales[0, 0]
    return np.asarray(chosen)


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
        if isinstance(node, Synapse | Flatten):
            read = " and ".join(repr(source.name) for source in sources)
            if any(isinstance(source, Synapse) for source in sources):
                reasons.append(
                    f"node '{node.name}' ({kind}) reads a current of {read}, not spikes; put neurons between"
                )
            elif len(sources) > 1:
                reasons.append(
                    f"node '{node.name}' ({kind}) reads the sum of {read}, which is not binary; "
                    "let the shortcut enter the neurons behind as a current"
                )
        if isinstance(node, Synapse) and not node.weight.any():
            reasons.append(f"node '{node.name}' ({kind}) has no weight other than zero")
    return reasons
