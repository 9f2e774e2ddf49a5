"""The arithmetic of the reference target: synaptic sums and neuron updates, exact in the fastest type that holds them.

Integers are kept in floating point, with their 6 fractional bits, so that a sum of a thousand weights is one matrix
product. What can reach a value in the worst case decides its type: float32 holds integers up to 2**24, float64 up
to 2**53. All buffers are made once and updated in place.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from snnkit.network import LIF, Conv2d, Network
from snnkit.network.ir import DECAY_ONE, Array, Shape, Synapse
from snnkit.network.ranges import FRACTION_BITS, STATE_LIMIT, largest_value

ONE = 1 << FRACTION_BITS  # a weight of 1 in the unit of u and v
EXACT = 2**24  # integers up to here are exact in float32


class Synapses:
    """A Conv2d or Affine node. An integer one sums in units of 1/64; ``bias`` is what its neurons must add themselves.

    The bias is part of the sum unless it stands apart: where the sum or the current may wrap, or is filtered.
    """

    def __init__(self, node: Synapse, device: torch.device, *, bound: int | None, bias_apart: bool) -> None:
        self.node, self.integer = node, bound is not None
        bound = bound or 0
        largest_bias = 0 if node.bias is None else int(np.abs(node.bias).max())
        self.wraps = isinstance(node, Conv2d) and bound >= STATE_LIMIT
        exact = not self.integer or bound + largest_bias < (STATE_LIMIT if isinstance(node, Conv2d) else EXACT)
        self.dtype = torch.float32 if exact else torch.float64
        self.by_matmul = self.integer and device.type != "cpu"
        scale = ONE if self.integer else 1
        self.weight = torch.tensor(node.effective_weight, dtype=self.dtype, device=device) * scale
        if isinstance(node, Conv2d):
            self.weight = self.weight.contiguous(memory_format=torch.channels_last)
        self.inner: Tensor | None = None
        self.bias: Tensor | None = None
        if node.bias is not None:
            bias = torch.tensor(node.bias, dtype=self.dtype, device=device) * scale
            if self.integer and (self.wraps or bias_apart):
                self.bias = bias.reshape(-1, 1, 1) if isinstance(node, Conv2d) else bias
            else:
                self.inner = bias

    def __call__(self, x: Tensor) -> Tensor:
        """[N, *in] to [N, *out], float32 or, where that would round, float64."""
        x = x.to(self.dtype)
        node = self.node
        if not isinstance(node, Conv2d):
            return F.linear(x, self.weight, self.inner)
        if self.by_matmul:
            sums = convolve_by_matmul(x, self.weight, self.inner, node)
        else:
            sums = F.conv2d(x, self.weight, self.inner, node.stride, node.padding, node.dilation, node.groups)
        if self.wraps:
            limit = ONE * STATE_LIMIT
            sums = torch.remainder(sums + limit, 2 * limit) - limit
        return sums


def convolve_by_matmul(x: Tensor, weight: Tensor, bias: Tensor | None, node: Conv2d) -> Tensor:
    """A convolution as one matrix product a group: exact for integers on a GPU, whose library may take Winograd's."""
    groups, (outputs, per_group, *kernel) = node.groups, weight.shape
    spans = [node.dilation[axis] * (kernel[axis] - 1) + 1 for axis in (0, 1)]
    (pad_y, pad_x), (gap_y, gap_x) = node.padding, node.dilation
    padded = F.pad(x, (pad_x, pad_x, pad_y, pad_y))
    windows = padded.unfold(2, spans[0], node.stride[0]).unfold(3, spans[1], node.stride[1])[..., ::gap_y, ::gap_x]
    samples, _, rows, columns = windows.shape[:4]
    windows = windows.reshape(samples, groups, per_group, *windows.shape[2:]).permute(1, 0, 3, 4, 2, 5, 6)
    taps = weight.reshape(groups, outputs // groups, -1).transpose(1, 2)
    sums = torch.bmm(windows.reshape(groups, samples * rows * columns, -1), taps)
    sums = (
        sums.reshape(groups, samples, rows, columns, -1).permute(1, 0, 4, 2, 3).reshape(samples, outputs, rows, columns)
    )
    return sums if bias is None else sums + bias.reshape(-1, 1, 1)


@dataclass(frozen=True)
class Bounds:
    """What an integer LIF node can meet: whether u may wrap, v may saturate, and whether float32 holds it all."""

    wraps: bool
    saturates: bool
    exact: bool

    @classmethod
    def of(cls, net: Network, node: LIF) -> "Bounds":
        """The worst case over all inputs, neuron by neuron; what is left of v after a reset is at most a threshold."""
        layers = [source for edge in node.inputs if isinstance(source := net[edge.source], Synapse)]
        low, high, bias = np.zeros((3, len(layers[0].weight)))
        for layer in layers:
            weight = layer.effective_weight.reshape(len(low), -1) * float(largest_value(net, layer))
            low, high = low + np.minimum(weight, 0).sum(axis=1), high + np.maximum(weight, 0).sum(axis=1)
            bias = bias if layer.bias is None else bias + layer.bias
        keep_u, keep_v = DECAY_ONE - node.current_decay, DECAY_ONE - node.voltage_decay
        steps = net.timesteps
        u = ONE * np.maximum(high, -low) * _accumulated(keep_u, steps)
        down = np.minimum(ONE * low * _accumulated(keep_u, steps) + ONE * bias, 0) * _accumulated(keep_v, steps)
        up = np.maximum(ONE * high * _accumulated(keep_u, steps) + ONE * bias, 0)
        up = up + ONE * node.v_threshold if node.reset == "zero" else up * _accumulated(keep_v, steps)
        v = np.maximum(up, -down)
        fits = all(
            (np.minimum(state, STATE_LIMIT) * (keep // np.maximum(keep & -keep, 1)) < EXACT).all()  # by the odd factor
            for state, keep in ((u, keep_u), (v, keep_v))
        )
        wraps = bool((u >= STATE_LIMIT).any())
        saturates = wraps or bool((v >= STATE_LIMIT).any())  # what wraps arrives at the other end
        return cls(wraps, saturates, fits and not wraps)


def _accumulated(keep: Array, timesteps: int) -> Array:
    """``1 + k + k^2 + ...`` over the timesteps, for a share ``keep`` of 4096 that is left from one to the next."""
    total: Array = np.sum([(keep / DECAY_ONE) ** t for t in range(timesteps)], axis=0)
    return total


class Neurons:
    """The state of one LIF node for a batch of samples, updated in place, one timestep after the other."""

    def __init__(
        self, node: LIF, layers: Sequence[Synapses], shape: Shape, device: torch.device, *, bounds: Bounds | None
    ) -> None:
        self.node, self.shape, self.device = node, shape, device
        self.integer = bounds is not None
        bounds = bounds or Bounds(wraps=False, saturates=False, exact=True)
        self.wraps, self.saturates, self.filtered = bounds.wraps, bounds.saturates, filters(node)
        exact = bounds.exact and all(layer.dtype == torch.float32 for layer in layers)
        self.dtype = torch.float32 if exact else torch.float64
        threshold = node.v_threshold * ONE if self.integer else node.v_threshold
        self.threshold = self._parameter(threshold)
        self.keep_u = self._parameter((DECAY_ONE - node.current_decay) / DECAY_ONE)
        self.keep_v = self._parameter((DECAY_ONE - node.voltage_decay) / DECAY_ONE)
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self.bias = functools.reduce(torch.add, biases).to(self.dtype) if biases else None
        self.overflows = 0
        self._allocate(0)

    def _parameter(self, values: Array) -> Tensor | float:
        """A number where all neurons share one, else [C, 1, 1] or [N]."""
        if values.size == 1:
            return float(values.reshape(()))
        tensor = torch.tensor(values, dtype=self.dtype, device=self.device)
        return tensor.reshape(-1, *[1] * (len(self.shape) - 1))

    def _allocate(self, batch: int) -> None:
        def buffer(dtype: torch.dtype) -> Tensor:
            return images(torch.zeros((batch, *self.shape), dtype=dtype, device=self.device))

        self.v, self.fired = buffer(self.dtype), buffer(self.dtype)
        self.u = buffer(self.dtype) if self.filtered else self.v
        self.whole = buffer(torch.int32) if self.integer else self.v

    def reset(self, batch: int) -> None:
        """Back to the state before the first timestep, for so many samples."""
        if batch != len(self.v):
            self._allocate(batch)
        else:
            self.v.zero_()
            self.u.zero_()
        self.overflows = 0

    def step(self, current: Tensor, spikes: Tensor) -> None:
        """One timestep from the weighted sums [B, *shape]; writes the spikes as 0 and 1 into ``spikes``, float32."""
        if self.filtered:
            self._decay(self.u, self.keep_u)
            self.u += current
            current = self.u
        if self.wraps:
            current = self._wrap(current)
        self._decay(self.v, self.keep_v)
        self.v += current
        if self.bias is not None:
            self.v += self.bias
        if self.saturates:
            self._saturate()
        fired = spikes if self.dtype == torch.float32 else self.fired
        torch.gt(self.v, self.threshold, out=fired)
        if fired is not spikes:
            spikes.copy_(fired)
        if self.node.reset == "zero":
            self.v.addcmul_(self.v, fired, value=-1)
        elif isinstance(self.threshold, float):
            self.v.sub_(fired, alpha=self.threshold)
        else:
            self.v.addcmul_(fired, self.threshold, value=-1)

    def _decay(self, state: Tensor, keep: Tensor | float) -> None:
        if isinstance(keep, float) and keep == 1.0:
            return
        state *= keep
        if self.integer:  # rounded towards zero; to int32 and back is faster than trunc
            self.whole.copy_(state)
            state.copy_(self.whole)

    def _wrap(self, u: Tensor) -> Tensor:
        """One turn of the 24-bit current, also in the filter's state; +2**23 itself stays, as in Lava."""
        low, high = u.aminmax()
        if low > -STATE_LIMIT and high <= STATE_LIMIT:
            return u
        wrapped = torch.where(u > STATE_LIMIT, u - 2 * STATE_LIMIT, u)
        wrapped = torch.where(wrapped <= -STATE_LIMIT, wrapped + 2 * STATE_LIMIT, wrapped)
        self.overflows += int((wrapped != u).sum())
        if self.filtered:
            self.u.copy_(wrapped)
        return wrapped

    def _saturate(self) -> None:
        low, high = self.v.aminmax()
        if low <= -STATE_LIMIT or high >= STATE_LIMIT:
            self.overflows += int((self.v.abs() >= STATE_LIMIT).sum())
            self.v.clamp_(1 - STATE_LIMIT, STATE_LIMIT - 1)


def filters(node: LIF) -> bool:
    """Whether the node's current decays over several timesteps; a bias then goes past it."""
    return bool((node.current_decay < DECAY_ONE).any())


def images(x: Tensor) -> Tensor:
    """[N, C, H, W] with the channels innermost in memory, where convolutions are fastest; others as they are."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
