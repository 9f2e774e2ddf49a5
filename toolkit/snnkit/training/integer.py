"""An integer network as a torch module that can be trained: its forward pass is the chip's arithmetic, exactly.

Integers are held in float32, exact below 2**24, or in float64 where a layer's sums could leave the 24 bits of the
chip's state. Trained are unrounded weights and biases; rounding passes gradients through (Bengio et al. 2013,
arXiv:1308.3432) and spikes have the surrogate gradient of the student. Time is an axis of all tensors.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnkit.errors import NetworkError, UnsupportedError
from snnkit.network import LIF, Affine, Conv2d, Edge, Flatten, Input, Network, Node, Readout, verify
from snnkit.network.ir import BIAS_MAX, BIAS_MIN, DECAY_ONE, Array, Synapse
from snnkit.network.ranges import FRACTION_BITS, STATE_LIMIT, SUM_LIMIT, Range, Ranges, largest_value
from snnkit.training.surrogates import SLOPES

ONE = 2**FRACTION_BITS  # the unit of weights and thresholds, in units of u and v


class IntegerNetwork(nn.Module):
    """``forward`` takes raw inputs, [N, *shape] or events [T, N, *shape], and gives logits [T, N, K] in float units.

    ``weights`` are unrounded integer weights by node, where they shall not start from those of ``net``. The scales in
    the network's metadata stay as they are, and with them the thresholds. ``surrogate`` and ``alpha`` are those of
    :class:`snnkit.training.neurons.SpikingNeuron`. Raises :class:`UnsupportedError` for recurrent networks.
    """

    def __init__(
        self,
        net: Network,
        weights: Mapping[str, Array] | None = None,
        *,
        surrogate: str = "sigmoid",
        alpha: float = 4.0,
    ) -> None:
        super().__init__()
        if verify(net) != "integer":
            raise NetworkError("the network is not quantised", "quantise it first")
        if net.recurrent:
            raise UnsupportedError(
                "the network cannot be run layer by layer", ["it is recurrent"], "use the reference target"
            )
        self.net, self.timesteps = net, net.timesteps
        facts: dict[str, Any] = net.metadata.get("quantization", {})
        bits, scales = facts.get("weight_bits", 8), facts.get("scales", {})
        self.observing = False
        self.seen = torch.zeros(3, 2, dtype=torch.float64)  # of the readout, as of Neurons
        self.layers = nn.ModuleDict()
        for node in net.nodes:
            if isinstance(node, Synapse):
                largest = sum(largest_value(net, net[edge.source]) for edge in node.inputs)
                unrounded = (weights or {}).get(node.name, node.weight)
                self.layers[key(node.name)] = Synapses(node, unrounded, bits, largest)
            elif isinstance(node, LIF):
                self.layers[key(node.name)] = Neurons(node, net.timesteps, scales.get(node.name, 1.0), surrogate, alpha)
        self.logit = 2.0 * float(scales.get(net.readout.name, 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.readouts(x) / self.logit

    def readouts(self, x: Tensor) -> Tensor:
        """What each timestep adds to the readout, integers [T, N, K]; under autocast, too, which would round sums."""
        with torch.autocast(x.device.type, enabled=False):
            return self._readouts(x)

    def _readouts(self, x: Tensor) -> Tensor:
        net = self.net
        values: dict[str, Tensor] = {}
        for node in net.nodes:
            arrived = [self._delayed(values[edge.source], edge) for edge in node.inputs]
            match node:
                case Input():
                    encoded = encode(node, x)
                    values[node.name] = encoded if node.encoding == "events" else encoded[None]
                case Flatten():
                    values[node.name] = _total(arrived).flatten(2)
                case Synapse():
                    values[node.name] = self.layers[key(node.name)](_total(arrived))
                case LIF():
                    layers = self._layers(node)
                    wide = sum(layer.peak for layer in layers) > SUM_LIMIT
                    currents = [layer.wrapped(a) for layer, a in zip(layers, arrived, strict=True)] if wide else arrived
                    bias = _total([b for layer in layers if (b := layer.shaped_bias) is not None])
                    neurons: Neurons = self.layers[key(node.name)]  # type: ignore[assignment]
                    neurons.observing = self.observing
                    values[node.name] = neurons(_total(currents), bias)
                case Readout():
                    biases = [b for layer in self._layers(node) if (b := layer.shaped_bias) is not None]
                    total = _total([*arrived, *biases])
                    values[node.name] = total.expand(net.timesteps, *total.shape[1:])
                    if self.observing:
                        sums, answers = _total(arrived).double(), values[node.name].double().cumsum(0)
                        self.seen = torch.stack([torch.stack(x.aminmax()) for x in (sums, sums * ONE, answers * ONE)])
        return values[net.readout.name]

    def _layers(self, node: Node) -> "list[Synapses]":
        return [layer for edge in node.inputs if isinstance(layer := self.layers[key(edge.source)], Synapses)]

    def _delayed(self, x: Tensor, edge: Edge) -> Tensor:
        """[1 or T, N, ...], later by the edge's delay: zeros come first."""
        if not edge.delay:
            return x
        x = x.expand(self.timesteps, *x.shape[1:])
        late = x[: max(0, self.timesteps - edge.delay)]
        return torch.cat([torch.zeros_like(x[: self.timesteps - len(late)]), late])

    @torch.no_grad()
    def predict(self, x: Tensor, batch_size: int = 256) -> Array:
        """The class with the largest readout for raw inputs, int64 [N]; in integers, so that ties are as exported."""
        device = next(self.parameters()).device
        batches = x.split(batch_size, 0 if self.net.input.encoding == "direct" else 1)  # type: ignore[no-untyped-call]
        sums = [self.readouts(batch.to(device)).double().sum(0) for batch in batches]
        answers: Array = torch.cat(sums).argmax(1).cpu().numpy()
        return answers

    @torch.no_grad()
    def clip(self) -> None:
        """Keeps what is trained within the format, where its gradient does not vanish."""
        for layer in self.layers.values():
            if isinstance(layer, Synapses):
                layer.weight.clamp_(-1, 1)

    def network(self) -> Network:
        """The integer network as it is trained now."""
        nodes: list[Node] = []
        for node in self.net.nodes:
            layer = self.layers[key(node.name)] if isinstance(node, Synapse) else None
            nodes.append(layer.rounded(node) if isinstance(layer, Synapses) and isinstance(node, Synapse) else node)
        net = dataclasses.replace(self.net, nodes=tuple(nodes))
        verify(net)
        return net

    @torch.no_grad()
    def observe(self, x: Tensor, batch_size: int = 128) -> dict[str, Ranges]:
        """The ranges that sums, u and v of each neuron node, and of a membrane readout, have over raw inputs, before
        wrapping and saturation.
        """
        self.observing = True
        nodes: list[Node] = list(self.net.neurons)
        if self.net.readout.mode == "membrane":
            nodes.append(self.net.readout)
        found: dict[str, Tensor] = {}
        for batch in x.split(batch_size, 0 if self.net.input.encoding == "direct" else 1):  # type: ignore[no-untyped-call]
            self.readouts(batch)
            for node in nodes:
                seen: Tensor = self.layers[key(node.name)].seen if isinstance(node, LIF) else self.seen  # type: ignore[assignment]
                before = found.get(node.name, seen)
                found[node.name] = torch.stack(
                    [torch.minimum(before[:, 0], seen[:, 0]), torch.maximum(before[:, 1], seen[:, 1])], dim=1
                )
        self.observing = False
        limits = (SUM_LIMIT, STATE_LIMIT - 1, STATE_LIMIT - 1)
        return {
            name: Ranges(*(Range(int(low), int(high), limit) for (low, high), limit in zip(pairs, limits, strict=True)))
            for name, pairs in ((name, seen.tolist()) for name, seen in found.items())
        }


class Synapses(nn.Module):
    """A Conv2d or Affine node on [T, N, ...]: sums of integers, without the bias, which is the neurons' affair.

    What is trained is in units of the largest weight of the format, so that all layers take the same learning rate.
    """

    def __init__(self, node: Synapse, unrounded: Array, bits: int, largest_input: int) -> None:
        super().__init__()
        self.node, self.largest_input = node, largest_input
        self.unit = 2**node.weight_exponent
        self.limit = max(2 ** (bits - 1) - 1, int(np.abs(node.weight.astype(int)).max()))
        self.weight = nn.Parameter(torch.tensor(np.asarray(unrounded) / self.limit, dtype=torch.float32))
        self.bias: nn.Parameter | None = None
        if node.bias is not None:
            self.bias = nn.Parameter(torch.tensor(node.bias / (self.unit * self.limit), dtype=torch.float32))
        self.peak = 0

    def integer_weight(self) -> Tensor:
        return _Round.apply((self.weight * self.limit).clamp(-self.limit, min(self.limit, 127)))  # type: ignore[no-any-return, no-untyped-call]

    @property
    def shaped_bias(self) -> Tensor | None:
        """Integers that broadcast to the output."""
        if self.bias is None:
            return None
        bias: Tensor = _Round.apply((self.bias * (self.unit * self.limit)).clamp(BIAS_MIN, BIAS_MAX))  # type: ignore[no-untyped-call]
        return bias.reshape(-1, 1, 1) if isinstance(self.node, Conv2d) else bias

    def forward(self, x: Tensor) -> Tensor:
        weight = self.integer_weight()
        with torch.no_grad():
            flat = weight.flatten(1).double()
            sums = torch.stack([flat.clamp(min=0).sum(1).max(), -flat.clamp(max=0).sum(1).min()])
            self.peak = int(sums.max()) * self.largest_input * self.unit
        if self.peak >= 2**24:  # more than float32 holds exactly
            x, weight = x.double(), weight.double()
        if isinstance(self.node, Affine):
            return F.linear(x, weight * self.unit)
        node: Any = self.node
        folded = x.flatten(0, 1)
        out = F.conv2d(folded, weight * self.unit, None, node.stride, node.padding, node.dilation, node.groups)
        if out.is_cuda:  # where an algorithm may be chosen that leaves the last digit open
            out = _Round.apply(out)  # type: ignore[no-untyped-call]
        return out.unflatten(0, x.shape[:2])  # type: ignore[no-untyped-call, no-any-return]

    def wrapped(self, sums: Tensor) -> Tensor:
        """In float64; those of a convolution in 24 bits."""
        sums = sums.double()
        if isinstance(self.node, Affine):
            return sums
        return torch.remainder(sums + STATE_LIMIT, 2 * STATE_LIMIT) - STATE_LIMIT

    @torch.no_grad()
    def rounded(self, node: Synapse) -> Synapse:
        """The node with the weights and biases as they are now."""
        weight = self.integer_weight().cpu().numpy().astype(np.int8)
        bias = self.shaped_bias
        values = None if bias is None else bias.flatten().cpu().numpy().astype(np.int32)
        return dataclasses.replace(node, weight=weight, bias=values)


class Neurons(nn.Module):
    """A LIF node: ``forward`` takes sums [1 or T, N, *shape] and their biases, and gives spikes, float32 [T, N, ...].

    ``seen``, after a pass with ``observing``: least and largest sum, u and v, [3, 2].
    """

    seen: Tensor

    def __init__(self, node: LIF, timesteps: int, scale: Any, surrogate: str, alpha: float) -> None:
        super().__init__()
        self.node, self.timesteps, self.alpha = node, timesteps, alpha
        self.slope = SLOPES[surrogate]
        self.observing = False
        self.register_buffer("seen", torch.zeros(3, 2, dtype=torch.float64), persistent=False)
        scale = np.asarray(scale, np.float64)
        parameters = {
            "threshold": np.asarray(node.v_threshold, np.float64) * ONE,
            "keep_u": DECAY_ONE - node.current_decay.astype(np.float64),
            "keep_v": DECAY_ONE - node.voltage_decay.astype(np.float64),
            "per_float": 1 / (2 * ONE * scale),  # u and v in float units
            "theta": (node.v_threshold + 1) / (2 * scale),
        }
        self.constants: dict[str, float | Tensor] = {}
        for name, values in parameters.items():
            if np.ndim(values) == 0 or values.size == 1:
                self.constants[name] = float(values)
            else:
                self.register_buffer(name, torch.tensor(values, dtype=torch.float64), persistent=False)

    def constant(self, name: str, like: Tensor) -> float | Tensor:
        """A parameter as a number, or per channel in the shape and type of [T, N, C, ...]."""
        if name in self.constants:
            return self.constants[name]
        return self.get_buffer(name).to(like.dtype).reshape(-1, *[1] * (like.dim() - 3))

    def forward(self, sums: Tensor, bias: Tensor | int) -> Tensor:
        return _Fire.apply(sums, bias, self)  # type: ignore[no-any-return, no-untyped-call]

    def run(self, sums: Tensor, bias: Tensor | int) -> tuple[Tensor, Tensor]:
        """What v is before the reset at every timestep, and the spikes, float32; both [T, N, ...]: the reference's
        step, exactly.
        """
        threshold = self.constant("threshold", sums)
        filtered = bool((self.node.current_decay < DECAY_ONE).any())
        keep_u, keep_v = self.constant("keep_u", sums), self.constant("keep_v", sums)
        wide = filtered or sums.dtype == torch.float64
        first = sums[0]  # whose memory layout is kept
        size, stride = (self.timesteps, *first.shape), (first.numel(), *first.stride())
        voltages = torch.empty_strided(size, stride, dtype=sums.dtype, device=sums.device)
        spikes = torch.empty_strided(size, stride, dtype=torch.float32, device=sums.device)
        extremes: list[Tensor] = []
        u = v = torch.zeros_like(sums[0])
        bias = bias * ONE
        for t in range(self.timesteps):
            entering = sums[min(t, len(sums) - 1)] * ONE
            u = _decayed(u, keep_u).add_(entering) if filtered else entering
            if self.observing:
                extremes.append(torch.stack(u.aminmax()))
            if wide:
                u = torch.where(u > STATE_LIMIT, u - 2 * STATE_LIMIT, u)
                u = torch.where(u <= -STATE_LIMIT, u + 2 * STATE_LIMIT, u)
            torch.add(_decayed(v, keep_v).add_(u), bias, out=voltages[t])
            v = voltages[t].clamp(-(STATE_LIMIT - 1), STATE_LIMIT - 1)
            torch.gt(v, threshold, out=spikes[t])
            fired = spikes[t].to(v.dtype)
            v -= fired * (threshold if self.node.reset == "subtract" else v)
        if self.observing:
            seen = (sums, torch.stack(extremes), voltages)
            self.seen = torch.stack([torch.stack(values.aminmax()) for values in seen]).double()
        return voltages, spikes


class _Fire(torch.autograd.Function):
    """The neurons over all timesteps at once; backwards the surrogate's slope, without the path through the reset."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor, bias: Tensor | int, neurons: Neurons) -> Tensor:
        voltages, spikes = neurons.run(sums, bias)
        ctx.neurons, ctx.static = neurons, len(sums) == 1
        ctx.bias_shape = bias.shape if isinstance(bias, Tensor) else None
        ctx.save_for_backward(voltages, spikes)
        return spikes

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (voltages, spikes), neurons = ctx.saved_tensors, ctx.neurons
        per_float, theta, keep_u, keep_v = (
            neurons.constant(name, voltages) for name in ("per_float", "theta", "keep_u", "keep_v")
        )
        through_v: Tensor | float = 0.0
        through_u: Tensor | float = 0.0
        of_sums = torch.empty_like(voltages)
        of_bias = torch.zeros_like(voltages[0])
        for t in reversed(range(len(voltages))):
            slope = neurons.slope(voltages[t] * per_float - theta, neurons.alpha)
            of_v = slope.mul_(gradients[0][t]).mul_(per_float)
            if isinstance(through_v, Tensor):
                of_v += through_v
                if neurons.node.reset == "zero":
                    of_v.addcmul_(through_v, spikes[t].to(of_v.dtype), value=-1)
            of_bias += of_v
            through_v = of_v * (keep_v / DECAY_ONE)
            of_u = of_v + through_u
            through_u = of_u * (keep_u / DECAY_ONE)
            of_sums[t] = of_u
        of_sums *= ONE
        bias = None if ctx.bias_shape is None else (of_bias * ONE).sum_to_size(ctx.bias_shape)
        return of_sums.sum(0, keepdim=True) if ctx.static else of_sums, bias, None


class _Round(torch.autograd.Function):
    """To the nearest integer, ties to even; backwards the identity."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def _decayed(state: Tensor, keep: float | Tensor) -> Tensor:
    """``state keep / 4096`` rounded towards zero, a new tensor; exact in float32, as no product needs 24 bits."""
    if isinstance(keep, float) and keep == DECAY_ONE:
        return state.clone()
    if isinstance(keep, float) and keep in (0.0, DECAY_ONE / 2):
        return _truncated(state * (keep / DECAY_ONE))
    high = _truncated(state / DECAY_ONE)
    low = state - high * DECAY_ONE
    return high.mul_(keep).add_(_truncated(low * (keep / DECAY_ONE)))


def _truncated(x: Tensor) -> Tensor:
    """Rounded towards zero; to int32 and back is faster than trunc on a CPU."""
    return x.int().to(x.dtype)


def encode(entry: Input, x: Tensor) -> Tensor:
    """Raw inputs as the integers that enter the network, float32; :meth:`Input.encode` on a tensor."""
    if entry.encoding == "events":
        return x.float()
    levels = (x.double() / entry.scale).round() + entry.zero_point
    return levels.clamp(0, 2**entry.bits - 1).float()


def key(name: str) -> str:
    """A node's name as that of a submodule, which may not hold dots."""
    return name.replace(".", "/")


def _total(operands: list[Tensor]) -> Any:
    return functools.reduce(torch.add, operands) if operands else 0
