"""What topologies are made of. Each is written once; :class:`Kind` makes it a spiking network or its artificial twin.

Both have the same parameters under the same names: the twin's weights can initialise the spiking network. In a spiking
network time, the leading axis of [T, N, ...], is folded into the batch around everything but the neurons.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from snnkit.config import StudentConfig, TeacherConfig
from snnkit.errors import ConfigError
from snnkit.network.ir import DECAY_ONE
from snnkit.training.neurons import SpikingNeuron, decay_on_grid

SPIKING_GAIN = 0.2

Shape: TypeAlias = tuple[int, ...]
Size: TypeAlias = StudentConfig | TeacherConfig  # the section that holds channels, width and shortcut


class Kind:
    """Spiking as ``student`` says, or (without one) artificial with ReLU."""

    def __init__(self, student: StudentConfig | None = None) -> None:
        self.student = student

    @property
    def spiking(self) -> bool:
        return self.student is not None

    def neuron(self) -> nn.Module:
        """One layer's neurons; a tau off the 12-bit grid is put on it, before training."""
        config = self.student
        if config is None:
            return nn.ReLU()
        return SpikingNeuron(
            voltage_decay=0 if config.neuron == "if" else decay_on_grid(config.tau),
            current_decay=decay_on_grid(config.tau_synapse) if config.neuron == "cuba" else DECAY_ONE,
            learned=config.neuron == "plif",
            v_threshold=config.v_threshold,
            reset=config.reset,
            surrogate=config.surrogate,
            surrogate_alpha=config.surrogate_alpha,
        )

    @property
    def gain(self) -> float:
        """How large the convolutions' first weights are, of He's.

        Normalisations follow, so that it changes no output, but what a step changes: SGD turns a weight w by lr/|w|^2
        (van Laarhoven, 2017). A layer of spikes passes on less of what tells its inputs apart than one of ReLUs does;
        behind a dozen of them a network answers by chance until its weights have turned far enough.
        """
        return SPIKING_GAIN if self.spiking else 1.0

    def norm(self, channels: int) -> nn.BatchNorm2d:
        """Batch normalisation; without an offset in front of neurons that filter their current.

        On a chip biases go past that filter, so that a trained offset could not be kept.
        """
        cuba = self.student is not None and self.student.neuron == "cuba"
        return UncentredNorm2d(channels) if cuba else nn.BatchNorm2d(channels)

    def folded(self, layer: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """``layer``, which takes ``inputs`` [N, ...], at every timestep."""
        if not self.spiking:
            return layer(*inputs)
        current = layer(*(x.flatten(0, 1) for x in inputs))
        return current.unflatten(0, inputs[0].shape[:2])  # type: ignore[no-untyped-call, no-any-return]


class UncentredNorm2d(nn.BatchNorm2d):
    """Batch normalisation of [N, C, H, W] by the root mean square: no mean, no bias."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.bias = None  # type: ignore[assignment]

    def reset_parameters(self) -> None:
        self.reset_running_stats()
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        assert self.running_var is not None
        power = self.running_var
        if self.training:
            assert self.num_batches_tracked is not None
            power = x.float().square().mean((0, 2, 3))
            with torch.no_grad():
                self.num_batches_tracked += 1
                weight = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_var.lerp_(power, weight)
        gain = self.weight * torch.rsqrt(power + self.eps)
        return (x * gain[:, None, None]).to(x.dtype)


class ConvNorm(nn.Module):
    """Convolution and normalisation: the current into neurons, [N, C, H, W] of any N."""

    def __init__(self, kind: Kind, before: int, after: int, kernel_size: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel_size, stride, padding=kernel_size // 2, bias=False)
        self.norm = kind.norm(after)

    def forward(self, x: Tensor) -> Tensor:
        current: Tensor = self.norm(self.conv(x))
        return current


class Stage(ConvNorm):
    """Convolution 3x3, normalisation, neurons."""

    dimensions = 3  # of a sample

    def __init__(self, kind: Kind, before: int, after: int, stride: int = 1) -> None:
        super().__init__(kind, before, after, 3, stride)
        self.kind, self.neuron = kind, kind.neuron()

    def current(self, x: Tensor) -> Tensor:
        """What enters the neurons, [N, C, H, W] of any N."""
        return super().forward(x)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.neuron(self.kind.folded(self.current, x))
        return out


class LinearStage(nn.Module):
    """Linear layer, neurons: features [N, F] to [N, F']."""

    dimensions = 1

    def __init__(self, kind: Kind, before: int, after: int) -> None:
        super().__init__()
        biased = not (kind.student and kind.student.neuron == "cuba")
        self.linear = nn.Linear(before, after, bias=biased)
        self.kind, self.neuron = kind, kind.neuron()

    def current(self, x: Tensor) -> Tensor:
        """What enters the neurons, [N, F] of any N."""
        current: Tensor = self.linear(x.flatten(1))
        return current

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.neuron(self.kind.folded(self.current, x))
        return out


class Classifier(nn.Module):
    """Stages and one linear layer: [N, C, H, W] to logits [N, K], in a spiking network one set a timestep, [T, N, K].

    The first stage is the stem. A spiking network may see images [N, C, H, W]: the stem's current is computed
    once and is the same at every timestep, and ``timesteps``, read at each call, says how many there are. Or it sees
    events [T, N, C, H, W]. ``taps`` names the submodules whose outputs the feature loss aligns.
    """

    def __init__(
        self,
        kind: Kind,
        input_shape: Shape,
        stages: Sequence[nn.Module],
        features: int,
        classes: int,
        *,
        average: bool,
        taps: Sequence[str],
    ) -> None:
        super().__init__()
        self.kind, self.taps = kind, tuple(taps)
        self.still = 1 + len(input_shape)  # axes of a batch of images
        if kind.student:
            self.timesteps = kind.student.timesteps
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1) if average else nn.Identity()
        self.flatten = nn.Flatten(1)
        self.classifier = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.stages
        stem = cast(Stage | LinearStage, first)
        if self.kind.spiking and x.dim() == self.still:
            current = stem.current(x).unsqueeze(0)
            x = stem.neuron(current.expand(self.timesteps, *[-1] * (1 + stem.dimensions)))
        else:
            x = stem(x)
        for stage in others:
            x = stage(x)
        return self.kind.folded(self._logits, x)

    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.flatten(self.pool(x)))
        return logits


def image_shape(input_shape: Shape, model: str) -> Shape:
    """The shape (C, H, W) that convolutions need."""
    if len(input_shape) != 3:
        raise ConfigError(f"the model '{model}' takes images (C, H, W), not {input_shape}", "use 'mlp'")
    return input_shape


def widths(size: Size, default: Sequence[int], model: str | None = None) -> tuple[int, ...]:
    """The channels of each stage, as configured or ``default``, times the width multiplier.

    A named ``model`` has as many stages as its default.
    """
    channels = size.channels or default
    if model and len(channels) != len(default):
        raise ConfigError(
            f"'{model}' has {len(default)} stages, but channels names {len(channels)}",
            f"give as many, e.g. {list(default)}, or leave it out",
        )
    return tuple(max(1, round(count * size.width)) for count in channels)


def strides(stages: int) -> list[int]:
    """The first stage keeps the resolution, the others halve it: no pooling, so that all spikes stay binary."""
    return [1] + [2] * (stages - 1)


def initialise_convolutions(model: nn.Module, gain: float = 1.0) -> None:
    """Kaiming's normal initialisation of what is trained (He et al., ICCV 2015), fan-out, times ``gain``."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.requires_grad:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            with torch.no_grad():
                module.weight *= gain
