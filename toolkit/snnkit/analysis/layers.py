"""What a chip has to hold: the layers of neurons of an integer network, relays included, and what each one reads."""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from snnkit.network.depth import Chain, Path, chains, depths, held_back, paths, stem_neurons
from snnkit.network.ir import (
    LIF,
    Array,
    Conv2d,
    Input,
    Network,
    Node,
    Pair,
    Readout,
    Shape,
    Synapse,
    infer_shapes,
)

Volume: TypeAlias = tuple[int, int, int]  # channels, height, width; flat layers have N channels of one pixel
Kind: TypeAlias = Literal["neurons", "readout", "relay"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Afferent:
    """What a layer reads through one synapse: from another layer called ``source``, or (``external``) from the host.

    ``volume`` is the source's. A convolution comes with its geometry. Any other synapse reaches every neuron of the
    layer from every neuron of the source, or where ``reaches`` bool [outputs, inputs] says so.
    """

    source: str
    external: bool
    volume: Volume
    weight_bits: int
    exponent: int = 0
    convolution: bool = True
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    reaches: Array | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Layer:
    """Neurons that are placed together: those of a LIF node, of an integrating readout, or of a relay.

    ``spikes_of`` is the node whose spikes they send (None: they send none), ``counted`` whether the host reads them.
    ``thresholds`` and ``decays`` int64 [channels] number the different ones, which a core keeps in a table each.
    """

    name: str
    kind: Kind
    volume: Volume
    afferents: tuple[Afferent, ...]
    thresholds: Array
    decays: Array
    spikes_of: str | None = None
    counted: bool = False

    @property
    def neurons(self) -> int:
        return math.prod(self.volume)


def read_layers(net: Network) -> tuple[Layer, ...]:
    """The layers of an integer network that go onto a chip, in topological order, a relay behind what it repeats."""
    shapes, hosted, depth = infer_shapes(net), stem_neurons(net), depths(net)
    arriving: dict[str, list[Path]] = {}
    for path in paths(net):
        arriving.setdefault(path.target, []).append(path)
    behind: dict[str, list[Chain]] = {}
    for chain in chains(net):
        behind.setdefault(chain.source, []).append(chain)
    layers: list[Layer] = []
    for node in net.nodes:
        if not isinstance(node, LIF | Readout) or node.name in hosted or not _places(node):
            continue
        afferents = []
        for path in arriving.get(node.name, ()):
            source, synapse = net[path.source], net[path.via]
            assert isinstance(synapse, Synapse)
            external = isinstance(source, Input) or source.name in hosted
            held = 0 if external else held_back(net, path, depth)
            name = relay_name(path.source, path.delay, held) if held else path.source
            afferents.append(_afferent(name, external, volume_of(shapes[path.source]), synapse))
        volume, spiking = volume_of(shapes[node.name]), isinstance(node, LIF)
        layer = Layer(
            name=node.name,
            kind="neurons" if spiking else "readout",
            volume=volume,
            afferents=tuple(afferents),
            thresholds=_numbered(volume[0], node.v_threshold) if isinstance(node, LIF) else _numbered(volume[0]),
            decays=_numbered(volume[0], node.voltage_decay, node.current_decay)
            if isinstance(node, LIF)
            else _numbered(volume[0]),
            spikes_of=node.name if spiking else None,
            counted=spiking and any(isinstance(consumer, Readout) for consumer in net.consumers(node.name)),
        )
        layers.append(layer)
        for chain in behind.get(node.name, ()):
            layers += _relays(layer, chain)
    return tuple(layers)


def relay_name(source: str, delay: int, step: int) -> str:
    """The relay that repeats ``source`` so many steps later; those of delayed edges are chains of their own."""
    return f"{source}.delay{delay}.relay{step}" if delay else f"{source}.relay{step}"


def volume_of(shape: Shape) -> Volume:
    """A shape as channels, height and width."""
    return (shape[0], shape[1], shape[2]) if len(shape) == 3 else (math.prod(shape), 1, 1)


def needed_bits(weight: Array) -> int:
    """Bits of the narrowest integers that hold ``weight``: with a sign only where both signs occur."""
    low, high = int(weight.min()), int(weight.max())
    if low < 0 < high:
        return 1 + max((-low - 1).bit_length(), high.bit_length())
    return max(1, max(-low, high).bit_length())


def _places(node: Node) -> bool:
    return not isinstance(node, Readout) or node.mode == "membrane"


def _numbered(channels: int, *parameters: Array) -> Array:
    """For each channel a number that tells different values of the parameters, scalars or [channels], apart."""
    if all(parameter.ndim == 0 for parameter in parameters):
        return np.zeros(channels, np.int64)
    columns = [np.broadcast_to(parameter, (channels,)) for parameter in parameters]
    numbers: Array = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)[1].reshape(channels)
    return numbers


def _afferent(source: str, external: bool, volume: Volume, synapse: Synapse) -> Afferent:
    bits = needed_bits(synapse.weight)
    if isinstance(synapse, Conv2d):
        return Afferent(
            source=source,
            external=external,
            volume=volume,
            weight_bits=bits,
            exponent=synapse.weight_exponent,
            kernel=(synapse.weight.shape[2], synapse.weight.shape[3]),
            stride=synapse.stride,
            padding=synapse.padding,
            dilation=synapse.dilation,
            groups=synapse.groups,
        )
    present = synapse.weight != 0
    sparse = present.mean() < 0.5  # below, an index with every weight takes less than all the zeros
    return Afferent(
        source=source,
        external=external,
        volume=volume,
        weight_bits=bits,
        exponent=synapse.weight_exponent,
        convolution=False,
        reaches=present if sparse else None,
    )


def _relays(layer: Layer, chain: Chain) -> list[Layer]:
    """A chain of relays: every neuron reads the one in its place, by a weight of 1."""
    made: list[Layer] = []
    flat = layer.volume[1:] == (1, 1)
    for step in range(1, chain.steps + 1):
        afferent = Afferent(
            source=made[-1].name if made else layer.name,
            external=False,
            volume=layer.volume,
            weight_bits=1,
            convolution=not flat,
            groups=1 if flat else layer.volume[0],
            reaches=np.eye(layer.volume[0], dtype=bool) if flat else None,
        )
        made.append(
            Layer(
                name=relay_name(layer.name, chain.delay, step),
                kind="relay",
                volume=layer.volume,
                afferents=(afferent,),
                thresholds=_numbered(layer.volume[0]),
                decays=_numbered(layer.volume[0]),
                spikes_of=layer.spikes_of,
            )
        )
    return made
