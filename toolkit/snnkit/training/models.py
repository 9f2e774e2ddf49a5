"""Teachers and students. A model is a function (input_shape, classes, its section of the configuration) -> module.

A teacher maps [N, C, H, W] to logits [N, K], a student to one set of logits per timestep, [T, N, K]. ``taps`` names
the submodules whose outputs the feature loss aligns, stage by stage: [N, C, H, W] in a teacher and spikes
[T, N, C, H, W] in a student.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from snnkit.config import StudentConfig, TeacherConfig, resolve
from snnkit.errors import ConfigError
from snnkit.training.neurons import SpikingNeuron, decay_on_grid

Shape: TypeAlias = tuple[int, ...]


def _strides(stages: int) -> list[int]:
    """The first stage keeps the resolution, the others halve it: no pooling, so that all spikes stay binary."""
    return [1] + [2] * (stages - 1)


def _flat_size(input_shape: Shape, channels: Sequence[int]) -> int:
    height, width = input_shape[1:]
    for stride in _strides(len(channels)):
        height, width = (height - 1) // stride + 1, (width - 1) // stride + 1
    return channels[-1] * height * width


class ConvNet(nn.Module):
    """The teacher: stages of convolution 3x3, batch normalisation and ReLU, then one linear layer."""

    def __init__(self, input_shape: Shape, classes: int, channels: Sequence[int]) -> None:
        super().__init__()
        sizes = [input_shape[0], *channels]
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()
                )
                for before, after, stride in zip(sizes, channels, _strides(len(channels)), strict=False)
            )
        )
        self.classifier = nn.Linear(_flat_size(input_shape, channels), classes)
        self.taps = tuple(f"stages.{index}" for index in range(len(channels)))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.stages(x).flatten(1))
        return logits


class SpikingStage(nn.Module):
    """Convolution 3x3, batch normalisation, neuron: spikes [T, N, C, H, W] to spikes; time is folded into the batch."""

    def __init__(self, before: int, after: int, stride: int, neuron: SpikingNeuron) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(after)
        self.neuron = neuron

    def current(self, x: Tensor) -> Tensor:
        """What enters the neuron, [N, C, H, W] of any N."""
        current: Tensor = self.norm(self.conv(x))
        return current

    def forward(self, spikes: Tensor) -> Tensor:
        current = self.current(spikes.flatten(0, 1)).unflatten(0, spikes.shape[:2])  # type: ignore[no-untyped-call]
        out: Tensor = self.neuron(current)
        return out


class SpikingConvNet(nn.Module):
    """The student: direct encoding (the image is the stem's current at every timestep), logits per timestep."""

    def __init__(
        self,
        input_shape: Shape,
        classes: int,
        channels: Sequence[int],
        timesteps: int,
        neuron: Callable[[], SpikingNeuron],
    ) -> None:
        super().__init__()
        self.timesteps = timesteps
        sizes = [input_shape[0], *channels]
        self.stages = nn.Sequential(
            *(
                SpikingStage(before, after, stride, neuron())
                for before, after, stride in zip(sizes, channels, _strides(len(channels)), strict=False)
            )
        )
        self.flatten = nn.Flatten(2)
        self.classifier = nn.Linear(_flat_size(input_shape, channels), classes)
        self.taps = tuple(f"stages.{index}.neuron" for index in range(len(channels)))

    def forward(self, x: Tensor) -> Tensor:
        first = cast(SpikingStage, self.stages[0])
        # a still image: the stem's current is computed once and is the same at every timestep
        current = first.current(x).unsqueeze(0).expand(self.timesteps, -1, -1, -1, -1)
        spikes = first.neuron(current)
        for stage in islice(self.stages, 1, None):
            spikes = stage(spikes)
        logits: Tensor = self.classifier(self.flatten(spikes))
        return logits


def _image_shape(input_shape: Shape) -> Shape:
    if len(input_shape) != 3:
        raise ConfigError(f"the model 'convnet' takes images (C, H, W), not {input_shape}", "give module:function")
    return input_shape


def convnet_teacher(input_shape: Shape, classes: int, config: TeacherConfig) -> nn.Module:
    """A :class:`ConvNet` of ``config.channels``."""
    return ConvNet(_image_shape(input_shape), classes, config.channels)


def convnet_student(input_shape: Shape, classes: int, config: StudentConfig) -> nn.Module:
    """A :class:`SpikingConvNet` of ``config.channels``; a tau off the 12-bit grid is put on it, before training."""

    def neuron() -> SpikingNeuron:
        return SpikingNeuron(
            voltage_decay=decay_on_grid(config.tau) if config.neuron == "lif" else 0,
            v_threshold=config.v_threshold,
            reset=config.reset,
            surrogate=config.surrogate,
            surrogate_alpha=config.surrogate_alpha,
        )

    return SpikingConvNet(_image_shape(input_shape), classes, config.channels, config.timesteps, neuron)


TEACHERS: dict[str, Callable[[Shape, int, TeacherConfig], nn.Module]] = {"convnet": convnet_teacher}
STUDENTS: dict[str, Callable[[Shape, int, StudentConfig], nn.Module]] = {"convnet": convnet_student}


def build_teacher(input_shape: Shape, classes: int, config: TeacherConfig) -> nn.Module:
    """The teacher that the configuration names."""
    return _module(resolve(config.model, TEACHERS, "teacher model")(input_shape, classes, config), config.model)


def build_student(input_shape: Shape, classes: int, config: StudentConfig) -> nn.Module:
    """The student that the configuration names."""
    return _module(resolve(config.model, STUDENTS, "student model")(input_shape, classes, config), config.model)


def _module(model: object, name: str) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"the model '{name}' returned {type(model).__name__}", "return a torch.nn.Module")
    return model


@contextmanager
def tapped(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the outputs of the submodules that ``model.taps`` names, in order, during a forward pass."""
    names = [str(name) for name in getattr(model, "taps", ())]
    outputs: list[Tensor] = [torch.empty(0)] * len(names)
    handles = []
    for index, name in enumerate(names):
        try:
            module = model.get_submodule(name)
        except AttributeError:
            raise ConfigError(f"the model taps '{name}', which it does not have", "correct its 'taps'") from None

        def keep(_module: nn.Module, _inputs: object, output: Tensor, index: int = index) -> None:
            outputs[index] = output

        handles.append(module.register_forward_hook(keep))
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
