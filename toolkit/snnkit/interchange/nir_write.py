"""From the Network to NIR's graph, and which readers can be promised the same spikes.

NIR describes neurons in continuous time: tau dv/dt = v_leak - v + r I. One Euler step of dt is this project's step,
v (1 - voltage_decay/4096) + I, where tau = dt 4096 / voltage_decay and r = tau / dt; a current filter is the same with
w_in, and in front of a neuron without a leak a node of its own (LI). Two dialects of r are in use. ``r=1/dt`` is that
equation (an IF has r = 1/dt: SpikingJelly). ``r=1`` writes r = 1 for IF and LIF and scales the LIF's threshold to it
(an IF takes its input as it comes: snnTorch, sinabs, Norse). All of them read a CubaLIF by the equation.
"""

import dataclasses
import json
from typing import Any, Literal, TypeAlias

import numpy as np

from snnkit.interchange.nir_file import Graph, Record
from snnkit.interchange.nir_order import feedback
from snnkit.network import (
    LIF,
    Affine,
    AvgPool2d,
    BatchNorm2d,
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
from snnkit.network.ir import DECAY_ONE, Array, Shape, Synapse
from snnkit.network.ranges import FRACTION_BITS, may_wrap
from snnkit.network.storage import encode

Dialect: TypeAlias = Literal["r=1", "r=1/dt"]
KEY = "snnkit"  # of the metadata that restores the network exactly
MIDWAY = 1 / 2 ** (FRACTION_BITS + 1)  # half a step of an integer membrane: above it by > is above it by >=


def obstacles(net: Network) -> list[str]:
    """Every reason why ``net`` has no NIR graph."""
    integer = verify(net) == "integer"
    reasons = []
    for node in net.nodes:
        found = []
        if isinstance(node, BatchNorm2d):
            found.append("is unknown to NIR; fold it")
        if isinstance(node, LIF):
            if (node.current_decay == 0).any():
                found.append("has a current that never decays, which has no time constant")
            for name in ("voltage_decay", "current_decay"):
                plain = getattr(node, name) == (0 if name == "voltage_decay" else DECAY_ONE)
                if plain.any() and not plain.all():
                    found.append(f"has a {name} for some channels only, and NIR has one kind of neuron a node")
            sources = [net[edge.source] for edge in node.inputs]
            biased = [s for s in sources if isinstance(s, Synapse) and s.bias is not None and s.bias.any()]
            if integer and biased and (node.current_decay != DECAY_ONE).any():
                found.append(f"filters its current, which the bias of '{biased[0].name}' bypasses here but not in NIR")
        reasons += [f"node '{node.name}' ({type(node).__name__}) {reason}" for reason in found]
    return reasons


def promises(net: Network) -> list[str]:
    """Why other readers of the graph may see other spikes; empty where all spikes are equal, to the last one.

    Equal they are if no decay rounds: each timestep makes a membrane finer by the decay's binary places, and an
    integer membrane starts 6 places above its last one. A reset by subtraction takes the threshold's half step with
    it, every time. A float network's sums round as each reader orders them.
    """
    if verify(net) == "float":
        return ["the network is float: a reader that sums in another order rounds otherwise"]
    reasons = []
    for node in net.neurons:
        decays = np.concatenate([node.voltage_decay.ravel(), node.current_decay.ravel()])
        places = max(12 - _trailing_zeros(int(decay)) for decay in decays) * (net.timesteps - 1)
        if places > FRACTION_BITS:
            reasons.append(f"node '{node.name}' decays by fractions that the chip rounds off and NIR keeps")
        elif node.reset == "subtract" and net.timesteps * MIDWAY >= 2.0**-places:
            reasons.append(f"node '{node.name}' subtracts a threshold that is written half a step higher, many times")
        if may_wrap(net, node) and not _bounded(net, node):
            reasons.append(f"node '{node.name}' may leave the chip's 24 bits, where it wraps or saturates")
    return reasons


def _trailing_zeros(decay: int) -> int:
    return 12 if decay in (0, DECAY_ONE) else (decay & -decay).bit_length() - 1


def _bounded(net: Network, node: LIF) -> bool:
    """Whether u stays within 24 bits in spite of the filter, which adds up to 4096 / current_decay inputs."""
    unfiltered = dataclasses.replace(node, current_decay=np.array(DECAY_ONE, np.int32))
    return int(node.current_decay.min()) >= DECAY_ONE // 2 and not may_wrap(net, unfiltered)


def to_graph(net: Network, *, dialect: Dialect = "r=1", dt: float = 1e-4, expand_groups: bool = True) -> Graph:
    """The NIR graph of a network without :func:`obstacles`; ``dt`` in seconds.

    ``expand_groups`` writes a grouped convolution as one group with zeros: nir 1.0.8 refuses to read groups.
    """
    writer = _Writer(net, dialect, dt, expand_groups)
    graph = writer.graph(implicit=True)
    if net.recurrent and feedback(graph.nodes, graph.edges).late != writer.implicit:
        graph = writer.graph(implicit=False)  # no reader could tell which edge is the late one
    return graph


class _Writer:
    def __init__(self, net: Network, dialect: Dialect, dt: float, expand_groups: bool) -> None:
        self.net, self.dialect, self.dt, self.expand_groups = net, dialect, dt, expand_groups
        self.shapes = infer_shapes(net)
        self.integer = verify(net) == "integer"
        self.names = nir_names(net)
        self.implicit: set[tuple[str, str]] = set()

    def graph(self, *, implicit: bool) -> Graph:
        nodes: dict[str, Record] = {}
        edges: list[tuple[str, str]] = []
        self.implicit = set()
        position = {node.name: index for index, node in enumerate(self.net.nodes)}
        for index, node in enumerate(self.net.nodes):
            name = entrance = self.names[node.name]
            if isinstance(node, LIF):
                parts = self._neurons(node)
                if len(parts) > 1:
                    entrance = unique(f"{name}_filter", {*self.names.values(), *nodes})
                    nodes[entrance] = parts[0]
                    edges.append((entrance, name))
                nodes[name] = parts[-1]
            else:
                nodes[name] = self._record(node)
            for edge in node.inputs:
                source = self.names[edge.source]
                if implicit and edge.delay == 1 and position[edge.source] >= index:
                    self.implicit.add((source, entrance))
                elif edge.delay:
                    source = self._delay(source, edge, nodes, edges)
                if (source, entrance) in edges:  # NIR has no second edge between two nodes
                    copy = unique(f"{source}_again", {*self.names.values(), *nodes})
                    nodes[copy] = self._scale(edge)
                    edges.append((source, copy))
                    source = copy
                edges.append((source, entrance))
        return Graph(nodes, edges, self._metadata())

    def _delay(self, source: str, edge: Edge, nodes: dict[str, Record], edges: list[tuple[str, str]]) -> str:
        name = f"{source}_delay_{edge.delay}"
        if name not in nodes:
            name = unique(name, {*self.names.values(), *nodes})
            nodes[name] = {"type": "Delay", "delay": np.full(self.shapes[edge.source], edge.delay * self.dt)}
            edges.append((source, name))
        return name

    def _scale(self, edge: Edge) -> Record:
        return {"type": "Scale", "scale": np.ones(self.shapes[edge.source], np.float32)}

    def _record(self, node: Node) -> Record:
        shape = self.shapes[node.name]
        match node:
            case Input() | Readout():
                return {"type": "Input" if isinstance(node, Input) else "Output", "shape": _integers(shape)}
            case Conv2d():
                return self._conv(node)
            case Affine():
                weight = node.effective_weight.astype(np.float32)
                if node.bias is None:
                    return {"type": "Linear", "weight": weight}
                return {"type": "Affine", "weight": weight, "bias": node.bias.astype(np.float32)}
            case AvgPool2d():
                pairs = {"kernel_size": node.kernel_size, "stride": node.stride, "padding": (0, 0)}
                return {"type": "AvgPool2d", **{name: _integers(pair) for name, pair in pairs.items()}}
            case Flatten():
                whole = _integers(self.shapes[node.inputs[0].source])
                return {"type": "Flatten", "start_dim": _integers(0), "end_dim": _integers(-1), "input_type": whole}
        raise AssertionError(f"{node!r} is an obstacle")

    def _conv(self, node: Conv2d) -> Record:
        weight = node.effective_weight.astype(np.float32)
        groups = node.groups
        if groups > 1 and self.expand_groups:
            weight, groups = expanded(weight, groups), 1
        pairs = {"stride": node.stride, "padding": node.padding, "dilation": node.dilation}
        return {
            "type": "Conv2d",
            "input_shape": _integers(self.shapes[node.inputs[0].source][1:]),
            "weight": weight,
            **{name: _integers(pair) for name, pair in pairs.items()},
            "groups": _integers(groups),
            "bias": np.zeros(len(weight), np.float32) if node.bias is None else node.bias.astype(np.float32),
        }

    def _neurons(self, node: LIF) -> list[Record]:
        """One record, or a current filter and a neuron without a leak. Parameters are float64 of the node's shape."""
        threshold = node.v_threshold.astype(np.float64) + (MIDWAY if self.integer else 0.0)
        leak, drain = node.voltage_decay / DECAY_ONE, node.current_decay / DECAY_ONE
        leaky, filtered = bool(leak.any()), bool((drain < 1).any())
        unit = self.dialect == "r=1"
        one, zero = np.ones(()), np.zeros(())
        if not leaky:
            firing = {"v_threshold": threshold, "v_reset": zero}
            parts = [("LI", {"tau": self.dt / drain, "r": 1 / drain, "v_leak": zero})] if filtered else []
            parts.append(("IF", {"r": one if unit else one / self.dt, **firing}))
        elif filtered:
            membrane = {"tau_mem": self.dt / leak, "r": 1 / leak, "v_leak": zero}
            synapse = {"tau_syn": self.dt / drain, "w_in": 1 / drain}
            parts = [("CubaLIF", {**membrane, **synapse, "v_threshold": threshold, "v_reset": zero})]
        else:
            membrane = {"tau": self.dt / leak, "r": one if unit else 1 / leak, "v_leak": zero}
            scaled = threshold * leak if unit else threshold
            parts = [("LIF", {**membrane, "v_threshold": scaled, "v_reset": zero})]
        shape = self.shapes[node.name]
        return [{"type": kind, **{key: _spread(value, shape) for key, value in part.items()}} for kind, part in parts]

    def _metadata(self) -> dict[str, Any]:
        entry, resets = self.net.input, sorted({node.reset for node in self.net.neurons})
        scales = self.net.metadata.get("quantization", {}).get("scales", {})
        header, arrays = encode(self.net)
        # what the records cannot give back: all arrays' types and shapes, and the neurons' parameters
        stored = {
            key: [array.dtype.str, array.shape, None if key.endswith((".weight", ".bias")) else array.tolist()]
            for key, array in arrays.items()
        }
        settings = {"dialect": self.dialect, "dt": self.dt, "expand_groups": self.expand_groups}
        own = {"settings": settings, "network": header, "arrays": stored, "names": self.names}
        return {
            "dt": np.array(self.dt),
            "timesteps": np.array(self.net.timesteps),
            "reset": resets[0] if len(resets) == 1 else json.dumps({n.name: n.reset for n in self.net.neurons}),
            "dialect": self.dialect,
            "arithmetic": "integer" if self.integer else "float",
            "encoding": entry.encoding,
            "input_bits": np.array(entry.bits),
            "input_scale": np.array(entry.scale),
            "input_zero_point": np.array(entry.zero_point),
            "scales": json.dumps(scales, sort_keys=True),
            "readout": self.net.readout.mode,
            KEY: json.dumps(own, sort_keys=True),
        }


def nir_names(net: Network) -> dict[str, str]:
    """Names for NIR by name here: ``input``, ``output``, and letters, digits and underscores for the others."""
    names = {net.input.name: "input", net.readout.name: "output"}
    for node in net.nodes:
        if node.name not in names:
            plain = "".join(c if c.isascii() and c.isalnum() else "_" for c in node.name)
            names[node.name] = unique(plain, set(names.values()))
    return names


def unique(name: str, taken: set[str]) -> str:
    """``name``, or the first of ``name_2``, ``name_3``, ... that is free."""
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    return candidate


def expanded(weight: Array, groups: int) -> Array:
    """Grouped weights [O, I / groups, ...] as one group [O, I, ...], zeros elsewhere."""
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    whole = np.zeros((weight.shape[0], groups * inputs, *weight.shape[2:]), weight.dtype)
    for group in range(groups):
        rows = slice(group * outputs, (group + 1) * outputs)
        whole[rows, group * inputs : (group + 1) * inputs] = weight[rows]
    return whole


def _integers(value: Any) -> Array:
    return np.array(value, np.int64)


def _spread(value: Array, shape: Shape) -> Array:
    """A scalar or [C] as a full array of the node's shape."""
    value = np.asarray(value, np.float64)
    return np.array(np.broadcast_to(value.reshape(-1, *[1] * (len(shape) - 1)) if value.ndim else value, shape))
