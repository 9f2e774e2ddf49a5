"""What a distillation run is asked to do: defaults < YAML file < ``--set key=value``, checked with pydantic."""

import importlib
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from snnkit.errors import ConfigError, did_you_mean

FunctionT = TypeVar("FunctionT")
Count: TypeAlias = Annotated[int, Field(ge=1)]
Weight: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Channels: TypeAlias = Annotated[tuple[Count, ...], Field(min_length=1, strict=False)]


class Section(BaseModel):
    """A part of the configuration: unknown keys and values of another type are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DataConfig(Section):
    """``name``: a data set of snnkit, or ``module:function`` that returns a Dataset; ``root``: where its files are.

    ``shift``: training images are moved by up to so many pixels in each direction; teacher and student see the same.
    """

    name: str = "digits"
    root: str | None = None
    shift: Annotated[int, Field(ge=0)] = 1


class TeacherConfig(Section):
    """The artificial network: trained in the run, or read from ``checkpoint`` (safetensors, or a torch state dict).

    ``options`` is for a ``module:function`` model; it is called with (input_shape, classes, this section).
    """

    model: str = "convnet"
    channels: Channels = (32, 64, 64)
    checkpoint: str | None = None
    epochs: Count = 25
    lr: Rate = 3e-3
    options: dict[str, Any] = {}


class StudentConfig(Section):
    """The spiking network. ``tau`` is the membrane's time constant in timesteps; ``if`` neurons have none."""

    model: str = "convnet"
    neuron: Literal["lif", "if"] = "lif"
    timesteps: Count = 4
    channels: Channels = (16, 32, 32)
    tau: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 2.0
    v_threshold: Rate = 1.0
    reset: Literal["zero", "subtract"] = "zero"
    surrogate: Literal["sigmoid", "triangle", "atan"] = "sigmoid"
    surrogate_alpha: Rate = 4.0
    options: dict[str, Any] = {}


class LossesConfig(Section):
    """Weights of the student's losses; 0 switches one off. ``kl``, ``feature`` and ``extra`` need the teacher.

    ``extra`` maps ``module:function`` to a weight; the function gets (logits [T, N, K], teacher logits [N, K],
    labels [N]) and returns a scalar.
    """

    cross_entropy: Weight = 1.0
    kl: Weight = 1.0
    temperature: Rate = 4.0
    ensemble: Weight = 0.0
    feature: Weight = 0.1
    extra: dict[str, Weight] = {}

    @property
    def distilled(self) -> bool:
        """Whether any loss needs the teacher."""
        return any((self.kl, self.feature, *self.extra.values()))


class TrainConfig(Section):
    """The student's optimisation (AdamW, cosine to 0); batch, decay, seed and threads hold for the teacher, too."""

    epochs: Count = 25
    batch_size: Annotated[int, Field(ge=2)] = 64
    lr: Rate = 5e-3
    weight_decay: Weight = 1e-2
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    threads: Count | None = None


class DistillConfig(Section):
    """A whole run: what ``snnkit distill`` reads and writes as ``config.yaml``."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "digits"
    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    student: StudentConfig = StudentConfig()
    losses: LossesConfig = LossesConfig()
    train: TrainConfig = TrainConfig()

    @property
    def uses_teacher(self) -> bool:
        """Whether the run trains or loads a teacher: a loss needs it, or its weights are given."""
        return self.losses.distilled or self.teacher.checkpoint is not None

    def to_yaml(self) -> str:
        """The resolved configuration, every value written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, except that ``1e-3`` is a number (YAML 1.2) and a key may not occur twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"the key '{twice[0]}' occurs twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, TypeError) as error:
        message = " ".join(str(error).split())
        raise ConfigError(f"{where} is not valid YAML: {message}", "check the indentation and the quotes") from None


def load_config(path: str | os.PathLike[str] | None, overrides: Sequence[str] = ()) -> DistillConfig:
    """Reads a YAML file (none: the defaults), applies ``a.b=value`` overrides, returns the checked configuration.

    Values of overrides are YAML. Raises :class:`ConfigError` with the full dotted key and what it takes.
    """
    values: Any = {}
    if path is not None:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise ConfigError(f"cannot read the configuration '{path}': {reason}", "give a YAML file") from None
        values = _parse_yaml(text, f"'{path}'") or {}
        if not isinstance(values, dict):
            raise ConfigError(f"'{path}' holds no mapping of keys to values", "write 'key: value' lines")
    for override in overrides:
        _override(values, override)
    try:
        return DistillConfig.model_validate(values)
    except ValidationError as error:
        raise _explained(error) from None


def _override(values: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    path = dotted.strip().split(".")
    if not equals or not all(path):
        raise ConfigError(f"'--set {override}' is not of the form key=value", "write e.g. --set train.epochs=10")
    section = values
    for depth, key in enumerate(path[:-1]):
        if section.get(key) is None:
            section[key] = {}
        section = section[key]
        if not isinstance(section, dict):
            raise ConfigError(f"'{'.'.join(path[: depth + 1])}' is a value, not a section", "set the key itself")
    section[path[-1]] = _parse_yaml(text, f"the value in '--set {override}'")


def known_keys(model: type[BaseModel] = DistillConfig, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the configuration, sections included."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from known_keys(field.annotation, f"{prefix}{name}.")


def _explained(error: ValidationError) -> ConfigError:
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if problem["type"] == "extra_forbidden":
        return ConfigError(f"unknown key '{key}'{more}", did_you_mean(key, known_keys()))
    allowed = problem["msg"][0].lower() + problem["msg"][1:]
    return ConfigError(f"'{key}' is {problem['input']!r}: {allowed}{more}", f"change '{key}' in the configuration")


def differences(a: DistillConfig, b: DistillConfig) -> list[str]:
    """The dotted keys in which two configurations differ."""

    def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            if isinstance(value, dict) and value:
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    left, right = dict(flat(a.model_dump())), dict(flat(b.model_dump()))
    return [key for key in {**left, **right} if left.get(key, math.nan) != right.get(key, math.nan)]


def resolve(name: str, builtin: Mapping[str, FunctionT], what: str) -> FunctionT:
    """The function called ``name`` in ``builtin``, or the user's own ``module:function``."""
    if name in builtin:
        return builtin[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise ConfigError(f"there is no {what} '{name}'", f"{did_you_mean(name, builtin)} (or give module:function)")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # a console script does not look in the working directory
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"the {what} '{name}' cannot be loaded: {error}", "check the spelling and the path") from None
    if not callable(found):
        raise ConfigError(f"the {what} '{name}' is not a function", "give module:function")
    return found  # type: ignore[no-any-return]
