"""When each node computes on a chip that passes spikes on one step later, and the relays that align its paths.

A synapse delivers what its source sends one step later, so node ``n`` works on timestep t at step t + depth(n).
Where paths of different length meet, or an edge is delayed, relay neurons repeat the spikes of the short one, each
one step later. The input, and the neurons of a stem that the host computes, are sent by the host, at any step.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from snnkit.errors import UnsupportedError
from snnkit.network.ir import LIF, Edge, Input, Network, Node, Readout, infer_shapes, reads_input

DELAY_MAX = 62  # steps that one path may be held back: a delay has 6 bits (Davies et al. 2018)


@dataclass(frozen=True)
class Path:
    """From ``source`` (input or neurons) through ``via`` to ``target`` (neurons or readout), ``delay`` timesteps.

    ``via`` is the node that the target reads, the source itself where it reads that: a counting readout, or a
    shortcut that is not made explicit yet. ``steps``: 1 through a synapse, 0 to a counting readout.
    """

    source: str
    via: str
    target: str
    delay: int
    steps: int


@dataclass(frozen=True)
class Chain:
    """Relay layers behind ``source`` for edges with ``delay``: ``steps`` layers of as many ``neurons`` as it has.

    Layer k repeats the spikes k steps later. The first one drops a sample's last ``delay`` timesteps, which would
    arrive in the next sample.
    """

    source: str
    delay: int
    steps: int
    neurons: int


def paths(net: Network) -> tuple[Path, ...]:
    """Every path between two nodes that keep time, in the order of the targets and their inputs.

    One that is delayed by as many timesteps as there are never delivers anything, and is left out.
    """
    found: list[Path] = []
    for target in net.nodes:
        if isinstance(target, LIF | Readout):
            steps = 0 if isinstance(target, Readout) and target.mode == "count" else 1
            for edge in target.inputs:
                ways = origins(net, edge)
                found += [Path(source, edge.source, target.name, delay, steps) for source, delay in ways]
    return tuple(path for path in found if path.delay < net.timesteps)


def stem_neurons(net: Network) -> frozenset[str]:
    """The neurons that the host computes where it computes the stem: those all of whose synapses read the input."""
    if net.stem != "host":
        return frozenset()
    return frozenset(
        neuron.name for neuron in net.neurons if all(reads_input(net, net[edge.source]) for edge in neuron.inputs)
    )


def depths(net: Network) -> dict[str, int]:
    """Steps by which the input (0), neurons and readout lag behind the input; the longest path decides.

    Raises :class:`UnsupportedError` naming the nodes of a cycle whose delays are shorter than its way.
    """
    hosted = stem_neurons(net)
    found = {node.name: _start(node, hosted) for node in net.nodes if isinstance(node, Input | LIF | Readout)}
    edges = [path for path in paths(net) if path.target not in hosted]
    for _ in found:
        late = []
        for path in edges:
            reached = found[path.source] + path.steps * (1 + _held(net, path, hosted) - path.delay)
            if found[path.target] < reached:
                found[path.target] = reached
                late.append(path.target)
        if not late:
            return found
    reasons = [
        f"node '{name}' ({type(net[name]).__name__}) lies on a cycle whose delays are shorter than its way"
        for name in dict.fromkeys(late)
        if name in _behind(edges, name)
    ]
    raise UnsupportedError("the network cannot be pipelined", reasons, "delay the recurrent edges by more timesteps")


def held_back(net: Network, path: Path, depth: dict[str, int]) -> int:
    """Steps by which a path's values must be held back so that they arrive at their target in time."""
    if not path.steps or path.target in stem_neurons(net):
        return 0
    return depth[path.target] - depth[path.source] - 1 + path.delay


def chains(net: Network) -> tuple[Chain, ...]:
    """The relay layers of the network: one chain for each node and delay, shared by all that read them."""
    depth, shapes, hosted = depths(net), infer_shapes(net), stem_neurons(net)
    steps: dict[tuple[str, int], int] = {}
    for path in paths(net):
        if isinstance(net[path.source], LIF) and path.source not in hosted:
            key = path.source, path.delay
            steps[key] = max(steps.get(key, 0), held_back(net, path, depth))
    return tuple(
        Chain(source, delay, count, math.prod(shapes[source])) for (source, delay), count in steps.items() if count
    )


def relays(net: Network) -> dict[str, int]:
    """Relay neurons behind each node that needs some."""
    total: dict[str, int] = {}
    for chain in chains(net):
        total[chain.source] = total.get(chain.source, 0) + chain.steps * chain.neurons
    return total


def latency(net: Network) -> int:
    """Steps from an input to the readout that holds it: B samples take B * T + latency steps."""
    return depths(net)[net.readout.name]


def _behind(edges: Sequence[Path], name: str) -> set[str]:
    """The nodes that paths lead to from ``name``."""
    found: set[str] = set()
    new = {name}
    while new:
        new = {path.target for path in edges if path.source in new} - found
        found |= new
    return found


def _start(node: Node, hosted: frozenset[str]) -> int:
    return 0 if isinstance(node, Input | Readout) or node.name in hosted else 1


def _held(net: Network, path: Path, hosted: frozenset[str]) -> int:
    """A delayed path from neurons needs at least one relay: it drops what belongs to the sample before."""
    return int(path.delay > 0 and isinstance(net[path.source], LIF) and path.source not in hosted)


def origins(net: Network, edge: Edge) -> Iterator[tuple[str, int]]:
    """The inputs and neurons behind an edge, with their delays."""
    source = net[edge.source]
    if isinstance(source, Input | LIF):
        yield source.name, edge.delay
    else:
        for further in source.inputs:
            yield from ((name, edge.delay + delay) for name, delay in origins(net, further))
