"""The executable definition of a network's semantics: batched torch, float and integer.

Integer networks follow the fixed-point model of Lava 0.10 (``LIF`` with ``select_tag='fixed_pt'``): synaptic sums
of a convolution wrap at 24 bits; u and v carry 6 fractional bits in 24 bits; decays are 12 bits and round towards
zero; u wraps, v saturates; a spike is strictly ``v > v_threshold << 6``. Every other target equals this one.
"""

import functools
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor

from snnkit.analysis.replay import REFERENCE, Layer
from snnkit.errors import UsageError
from snnkit.network import LIF, Affine, AvgPool2d, BatchNorm2d, Conv2d, Flatten, Input, Network, Node, Readout, Trace
from snnkit.network.inputs import encode_inputs
from snnkit.network.ir import Array, infer_shapes, verify
from snnkit.network.ranges import synaptic_bounds
from snnkit_targets._arithmetic import ONE, Bounds, Neurons, Synapses, filters, images

CHUNK_BYTES = {"cpu": 2**22}  # of the spikes of the largest layer, so that a layer stays in the caches
CHUNK_BYTES_ELSEWHERE = 2**28
PIECE_BYTES = 2**26  # of what a streamed trace keeps
_backends: Any = torch.backends
SETTINGS = (  # under which products of float32 are those of float32, always the same
    *((_backends.cuda.matmul, "fp32_precision", "ieee"), (_backends.cudnn.conv, "fp32_precision", "ieee")),
    *((_backends.mkldnn.matmul, "fp32_precision", "ieee"), (_backends.mkldnn.conv, "fp32_precision", "ieee")),
    *((_backends.cudnn, "benchmark", False), (_backends.cudnn, "deterministic", True)),
)


class Options(pydantic.BaseModel):
    """``record`` keeps counts or whole rasters; ``chunk``, how many samples are computed at once, is best left out."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    record: Literal["counts", "raster"] = "counts"
    device: str = "cpu"
    chunk: int | None = pydantic.Field(default=None, ge=1)


def available() -> str | None:
    """None: torch is a dependency of snnkit."""
    return None


def check(net: Network, options: Options) -> list[str]:  # noqa: ARG001 - the contract of every target
    """No reasons: the reference takes every network."""
    return []


def run(net: Network, inputs: Array, options: Options) -> Trace:
    """Runs raw inputs, direct [B, *shape] in 0..1 or events [T, B, *shape], for the network's timesteps."""
    return _Machine(net, options).run(inputs)


def state(net: Network, inputs: Array, sample: int, t: int, node: str) -> tuple[Array, Array]:
    """The u and v, int64 [*shape], of a neuron node of an integer network, as they are compared with the threshold.

    They are found again from the spikes that reached the node, by :mod:`snnkit.analysis.replay`.
    """
    axis = 0 if net.input.encoding == "direct" else 1
    one = inputs.take([sample], axis=axis)
    rasters = run(net, one, Options(record="raster")).rasters
    neuron = net[node]
    if rasters is None or not isinstance(neuron, LIF) or verify(net) != "integer":
        raise UsageError(f"'{node}' has no integer state", "name a neuron node of an integer network")
    replay = Layer(net, neuron, encode_inputs(net, one), rasters, infer_shapes(net)[node]).run(REFERENCE)
    return replay.u[t, 0], replay.v[t, 0]


def stream(net: Network, inputs: Array, options: Options) -> Iterator[tuple[Array, Trace]]:
    """The same run, some samples after the other: their raw inputs and trace, so that a set of any size fits."""
    machine = _Machine(net, options)
    for samples in machine.pieces(inputs, machine.piece):
        yield samples, machine.run(samples)


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """Switches off what may round a float32 sum of integers, whatever the caller has switched on; put back afterwards.

    That is autocast, TF32, bfloat16 and Winograd transforms. New tensors are on the CPU unless they say otherwise.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.backends.nnpack.flags(enabled=False))
        for owner, name, value in SETTINGS:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield


class _Machine:
    """A network with its arrays on a device, run a chunk of samples at a time.

    A layer computes all timesteps of a chunk before the next one does: one call for the sums, then a neuron update
    a timestep. A recurrent network goes from timestep to timestep.
    """

    def __init__(self, net: Network, options: Options) -> None:
        self.net, self.device = net, torch.device(options.device)
        self.raster = options.record == "raster"
        self.integer = verify(net) == "integer"
        self.shapes = infer_shapes(net)
        self.direct = net.input.encoding == "direct"
        sums = synaptic_bounds(net) if self.integer else {}
        bounds = {neuron.name: Bounds.of(net, neuron) if self.integer else None for neuron in net.neurons}
        apart = {
            edge.source
            for neuron in net.neurons
            for edge in neuron.inputs
            if filters(neuron) or ((found := bounds[neuron.name]) and found.wraps)
        }
        self.synapses = {
            node.name: Synapses(node, self.device, bound=sums.get(node.name), bias_apart=node.name in apart)
            for node in net.synapses
        }
        self.neurons = {
            node.name: Neurons(node, self._layers(node), self.shapes[node.name], self.device, bounds=bounds[node.name])
            for node in net.neurons
        }
        self.norms = {
            node.name: [
                torch.tensor(array, device=self.device)
                for array in (node.running_mean, node.running_var, node.weight, node.bias)
            ]
            for node in net.nodes
            if isinstance(node, BatchNorm2d)
        }
        self.static = self._find_static()
        last_reader = {edge.source: node.name for node in net.nodes for edge in node.inputs}
        self.done = {node.name: [s for s, reader in last_reader.items() if reader == node.name] for node in net.nodes}
        self.frames: dict[str, Tensor] = {}  # of every neuron node, its spikes as 0.0 and 1.0, [T, B, *shape]
        largest = max(math.prod(shape) for shape in self.shapes.values())
        budget = CHUNK_BYTES.get(self.device.type, CHUNK_BYTES_ELSEWHERE)
        self.chunk = options.chunk or max(1, budget // (4 * net.timesteps * largest))
        kept = sum(math.prod(self.shapes[neuron.name]) for neuron in net.neurons)
        kept *= 4 + (net.timesteps if self.raster else 0)
        self.piece = self.chunk * max(1, PIECE_BYTES // (self.chunk * max(1, kept)))

    def _layers(self, node: Node) -> list[Synapses]:
        return [self.synapses[edge.source] for edge in node.inputs if edge.source in self.synapses]

    def _find_static(self) -> set[str]:
        """Nodes whose value is the same at every timestep: a direct input, and what sees nothing else."""
        static: set[str] = set()
        for node in self.net.nodes:
            if isinstance(node, Input):
                if self.direct:
                    static.add(node.name)
            elif not isinstance(node, LIF | Readout) and all(e.source in static and not e.delay for e in node.inputs):
                static.add(node.name)
        return static

    def pieces(self, inputs: Array, size: int) -> Iterator[Array]:
        """Consecutive samples of raw inputs, ``size`` at a time; one empty piece where there are none."""
        axis = 0 if self.direct else 1
        for first in range(0, max(*inputs.shape[axis : axis + 1], 1), size):
            yield inputs[(slice(None),) * axis + (slice(first, first + size),)]

    def run(self, inputs: Array) -> Trace:
        """All samples, in chunks; only what the trace keeps grows with their number."""
        start = time.perf_counter()
        record: _Record | None = None
        first = 0
        with _exact(self.device):
            for piece in self.pieces(inputs, self.chunk):
                encoded = torch.from_numpy(encode_inputs(self.net, piece)).to(self.device)
                if record is None:  # not before the inputs were found to fit
                    record = _Record(self, inputs.shape[0 if self.direct else 1])
                frames = encoded[None] if self.direct else encoded  # the time in front, 1 where nothing changes
                self._run_chunk(frames, slice(first, first + frames.shape[1]), record)
                first += frames.shape[1]
        assert record is not None
        return record.trace(time.perf_counter() - start)

    def _run_chunk(self, encoded: Tensor, rows: slice, record: "_Record") -> None:
        timesteps, batch = self.net.timesteps, encoded.shape[1]
        for name, neurons in self.neurons.items():
            neurons.reset(batch)
            if name not in self.frames or self.frames[name].shape[1] != batch:
                flat = torch.empty((timesteps * batch, *self.shapes[name]), device=self.device)
                self.frames[name] = images(flat).reshape(timesteps, batch, *flat.shape[1:])
        self.frames[self.net.input.name] = encoded.expand(timesteps, *encoded.shape[1:])
        static: dict[str, Tensor] = {}
        answer = torch.zeros((batch, *self.shapes[self.net.readout.name]), dtype=torch.float64, device=self.device)
        for block in [slice(t, t + 1) for t in range(timesteps)] if self.net.recurrent else [slice(0, timesteps)]:
            values = dict(static)
            for node in self.net.nodes:
                if node.name in static:
                    continue
                match node:
                    case Input():
                        values[node.name] = encoded if self.direct else encoded[block]
                    case LIF():
                        values[node.name] = self._fire(node, self._sum(node, values, block), block)
                        if block.stop == timesteps:
                            record.spikes(node.name, rows, self.frames[node.name])
                            record.overflows[node.name] += self.neurons[node.name].overflows
                    case Readout():
                        answer = self._answer(node, self._sum(node, values, block), block, answer, rows, record)
                    case _:
                        values[node.name] = self._value(node, self._sum(node, values, block))
                if node.name in self.static:
                    static[node.name] = values[node.name]
                for name in self.done[node.name]:
                    values.pop(name, None)
        record.readouts[rows] = answer.to(record.readouts.dtype).cpu()

    def _sum(self, node: Node, values: dict[str, Tensor], block: slice) -> Tensor:
        """What a node reads in a block of timesteps, [T or 1, B, *shape]; what is before the first timestep is zero."""
        exact = isinstance(node, Readout) or (isinstance(node, LIF) and self.neurons[node.name].dtype == torch.float64)
        operands = []
        for edge in node.inputs:
            if edge.delay:
                frames = self.frames[edge.source]
                late = frames[max(block.start - edge.delay, 0) : max(block.stop - edge.delay, 0)]
                missing = block.stop - block.start - len(late)
                operand = torch.cat([frames.new_zeros((missing, *frames.shape[1:])), late]) if missing else late
            else:
                operand = values[edge.source]
            operands.append(operand.double() if exact and len(node.inputs) > 1 else operand)
        return functools.reduce(torch.add, operands)

    def _fire(self, node: LIF, current: Tensor, block: slice) -> Tensor:
        """The spikes of a neuron node in a block of timesteps, [T, B, *shape]."""
        spikes = self.frames[node.name][block]
        for t in range(len(spikes)):
            self.neurons[node.name].step(current[t if len(current) > 1 else 0], spikes[t])
        return spikes

    def _answer(
        self, node: Readout, current: Tensor, block: slice, before: Tensor, rows: slice, record: "_Record"
    ) -> Tensor:
        """The readout [B, classes] at the end of a block."""
        current = current.double()
        layers = self._layers(node)
        for layer in layers:
            if layer.bias is not None:
                current = current + layer.bias
        if self.integer and layers:
            current = current / ONE
        steps = current.expand(block.stop - block.start, *current.shape[1:]).cumsum(0) + before
        if record.readouts_per_step is not None:
            record.readouts_per_step[block, rows] = steps.to(record.readouts.dtype).cpu()
        return steps[-1]

    def _value(self, node: Node, x: Tensor) -> Tensor:
        """The output of a node without a state, [T or 1, B, *shape] like its input."""
        flat, leading = x.flatten(0, 1), x.shape[:2]
        match node:
            case Conv2d() | Affine():
                flat = self.synapses[node.name](flat)
            case Flatten():
                flat = flat.flatten(1)
            case AvgPool2d():
                flat = F.avg_pool2d(flat, node.kernel_size, node.stride)
            case BatchNorm2d():
                mean, var, weight, bias = self.norms[node.name]
                flat = F.batch_norm(flat, mean, var, weight, bias, training=False, eps=node.eps)
        return flat.reshape(*leading, *flat.shape[1:])


class _Record:
    """The arrays of a trace, made once and filled chunk by chunk."""

    def __init__(self, machine: _Machine, samples: int) -> None:
        net, shapes = machine.net, machine.shapes
        answers = (samples, *shapes[net.readout.name])
        dtype = torch.int64 if machine.integer else torch.float32
        self.samples, self.timesteps = samples, net.timesteps
        self.readouts = torch.empty(answers, dtype=dtype)
        self.readouts_per_step = torch.empty((net.timesteps, *answers), dtype=dtype) if machine.raster else None
        self.per_step, self.per_neuron, self.rasters = {}, {}, {}
        for node in net.neurons:
            shape = (samples, *shapes[node.name])
            self.per_step[node.name] = torch.empty((net.timesteps, samples), dtype=torch.int32)
            self.per_neuron[node.name] = torch.empty(shape, dtype=torch.int32)
            if machine.raster:
                self.rasters[node.name] = torch.empty((net.timesteps, *shape), dtype=torch.bool)
        self.overflows = dict.fromkeys(self.per_step, 0)

    def spikes(self, name: str, rows: slice, frames: Tensor) -> None:
        """Takes a node's spikes, 0.0 and 1.0 [T, B, *shape], of all timesteps."""
        self.per_step[name][:, rows] = frames.sum(dim=tuple(range(2, frames.ndim))).int().cpu()
        total = frames[0].clone()
        for step in frames[1:]:
            total += step
        self.per_neuron[name][rows].copy_(total)
        if self.rasters:
            self.rasters[name][:, rows].copy_(frames)

    def trace(self, seconds: float) -> Trace:
        """What was recorded, as numpy arrays."""
        return Trace(
            target="reference",
            readouts=self.readouts.numpy(),
            spikes_per_step={name: counts.numpy() for name, counts in self.per_step.items()},
            spikes_per_neuron={name: counts.numpy() for name, counts in self.per_neuron.items()},
            rasters={name: raster.numpy() for name, raster in self.rasters.items()} if self.rasters else None,
            readouts_per_step=None if self.readouts_per_step is None else self.readouts_per_step.numpy(),
            overflows=self.overflows,
            seconds=seconds,
            steps=self.samples * self.timesteps,
        )
