"""Depths, relays and latency by hand, and the property that they align every path."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snnkit.errors import UnsupportedError
from snnkit.network import LIF, Affine, Edge, Input, Network, Node, Readout, verify
from snnkit.network.depth import Chain, chains, depths, held_back, latency, paths, relays


def weight(outputs: int, inputs: int) -> np.ndarray:
    return np.ones((outputs, inputs), np.int8)


def network(*layers: tuple[str, list[Edge]], timesteps: int = 4, stem: str = "chip") -> Network:
    """Layers of 3 neurons, each with the edges that it reads through synapses of their own; 'out' reads the last."""
    nodes: list[Node] = [Input(name="in", shape=(3,), encoding="events", bits=1)]
    for name, edges in layers:
        affines = [Affine(name=f"{name}<{i}", inputs=(e,), weight=weight(3, 3)) for i, e in enumerate(edges)]
        threshold, decay = np.array(9, np.int32), np.array(0, np.int32)
        inputs = tuple(Edge(a.name) for a in affines)
        nodes += [*affines, LIF(name=name, inputs=inputs, v_threshold=threshold, voltage_decay=decay)]
    nodes += [Affine(name="head", inputs=(Edge(nodes[-1].name),), weight=weight(2, 3))]
    nodes += [Readout(name="out", inputs=(Edge("head"),))]
    net = Network(nodes=tuple(nodes), timesteps=timesteps, stem=stem)
    assert verify(net) == "integer"
    return net


def test_a_sequence_needs_no_relay() -> None:
    net = network(("a", [Edge("in")]), ("b", [Edge("a")]))
    assert depths(net) == {"in": 0, "a": 1, "b": 2, "out": 3}
    assert relays(net) == {}
    assert latency(net) == 3


def test_a_shortcut_over_one_layer_needs_one_relay_and_a_longer_one_shares_it() -> None:
    net = network(
        ("a", [Edge("in")]),
        ("b", [Edge("a")]),
        ("c", [Edge("b"), Edge("a")]),
        ("d", [Edge("c"), Edge("a")]),
    )
    assert depths(net) == {"in": 0, "a": 1, "b": 2, "c": 3, "d": 4, "out": 5}
    assert chains(net) == (Chain("a", 0, 2, 3),)
    assert relays(net) == {"a": 6}


def test_the_host_sends_the_input_late_without_relays() -> None:
    net = network(("a", [Edge("in")]), ("b", [Edge("a"), Edge("in"), Edge("in", 2)]))
    depth = depths(net)
    assert [held_back(net, path, depth) for path in paths(net) if path.source == "in"] == [0, 1, 3]
    assert relays(net) == {}


def test_a_delayed_edge_has_a_chain_of_its_own_with_at_least_one_relay() -> None:
    net = network(("a", [Edge("in")]), ("b", [Edge("a"), Edge("a", 1), Edge("a", 3)]))
    assert depths(net)["b"] == 2
    assert chains(net) == (Chain("a", 1, 1, 3), Chain("a", 3, 3, 3))
    assert relays(net) == {"a": 12}


def test_a_recurrent_edge_needs_time_for_its_synapse_and_its_relay() -> None:
    net = network(("a", [Edge("in"), Edge("a", 2)]), ("b", [Edge("a")]))
    assert depths(net) == {"in": 0, "a": 1, "b": 2, "out": 3}
    assert chains(net) == (Chain("a", 2, 1, 3),)
    short = network(("a", [Edge("in"), Edge("a", 1)]), ("b", [Edge("a")]))
    with pytest.raises(UnsupportedError, match=r"node 'a' \(LIF\) lies on a cycle"):
        depths(short)


def test_a_stem_on_the_host_takes_no_step() -> None:
    net = network(("a", [Edge("in")]), ("b", [Edge("a")]), ("c", [Edge("b"), Edge("a")]), stem="host")
    assert depths(net) == {"in": 0, "a": 0, "b": 1, "c": 2, "out": 3}
    assert relays(net) == {}  # the host sends the stem's spikes late


def test_a_counting_readout_reads_spikes_without_a_step() -> None:
    net = network(("a", [Edge("in")]))
    nodes = (*net.nodes[:-2], Readout(name="out", inputs=(Edge("a"),), mode="count"))
    assert latency(dataclasses.replace(net, nodes=nodes)) == 1


@given(st.data())
def test_every_path_arrives_at_the_step_of_its_target(data: st.DataObject) -> None:
    layers: list[tuple[str, list[Edge]]] = []
    for index in range(data.draw(st.integers(1, 6))):
        names = ["in", *(name for name, _ in layers)]
        sources = data.draw(st.lists(st.sampled_from(names), max_size=2)) if index else []
        edges = [Edge(source, data.draw(st.integers(0, 3))) for source in dict.fromkeys([names[-1], *sources])]
        layers.append((f"n{index}", edges))
    net = network(*layers)
    depth = depths(net)
    longest: dict[tuple[str, int], int] = {}
    for path in paths(net):
        held = held_back(net, path, depth)
        assert held >= (path.delay > 0)
        assert depth[path.source] + held + 1 == depth[path.target] + path.delay
        if path.source != "in":
            longest[path.source, path.delay] = max(held, longest.get((path.source, path.delay), 0))
    assert sum(longest.values()) * 3 == sum(relays(net).values())
    assert latency(net) == depth["out"]
