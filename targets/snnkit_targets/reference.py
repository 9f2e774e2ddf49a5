"""The executable definition of a network's semantics: batched torch, float and integer.

Integer networks follow the fixed-point model of Lava 0.10 (``LIF`` with ``select_tag='fixed_pt'``): synaptic sums
of a convolution wrap at 24 bits; u and v carry 6 fractional bits in 24 bits; decays are 12 bits and round towards
zero; u wraps, v saturates; a spike is strictly ``v > v_threshold << 6``. Every other target equals this one.
"""

import dataclasses
import functools
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor

from snnkit.network import LIF, Affine, AvgPool2d, BatchNorm2d, Conv2d, Flatten, Input, Network, Node, Readout, Trace
from snnkit.network.inputs import encode_inputs
from snnkit.network.ir import DECAY_ONE, Array, Synapse, infer_shapes, verify
from snnkit.network.ranges import FRACTION_BITS, STATE_LIMIT, synaptic_bounds


class Options(pydantic.BaseModel):
    """``record`` keeps counts or whole rasters; ``chunk`` is how many samples are computed at once."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    record: Literal["counts", "raster"] = "counts"
    device: str = "cpu"
    chunk: int = pydantic.Field(default=128, ge=1)


def available() -> str | None:
    """None: torch is a dependency of snnkit."""
    return None


def check(net: Network, options: Options) -> list[str]:  # noqa: ARG001 - the contract of every target
    """No reasons: the reference takes every network."""
    return []


def run(net: Network, inputs: Array, options: Options) -> Trace:
    """Runs raw inputs, direct [B, *shape] in 0..1 or events [T, B, *shape], for the network's timesteps."""
    return Trace.join([trace for _, trace in stream(net, inputs, options)])


def stream(net: Network, inputs: Array, options: Options) -> Iterator[tuple[Array, Trace]]:
    """The same run, some samples after the other: their raw inputs and trace, so that a set of any size fits."""
    axis = 0 if net.input.encoding == "direct" else 1
    machine = _Machine(net, torch.device(options.device), raster=options.record == "raster")
    for first in range(0, max(*inputs.shape[axis : axis + 1], 1), options.chunk):
        piece = inputs[(slice(None),) * axis + (slice(first, first + options.chunk),)]
        start = time.perf_counter()
        with torch.inference_mode(), _exact_convolutions():
            trace = machine.run(torch.from_numpy(encode_inputs(net, piece)))
        yield piece, dataclasses.replace(trace, seconds=time.perf_counter() - start)


@contextmanager
def _exact_convolutions() -> Iterator[None]:
    """Switches off what may round a float32 convolution of integers: TF32 and Winograd transforms."""
    cudnn = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with cudnn, torch.backends.nnpack.flags(enabled=False):
        yield


class _Machine:
    """A network with its arrays on a device, run a chunk of samples at a time, one timestep after the other."""

    def __init__(self, net: Network, device: torch.device, *, raster: bool) -> None:
        self.net, self.device, self.raster = net, device, raster
        self.integer = verify(net) == "integer"
        self.shapes = infer_shapes(net)
        self.longest_delay = max(edge.delay for node in net.nodes for edge in node.inputs)
        bounds = synaptic_bounds(net) if self.integer else {}
        self.synapses = {node.name: _Synapses(node, device, bound=bounds.get(node.name)) for node in net.synapses}

    def _static(self) -> set[str]:
        """Nodes whose value is the same at every timestep: a direct input, and what sees nothing else."""
        static: set[str] = set()
        for node in self.net.nodes:
            if isinstance(node, Input):
                if node.encoding == "direct":
                    static.add(node.name)
            elif not isinstance(node, LIF | Readout) and all(e.source in static and not e.delay for e in node.inputs):
                static.add(node.name)
        return static

    def run(self, encoded: Tensor) -> Trace:
        """One chunk, direct [B, *shape] or events [T, B, *shape]."""
        net = self.net
        encoded = encoded.to(self.device)
        direct = net.input.encoding == "direct"
        batch = encoded.shape[0 if direct else 1]
        zeros = {name: torch.zeros((batch, *shape), device=self.device) for name, shape in self.shapes.items()}
        neurons = {node.name: _Neurons(node, zeros[node.name], integer=self.integer) for node in net.neurons}
        readout = zeros[net.readout.name].to(torch.int64 if self.integer else torch.float32)
        rasters: dict[str, list[Array]] = {name: [] for name in neurons}
        answers: list[Array] = []
        per_step: dict[str, list[Array]] = {name: [] for name in neurons}
        per_neuron = {name: zeros[name].to(torch.int32) for name in neurons}
        static: dict[str, Tensor] = {}
        history: deque[dict[str, Tensor]] = deque(maxlen=1 + self.longest_delay)  # newest first

        for t in range(net.timesteps):
            now = dict(static)
            history.appendleft(now)
            for node in net.nodes:
                if node.name in now:
                    continue
                operands = [
                    history[edge.delay][edge.source] if edge.delay < len(history) else zeros[edge.source]
                    for edge in node.inputs
                ]
                match node:
                    case Input():
                        now[node.name] = encoded if direct else encoded[t]
                    case LIF():
                        spikes = neurons[node.name].step(_total(operands), self._bias(node))
                        now[node.name] = spikes.to(torch.float32)
                        per_step[node.name].append(_numpy(spikes.flatten(1).sum(1, dtype=torch.int32)))
                        per_neuron[node.name] += spikes
                        if self.raster:
                            rasters[node.name].append(_numpy(spikes))
                    case Readout():
                        readout = readout + _total(operands).to(readout.dtype) + self._bias(node)
                        if self.raster:
                            answers.append(_numpy(readout))
                    case _:
                        now[node.name] = self._value(node, _total(operands))
            if t == 0:
                static = {name: now[name] for name in self._static()}

        return Trace(
            target="reference",
            readouts=_numpy(readout),
            spikes_per_step={name: np.stack(steps) for name, steps in per_step.items()},
            spikes_per_neuron={name: _numpy(counts) for name, counts in per_neuron.items()},
            rasters={name: np.stack(steps) for name, steps in rasters.items()} if self.raster else None,
            readouts_per_step=np.stack(answers) if self.raster else None,
            overflows={name: int(group.overflows) for name, group in neurons.items()},
            steps=batch * net.timesteps,
        )

    def _bias(self, node: Node) -> Tensor | int:
        """The summed biases of an integer node's synapses: they bypass u. A float synapse has added its own."""
        if not self.integer:
            return 0
        layers = [self.synapses[edge.source] for edge in node.inputs if edge.source in self.synapses]
        return sum(layer.bias for layer in layers if layer.bias is not None)

    def _value(self, node: Node, x: Tensor) -> Tensor:
        match node:
            case Conv2d() | Affine():
                return self.synapses[node.name](x)
            case Flatten():
                return x.flatten(1)
            case AvgPool2d():
                return F.avg_pool2d(x, node.kernel_size, node.stride)
            case BatchNorm2d():
                arrays = (node.running_mean, node.running_var, node.weight, node.bias)
                mean, var, weight, bias = (torch.tensor(array, device=self.device) for array in arrays)
                return F.batch_norm(x, mean, var, weight, bias, training=False, eps=node.eps)
        raise AssertionError(f"unknown node {node!r}")


class _Synapses:
    """A Conv2d or Affine node: weights on the device, sums exact for integers whose size stays below ``bound``."""

    def __init__(self, node: Synapse, device: torch.device, *, bound: int | None) -> None:
        self.node, self.integer = node, bound is not None
        self.dtype = torch.float32 if bound is None or bound < 2**24 else torch.float64
        self.weight = torch.tensor(node.effective_weight, dtype=self.dtype, device=device)
        self.bias: Tensor | None = None
        if node.bias is not None:
            bias = torch.tensor(node.bias, dtype=torch.int64 if self.integer else torch.float32, device=device)
            self.bias = bias.reshape(-1, 1, 1) if isinstance(node, Conv2d) else bias

    def __call__(self, x: Tensor) -> Tensor:
        """[B, *in] to [B, *out]: float with the bias added, integer (int64) without it."""
        x = x.to(self.dtype)
        if isinstance(self.node, Conv2d):
            node = self.node
            out = F.conv2d(x, self.weight, None, node.stride, node.padding, node.dilation, node.groups)
        else:
            out = F.linear(x, self.weight)
        if not self.integer:
            return out if self.bias is None else out + self.bias
        sums = out.to(torch.int64)
        if isinstance(self.node, Affine):
            return sums
        return torch.remainder(sums + STATE_LIMIT, 2 * STATE_LIMIT) - STATE_LIMIT


class _Neurons:
    """The state of one LIF node for a batch of samples."""

    def __init__(self, node: LIF, zeros: Tensor, *, integer: bool) -> None:
        self.node, self.integer = node, integer
        dtype = torch.int64 if integer else torch.float32
        self.u = self.v = zeros.to(dtype)
        self.overflows = torch.zeros((), dtype=torch.int64, device=zeros.device)

        def parameter(values: Array) -> Tensor:
            tensor = torch.tensor(values, dtype=dtype, device=zeros.device)
            return tensor.reshape(-1, *[1] * (zeros.ndim - 2)) if tensor.ndim else tensor

        self.threshold = parameter(node.v_threshold) << FRACTION_BITS if integer else parameter(node.v_threshold)
        self.keep_u = DECAY_ONE - parameter(node.current_decay)
        self.keep_v = DECAY_ONE - parameter(node.voltage_decay)

    def step(self, current: Tensor, bias: Tensor | int) -> Tensor:
        """One timestep; returns the spikes, bool [B, *shape]."""
        if self.integer:
            self._step_integer(current, bias)
        else:
            self.u = self.u * (self.keep_u / DECAY_ONE) + current
            self.v = self.v * (self.keep_v / DECAY_ONE) + self.u
        spikes = self.v > self.threshold
        spent = self.v - self.threshold if self.node.reset == "subtract" else torch.zeros_like(self.v)
        self.v = torch.where(spikes, spent, self.v)
        return spikes

    def _step_integer(self, current: Tensor, bias: Tensor | int) -> None:
        u = torch.div(self.u * self.keep_u, DECAY_ONE, rounding_mode="trunc") + (current << FRACTION_BITS)
        wrapped = torch.where(u > STATE_LIMIT, u - 2 * STATE_LIMIT, u)
        self.u = torch.where(wrapped <= -STATE_LIMIT, wrapped + 2 * STATE_LIMIT, wrapped)
        v = torch.div(self.v * self.keep_v, DECAY_ONE, rounding_mode="trunc") + self.u + (bias << FRACTION_BITS)
        self.v = v.clamp(-(STATE_LIMIT - 1), STATE_LIMIT - 1)
        self.overflows += (self.u != u).sum() + (self.v != v).sum()


def _total(operands: list[Tensor]) -> Tensor:
    return functools.reduce(torch.add, operands)


def _numpy(tensor: Tensor) -> Array:
    array: Array = tensor.cpu().numpy()
    return array
