"""The network that snnkit has written as NIR, exactly: from the graph's metadata and weights."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from snnkit.errors import NetworkError
from snnkit.interchange.nir_file import Graph
from snnkit.interchange.nir_records import MAX_VALUES
from snnkit.interchange.nir_write import KEY, nir_names, to_graph
from snnkit.network import (
    LIF,
    Conv2d,
    Network,
    infer_shapes,
)
from snnkit.network.ir import Array
from snnkit.network.storage import decode


def restored(graph: Graph, path: Path) -> Network | None:
    """The network that was exported; None where the graph is no longer that network's."""
    try:
        stored = json.loads(graph.metadata[KEY])
        net = decode(stored["network"], _original_arrays(graph, stored), path)
        settings = stored["settings"]
        if not _as_large(net, graph) or not to_graph(net, **settings).same_as(graph):
            return None
    except (NetworkError, KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RecursionError):
        return None
    return net


def _original_arrays(graph: Graph, stored: dict[str, Any]) -> dict[str, Array]:
    """Neurons' parameters as the metadata lists them; weights and biases from the records that stand for them."""
    exponents = {node["name"]: node.get("weight_exponent", 0) for node in json.loads(stored["network"])["nodes"]}
    arrays = {}
    for key, (kind, shape, values) in stored["arrays"].items():
        if kind not in ("|i1", "<i4", "<f4"):
            raise ValueError("an array is of another type than a network's")
        name, _, parameter = key.rpartition(".")
        if values is None:
            exact = graph.nodes[stored["names"][name]][parameter]
            if parameter == "weight":
                exact = _grouped(exact, shape) / 2.0 ** exponents[name]
        else:
            exact = np.array(values)
        arrays[key] = exact.astype(np.dtype(kind)).reshape(shape)
    return arrays


def _as_large(net: Network, graph: Graph) -> bool:
    """Whether the network's graph would have the sizes of ``graph``, so that it can be built to compare."""
    shapes, names = infer_shapes(net), nir_names(net)
    for node in net.nodes:
        record = graph.nodes[names[node.name]]
        if isinstance(node, LIF) and math.prod(shapes[node.name]) != record["v_threshold"].size:
            return False
        if isinstance(node, Conv2d) and node.weight.size * node.groups > record["weight"].size * max(
            1, int(record["groups"])
        ):
            return False
    delayed = {edge.source for node in net.nodes for edge in node.inputs if edge.delay}
    return sum(math.prod(shapes[name]) for name in delayed) <= MAX_VALUES


def _grouped(weight: Array, shape: Sequence[int]) -> Array:
    """One group's weights [O, I, ...] as the grouped ones of ``shape`` that were expanded to them."""
    if list(weight.shape) == shape:
        return weight
    outputs, inputs = shape[:2]
    if len(shape) != weight.ndim or outputs != len(weight):
        raise ValueError("weights of another shape")
    groups = weight.shape[1] // inputs
    rows = np.arange(outputs) // (outputs // groups)
    return np.stack([weight[o, r * inputs : (r + 1) * inputs] for o, r in enumerate(rows)])
