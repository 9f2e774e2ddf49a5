"""Random integer networks for a pipelined chip, from a seed: whatever Lava can run, in any combination."""

import dataclasses
import math

import numpy as np

from snnkit.network import LIF, Affine, Conv2d, Edge, Flatten, Input, Network, Node, Readout, infer_shapes, verify
from snnkit.network.depth import relays
from snnkit.network.ir import Shape

Pair = tuple[int, int]


class _Maker:
    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Node] = []
        self.shapes: dict[str, Shape] = {}
        self.levels: dict[str, float] = {}  # a typical value of each source
        self.bits = int(self.rng.integers(2, 9))
        largest = 1 if self.bits == 8 else 8 - self.bits
        self.exponent = int(self.rng.integers(self.bits == 8, 1 + min(largest, 3)))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def add(self, node: Node) -> str:
        self.nodes.append(node)
        if node.inputs:
            sources = [n for n in self.nodes if n.name == node.inputs[0].source]
            stub = Input(name=sources[0].name, shape=self.shapes[sources[0].name])
            only = dataclasses.replace(node, inputs=(Edge(stub.name),))
            self.shapes[node.name] = infer_shapes(Network(nodes=(stub, only), timesteps=1))[node.name]
        return node.name

    def weights(self, *shape: int) -> np.ndarray:
        high = 2 ** (self.bits - 1)
        weight = self.rng.integers(-high, high, shape).astype(np.int8)
        weight.flat[0] = high - 1
        return weight

    def bias(self, outputs: int, scale: float) -> np.ndarray | None:
        if self.chance(0.5):
            return None
        return np.clip(self.rng.normal(0, scale, outputs), -900, 900).astype(np.int32)

    def synapse(self, name: str, source: str, *, delay: int = 0, like: str = "any", to: Shape | None = None) -> str:
        """A convolution that makes ``source`` into the shape ``to``, or a random one."""
        channels, height, width = self.shapes[source]
        groups, kernel = 1, (1, 1)
        stride: Pair = (1, 1)
        padding: Pair = (0, 0)
        dilation: Pair = (1, 1)
        outputs = int(self.rng.integers(1, 7)) if to is None else to[0]
        if like == "identity":
            groups = outputs
        elif like == "same":
            kernel, padding = (3, 3), (1, 1)
        elif like == "1x1":
            assert to is not None
            stride = (-(-height // to[1]), -(-width // to[2]))
        else:
            kernel = (int(self.rng.integers(1, 4)), int(self.rng.integers(1, 4)))
            stride = (int(self.rng.integers(1, 3)), int(self.rng.integers(1, 3)))
            dilation = (int(self.rng.integers(1, 3)), int(self.rng.integers(1, 3)))
            padding = (dilation[0] * (kernel[0] // 2), dilation[1] * (kernel[1] // 2) + int(self.rng.integers(0, 2)))
            if self.chance(0.4):
                groups = channels
                outputs = channels * int(self.rng.integers(1, 3))
        weight = self.weights(outputs, channels // groups, *kernel)
        if like == "identity":
            weight = np.full_like(weight, 2 ** (self.bits - 1) - 1)
        return self.add(
            Conv2d(
                name=name,
                inputs=(Edge(source, delay),),
                weight=weight,
                bias=self.bias(outputs, 2 ** (self.bits + self.exponent - 2)),
                weight_exponent=self.exponent,
                stride=stride,
                padding=padding,
                dilation=dilation,
                groups=groups,
            )
        )

    def neurons(self, name: str, synapses: list[str], source: str) -> str:
        first = next(n for n in self.nodes if n.name == synapses[0])
        assert isinstance(first, Conv2d | Affine)
        fan_in = math.prod(first.weight.shape[1:])
        spread = 2.0 ** (self.bits - 1 + self.exponent) / 2 * math.sqrt(fan_in) * self.levels[source]
        kind = self.rng.choice(["IF", "LIF", "CUBA"])
        node = LIF(
            name=name,
            inputs=tuple(Edge(synapse) for synapse in synapses),
            v_threshold=np.array(max(0, int(spread * self.rng.uniform(0.1, 0.9))), np.int32),
            voltage_decay=np.array(0 if kind == "IF" else self.rng.choice([1, 400, 1365, 2048, 4095, 4096]), np.int32),
            current_decay=np.array(self.rng.choice([900, 2048, 3151]) if kind == "CUBA" else 4096, np.int32),
        )
        self.add(node)
        self.levels[name] = 0.5
        return name


def chip_network(seed: int) -> Network:
    """Convolutions and dense layers, shortcuts of every kind, delays, recurrence; 2 to 8 bits; graded or binary."""
    make = _Maker(seed)
    rng = make.rng
    timesteps = int(rng.integers(1, 6))
    direct = make.chance(0.6)
    bits = int(rng.integers(2, 9)) if direct or make.chance(0.3) else 1
    scale, zero_point = (1 / (2**bits - 1), int(rng.integers(0, 2))) if direct else (1.0, 0)
    flat = make.chance(0.15)
    shape: Shape = (int(rng.integers(5, 20)),) if flat else (int(rng.integers(1, 4)), *map(int, rng.integers(5, 9, 2)))
    entry = Input(
        name="in",
        shape=shape,
        encoding="direct" if direct else "events",
        bits=bits,
        scale=scale,
        zero_point=zero_point,
    )
    make.add(entry)
    make.shapes["in"], make.levels["in"] = shape, (2**bits - 1) / 2
    previous = "in" if flat else _convolutions(make, timesteps)
    _classifier(make, previous, count=make.chance(0.25))
    host = bool(bits > 1 and not flat and make.chance(0.3) and not _reads_input_late(make))
    net = Network(nodes=tuple(make.nodes), timesteps=timesteps, stem="host" if host else "chip")
    assert verify(net) == "integer"
    return net


def _convolutions(make: _Maker, timesteps: int) -> str:
    rng = make.rng
    previous = make.neurons("n0", [make.synapse("c0", "in")], "in")
    seen = ["n0"]
    for index in range(1, int(rng.integers(2, 5))):
        start = previous
        keeps = make.shapes[start] if make.chance(0.3) else None  # a block whose shortcut is the identity
        like = "any" if keeps is None else "same"
        middle = make.neurons(f"m{index}", [make.synapse(f"a{index}", start, like=like)], start)
        seen.append(middle)
        synapses = [make.synapse(f"b{index}", middle, like="same", to=keeps)]
        shape = make.shapes[synapses[0]]
        early = make.shapes[start]
        if early == shape:
            synapses.append(make.synapse(f"i{index}", start, like="identity", to=shape))
        elif (-(-early[1] // -(-early[1] // shape[1])), -(-early[2] // -(-early[2] // shape[2]))) == shape[1:]:
            synapses.append(make.synapse(f"p{index}", start, like="1x1", to=shape))
        far = [name for name in seen[:-1] if make.shapes[name] == shape and name != start]
        if far and make.chance(0.5):
            synapses.append(make.synapse(f"f{index}", far[0], like="identity", to=shape))
        if make.chance(0.3):
            delay = int(rng.integers(1, 4))
            synapses.append(make.synapse(f"d{index}", middle, like="same", delay=delay))
        if make.chance(0.2) and make.shapes["in"][1:] == shape[1:]:
            synapses.append(make.synapse(f"r{index}", "in", like="1x1", to=shape, delay=int(rng.integers(0, 2))))
        synapses = [name for name in synapses if make.shapes[name] == shape]
        keep = set(synapses)
        make.nodes = [n for n in make.nodes if not isinstance(n, Conv2d) or n.name in keep or _used(make, n.name)]
        previous = f"n{index}"
        if make.chance(0.2) and timesteps > 2:
            make.shapes[previous] = shape
            loop = Conv2d(
                name=f"loop{index}",
                inputs=(Edge(previous, 2),),
                weight=make.weights(shape[0], shape[0], 3, 3),
                weight_exponent=make.exponent,
                padding=(1, 1),
            )
            make.nodes.append(loop)
            make.shapes[loop.name] = shape
            synapses.append(loop.name)
        make.neurons(previous, synapses, middle)
        seen.append(previous)
    return previous


def _used(make: _Maker, name: str) -> bool:
    return any(edge.source == name for node in make.nodes for edge in node.inputs)


def _classifier(make: _Maker, previous: str, *, count: bool) -> None:
    rng = make.rng
    if len(make.shapes[previous]) == 3:
        make.levels["flat"] = make.levels[previous]
        previous = make.add(Flatten(name="flat", inputs=(Edge(previous),)))

    def dense(name: str, source: str, outputs: int) -> str:
        weight = make.weights(outputs, math.prod(make.shapes[source]))
        edges = (Edge(source),)
        bias = make.bias(outputs, 2 ** (make.bits + make.exponent - 2))
        return make.add(Affine(name=name, inputs=edges, weight=weight, bias=bias, weight_exponent=make.exponent))

    start = previous
    if make.chance(0.5) or previous == "in":
        previous = make.neurons("hidden", [dense("dense", previous, int(rng.integers(4, 12)))], previous)
    if count:
        synapses = [dense("votes", previous, 4)]
        if start not in (previous, "in"):
            synapses.append(dense("early votes", start, 4))
        make.neurons("last", synapses, previous)
        make.add(Readout(name="out", mode="count", inputs=(Edge("last"),)))
        return
    heads = [dense("head", previous, 4)]
    if start != previous and make.chance(0.5):
        heads.append(dense("early head", start, 4))
    make.add(Readout(name="out", inputs=tuple(Edge(head) for head in heads)))


def _reads_input_late(make: _Maker) -> bool:
    return sum(edge.source == "in" for node in make.nodes for edge in node.inputs) > 1


def traits(net: Network) -> set[str]:
    """What a network holds of all that :func:`chip_network` can make."""
    entry, found = net.input, {f"a {net.readout.mode} readout", f"a stem on the {net.stem}"}
    found |= {entry.encoding, "graded input" if entry.bits > 1 else "binary input", f"{entry.bits} input bits"}
    weights = np.concatenate([synapse.weight.ravel().astype(np.int64) for synapse in net.synapses])
    found.add(f"{int(max(-weights.min() - 1, weights.max())).bit_length() + 1} weight bits")
    if relays(net):
        found.add("relays")
    if net.recurrent:
        found.add("loop")
    for neuron in net.neurons:
        found.add("CUBA" if neuron.current_decay < 4096 else "LIF" if neuron.voltage_decay else "IF")
    for node in net.nodes:
        if any(edge.delay for edge in node.inputs):
            found.add("delay")
        if isinstance(node, Affine | Conv2d) and node.bias is not None and node.bias.any():
            found.add("bias")
        if isinstance(node, Affine):
            found.add("head" if isinstance(net.consumers(node.name)[0], Readout) else "dense")
        if isinstance(node, Conv2d):
            found |= _geometry(node)
    return found


def _geometry(conv: Conv2d) -> set[str]:
    kernel = conv.weight.shape[2:]
    wide = [dilation for dilation, size in zip(conv.dilation, kernel, strict=True) if size > 1]
    present = {
        "stride": max(conv.stride) > 1,
        "different strides": conv.stride[0] != conv.stride[1],
        "groups": conv.groups > 1,
        "dilation": max(wide, default=1) > 1,
        "padding": max(conv.padding) > 0,
        "identity shortcut": conv.name[0] in "if",
        "1x1 shortcut": conv.name[0] == "p",
    }
    return {"convolution"} | {name for name, holds in present.items() if holds}
