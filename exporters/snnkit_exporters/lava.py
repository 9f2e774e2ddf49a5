"""Lava, Intel's software for Loihi: a sequential network as a ``.net`` file for netx, any other as a directory.

The directory holds ``graph.json``, ``arrays.npz`` and ``run.py``, which runs it with lava-nc alone. Nothing is rescaled
here: weights go out as ``effective_weight``, thresholds and biases as they are. What Lava cannot compute with the same
spikes is refused. Limits are read from lava-nc 0.10.0 (``lava/proc/{conv,dense,lif}/models.py``).
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from snnkit.errors import UnsupportedError
from snnkit.network.depth import DELAY_MAX, depths, held_back, origins, paths, stem_neurons
from snnkit.network.ir import (
    BIAS_MAX,
    BIAS_MIN,
    LIF,
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    Input,
    Network,
    Node,
    Readout,
    Synapse,
    verify,
)
from snnkit.network.ranges import STATE_LIMIT, synaptic_bounds
from snnkit_exporters import _lava_directory as directory
from snnkit_exporters import _lava_netx as netx

WEIGHT_MIN, WEIGHT_MAX = -256, 254  # 8 bits with a sign and no lowest bit: even numbers (Davies et al. 2018)
GEOMETRY_MAX = 127  # lava.proc.conv keeps kernel size, stride, padding and dilation in int8
ACCUMULATOR_MAX = 2**25 - 2**17 - 1  # LIF shifts the sum by 6 bits in int32 and adds u


class Options(BaseModel):
    """``form``: ``net`` for netx, ``directory``, or ``auto``: ``.net`` where the network is sequential."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    form: Literal["auto", "net", "directory"] = "auto"


def suffix(net: Network, options: Options) -> str:
    """What the name of an export ends with: ``.net``, or ``.lava`` for a directory."""
    return ".net" if options.form == "net" or (options.form == "auto" and sequential(net)) else ".lava"


def sequential(net: Network) -> bool:
    """Whether netx can hold the network."""
    return not check(net, Options()) and not netx.reasons(net)


def check(net: Network, options: Options) -> list[str]:
    """All reasons why Lava cannot run ``net``; empty if it can. Raises ``NetworkError`` if it is broken."""
    kind = verify(net)
    reasons = [] if kind == "integer" else ["the network is float; quantise it first"]
    bounds = synaptic_bounds(net) if kind == "integer" else {}
    for node in net.nodes:
        found = list(_structure(net, node))
        if kind == "integer":
            found += [*_values(node), *_sums(net, node, bounds)]
        reasons += [f"node '{node.name}' ({type(node).__name__}) {reason}" for reason in found]
    reasons += [*_stem(net), *_delays(net)]
    if options.form == "net" and not reasons:
        reasons += netx.reasons(net)
    return reasons


def export(net: Network, path: str | os.PathLike[str], options: Options) -> list[Path]:
    """Writes ``net`` in one move: a file where ``path`` ends with ``.net``, else a directory (``form`` overrules).

    Raises :class:`UnsupportedError` with all reasons at once.
    """
    path = Path(path)
    form = options.form if options.form != "auto" else "net" if path.suffix == ".net" else "directory"
    if reasons := check(net, Options(form=form)):
        hint = "change these nodes, or choose another target"
        if form == "net" and not check(net, Options()):
            hint = "write a directory instead: give a path that does not end with .net"
        raise UnsupportedError("the network cannot be written for Lava", reasons, hint)
    return [netx.write(net, path)] if form == "net" else directory.write(net, path)


def _structure(net: Network, node: Node) -> Iterator[str]:
    if isinstance(node, BatchNorm2d):
        yield "is unknown to Lava; fold it into the convolution before it"
    if isinstance(node, AvgPool2d):
        yield "is unknown to Lava; fold it into the layer behind it, or use a strided convolution with neurons"
    if (
        isinstance(node, Synapse)
        and len(sources := [name for edge in node.inputs for name, _ in origins(net, edge)]) > 1
    ):
        names = " and ".join(f"'{name}'" for name in dict.fromkeys(sources))
        yield f"reads the sum of {names}, which is not binary; give each a synapse of its own and sum behind them"
    if isinstance(node, LIF):
        if node.reset != "zero":
            yield "resets by subtraction, and Lava resets to zero"
        for name in ("v_threshold", "voltage_decay", "current_decay"):
            if np.unique(getattr(node, name)).size > 1:
                yield f"has a {name} per channel, and Lava takes one value a layer"
        if len({edge.source for edge in node.inputs}) < len(node.inputs):
            yield "reads the same synapse twice; double its weights"
    if isinstance(node, Conv2d):
        if any(isinstance(consumer, Readout) for consumer in net.consumers(node.name)):
            yield "feeds the readout, which takes the output of Affine nodes"
        if max(*node.weight.shape[2:], *node.stride, *node.padding, *node.dilation) > GEOMETRY_MAX:
            yield f"has a kernel, stride, padding or dilation above {GEOMETRY_MAX}, the most that Lava holds"


def _values(node: Node) -> Iterator[str]:
    if isinstance(node, Synapse):
        weight = node.effective_weight
        low, high = int(weight.min()), int(weight.max())
        if not weight.any():
            yield "has no weight other than zero"
        elif low < WEIGHT_MIN or high > WEIGHT_MAX:
            yield f"has weights from {low} to {high}; a synapse holds {WEIGHT_MIN} to {WEIGHT_MAX}"


def _sums(net: Network, node: Node, bounds: dict[str, int]) -> Iterator[str]:
    """What several synapses add up to in one neuron."""
    synapses = [source for edge in node.inputs if isinstance(source := net[edge.source], Synapse)]
    if not isinstance(node, LIF | Readout) or not synapses:
        return
    biases = [synapse.bias.astype(np.int64) for synapse in synapses if synapse.bias is not None]
    total = np.sum(biases, axis=0) if biases else np.zeros(1, np.int64)
    if total.min() < BIAS_MIN or total.max() > BIAS_MAX:
        worst = total[np.abs(total).argmax()]
        yield f"has biases that add up to {worst}; a neuron holds {BIAS_MIN} to {BIAS_MAX}"
    if isinstance(node, Readout):  # what leaves the range is found when it is run
        return
    # a convolution's sum wraps at 24 bits, here as there
    reach = sum(min(bounds[s.name], STATE_LIMIT) if isinstance(s, Conv2d) else bounds[s.name] for s in synapses)
    if reach > ACCUMULATOR_MAX:
        yield f"may sum up to {reach:,}, which overflows Lava's accumulator at {ACCUMULATOR_MAX:,}; use smaller weights"


def _stem(net: Network) -> Iterator[str]:
    if net.stem != "host":
        return
    hosted = stem_neurons(net)
    if not hosted:
        yield "the stem is computed by the host, and no neurons read the input alone"
    mixed = {path.target for path in paths(net) if isinstance(net[path.source], Input)} - hosted
    if hosted and mixed:
        names = ", ".join(f"'{name}'" for name in sorted(mixed))
        yield f"the stem is computed by the host, and {names} on the chip also read the input"


def _delays(net: Network) -> Iterator[str]:
    try:
        depth = depths(net)
    except UnsupportedError as error:
        yield from error.reasons
        return
    for path in paths(net):
        held = held_back(net, path, depth)
        if held > DELAY_MAX and isinstance(net[path.source], LIF):
            node = f"node '{path.target}' ({type(net[path.target]).__name__})"
            yield f"{node} reads '{path.source}' {held} steps late; a delay holds up to {DELAY_MAX}"
