"""Lava's fixed-point arithmetic once more, in plain numpy without any code of the project but its data structure.

Written from Lava 0.10's process models (``lava/proc/lif/models.py``, ``lava/proc/conv/models.py``): one neuron
update at a time, shifts and signs spelled out, convolutions as explicit sums over windows.
"""

from typing import Any

import numpy as np

from snnkit.network import LIF, Affine, Conv2d, Flatten, Input, Network, Readout

LIMIT = 2**23


def convolve(node: Conv2d, x: np.ndarray) -> np.ndarray:
    weight = node.weight.astype(np.int64) * 2**node.weight_exponent
    outputs, per_group, kernel_y, kernel_x = weight.shape
    padded = np.pad(x, ((0, 0), *[(p, p) for p in node.padding]))
    height = (padded.shape[1] - node.dilation[0] * (kernel_y - 1) - 1) // node.stride[0] + 1
    width = (padded.shape[2] - node.dilation[1] * (kernel_x - 1) - 1) // node.stride[1] + 1
    result = np.zeros((outputs, height, width), dtype=np.int64)
    for o in range(outputs):
        first = o // (outputs // node.groups) * per_group
        for i in range(per_group):
            for ky in range(kernel_y):
                for kx in range(kernel_x):
                    y0, x0 = ky * node.dilation[0], kx * node.dilation[1]
                    window = padded[
                        first + i,
                        y0 : y0 + height * node.stride[0] : node.stride[0],
                        x0 : x0 + width * node.stride[1] : node.stride[1],
                    ]
                    result[o] += weight[o, i, ky, kx] * window[:height, :width]
    return (result + LIMIT) % (2 * LIMIT) - LIMIT


def decay(x: Any, factor: int) -> Any:
    sign = np.where(x < 0, -1, 1)
    return sign * ((np.abs(x) * (4096 - factor)) // 4096)


def simulate(net: Network, encoded: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """One sample, direct [*shape] or events [T, *shape]: rasters [T, *shape] per neuron node, readout [classes]."""
    rasters: dict[str, list[np.ndarray]] = {node.name: [] for node in net.neurons}
    state: dict[str, tuple[Any, Any]] = {}
    readout: Any = 0
    past: list[dict[str, Any]] = []
    for t in range(net.timesteps):
        now: dict[str, Any] = {}
        past.append(now)
        for node in net.nodes:
            operands = [past[t - e.delay].get(e.source, 0) if t >= e.delay else None for e in node.inputs]
            total: Any = sum(operand for operand in operands if operand is not None)
            bias: Any = 0
            for edge in node.inputs:
                source = net[edge.source]
                values = getattr(source, "bias", None)
                if values is not None:
                    bias = bias + values.astype(np.int64).reshape(-1, *[1] * (2 if isinstance(source, Conv2d) else 0))
            match node:
                case Input():
                    frame = encoded if node.encoding == "direct" else encoded[t]
                    now[node.name] = frame.astype(np.int64)
                case Conv2d():
                    now[node.name] = convolve(node, total)
                case Affine():
                    total = np.broadcast_to(total, node.weight.shape[1])  # late spikes that are not there yet: 0
                    now[node.name] = (node.weight.astype(np.int64) * 2**node.weight_exponent) @ total
                case Flatten():
                    now[node.name] = total.reshape(-1)
                case LIF():
                    u, v = state.get(node.name, (np.zeros(total.shape, np.int64), np.zeros(total.shape, np.int64)))
                    u = decay(u, int(node.current_decay)) + total * 64
                    u = np.where(u > LIMIT, u - 2 * LIMIT, u)
                    u = np.where(u <= -LIMIT, u + 2 * LIMIT, u)
                    v = np.clip(decay(v, int(node.voltage_decay)) + u + bias * 64, 1 - LIMIT, LIMIT - 1)
                    limit = int(node.v_threshold) * 64
                    spikes = (v > limit).astype(bool)
                    state[node.name] = u, np.where(spikes, 0 if node.reset == "zero" else v - limit, v)
                    rasters[node.name].append(spikes)
                    now[node.name] = spikes.astype(np.int64)
                case Readout():
                    readout = readout + total + bias
    return {name: np.stack(steps) for name, steps in rasters.items()}, readout.astype(np.int64)
