"""What a chip cannot hold, planted into random networks: refused by a typed error that names the layer."""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from snnkit.errors import UnsupportedError
from snnkit.network import LIF, Affine, Conv2d, Edge, Flatten, Input, Network, Node, Readout, verify
from snnkit.network.depth import DELAY_MAX
from snnkit_exporters import lava
from snnkit_targets import lava as target
from tests.chip_networks import chip_network

NETWORKS = st.integers(0, 999).map(chip_network)


def replaced(net: Network, *nodes: Node, before: str = "") -> Network:
    """The network with nodes in the place of those of the same name; others come before ``before``."""
    known = {node.name for node in net.nodes}
    new = {node.name: node for node in nodes}
    more = [node for node in nodes if node.name not in known]
    found: list[Node] = []
    for node in net.nodes:
        found += [*(more if node.name == before else []), new.get(node.name, node)]
    net = dataclasses.replace(net, nodes=tuple(found))
    assert verify(net) == "integer"
    return net


def refused(net: Network) -> list[str]:
    """The reasons, the same from exporter and target, which write and start nothing."""
    reasons = lava.check(net, lava.Options())
    assert reasons == target.check(net, target.Options())
    with tempfile.TemporaryDirectory() as folder:
        for name in ("a.net", "a.lava"):
            with pytest.raises(UnsupportedError) as caught:
                lava.export(net, Path(folder) / name, lava.Options())
            assert list(caught.value.reasons) == reasons
            assert caught.value.hint
        assert list(Path(folder).iterdir()) == []
    return reasons


def name_of(node: Node) -> str:
    return f"node '{node.name}' ({type(node).__name__})"


@given(NETWORKS)
def test_what_is_drawn_is_taken(net: Network) -> None:
    assert lava.check(net, lava.Options()) == []


@given(NETWORKS, st.data())
def test_a_layer_of_zeros(net: Network, data: st.DataObject) -> None:
    node = data.draw(st.sampled_from(net.synapses))
    net = replaced(net, dataclasses.replace(node, weight=np.zeros_like(node.weight)))
    assert refused(net) == [f"{name_of(node)} has no weight other than zero"]


@given(NETWORKS, st.data())
def test_weights_one_step_beyond_the_format(net: Network, data: st.DataObject) -> None:
    """Of exponent 1, -128 and 127 are the least and the largest; of 2, -64 and 63; and so on."""
    node = data.draw(st.sampled_from(net.synapses))
    exponent, negative = data.draw(st.integers(2, 7)), data.draw(st.booleans())
    least, largest = -(256 >> exponent), 254 >> exponent
    weight = np.clip(node.weight, least, largest)
    assume(weight.any())
    fits = replaced(net, dataclasses.replace(node, weight=weight, weight_exponent=exponent))
    assert not any("has weights" in reason for reason in lava.check(fits, lava.Options()))
    weight.flat[0] = least - 1 if negative else largest + 1
    reasons = refused(replaced(net, dataclasses.replace(node, weight=weight, weight_exponent=exponent)))
    assert reasons[0].startswith(f"{name_of(node)} has weights from ")
    assert str((least - 1 if negative else largest + 1) << exponent) in reasons[0]


@given(NETWORKS, st.data())
def test_a_soft_reset(net: Network, data: st.DataObject) -> None:
    node = data.draw(st.sampled_from(net.neurons))
    assert refused(replaced(net, dataclasses.replace(node, reset="subtract"))) == [
        f"{name_of(node)} resets by subtraction, and Lava resets to zero"
    ]


@given(NETWORKS, st.data())
def test_a_shortcut_that_is_not_binary(net: Network, data: st.DataObject) -> None:
    """A synapse that reads the spikes of two layers, whose sum can be 2."""
    readers = [s for s in net.synapses if isinstance(net[s.inputs[0].source], LIF) and not s.inputs[0].delay]
    assume(readers)
    node = data.draw(st.sampled_from(readers))
    source = net[node.inputs[0].source]
    twin = dataclasses.replace(source, name="twin")
    net = replaced(net, twin, dataclasses.replace(node, inputs=(Edge(source.name), Edge("twin"))), before=node.name)
    reason = f"{name_of(node)} reads the sum of '{source.name}' and 'twin', which is not binary; "
    assert [text for text in refused(net) if "is not binary" in text] == [
        reason + "give each a synapse of its own and sum behind them"
    ]


@given(NETWORKS, st.data())
def test_biases_that_add_up(net: Network, data: st.DataObject) -> None:
    """The neuron holds the sum of its synapses' biases: 4,095 at most."""
    neurons = [n for n in net.neurons if len({edge.source for edge in n.inputs}) > 1]
    assume(neurons)
    neuron = data.draw(st.sampled_from(neurons))
    synapses = [net[edge.source] for edge in neuron.inputs]
    for total in (4095, 4096):
        shares = [total - 2000, 2000, *[0] * (len(synapses) - 2)]
        biased = [
            dataclasses.replace(s, bias=np.full(len(s.weight), share, np.int32))
            for s, share in zip(synapses, shares, strict=True)
        ]
        changed = replaced(net, *biased)
        if total == 4095:
            assert lava.check(changed, lava.Options()) == []
        else:
            expected = "has biases that add up to 4096; a neuron holds -4096 to 4095"
            assert refused(changed) == [f"{name_of(neuron)} {expected}"]


@given(st.integers(2, 4), st.integers(0, 255), st.booleans())
def test_sums_that_overflow(layers: int, seed: int, over: bool) -> None:
    """The largest sums of dense layers behind an input of 8 bits, 255 times all weights: 131,071 of these fit."""
    rng = np.random.default_rng(seed)
    sizes = rng.multinomial(131072 if over else 131071, np.full(1200 * layers, 1 / (1200 * layers)))
    signs = np.repeat(rng.choice([-1, 1], layers), 1200)  # of one sign a layer, or they never act together
    assume(sizes.max() < 128)
    nodes: list[Node] = [Input(name="in", shape=(1200,), bits=8, scale=1 / 255)]
    for index, row in enumerate((sizes * signs).reshape(layers, 1, 1200).astype(np.int8)):
        nodes.append(Affine(name=f"d{index}", inputs=(Edge("in"),), weight=row))
    neuron = LIF(
        name="sums",
        inputs=tuple(Edge(f"d{index}") for index in range(layers)),
        v_threshold=np.array(7, np.int32),
        voltage_decay=np.array(0, np.int32),
    )
    head = Affine(name="head", inputs=(Edge("sums"),), weight=np.array([[1]], np.int8))
    net = Network(nodes=(*nodes, neuron, head, Readout(name="out", inputs=(Edge("head"),))), timesteps=1)
    if over:
        (reason,) = refused(net)
        assert reason.startswith("node 'sums' (LIF) may sum up to 33,423,360, which overflows Lava's accumulator")
    else:
        assert lava.check(net, lava.Options()) == []


@given(st.integers(0, 4), st.integers(DELAY_MAX - 2, DELAY_MAX + 4), st.integers(0, 4))
def test_a_shortcut_over_more_layers_than_a_delay_can_hold(start: int, over: int, behind: int) -> None:
    """A shortcut past ``over`` layers is held back for as many steps; 62 is the longest delay."""
    nodes: list[Node] = [Input(name="in", shape=(2, 1, 1), encoding="events", bits=1)]
    weight = np.array([[1, 2], [3, 4]], np.int8)
    joins = start + over + 1
    for index in range(joins + 1 + behind):
        sources = [f"n{index - 1}" if index else "in", *([f"n{start}"] if index == joins else [])]
        synapses = [
            Conv2d(name=f"{source} to {index}", inputs=(Edge(source),), weight=weight[:, :, None, None])
            for source in sources
        ]
        lif = {"v_threshold": np.array(3, np.int32), "voltage_decay": np.array(0, np.int32)}
        nodes += [*synapses, LIF(name=f"n{index}", inputs=tuple(Edge(s.name) for s in synapses), **lif)]
    nodes += [
        Flatten(name="flat", inputs=(Edge(nodes[-1].name),)),
        Affine(name="head", inputs=(Edge("flat"),), weight=weight),
    ]
    net = Network(nodes=(*nodes, Readout(name="out", inputs=(Edge("head"),))), timesteps=2)
    if over <= DELAY_MAX:
        assert lava.check(net, lava.Options()) == []
    else:
        late = f"reads 'n{start}' {over} steps late; a delay holds up to {DELAY_MAX}"
        assert refused(net) == [f"node 'n{joins}' (LIF) {late}"]
