"""How far other readers of an exported NIR graph can be from the chip: what is promised, and what is measured."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from snnkit.errors import UsageError
from snnkit.interchange import nir_read
from snnkit.interchange.nir_file import Graph
from snnkit.interchange.nir_read import Choices
from snnkit.interchange.nir_write import nir_names, obstacles, promises, to_graph
from snnkit.network import Network, verify
from snnkit.network.ir import Array, Node, Synapse, reads_input


@dataclass(frozen=True)
class Mismatch:
    """Spikes that a reader of the NIR graph sees otherwise, of so many updates (a neuron at a timestep)."""

    spikes: int
    updates: int


def nir_mismatch(net: Network, inputs: Array) -> Mismatch:
    """How often a reader that keeps the fractions which the chip rounds off fires otherwise, on raw ``inputs``.

    ``net`` is an integer network that has a NIR graph and whose events, if it takes any, are binary.
    """
    from snnkit_targets import reference

    graph = to_graph(net)
    resets = {node.reset for node in net.neurons}
    if (net.input.bits > 1 and net.input.encoding == "events") or len(resets) != 1:
        raise UsageError("graded events or mixed resets cannot be compared", "compare in the reader")
    plain = Graph(graph.nodes, graph.edges, {key: graph.metadata[key] for key in ("dt", "timesteps", "encoding")})
    read = nir_read.from_graph(plain, Choices(reset=resets.pop()), Path("graph.nir")).network
    x = inputs
    if net.input.encoding == "direct":  # levels as exact fractions of 256, which the first weights undo
        x = net.input.encode(inputs) / np.float32(256)
        nodes: list[Node] = [
            replace(node, weight=node.weight * np.float32(256))
            if isinstance(node, Synapse) and reads_input(read, node)
            else node
            for node in read.nodes
        ]
        read = replace(read, nodes=tuple(nodes))
    options = reference.Options(record="raster")
    ours, theirs = reference.run(net, inputs, options).rasters, reference.run(read, x, options).rasters
    assert ours is not None
    assert theirs is not None
    names = nir_names(net)
    different = sum(int((raster != theirs[names[name]]).sum()) for name, raster in ours.items())
    return Mismatch(different, sum(raster.size for raster in ours.values()))


def nir_notes(net: Network, samples: int = 64) -> list[str]:
    """What a user should know before other tools run the NIR graph of ``net``: nothing, where all spikes are equal.

    Where they may differ, how often they do on ``samples`` random inputs.
    """
    if obstacles(net) or not (reasons := promises(net)):
        return []
    notes = [f"other readers may fire otherwise: {'; '.join(reasons)}"]
    if verify(net) == "integer":
        try:
            found = nir_mismatch(net, _random_inputs(net, samples))
        except UsageError as error:
            notes.append(str(error))
        else:
            share = 100_000 * found.spikes / found.updates
            notes.append(
                f"measured on {samples} random inputs: {found.spikes:,} of {found.updates:,} updates differ "
                f"({share:.1f} per 100,000)"
            )
    return notes


def _random_inputs(net: Network, samples: int) -> Array:
    rng = np.random.default_rng(0)
    if net.input.encoding == "direct":
        return rng.random((samples, *net.input.shape), dtype=np.float32)
    return rng.integers(0, 2, (net.timesteps, samples, *net.input.shape)).astype(np.uint8)
