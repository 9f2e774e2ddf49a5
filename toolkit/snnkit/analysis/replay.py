"""One layer of an integer network once more, from the spikes that reached it, by the reference's rules or by others.

Everything that a layer does follows from its inputs, so a layer can be replayed alone. Where the rules differ from the
reference's in one point, the replay shows what a runner with that fault would have done.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from snnkit.network.ir import DECAY_ONE, LIF, Array, Conv2d, Edge, Flatten, Input, Network, Node, Shape, Synapse
from snnkit.network.ranges import FRACTION_BITS

Limit = Literal["wrap", "saturate", "unlimited"]


@dataclass(frozen=True)
class Rules:
    """How a layer is computed; the defaults are the reference's.

    ``late``: steps by which all inputs (or those through ``late_through``) come too late; ``delays``: whether edges
    keep theirs. ``threshold_shift`` is in units of the threshold. ``carry``: the state lives on into the next sample.
    """

    strict: bool = True
    threshold_shift: int = 0
    reset: Literal["zero", "subtract", "none"] | None = None
    carry: bool = False
    rounding: Literal["zero", "floor", "nearest", "none"] = "zero"
    decay: Literal["before", "after", "none"] = "before"
    voltage: Limit = "saturate"
    current: Limit = "wrap"
    sums: Limit = "wrap"
    bits: int = 24
    bias: Literal["each", "first", "none", "current"] = "each"
    late: int = 0
    late_through: str | None = None
    delays: bool = True


REFERENCE = Rules()


@dataclass(frozen=True, eq=False)
class Replay:
    """Spikes bool, u and v as they are compared with the threshold, all [T, B, *shape]; a reset comes after."""

    spikes: Array
    u: Array
    v: Array


class Layer:
    """A LIF node with what reached it: ``encoded`` as it enters the network, ``rasters`` of the neurons before it.

    The samples are those of ``encoded``: [B, *shape] for all timesteps, or [T, B, *shape]; rasters [T, B, *shape].
    """

    def __init__(self, net: Network, node: LIF, encoded: Array, rasters: dict[str, Array], shape: Shape) -> None:
        self.net, self.node, self.rasters, self.shape = net, node, rasters, shape
        once = encoded.ndim == 1 + len(net.input.shape)
        self.frames = np.broadcast_to(encoded, (net.timesteps, *encoded.shape)) if once else encoded
        self._drives: dict[tuple[object, ...], Array] = {}

    def run(self, rules: Rules) -> Replay:
        """Every sample and timestep by these rules."""
        drive, bias = self.drive(rules), self.bias()
        steps, samples = drive.shape[:2]
        step = _Step(self.node, rules, self.shape)
        results = [np.empty_like(drive, dtype=bool), np.empty_like(drive), np.empty_like(drive)]
        groups = [slice(b, b + 1) for b in range(samples)] if rules.carry else [slice(None)]
        for samples_of in groups:
            if samples_of.start in (None, 0):
                step.clear(drive[0, samples_of].shape)
            for t in range(steps):
                for result, values in zip(results, step(drive[t, samples_of], bias, t), strict=True):
                    result[t, samples_of] = values
        return Replay(*results)

    def drive(self, rules: Rules) -> Array:
        """The synaptic sums without biases, int64 [T, B, *shape]."""
        key = (rules.sums, rules.late, rules.late_through, rules.delays)
        if key not in self._drives:
            total: Array | int = 0
            for edge in self.node.inputs:
                synapse = self.net[edge.source]
                assert isinstance(synapse, Synapse)
                arrived = sum(self._values(inner, rules.delays) for inner in synapse.inputs)
                sums = _weighted(synapse, np.asarray(arrived), rules.sums, rules.bits)
                if rules.late and rules.late_through in (None, synapse.name):
                    sums = shift(sums, rules.late)
                total = total + sums
            self._drives[key] = np.asarray(total)
        return self._drives[key]

    def bias(self) -> Array:
        """The summed biases, int64, shaped so that they broadcast to the layer."""
        total = np.zeros(1, np.int64)
        for edge in self.node.inputs:
            found = getattr(self.net[edge.source], "bias", None)
            if found is not None:
                total = total + found.astype(np.int64)
        return np.asarray(total).reshape(-1, *[1] * (len(self.shape) - 1))

    def _values(self, edge: Edge, delays: bool) -> Array:
        source: Node = self.net[edge.source]
        match source:
            case Input():
                values = self.frames
            case Flatten():
                inner = sum(self._values(further, delays) for further in source.inputs)
                flat: Array = np.asarray(inner).reshape(*np.shape(inner)[:2], -1)
                return flat
            case _:
                values = self.rasters[source.name]
        return shift(values, edge.delay) if delays and edge.delay else values


class _Step:
    """The state of the layer and one timestep of it."""

    def __init__(self, node: LIF, rules: Rules, shape: Shape) -> None:
        def spread(values: Array) -> Array:
            return values.astype(np.int64).reshape(-1, *[1] * (len(shape) - 1)) if values.ndim else values

        self.rules, self.reset = rules, rules.reset or node.reset
        self.limit = 2 ** (rules.bits - 1)
        self.threshold = (spread(node.v_threshold).astype(np.int64) + rules.threshold_shift) << FRACTION_BITS
        self.keep_u = DECAY_ONE - spread(node.current_decay).astype(np.int64)
        self.keep_v = DECAY_ONE - spread(node.voltage_decay).astype(np.int64)
        if rules.decay == "none":
            self.keep_v = np.full_like(self.keep_v, DECAY_ONE)

    def clear(self, shape: Shape) -> None:
        exact = self.rules.rounding == "none"
        self.u = self.v = np.zeros(shape, np.float64 if exact else np.int64)

    def __call__(self, drive: Array, bias: Array, t: int) -> tuple[Array, Array, Array]:
        rules = self.rules
        added = bias if rules.bias in ("each", "current") or (rules.bias == "first" and t == 0) else 0 * bias
        u = self._decayed(self.u, self.keep_u) + (drive << FRACTION_BITS)
        if rules.bias == "current":
            u, added = u + (added << FRACTION_BITS), 0 * added
        self.u = self._limited(u, rules.current, past=1)
        if rules.decay == "after":
            v = self._decayed(self.v + self.u + (added << FRACTION_BITS), self.keep_v)
        else:
            v = self._decayed(self.v, self.keep_v) + self.u + (added << FRACTION_BITS)
        v = self._limited(v, rules.voltage)
        spikes = v > self.threshold if rules.strict else v >= self.threshold
        left = {"zero": 0 * v, "subtract": v - self.threshold, "none": v}[self.reset]
        self.v = np.where(spikes, left, v)
        return spikes, self.u, v

    def _decayed(self, state: Array, keep: Array) -> Array:
        product = state * keep
        match self.rules.rounding:
            case "zero":
                return np.asarray(np.sign(product) * (np.abs(product) // DECAY_ONE))
            case "floor":
                return np.asarray(product // DECAY_ONE)
            case "nearest":
                return np.asarray((product + DECAY_ONE // 2) // DECAY_ONE)
        return np.asarray(product / DECAY_ONE)

    def _limited(self, state: Array, limit: Limit, past: int = 0) -> Array:
        """``past`` 1: u, which keeps +limit and wraps once."""
        most = self.limit
        if limit == "saturate":
            return np.clip(state, 1 - most, most - 1)
        if limit == "wrap":
            if past:
                state = np.where(state > most, state - 2 * most, state)
                return np.where(state <= -most, state + 2 * most, state)
            return np.asarray((state + most) % (2 * most) - most)
        return state


def shift(values: Array, late: int) -> Array:
    """The same along the first axis, ``late`` steps later (earlier, if negative), with zeros where nothing is."""
    result = np.zeros_like(values)
    if late >= 0:
        result[late:] = values[: max(0, len(values) - late)]
    else:
        result[:late] = values[-late:]
    return result


def _weighted(synapse: Synapse, x: Array, limit: Limit, bits: int) -> Array:
    """Weights times [T, B, *in], exact, int64 [T, B, *out]; a convolution's sums are kept to ``bits``."""
    weight = synapse.effective_weight.astype(np.float64)  # exact: no sum comes near 2**53
    if not isinstance(synapse, Conv2d):
        return np.rint(x.astype(np.float64) @ weight.T).astype(np.int64)
    sums = np.stack([_convolved(synapse, weight, frame.astype(np.float64)) for frame in x])
    most = 2 ** (bits - 1)
    if limit == "wrap":
        return np.asarray((sums + most) % (2 * most) - most)
    return np.clip(sums, -most, most - 1) if limit == "saturate" else sums


def _convolved(node: Conv2d, weight: Array, x: Array) -> Array:
    """[B, C, H, W] to int64 [B, O, H', W']."""
    (pad_y, pad_x), groups = node.padding, node.groups
    padded = np.pad(x, ((0, 0), (0, 0), (pad_y, pad_y), (pad_x, pad_x)))
    spans = [node.dilation[axis] * (weight.shape[2 + axis] - 1) + 1 for axis in (0, 1)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=(2, 3))
    windows = windows[:, :, :: node.stride[0], :: node.stride[1], :: node.dilation[0], :: node.dilation[1]]
    per_group, outputs = weight.shape[1], len(weight) // groups
    parts = [
        np.tensordot(
            windows[:, g * per_group : (g + 1) * per_group],
            weight[g * outputs : (g + 1) * outputs],
            axes=((1, 4, 5), (1, 2, 3)),
        )
        for g in range(groups)
    ]
    return np.asarray(np.rint(np.concatenate(parts, axis=3).transpose(0, 3, 1, 2)).astype(np.int64))


def alternatives(net: Network, node: LIF) -> list[tuple[str, str, Rules]]:
    """What a runner may do differently in this layer: cause, how, and the rules of it, likely ones first."""
    leaks = bool((node.voltage_decay > 0).any() and (node.voltage_decay < DECAY_ONE).any())
    leaks = leaks or bool((node.current_decay < DECAY_ONE).any())
    biased = any(getattr(net[edge.source], "bias", None) is not None for edge in node.inputs)
    other = "subtract" if node.reset == "zero" else "zero"
    found: list[tuple[str, str, Rules]] = [
        ("threshold", "fires at v >= threshold, the reference strictly above", Rules(strict=False)),
        ("reset", f"{_RESETS[other]}, the reference {_RESETS[node.reset]}", Rules(reset=other)),  # type: ignore[arg-type]
        ("reset", "does not reset the membrane at a spike", Rules(reset="none")),
        ("reset", "does not clear the state between samples", Rules(carry=True)),
    ]
    if leaks:
        found += [
            ("rounding", "rounds decays down, the reference towards zero", Rules(rounding="floor")),
            ("rounding", "rounds decays to the nearest, the reference towards zero", Rules(rounding="nearest")),
            ("rounding", "does not round decays, the reference towards zero", Rules(rounding="none")),
            ("decay", "decays the membrane after the input, the reference before it", Rules(decay="after")),
            ("decay", "does not decay the membrane", Rules(decay="none")),
        ]
    found += [
        ("saturation", "v wraps at 24 bits, in the reference it saturates", Rules(voltage="wrap")),
        ("saturation", "v has no limit, in the reference it saturates at 24 bits", Rules(voltage="unlimited")),
        ("wrap", "u saturates at 24 bits, in the reference it wraps", Rules(current="saturate")),
        ("wrap", "u has no limit, in the reference it wraps at 24 bits", Rules(current="unlimited")),
        ("wrap", "sums saturate at 24 bits, in the reference they wrap", Rules(sums="saturate")),
        ("wrap", "sums have no limit, in the reference they wrap at 24 bits", Rules(sums="unlimited")),
        (
            "wrap",
            "neither sums nor u have a limit, in the reference they wrap at 24 bits",
            Rules(sums="unlimited", current="unlimited"),
        ),
        (
            "saturation",
            "nothing has a limit, in the reference sums and u wrap and v saturates",
            Rules(sums="unlimited", current="unlimited", voltage="unlimited"),
        ),
        *(
            ("saturation", f"u and v have {bits} bits, in the reference 24", Rules(bits=bits, current="saturate"))
            for bits in (23, 20, 16)
        ),
        ("delay", "everything arrives one timestep late", Rules(late=1)),
        ("delay", "everything arrives one timestep early", Rules(late=-1)),
    ]
    names = [edge.source for edge in node.inputs]
    if len(names) > 1:
        found += [
            ("delay", f"what comes through '{name}' is one timestep {when}", Rules(late=late, late_through=name))
            for name in names
            for late, when in ((1, "late"), (-1, "early"))
        ]
    if any(inner.delay for name in names for inner in net[name].inputs):
        found.append(("delay", "delays of edges are left out", Rules(delays=False)))
    if biased:
        found += [
            ("bias", "leaves the bias out", Rules(bias="none")),
            ("bias", "adds the bias once a sample, the reference at every timestep", Rules(bias="first")),
            ("bias", "adds the bias to u, the reference to v", Rules(bias="current")),
        ]
    return found + [
        ("threshold", f"has a threshold {'higher' if shifted > 0 else 'lower'} by one", Rules(threshold_shift=shifted))
        for shifted in (1, -1)
    ]


_RESETS = {"zero": "resets to 0", "subtract": "subtracts the threshold"}
