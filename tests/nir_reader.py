"""NIR graphs as ``nir`` reads them, run by their equations: one Euler step of dt at a time, in float64.

Written from the docstrings of nir 1.0.8 (``nir/ir/neuron.py``), without any code of the project. An IF whose r is 1
takes its input as it comes. What a node reads from a later one is what that sent at the timestep before.
"""

from typing import Any

import nir
import numpy as np


def convolve(x: np.ndarray, weight: np.ndarray, stride: Any, padding: Any, dilation: Any, groups: int) -> np.ndarray:
    """[C, H, W] to [O, H', W'], as explicit sums over windows."""
    (sy, sx), (py, px), (dy, dx) = (np.broadcast_to(np.ravel(pair), 2) for pair in (stride, padding, dilation))
    padded = np.pad(x, ((0, 0), (py, py), (px, px)))
    outputs, per_group, ky, kx = weight.shape
    height = (padded.shape[1] - dy * (ky - 1) - 1) // sy + 1
    width = (padded.shape[2] - dx * (kx - 1) - 1) // sx + 1
    result = np.zeros((outputs, height, width))
    for o in range(outputs):
        first = o // (outputs // groups) * per_group
        for y in range(ky):
            for k in range(kx):
                window = padded[first : first + per_group, y * dy :: sy, k * dx :: sx][:, :height, :width]
                result[o] += np.tensordot(weight[o, :, y, k].astype(np.float64), window, 1)
    return result


NEURONS = (nir.IF, nir.LIF, nir.CubaLIF, nir.Threshold)


class Reader:
    """A graph with its state; ``step`` takes one sample's input [*shape] and returns all values by node."""

    def __init__(self, graph: nir.NIRGraph, dt: float, *, subtract: bool = False) -> None:
        self.graph, self.dt, self.subtract = graph, dt, subtract
        self.state: dict[str, np.ndarray] = {}
        self.last: dict[str, np.ndarray] = {}
        self.lines: dict[str, list[np.ndarray]] = {}
        self.depth = self.depths()
        self.sources = {name: [a for a, b in graph.edges if b == name] for name in graph.nodes}

    def step(self, x: np.ndarray) -> dict[str, np.ndarray]:
        now = {name: self.delayed(name) for name, node in self.graph.nodes.items() if isinstance(node, nir.Delay)}
        pending = [name for name in self.graph.nodes if name not in now]
        while pending:
            ready = [name for name in pending if all(s in now for s in self.sources[name])]
            # where all wait for each other, what leads back to a neuron reads its spikes of the timestep before
            name = ready[0] if ready else next(name for name in pending if self.leads_back(name, now))
            pending.remove(name)
            values = [now[s] if s in now else self.last.get(s, 0.0) for s in self.sources[name]]
            now[name] = self.value(name, x if isinstance(self.graph.nodes[name], nir.Input) else sum(values))
        for name, line in self.lines.items():
            line.append(sum(now[s] for s in self.sources[name]))
        self.last = now
        return now

    def delayed(self, name: str) -> np.ndarray:
        line, delay = self.lines.setdefault(name, []), self.graph.nodes[name].delay
        steps = round(float(delay.flat[0]) / self.dt)
        return line[-steps] if len(line) >= steps else np.zeros(delay.shape)

    def leads_back(self, name: str, now: dict[str, np.ndarray]) -> bool:
        waiting = [s for s in self.sources[name] if s not in now]
        return all(isinstance(self.graph.nodes[s], NEURONS) and self.depth[s] >= self.nearest(name) for s in waiting)

    def nearest(self, name: str) -> int:
        """The depth of the first neurons that a node reaches."""
        if isinstance(self.graph.nodes[name], NEURONS):
            return self.depth[name]
        targets = [b for a, b in self.graph.edges if a == name]
        return min((self.nearest(target) for target in targets), default=10**6)

    def depths(self) -> dict[str, int]:
        """Distances from the input, in edges."""
        depth = dict.fromkeys(self.graph.inputs, 0)
        while more := {b: depth[a] + 1 for a, b in self.graph.edges if a in depth and b not in depth}:
            depth |= more
        return depth

    def value(self, name: str, x: Any) -> np.ndarray:
        node = self.graph.nodes[name]
        match node:
            case nir.Input() | nir.Output():
                return np.asarray(x, np.float64)
            case nir.Affine() | nir.Linear():
                x = np.broadcast_to(x, node.weight.shape[1])
                return node.weight.astype(np.float64) @ x + (node.bias if isinstance(node, nir.Affine) else 0.0)
            case nir.Conv2d():
                if not np.ndim(x):
                    x = np.zeros((node.weight.shape[1] * int(node.groups), *node.input_shape))
                out = convolve(x, node.weight, node.stride, node.padding, node.dilation, int(node.groups))
                return out + node.bias[:, None, None]
            case nir.Conv1d():
                if not np.ndim(x):
                    x = np.zeros((node.weight.shape[1] * int(node.groups), node.input_shape))
                pairs = ((1, node.stride), (0, node.padding), (1, node.dilation))
                along = [(fill, int(np.ravel(value)[0])) for fill, value in pairs]
                out = convolve(x[:, None], node.weight[:, :, None], *along, int(node.groups))
                return out[:, 0] + node.bias[:, None]
            case nir.AvgPool2d() | nir.SumPool2d():
                ky, kx = np.broadcast_to(np.ravel(node.kernel_size), 2)
                kernel = np.zeros((x.shape[0], x.shape[0], ky, kx))
                kernel[range(len(x)), range(len(x))] = 1 / (ky * kx) if isinstance(node, nir.AvgPool2d) else 1
                return convolve(x, kernel, node.stride, node.padding, (1, 1), 1)
            case nir.Flatten():
                return np.reshape(x, -1)
            case nir.Scale():
                return node.scale * x
            case nir.Threshold():
                return (x > node.threshold).astype(np.float64)
        return self.neuron(name, node, x)

    def neuron(self, name: str, node: Any, x: Any) -> np.ndarray:
        dt = self.dt
        v = self.state.get(name, 0.0)
        if isinstance(node, nir.IF | nir.I):
            v = v + (node.r if np.all(node.r == 1) else node.r * dt) * x
        elif isinstance(node, nir.CubaLIF):
            current = self.state.get(f"{name} current", 0.0)
            current = current + dt / node.tau_syn * (node.w_in * x - current)
            self.state[f"{name} current"] = current
            v = v + dt / node.tau_mem * (node.v_leak - v + node.r * current)
        else:
            v = v + dt / node.tau * (node.v_leak - v + node.r * x)
        if isinstance(node, nir.LI | nir.I):
            self.state[name] = v
            return v
        spikes = v > node.v_threshold
        self.state[name] = np.where(spikes, v - node.v_threshold if self.subtract else node.v_reset, v)
        return spikes.astype(np.float64)


def simulate(
    graph: nir.NIRGraph, inputs: np.ndarray, timesteps: int, *, dt: float = 1e-4, subtract: bool = False
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """One sample, constant [*shape] or [T, *shape]: rasters [T, *shape] by neuron, the output summed over time."""
    reader = Reader(graph, dt, subtract=subtract)
    rasters: dict[str, list[np.ndarray]] = {}
    output = 0.0
    direct = inputs.ndim == len(next(iter(graph.inputs.values())).input_type["input"])
    for t in range(timesteps):
        values = reader.step(inputs if direct else inputs[t])
        for name, node in graph.nodes.items():
            if isinstance(node, NEURONS):
                rasters.setdefault(name, []).append(values[name].astype(bool))
        (end,) = graph.outputs
        output = output + values[end]
    return {name: np.stack(steps) for name, steps in rasters.items()}, np.asarray(output)
