"""A network as a torch module again: one layer call a timestep, so that tools that hook layers see every step."""

import functools

import torch
from torch import Tensor, nn

from snnkit.network.inputs import encode_inputs
from snnkit.network.ir import (
    DECAY_ONE,
    LIF,
    Affine,
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    Flatten,
    Input,
    Network,
    Node,
    Readout,
    Synapse,
    infer_shapes,
    verify,
)
from snnkit.network.ranges import STATE_LIMIT


def to_torch(net: Network) -> "TorchNetwork":
    """Rebuilds a float or integer network from ``nn.Conv2d``, ``nn.Linear`` and :class:`Neuron`, not trainable.

    The module takes raw data, [B, *shape] or events [T, B, *shape], and gives readouts [B, classes]. It steps
    over time inside ``forward``, the stem at every timestep. Float networks compute in float32; integer ones in
    float64, where their arithmetic is exact. Raises :class:`NetworkError` for a network that breaks a rule.
    """
    return TorchNetwork(net).eval().requires_grad_(False)


class Neuron(nn.Module):
    """Leaky integrate-and-fire with the state inside; the equations are those of :class:`snnkit.network.ir.LIF`.

    ``forward(current, bias)`` takes one timestep's weighted sum [B, *shape] and, in an integer network, the bias
    [*shape] or [C, 1, 1] that is added past the filter of the current; it gives spikes 0/1.
    """

    def __init__(self, node: LIF, dimensions: int, *, integer: bool) -> None:
        super().__init__()
        self.integer, self.subtract = integer, node.reset == "subtract"
        self.dimensions = dimensions
        for name in ("v_threshold", "voltage_decay", "current_decay"):
            self.register_buffer(name, torch.tensor(getattr(node, name)))
        self.reset()

    def reset(self) -> None:
        """Back to the state before the first timestep."""
        self.u: Tensor | float = 0.0
        self.v: Tensor | float = 0.0

    def forward(self, current: Tensor, bias: Tensor | int) -> Tensor:
        threshold, voltage_decay, current_decay = (
            self.get_buffer(name).to(current.dtype).reshape(-1, *[1] * (self.dimensions - 1))
            for name in ("v_threshold", "voltage_decay", "current_decay")
        )
        if self.integer:  # u and v in units of 1/64: the chip's 6 fractional bits
            self.u = _wrap(_decayed(self.u, current_decay) + 64 * current)
            v = _decayed(self.v, voltage_decay) + self.u + 64 * bias
            v = v.clamp(1 - STATE_LIMIT, STATE_LIMIT - 1)
            threshold = 64 * threshold
        else:
            self.u = self.u * (1 - current_decay / DECAY_ONE) + current
            v = self.v * (1 - voltage_decay / DECAY_ONE) + self.u
        spikes = v > threshold
        self.v = torch.where(spikes, v - threshold if self.subtract else torch.zeros_like(v), v)
        return spikes.to(current.dtype)


def _decayed(state: Tensor | float, decay: Tensor) -> Tensor:
    """State (4096 - decay) / 4096, rounded towards zero; exact, as products stay below 2**36."""
    return torch.trunc(state * (DECAY_ONE - decay) / DECAY_ONE)


def _wrap(u: Tensor) -> Tensor:
    """One turn of the 24-bit current; +2**23 itself stays, as in Lava."""
    u = torch.where(u > STATE_LIMIT, u - 2 * STATE_LIMIT, u)
    return torch.where(u <= -STATE_LIMIT, u + 2 * STATE_LIMIT, u)


class TorchNetwork(nn.Module):
    """Executes a network's nodes in order, timestep by timestep; made by :func:`to_torch`.

    Layers hold weights only. Biases stand apart: a float synapse adds its own at once, an integer one leaves it to
    the neuron or readout behind it, where the chip adds it past the filter of the current.
    """

    def __init__(self, net: Network) -> None:
        super().__init__()
        self.net, self.shapes = net, infer_shapes(net)
        self.integer = verify(net) == "integer"
        self.dtype = torch.float64 if self.integer else torch.float32
        self.layers, self.biases = nn.ModuleDict(), nn.ParameterDict()
        for node in net.nodes:
            shape = self.shapes[node.name]
            if isinstance(node, LIF):
                self.layers[_key(node.name)] = Neuron(node, len(shape), integer=self.integer)
            elif not isinstance(node, Input | Readout):
                self.layers[_key(node.name)] = _layer(node, self.dtype)
            if isinstance(node, Synapse) and node.bias is not None:
                bias = torch.tensor(node.bias, dtype=self.dtype).reshape(-1, *[1] * (len(shape) - 1))
                self.biases[_key(node.name)] = nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(
            torch.from_numpy(encode_inputs(self.net, x.detach().cpu().numpy())).to(x.device, self.dtype)
        )

    def compute(self, encoded: Tensor) -> Tensor:
        """The same for inputs that are encoded already, in the module's precision."""
        direct = self.net.input.encoding == "direct"
        batch = encoded.shape[0 if direct else 1]
        zeros = {name: encoded.new_zeros(batch, *shape) for name, shape in self.shapes.items()}
        history: dict[str, list[Tensor]] = {node.name: [] for node in self.net.nodes}
        for module in self.layers.values():
            if isinstance(module, Neuron):
                module.reset()
        for t in range(self.net.timesteps):
            for node in self.net.nodes:
                arrived = [
                    history[edge.source][t - edge.delay] if edge.delay <= t else zeros[edge.source]
                    for edge in node.inputs
                ]
                if isinstance(node, Input):
                    value = encoded if direct else encoded[t]
                else:
                    value = self._value(node, functools.reduce(torch.add, arrived))
                history[node.name].append(value)
        return torch.stack(history[self.net.readout.name]).sum(dim=0)

    def _value(self, node: Node, x: Tensor) -> Tensor:
        sources = [edge.source for edge in node.inputs] if self.integer else []
        bias: Tensor | int = sum(self.biases[_key(name)] for name in sources if _key(name) in self.biases)
        if isinstance(node, Readout):
            return x + bias
        layer = self.layers[_key(node.name)]
        value: Tensor = layer(x, bias) if isinstance(layer, Neuron) else layer(x)
        if self.integer and isinstance(node, Conv2d):
            return torch.remainder(value + STATE_LIMIT, 2 * STATE_LIMIT) - STATE_LIMIT
        own = _key(node.name)
        return value + self.biases[own] if not self.integer and own in self.biases else value


def _key(name: str) -> str:
    """A module's name may not hold dots."""
    return name.replace(".", "/")


def _layer(node: Node, dtype: torch.dtype) -> nn.Module:
    match node:
        case Conv2d():
            outputs, inputs, *size = node.weight.shape
            conv = nn.Conv2d(
                inputs * node.groups,
                outputs,
                (size[0], size[1]),
                stride=node.stride,
                padding=node.padding,
                dilation=node.dilation,
                groups=node.groups,
                bias=False,
            )
            conv.weight = nn.Parameter(torch.tensor(node.effective_weight, dtype=dtype))
            return conv
        case Affine():
            linear = nn.Linear(node.weight.shape[1], node.weight.shape[0], bias=False)
            linear.weight = nn.Parameter(torch.tensor(node.effective_weight, dtype=dtype))
            return linear
        case BatchNorm2d():
            norm = nn.BatchNorm2d(node.weight.size, eps=node.eps)
            fields = ("weight", "bias", "running_mean", "running_var")
            arrays = {name: torch.tensor(getattr(node, name), dtype=dtype) for name in fields}
            norm.load_state_dict(arrays, strict=False)  # strict would ask for num_batches_tracked
            return norm
        case AvgPool2d():
            return nn.AvgPool2d(node.kernel_size, node.stride)
        case Flatten():
            return nn.Flatten()
    raise AssertionError(f"no layer for {node!r}")
