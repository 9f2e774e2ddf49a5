"""One torch layer as one node of the network: what it becomes, and why not if it cannot."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from spikingjelly.activation_based import layer, neuron
from torch import Tensor, nn

from snnkit.network import LIF, Affine, AvgPool2d, BatchNorm2d, Conv2d, Node
from snnkit.network.ir import DECAY_ONE, Array
from snnkit.training.models.parts import UncentredNorm2d
from snnkit.training.neurons import SpikingNeuron, decay_on_grid, is_neuron

NEURONS = (SpikingNeuron, neuron.LIFNode, neuron.IFNode, neuron.ParametricLIFNode)
# layers that change nothing at inference, and layers that only rearrange
IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout2d, layer.Dropout, layer.Dropout2d)
RESHAPES = (nn.Flatten, nn.Unflatten, layer.Flatten)


# what to use instead, by the name of a layer or function
_POOL = "use AvgPool2d or a convolution of stride 2, and train again"
_NEURON = "use spiking neurons"
_NORM = "use BatchNorm2d, which folds into the weights"
ALTERNATIVES = {
    **dict.fromkeys(("MaxPool2d", "AdaptiveMaxPool2d", "max_pool2d", "adaptive_max_pool2d"), _POOL),
    **dict.fromkeys(("ReLU", "GELU", "SiLU", "Sigmoid", "relu", "gelu", "silu", "sigmoid"), _NEURON),
    **dict.fromkeys(("GroupNorm", "LayerNorm", "InstanceNorm2d", "group_norm", "layer_norm"), _NORM),
}


class NotConvertibleError(Exception):
    """Why a layer has no equivalent."""


def convert(module: nn.Module, size: tuple[int, ...]) -> Callable[..., Node]:
    """A function of ``name`` and ``inputs`` that makes the node; ``size`` is the layer's input without batch and time.

    Layers are told apart by their exact type, because a subclass may compute something else.
    """
    maker = MAKERS.get(type(module))
    if maker is None:
        if alternative := ALTERNATIVES.get(type(module).__name__):
            raise NotConvertibleError(f"a chip has no equivalent; {alternative}")
        kind = "neuron" if is_neuron(module) else "layer"
        known = sorted({cls.__name__ for cls in (NEURONS if kind == "neuron" else MAKERS)})
        raise NotConvertibleError(f"this {kind} has no equivalent; known are {', '.join(known)}")
    return maker(module, size)


def _array(tensor: Tensor) -> Array:
    return np.array(tensor.detach().cpu().float().numpy())


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _conv2d(module: nn.Conv2d, _size: tuple[int, ...]) -> Callable[..., Node]:
    if module.padding_mode != "zeros":
        raise NotConvertibleError(f"padding_mode '{module.padding_mode}'; only zeros can be padded")
    padding: Any = module.padding
    if isinstance(padding, str):
        spans = [
            d * (k - 1) if padding == "same" else 0 for d, k in zip(module.dilation, module.kernel_size, strict=True)
        ]
        if any(span % 2 for span in spans):
            raise NotConvertibleError("padding 'same' with an even kernel pads one side more; give numbers")
        padding = [span // 2 for span in spans]
    return lambda **place: Conv2d(
        **place,
        weight=_array(module.weight),
        bias=None if module.bias is None else _array(module.bias),
        stride=_pair(module.stride),
        padding=_pair(padding),
        dilation=_pair(module.dilation),
        groups=module.groups,
    )


def _linear(module: nn.Linear, size: tuple[int, ...]) -> Callable[..., Node]:
    if len(size) != 1:
        raise NotConvertibleError(f"its input {size} is not flat; flatten it first")
    bias = None if module.bias is None else _array(module.bias)
    return lambda **place: Affine(**place, weight=_array(module.weight), bias=bias)


def _batchnorm2d(module: nn.BatchNorm2d, _size: tuple[int, ...]) -> Callable[..., Node]:
    if module.running_mean is None or module.running_var is None:
        raise NotConvertibleError("it keeps no running statistics; use track_running_stats")
    mean, var = _array(module.running_mean), _array(module.running_var)
    weight = _array(module.weight) if module.affine else np.ones_like(mean)
    bias = _array(module.bias) if module.affine else np.zeros_like(mean)
    return lambda **place: BatchNorm2d(
        **place, weight=weight, bias=bias, running_mean=mean, running_var=var, eps=module.eps
    )


def _avgpool2d(module: nn.AvgPool2d, _size: tuple[int, ...]) -> Callable[..., Node]:
    if _pair(module.padding) != (0, 0) or module.ceil_mode or module.divisor_override:
        raise NotConvertibleError("padding, ceil_mode and divisor_override cannot be kept")
    kernel_size, stride = _pair(module.kernel_size), _pair(module.stride or module.kernel_size)
    return lambda **place: AvgPool2d(**place, kernel_size=kernel_size, stride=stride)


def _adaptive_avgpool2d(module: nn.AdaptiveAvgPool2d, size: tuple[int, ...]) -> Callable[..., Node]:
    if module.output_size not in (1, (1, 1), [1, 1]):
        raise NotConvertibleError(f"output_size {module.output_size}; only the average of the whole map, 1, is taken")
    whole = _pair(size[-2:])
    return lambda **place: AvgPool2d(**place, kernel_size=whole, stride=whole)


def _uncentred_norm2d(module: UncentredNorm2d, _size: tuple[int, ...]) -> Callable[..., Node]:
    assert module.running_var is not None
    zeros, weight, power = np.zeros(module.num_features, np.float32), _array(module.weight), _array(module.running_var)
    return lambda **place: BatchNorm2d(
        **place, weight=weight, bias=zeros, running_mean=zeros, running_var=power, eps=module.eps
    )


def _neuron(theta: float, decay: int, *, subtract: bool, current_decay: int = DECAY_ONE) -> Callable[..., Node]:
    # training fires at v >= theta, the network at v > v_threshold
    v_threshold = np.array(np.nextafter(np.float32(theta), np.float32(-np.inf)), np.float32)
    return lambda **place: LIF(
        **place,
        v_threshold=v_threshold,
        voltage_decay=np.array(decay, np.int32),
        current_decay=np.array(current_decay, np.int32),
        reset="subtract" if subtract else "zero",
    )


def _own_neuron(module: SpikingNeuron, _size: tuple[int, ...]) -> Callable[..., Node]:
    return _neuron(
        module.v_threshold,
        module.voltage_decay,
        subtract=module.reset == "subtract",
        current_decay=module.current_decay,
    )


def _spikingjelly_neuron(module: Any, _size: tuple[int, ...]) -> Callable[..., Node]:
    """LIFNode, IFNode or ParametricLIFNode. A decayed input, v + (x - v) / tau, only scales v and theta by tau."""
    if module.v_reset not in (None, 0.0):
        raise NotConvertibleError(f"v_reset {module.v_reset}; a chip's neuron is reset to 0 (or by subtraction: None)")
    subtract = module.v_reset is None
    if isinstance(module, neuron.IFNode):
        return _neuron(module.v_threshold, 0, subtract=subtract)
    learned = isinstance(module, neuron.ParametricLIFNode)
    tau = 1.0 / float(module.w.detach().sigmoid()) if learned else module.tau
    theta = module.v_threshold * tau if module.decay_input else module.v_threshold
    return _neuron(theta, decay_on_grid(tau), subtract=subtract)


MAKERS: Mapping[type[nn.Module], Callable[[Any, tuple[int, ...]], Callable[..., Node]]] = {
    nn.Conv2d: _conv2d,
    layer.Conv2d: _conv2d,
    nn.Linear: _linear,
    layer.Linear: _linear,
    nn.BatchNorm2d: _batchnorm2d,
    layer.BatchNorm2d: _batchnorm2d,
    UncentredNorm2d: _uncentred_norm2d,
    nn.AvgPool2d: _avgpool2d,
    layer.AvgPool2d: _avgpool2d,
    nn.AdaptiveAvgPool2d: _adaptive_avgpool2d,
    layer.AdaptiveAvgPool2d: _adaptive_avgpool2d,
    SpikingNeuron: _own_neuron,
    neuron.LIFNode: _spikingjelly_neuron,
    neuron.IFNode: _spikingjelly_neuron,
    neuron.ParametricLIFNode: _spikingjelly_neuron,
}
