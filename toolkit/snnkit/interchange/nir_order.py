"""The order of NIR's nodes, and which edges of a cycle are one timestep late.

NIR does not say. Here, as in the frameworks that write such graphs, a neuron's spikes reach what was computed before
it at the next timestep: nodes are ordered by a depth-first search from the input, and edges that lead from a neuron
to neurons before it (or to itself) are late.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

from snnkit.errors import NetworkError

NEURONS = ("IF", "LIF", "CubaLIF", "Threshold")
_Span: TypeAlias = tuple[float, float]  # the first and the last of some positions


class Feedback(NamedTuple):
    """``late``: edges one timestep late. ``back``: edges to ignore when ordering, also those that end in a delay."""

    late: set[tuple[str, str]]
    back: set[tuple[str, str]]


def feedback(nodes: Mapping[str, Mapping[str, Any]], edges: Iterable[tuple[str, str]]) -> Feedback:
    """The edges that lead back; :class:`NetworkError` for a cycle without a neuron, or an edge that does both."""
    following: dict[str, list[str]] = {name: [] for name in nodes}
    for source, target in edges:
        following[source].append(target)
    neurons = {name for name, node in nodes.items() if node["type"] in NEURONS}
    position = {name: index for index, name in enumerate(_search(following, nodes))}
    # what is between the neurons has no cycles of its own; from its end backwards: which neurons are reached
    between = {
        name: [t for t in targets if t not in neurons] for name, targets in following.items() if name not in neurons
    }
    reach: dict[str, _Span] = {name: (position[name], position[name]) for name in neurons}
    at_once = dict(reach)  # the same without what waits in a delay
    for name in reversed(ordered(between)):
        if nodes[name]["type"] == "Output":
            reach[name] = at_once[name] = len(position), len(position)
        else:
            reach[name] = _joined(reach[target] for target in following[name])
            at_once[name] = _joined(at_once[target] for target in following[name])
            if nodes[name]["type"] == "Delay":
                at_once[name] = _joined(())
    late, back = set(), set()
    for source in neurons:
        for target in following[source]:
            low, high = at_once[target]
            if low <= position[source] < high:
                raise NetworkError(
                    f"'{target}' carries the spikes of '{source}' both forwards and back",
                    "give the recurrent connection a node of its own",
                )
            if low <= position[source]:
                late.add((source, target))
            if reach[target][0] <= position[source]:
                back.add((source, target))
    return Feedback(late, back)


def _joined(spans: Iterable[_Span]) -> _Span:
    low, high = math.inf, -math.inf
    for span in spans:
        low, high = min(low, span[0]), max(high, span[1])
    return low, high


def ordered(following: Mapping[str, list[str]]) -> list[str]:
    """The nodes of a graph without cycles in order; raises :class:`NetworkError` naming a cycle's nodes."""
    waiting = dict.fromkeys(following, 0)
    for targets in following.values():
        for target in targets:
            waiting[target] += 1
    ready = [name for name, count in waiting.items() if not count]
    order = []
    while ready:
        name = ready.pop()
        order.append(name)
        for target in following[name]:
            waiting[target] -= 1
            if not waiting[target]:
                ready.append(target)
    if len(order) < len(waiting):
        names = sorted(name for name, count in waiting.items() if count)
        raise NetworkError(
            f"the nodes {', '.join(map(repr, names[:5]))} form a cycle without a neuron",
            "a recurrent connection must start from a neuron's spikes",
        )
    return order


def _search(following: Mapping[str, list[str]], nodes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Reverse postorder of a depth-first search, from the input first."""
    done: list[str] = []
    seen: set[str] = set()
    for start in sorted(nodes, key=lambda name: nodes[name]["type"] != "Input"):
        stack = [(start, iter(following[start]))] if start not in seen else []
        seen.add(start)
        while stack:
            name, targets = stack[-1]
            for target in targets:
                if target not in seen:
                    seen.add(target)
                    stack.append((target, iter(following[target])))
                    break
            else:
                done.append(name)
                stack.pop()
    return done[::-1]
