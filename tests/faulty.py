"""A simulator with one fault, in plain numpy: the oracle's arithmetic, one sample after the other, and a planted error.

Nothing of the replayed rules is used here, so that a diagnosis cannot agree with itself.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from snnkit.network import LIF, Affine, Conv2d, Flatten, Input, Network, Readout, Trace, infer_shapes
from snnkit.network.inputs import encode_inputs
from tests.oracle import LIMIT, convolve


@dataclass
class Fault:
    """What goes wrong, in which layers (all if empty); every method is the right one."""

    layers: tuple[str, ...] = ()
    state: dict[str, Any] = field(default_factory=dict)

    def encode(self, net: Network, raw: np.ndarray) -> np.ndarray:
        return encode_inputs(net, raw)

    def arrived(self, t: int, name: str, values: list[Any]) -> Any:
        """What a layer gets at t, of ``values``, its sums at every timestep so far."""
        return values[t]

    def decay(self, x: Any, factor: int) -> Any:
        return np.sign(x) * ((np.abs(x) * (4096 - factor)) // 4096)

    def sums(self, a: Any) -> Any:
        return (a + LIMIT) % (2 * LIMIT) - LIMIT

    def current(self, u: Any) -> Any:
        u = np.where(u > LIMIT, u - 2 * LIMIT, u)
        return np.where(u <= -LIMIT, u + 2 * LIMIT, u)

    def voltage(self, v: Any) -> Any:
        return np.clip(v, 1 - LIMIT, LIMIT - 1)

    def bias(self, bias: Any, t: int) -> Any:
        return bias

    def fires(self, v: Any, limit: int) -> Any:
        return v > limit

    def reset(self, v: Any, limit: int, kind: str) -> Any:
        return 0 * v if kind == "zero" else v - limit

    def clears(self) -> bool:
        return True

    def readout(self, total: Any, bias: Any, t: int) -> Any:
        return total + bias


def simulate(net: Network, raw: np.ndarray, fault: Fault, name: str = "faulty") -> Trace:
    """All samples, with rasters; ``fault`` acts in its layers, the right arithmetic everywhere else."""
    right = Fault()
    encoded = fault.encode(net, raw).astype(np.int64)
    direct = net.input.encoding == "direct"
    samples = len(encoded) if direct else encoded.shape[1]
    rasters: dict[str, list[Any]] = {node.name: [] for node in net.neurons}
    readouts = []
    shapes = infer_shapes(net)
    state: dict[str, Any] = {}
    for b in range(samples):
        if fault.clears():
            state = {}
        spikes: dict[str, list[Any]] = {node.name: [] for node in net.neurons}
        sums: dict[str, list[Any]] = {node.name: [] for node in net.nodes}
        readout: Any = 0
        past: list[dict[str, Any]] = []
        for t in range(net.timesteps):
            now: dict[str, Any] = {}
            past.append(now)
            for node in net.nodes:
                acting = fault if not fault.layers or node.name in fault.layers else right
                operands = [past[t - e.delay][e.source] for e in node.inputs if t >= e.delay]
                nothing = np.zeros(shapes[node.inputs[0].source] if node.inputs else (), np.int64)
                total: Any = sum(operands, nothing)
                bias: Any = 0
                for edge in node.inputs:
                    values = getattr(net[edge.source], "bias", None)
                    if values is not None:
                        convolved = isinstance(net[edge.source], Conv2d)
                        bias = bias + values.astype(np.int64).reshape(-1, *[1] * (2 if convolved else 0))
                match node:
                    case Input():
                        now[node.name] = encoded[b] if direct else encoded[t, b]
                    case Conv2d():
                        raw_sums = convolve(node, total) if acting is right else unlimited(node, total)
                        sums[node.name].append(acting.sums(raw_sums))
                        now[node.name] = acting.arrived(t, node.name, sums[node.name])
                    case Affine():
                        sums[node.name].append((node.weight.astype(np.int64) * 2**node.weight_exponent) @ total)
                        now[node.name] = acting.arrived(t, node.name, sums[node.name])
                    case Flatten():
                        now[node.name] = total.reshape(-1)
                    case LIF():
                        u, v = state.get(node.name, (np.zeros(total.shape, np.int64), np.zeros(total.shape, np.int64)))
                        u = acting.current(acting.decay(u, int(node.current_decay)) + total * 64)
                        added = acting.bias(bias, t) * 64
                        v = acting.voltage(acting.decay(v, int(node.voltage_decay)) + u + added)
                        limit = int(node.v_threshold) * 64
                        fired = np.asarray(acting.fires(v, limit), bool)
                        state[node.name] = u, np.where(fired, acting.reset(v, limit, node.reset), v)
                        spikes[node.name].append(fired)
                        now[node.name] = fired.astype(np.int64)
                    case Readout():
                        readout = readout + acting.readout(total, bias, t)
        for key, steps in spikes.items():
            rasters[key].append(np.stack(steps))
        readouts.append(readout)
    return Trace.from_rasters(
        target=name,
        readouts=np.stack(readouts),
        rasters={key: np.stack(steps, axis=1) for key, steps in rasters.items()},
        keep_rasters=True,
        seconds=0.0,
        steps=samples * net.timesteps,
    )


def unlimited(node: Conv2d, x: np.ndarray) -> np.ndarray:
    """A convolution's sums without any width, by way of two halves that cannot wrap."""
    high, low = node.weight // 16, node.weight % 16  # node.weight == 16 * high + low

    def part(weight: np.ndarray) -> np.ndarray:
        piece = Conv2d(
            name=node.name, inputs=node.inputs, weight=weight.astype(np.int8), stride=node.stride,
            padding=node.padding, dilation=node.dilation, groups=node.groups,
        )  # fmt: skip
        return convolve(piece, x)

    return (16 * part(high) + part(low)) * 2**node.weight_exponent
