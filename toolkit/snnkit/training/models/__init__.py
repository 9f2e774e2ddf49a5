"""Teachers and students. A model is a function (input_shape, classes, its section of the configuration) -> module.

A teacher maps [N, C, H, W] to logits [N, K], a student to one set of logits per timestep, [T, N, K]. ``taps`` names
the submodules whose outputs the feature loss aligns, stage by stage: [N, C, H, W] in a teacher and spikes
[T, N, C, H, W] in a student. Every student has an artificial twin of the same name among the teachers.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

from torch import Tensor, nn

from snnkit.config import StudentConfig, TeacherConfig, resolve
from snnkit.errors import ConfigError
from snnkit.training.models.convnet import convnet, mlp
from snnkit.training.models.parts import Kind, Shape, Size
from snnkit.training.models.resnet import resnet18, resnet19, resnet20
from snnkit.training.models.torchvision import PREFIX, standardised, torchvision_teacher
from snnkit.training.models.vgg import vgg9, vgg11, vgg16
from snnkit.training.models.wide_resnet import wide_resnet28_8
from snnkit.training.neurons import filters, is_neuron

__all__ = ["STUDENTS", "TEACHERS", "build_student", "build_teacher", "initialise"]

Topology: TypeAlias = Callable[[Kind, Shape, int, Size], nn.Module]
Teacher: TypeAlias = Callable[[Shape, int, TeacherConfig], nn.Module]
Student: TypeAlias = Callable[[Shape, int, StudentConfig], nn.Module]

TOPOLOGIES: dict[str, Topology] = {
    topology.__name__: topology for topology in (convnet, mlp, vgg9, vgg11, vgg16, resnet18, resnet19, resnet20)
}


def _student(topology: Topology) -> Student:
    def build(input_shape: Shape, classes: int, config: StudentConfig) -> nn.Module:
        sample = input_shape[-3:]  # without the time of events, (T, C, H, W)
        return topology(Kind(config), sample, classes, config)

    build.__doc__ = topology.__doc__
    return build


def _twin(topology: Topology) -> Teacher:
    def build(input_shape: Shape, classes: int, config: TeacherConfig) -> nn.Module:
        return topology(Kind(), input_shape, classes, config)

    build.__doc__ = topology.__doc__
    return build


STUDENTS: dict[str, Student] = {name: _student(topology) for name, topology in TOPOLOGIES.items()}
TEACHERS: dict[str, Teacher] = {
    **{name: _twin(topology) for name, topology in TOPOLOGIES.items()},
    "wide_resnet28_8": wide_resnet28_8,
}


def build_teacher(input_shape: Shape, classes: int, config: TeacherConfig) -> nn.Module:
    """The teacher that the configuration names: one of :data:`TEACHERS`, ``torchvision:NAME`` or the user's own."""
    if config.model.startswith(PREFIX):
        model = torchvision_teacher(classes, config)
    else:
        model = _module(resolve(config.model, TEACHERS, "teacher model")(input_shape, classes, config), config.model)
    if config.mean is not None and config.std is not None:
        if not len(config.mean) == len(config.std) == input_shape[0]:
            raise ConfigError(
                f"teacher.mean and teacher.std hold {len(config.mean)} and {len(config.std)} values, "
                f"the samples {input_shape[0]} channels",
                "give one value a channel",
            )
        standardised(model, config.mean, config.std)
    return model


def build_student(input_shape: Shape, classes: int, config: StudentConfig) -> nn.Module:
    """The student that the configuration names."""
    return _module(resolve(config.model, STUDENTS, "student model")(input_shape, classes, config), config.model)


def _module(model: object, name: str) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"the model '{name}' returned {type(model).__name__}", "return a torch.nn.Module")
    return model


def initialise(student: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Gives the student the weights and statistics of its artificial twin; its neurons keep their own parameters.

    Raises :class:`ConfigError` where the two are not of the same topology, width and classes.
    """
    own = student.state_dict()
    neurons = {
        f"{path}.{name}"
        for path, module in student.named_modules()
        if is_neuron(module)
        for name in module.state_dict()
    }
    faults = [f"'{name}' is missing" for name in own if name not in state and name not in neurons]
    faults += [f"'{name}' is unknown to it" for name in state if name not in own]
    faults += [
        f"'{name}' is {tuple(state[name].shape)}, the student's {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if faults and any(filters(module) for module in student.modules()):
        raise ConfigError(
            "a student whose neurons filter their current ('cuba') cannot start from an artificial network: its layers "
            "have no offsets, which on a chip go past the filter",
            "leave out student.init_from, or use neurons 'lif'",
        )
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ConfigError(
            f"the student cannot start from these weights: {faults[0]}{more}",
            "use the same model, channels and width for both, or leave out student.init_from",
        )
    student.load_state_dict({**own, **state})
