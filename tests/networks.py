"""Networks for tests: hypothesis strategies and a few made by hand."""

import dataclasses

import numpy as np
from hypothesis import strategies as st

from snnkit.network import LIF, Affine, Conv2d, Edge, Flatten, Input, Network, Node, Readout, infer_shapes, verify

DECAYS = (0, 1, 1365, 2048, 3151, 4095, 4096)


def threshold(theta: float) -> np.ndarray:
    """A float threshold as lowering writes it: v >= theta becomes v > v_threshold."""
    return np.nextafter(np.float32(theta), np.float32(-np.inf)).reshape(())


@st.composite
def integer_networks(draw: st.DrawFn, *, sequential: bool = False, extreme: bool = False) -> Network:
    """Integer networks of convolutions, residual sums, leaks and filters; ``extreme`` ones wrap and saturate."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    direct = draw(st.booleans())
    timesteps = draw(st.integers(1, 5))
    channels, size = draw(st.sampled_from([1, 2, 3])), draw(st.integers(3, 6))
    nodes: list[Node] = [
        Input(
            name="pixels",
            shape=(channels, size, size),
            encoding="direct" if direct else "events",
            bits=draw(st.sampled_from([4, 8])) if direct else 1,
            scale=1 / 15 if direct else 1.0,
        )
    ]
    reset = "zero" if sequential else draw(st.sampled_from(["zero", "subtract"]))

    def bias(outputs: int) -> np.ndarray | None:
        return rng.integers(-900, 900, outputs).astype(np.int32) if draw(st.booleans()) else None

    def neuron(name: str, *sources: str, peak: int = 2000) -> LIF:
        filtered = draw(st.sampled_from([4096, 4096, 2048, 1000]))
        return LIF(
            name=name,
            inputs=tuple(Edge(source) for source in sources),
            v_threshold=np.array(rng.integers(1, 10 if extreme else peak), np.int32),
            voltage_decay=np.array(draw(st.sampled_from(DECAYS)), np.int32),
            current_decay=np.array(filtered, np.int32),
            reset=reset,
        )

    def weights(*shape: int) -> np.ndarray:
        low, high = (100, 128) if extreme and draw(st.booleans()) else (-128, 128)
        return rng.integers(low, high, shape).astype(np.int8)

    previous = "pixels"
    for index in range(draw(st.integers(1, 3))):
        in_channels = infer(nodes, previous)[0]
        groups = in_channels if draw(st.booleans()) and draw(st.booleans()) else 1
        outputs = groups * draw(st.integers(1, 3))
        conv = Conv2d(
            name=f"conv{index}",
            inputs=(Edge(previous),),
            weight=weights(outputs, in_channels // groups, 3, 3),
            bias=bias(outputs),
            weight_exponent=7 if extreme else 1,
            padding=(1, 1),
            stride=(draw(st.sampled_from([1, 2])),) * 2,
            groups=groups,
        )
        nodes.append(conv)
        sources = [conv.name]
        if not sequential and draw(st.booleans()):
            skip = Conv2d(
                name=f"skip{index}",
                inputs=(Edge(previous),),
                weight=weights(outputs, in_channels, 1, 1),
                bias=bias(outputs),
                weight_exponent=1,
                stride=conv.stride,
            )
            nodes.append(skip)
            sources.append(skip.name)
        nodes.append(neuron(f"lif{index}", *sources))
        previous = nodes[-1].name
    nodes.append(Flatten(name="flat", inputs=(Edge(previous),)))
    features = infer(nodes, "flat")[0]
    weight = weights(4, features)
    weight[0, 0], weight[1, 0] = -101, 99  # mixed signs, as trained layers are
    nodes.append(Affine(name="head", inputs=(Edge("flat"),), weight=weight, bias=bias(4), weight_exponent=1))
    if not sequential and draw(st.booleans()):
        nodes += [neuron("lif_out", "head"), Readout(name="out", mode="count", inputs=(Edge("lif_out"),))]
    else:
        nodes.append(Readout(name="out", inputs=(Edge("head"),)))
    net = Network(nodes=tuple(nodes), timesteps=timesteps)
    assert verify(net) == "integer"
    return net


@st.composite
def networks_with_memory(draw: st.DrawFn) -> Network:
    """Integer networks with delayed edges and, mostly, a recurrent one."""
    net = draw(integer_networks())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    nodes = []
    for node in net.nodes:
        if isinstance(node, Conv2d | Flatten) and draw(st.booleans()):
            late = tuple(dataclasses.replace(edge, delay=draw(st.integers(0, 3))) for edge in node.inputs)
            node = dataclasses.replace(node, inputs=late)
        if isinstance(node, LIF) and len(infer(list(net.nodes), node.name)) == 3 and draw(st.booleans()):
            channels = infer(list(net.nodes), node.name)[0]
            back = Conv2d(
                name=f"{node.name}.back",
                inputs=(Edge(node.name, delay=draw(st.integers(1, 2))),),
                weight=rng.integers(-60, 60, (channels, channels, 1, 1)).astype(np.int8),
            )
            nodes.append(back)
            node = dataclasses.replace(node, inputs=(*node.inputs, Edge(back.name)))
        nodes.append(node)
    net = dataclasses.replace(net, nodes=tuple(nodes))
    assert verify(net) == "integer"
    return net


@st.composite
def recurrent_networks(draw: st.DrawFn) -> Network:
    """Integer networks whose neurons read their own spikes or those of later ones, one or more timesteps late."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    direct, features, width = draw(st.booleans()), draw(st.integers(2, 5)), draw(st.integers(1, 4))
    reset = draw(st.sampled_from(["zero", "subtract"]))
    layers = draw(st.integers(1, 3))
    nodes: list[Node] = [
        Input(
            name="x",
            shape=(features,),
            encoding="direct" if direct else "events",
            bits=4 if direct else 1,
            scale=1 / 15 if direct else 1.0,
        )
    ]

    def affine(name: str, source: str, inputs: int, *, delay: int = 0, bias: bool = False) -> str:
        values = rng.integers(-50, 50, width).astype(np.int32) if bias else None
        weight = rng.integers(-128, 128, (width, inputs)).astype(np.int8)
        edges = (Edge(source, delay),)
        nodes.append(Affine(name=name, inputs=edges, weight=weight, bias=values, weight_exponent=1))
        return name

    for index in range(layers):
        sources = [affine(f"fc{index}", f"lif{index - 1}" if index else "x", width if index else features, bias=True)]
        for later in range(index, layers):
            if later == index or draw(st.booleans()):
                delay = draw(st.sampled_from([1, 1, 2]))
                sources.append(affine(f"back{later}_{index}", f"lif{later}", width, delay=delay))
        nodes.append(
            LIF(
                name=f"lif{index}",
                inputs=tuple(Edge(source) for source in sources),
                v_threshold=np.array(rng.integers(1, 400), np.int32),
                voltage_decay=np.array(draw(st.sampled_from(DECAYS)), np.int32),
                reset=reset,
            )
        )
    if draw(st.booleans()):
        nodes.append(Readout(name="out", mode="count", inputs=(Edge(f"lif{layers - 1}"),)))
    else:
        head = affine("head", f"lif{layers - 1}", width, bias=True)
        nodes.append(Readout(name="out", inputs=(Edge(head),)))
    net = Network(nodes=tuple(nodes), timesteps=draw(st.integers(1, 6)))
    assert verify(net) == "integer"
    assert net.recurrent
    return net


def infer(nodes: list[Node], name: str) -> tuple[int, ...]:
    return infer_shapes(Network(nodes=tuple(nodes), timesteps=1))[name]


def raw_inputs(net: Network, samples: int, seed: int = 0) -> np.ndarray:
    """Random raw samples of the kind that ``net`` takes."""
    rng = np.random.default_rng(seed)
    if net.input.encoding == "direct":
        return rng.random((samples, *net.input.shape), dtype=np.float32)
    return rng.integers(0, 2, (net.timesteps, samples, *net.input.shape)).astype(np.uint8)
