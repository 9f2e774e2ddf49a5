"""The HDF5 network description that lava-dl's netx 0.6.0 loads (``.net``), for sequential networks.

netx is strictly sequential: ``input``, then ``conv``, ``dense`` and ``flatten`` layers, each with its own
neurons; the last ``dense`` has none and integrates. Fields, limits and what netx does to dense weights are read from
``lava/lib/dl/netx/{hdf5,utils}.py`` of lava-dl 0.6.0 and ``lava/utils/weightutils.py`` of lava-nc 0.10.0. Nothing is
rescaled here: weights go out as ``effective_weight``, thresholds and biases as they are.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from snnkit.files import replacing
from snnkit.network.ir import (
    BIAS_MAX,
    BIAS_MIN,
    LIF,
    Affine,
    Array,
    Conv2d,
    Flatten,
    Input,
    Network,
    Node,
    Readout,
    Synapse,
    infer_shapes,
)

WEIGHT_MIN, WEIGHT_MAX = -256, 254  # 8 bits with a sign and no lowest bit: even numbers (Davies et al. 2018)
GROUPS_MAX = 127  # lava.proc.conv keeps them in int8


def reasons(net: Network) -> list[str]:
    """What keeps an integer network that Lava can run from being written as ``.net``."""
    found = ["the stem is computed by the host, and netx has no such layer"] if net.stem == "host" else []
    for node in net.nodes:
        texts = list(_structure(net, node))
        if isinstance(node, Affine):
            texts += [*_packing(node), *_head_bias(net, node)]
        found += [f"node '{node.name}' ({type(node).__name__}) {text}" for text in texts]
    return found


def write(net: Network, path: Path) -> Path:
    """Writes ``net``, for which there are no :func:`reasons`, in one move; the same network gives the same bytes.

    The root attributes ``timesteps``, ``reset_interval``, ``reset_offset`` and ``input_message_bits`` say how to run it
    (netx does not read them).
    """
    with replacing(path) as temporary, h5py.File(temporary, "w", track_order=False) as file:
        file.attrs["timesteps"] = net.timesteps
        file.attrs["reset_interval"], file.attrs["reset_offset"] = net.timesteps, 1
        file.attrs["input_message_bits"] = message_bits(net)
        for index, layer in enumerate(_layers(net)):
            _write(file.create_group(f"layer/{index}"), layer)
    return path


def message_bits(net: Network) -> int:
    """The argument ``input_message_bits`` of netx: 0 for a binary input, else the payload's width."""
    return 0 if net.input.bits == 1 else net.input.bits


def loaded_weight(weight: Array) -> Array | None:
    """The weights that a ``dense`` layer computes with after loading integers ``weight``; None if it cannot load them.

    netx shifts the matrix up to fill 8 bits (``optimize_weight_bits``); the synapse then clips and truncates it
    (``clip_weights``, ``truncate_weights``) and shifts the sum back down.
    """
    low, high = int(weight.min()), int(weight.max())
    mixed = low < 0 <= high
    if low == high == 0 or (mixed and (low < WEIGHT_MIN or high > WEIGHT_MAX)):
        return None
    with np.errstate(divide="ignore"):
        limits = np.divide([127, -128], [high, low]) if mixed else np.array([255 / high if low >= 0 else -256 / low])
    shift = int(np.floor(np.log2(np.min(limits)))) + mixed
    if shift < 0:
        return None
    trailing = next(n for n in range(8, -1, -1) if not (weight % 2**n).any()) - mixed
    bits = 8 - shift - trailing
    shifted = weight.astype(np.int64) << shift
    # the synapse looks at the signs anew, and counts a maximum of zero as negative only
    signed = shifted.min() < 0 < shifted.max()
    sign = -1 if not signed and shifted.min() < 0 else 1
    clipped = np.clip(sign * shifted, -256 if signed else 0, 255)
    drop = 8 - bits + signed
    if drop < 0:
        return None
    truncated = sign * ((clipped >> drop) << drop)
    return None if (truncated % 2**shift).any() else truncated >> shift


def _structure(net: Network, node: Node) -> Iterator[str]:
    if len(node.inputs) > 1:
        yield "sums several inputs, and netx is strictly sequential"
    if any(edge.delay for edge in node.inputs):
        yield "reads an input late, and netx delays dense layers only"
    if len(net.consumers(node.name)) > 1:
        yield "feeds several nodes, and netx is strictly sequential"
    if isinstance(node, Readout) and node.mode != "membrane":
        yield "counts spikes, and netx has no such readout"
    if isinstance(node, Conv2d) and node.groups > GROUPS_MAX:
        yield f"has {node.groups} groups; Lava holds up to {GROUPS_MAX}"


def _packing(node: Affine) -> Iterator[str]:
    weight = node.effective_weight
    loaded = loaded_weight(weight)
    if loaded is None or (loaded != weight).any():
        yield f"has weights from {weight.min()} to {weight.max()} which netx changes when it packs them into synapses"


def _head_bias(net: Network, node: Affine) -> Iterator[str]:
    if node.bias is None or not any(isinstance(consumer, Readout) for consumer in net.consumers(node.name)):
        return
    total = net.timesteps * node.bias.astype(np.int64)
    if total.min() < BIAS_MIN or total.max() > BIAS_MAX:
        yield (
            f"has a bias that adds up to {total[np.abs(total).argmax()]} in {net.timesteps} timesteps; "
            f"the readout's neurons hold {BIAS_MIN} to {BIAS_MAX}"
        )


def _layers(net: Network) -> Iterator[dict[str, Any]]:
    """The description layer by layer: dictionaries of numbers, arrays and strings, groups as dictionaries within."""
    shapes = infer_shapes(net)
    for node in net.nodes:
        follower = next(iter(net.consumers(node.name)), None)
        match node:
            case Input():  # a flatten before any layer does nothing in netx: the input is given flat
                shape = shapes[follower.name] if isinstance(follower, Flatten) else node.shape
                yield {"type": "input", "shape": np.array(shape, np.int32)}
            case Flatten() if not isinstance(net[node.inputs[0].source], Input | Flatten):
                if len(shapes[node.inputs[0].source]) == 3:
                    yield {"type": "flatten"}
            case Synapse():
                assert follower is not None
                yield _layer(net, node, follower, shapes[node.name])


def _layer(net: Network, node: Synapse, follower: Node, shape: tuple[int, ...]) -> dict[str, Any]:
    layer: dict[str, Any] = {
        "type": "conv" if isinstance(node, Conv2d) else "dense",
        "shape": np.array(shape, np.int32),
        "weight": node.effective_weight.astype(np.int32),
    }
    if node.bias is not None:  # without neurons netx adds it once, where the readout adds it at every timestep
        layer["bias"] = node.bias if isinstance(follower, LIF) else np.int32(net.timesteps) * node.bias
    if isinstance(node, Conv2d):
        pairs = {"stride": node.stride, "padding": node.padding, "dilation": node.dilation}
        layer |= {name: np.array(pair, np.int32) for name, pair in pairs.items()}
        layer["groups"] = np.int32(node.groups)
    if isinstance(follower, LIF):
        layer["neuron"] = {
            "type": "CUBA",
            "vThMant": np.int32(follower.v_threshold.flat[0]),
            "iDecay": np.int32(follower.current_decay.flat[0]),
            "vDecay": np.int32(follower.voltage_decay.flat[0]),
        }
    return layer


def _write(group: Any, layer: dict[str, Any]) -> None:
    for name, value in layer.items():
        if isinstance(value, dict):
            _write(group.create_group(name), value)
        else:
            group.create_dataset(name, data=np.array([value], "S10") if isinstance(value, str) else value)
