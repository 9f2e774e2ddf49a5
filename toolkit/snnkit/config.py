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
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from snnkit.errors import ConfigError, did_you_mean

FunctionT = TypeVar("FunctionT")
Count: TypeAlias = Annotated[int, Field(ge=1)]
Weight: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Stage: TypeAlias = (
    Annotated[int, Field(ge=0)]
    | Annotated[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]], Field(strict=False)]
)
Channels: TypeAlias = Annotated[tuple[Count, ...], Field(min_length=1, strict=False)]


class Section(BaseModel):
    """A part of the configuration: unknown keys and values of another type are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class AugmentConfig(Section):
    """What happens to training images, batch by batch; teacher and student see the same. 0 or false: not done.

    ``crop``: a random crop after so many pixels of zero padding (the image moves by up to as many); ``flip``: left and
    right, every other image; ``autoaugment``: a published policy; ``cutout``: edge of a square of zeros; ``mixup`` and
    ``cutmix``: alpha of their Beta distribution, of which one is drawn for a share ``p`` of the batches.
    """

    crop: Annotated[int, Field(ge=0)] = 1
    flip: bool = False
    autoaugment: Literal["cifar10"] | None = None
    cutout: Annotated[int, Field(ge=0)] = 0
    mixup: Weight = 0.0
    cutmix: Weight = 0.0
    p: Annotated[float, Field(ge=0, le=1)] = 1.0


class DataConfig(Section):
    """``name``: a data set of snnkit, ``tonic:NAME``, or ``module:function``, called with (root, **options).

    ``root``: where its files are, before SNNKIT_DATA and the user's cache folder; ``download`` gets them if missing.
    ``validation``: samples held out of the training data (default: the set's usual number; 0: none, then nothing can
    be chosen on it). ``encoding``: how still images become a spiking input. ``size`` (height, width): of an image
    folder, or of a sensor. ``binning``: events are cut into frames of equal time, or of equal count.
    """

    name: str = "digits"
    root: str | None = None
    download: bool = False
    validation: Annotated[int, Field(ge=0)] | None = None
    encoding: Literal["direct", "rate", "latency"] = "direct"
    size: Annotated[tuple[Count, Count], Field(strict=False)] | None = None
    binning: Literal["time", "count"] = "time"
    options: dict[str, Any] = {}
    augment: AugmentConfig = AugmentConfig()


class Optimisation(Section):
    """How a network is trained: learning rate from a linear warm-up, then a cosine per step to 0.

    ``sgd`` has Nesterov momentum 0.9; ``weight_decay`` leaves out biases and normalisation. ``grad_clip`` limits the
    gradient's norm and ``ema`` is the decay of a moving average of the weights, which then is the network that counts;
    0 switches either off.
    """

    epochs: Count
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: Rate
    weight_decay: Weight = 1e-2
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    grad_clip: Weight = 0.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _warm(self) -> "Optimisation":
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"{self.warmup_epochs} warm-up epochs leave none of {self.epochs}")
        return self


class TeacherConfig(Optimisation):
    """The artificial network: trained in the run, or read from ``checkpoint`` (safetensors, or a torch state dict).

    ``channels`` of its stages (default: the model's own) are multiplied by ``width``; ``shortcut`` B is a projection,
    A subsampling without weights. ``torchvision:NAME`` may start ``pretrained``; ``replace_head`` then trains a new
    last layer for other classes. ``mean`` and ``std`` of each channel are taken out of the teacher's images.
    ``options`` is for a ``module:function`` model; it is called with (input_shape, classes, this section).
    """

    model: str = "convnet"
    channels: Channels | None = None
    width: Rate = 1.0
    shortcut: Literal["A", "B"] = "B"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    checkpoint: str | None = None
    pretrained: bool = False
    replace_head: bool = False
    mean: Annotated[tuple[float, ...], Field(min_length=1, strict=False)] | None = None
    std: Annotated[tuple[Rate, ...], Field(min_length=1, strict=False)] | None = None
    epochs: Count = 25
    lr: Rate = 3e-3
    options: dict[str, Any] = {}

    @property
    def ready(self) -> bool:
        """Whether its weights are loaded, not trained: from ``checkpoint``, or pretrained with their own last layer."""
        return self.checkpoint is not None or (self.pretrained and not self.replace_head)

    @model_validator(mode="after")
    def _consistent(self) -> "TeacherConfig":
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std need each other")
        if self.replace_head and not self.pretrained:
            raise ValueError("replace_head is for pretrained weights")
        if self.pretrained and (self.checkpoint or not self.model.startswith("torchvision:")):
            raise ValueError("pretrained is for torchvision's models, without a checkpoint")
        return self


class StudentConfig(Section):
    """The spiking network. ``tau`` is the membrane's time constant in timesteps, ``tau_synapse`` that of the current.

    Neurons: ``if`` has no leak, ``plif`` learns tau (one a layer), ``cuba`` filters its current; in front of it layers
    have no offsets, which on a chip go past the filter. ``channels``,
    ``width`` and ``shortcut`` as in the teacher. ``init_from`` teacher, or a file of weights: the student (not of
    ``cuba``) starts from its artificial twin, the teacher of the same model and size.
    """

    model: str = "convnet"
    neuron: Literal["lif", "if", "plif", "cuba"] = "lif"
    timesteps: Count = 4
    channels: Channels | None = None
    width: Rate = 1.0
    shortcut: Literal["A", "B"] = "B"
    init_from: str | None = None
    tau: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 2.0
    tau_synapse: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 2.0
    v_threshold: Rate = 1.0
    reset: Literal["zero", "subtract"] = "zero"
    surrogate: Literal["sigmoid", "triangle", "atan"] = "sigmoid"
    surrogate_alpha: Rate = 4.0
    options: dict[str, Any] = {}


class LossesConfig(Section):
    """Weights of the student's losses; 0 switches one off. All but the first, ``ensemble``, ``entropy`` and ``prefix``
    need the teacher.

    ``cross_entropy_on``, ``kl_on``: every timestep, or the mean of the logits over time. ``temperature`` is that of all
    divergences of logits. ``feature`` aligns the tapped ``stages``, as the student's ``spike`` trains or the
    ``membrane`` input currents, through a ``projector``; numbers from 0, or pairs [student's, teacher's] where the two
    have other stages; default all. ``extra`` maps
    ``module:function`` to a weight; it gets (logits [T, N, K], teacher logits [N, K], labels [N]), returns a scalar.
    """

    cross_entropy: Weight = 1.0
    cross_entropy_on: Literal["steps", "mean"] = "steps"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    kl: Weight = 1.0
    kl_on: Literal["steps", "mean"] = "steps"
    temperature: Rate = 4.0
    ensemble: Weight = 0.0
    entropy: Weight = 0.0
    prefix: Weight = 0.0
    feature: Weight = 0.1
    features: Literal["spike", "membrane"] = "spike"
    projector: Literal["none", "channelwise", "1x1"] = "1x1"
    stages: Annotated[tuple[Stage, ...], Field(min_length=1, strict=False)] | None = None
    activation_map: Weight = 0.0
    extra: dict[str, Weight] = {}

    @property
    def distilled(self) -> bool:
        """Whether any loss needs the teacher."""
        return any((self.kl, self.feature, self.activation_map, *self.extra.values()))

    @model_validator(mode="after")
    def _any(self) -> "LossesConfig":
        if not any((self.distilled, self.cross_entropy, self.ensemble, self.entropy, self.prefix)):
            raise ValueError("all weights are 0, so that nothing would be learnt")
        return self


class TrainConfig(Optimisation):
    """The student's optimisation; what is not in :class:`Optimisation` holds for the teacher's, too.

    ``precision``: tf32 matters on NVIDIA GPUs only; bf16 is autocast, with logits and losses in float32; fp64 is for
    comparisons. ``channels_last`` is the memory layout that convolutions are quicker in. ``cuda_graph`` launches a step
    as one piece of work, which keeps a fast GPU busy; elsewhere it changes nothing. ``compile`` fuses what is between
    the convolutions (torch.compile): a minute or two at the beginning, then quicker steps. ``curriculum`` {2: 0.6}
    trains with 2 timesteps for the first 60 % of the student's steps, then with all. ``freeze_batchnorm`` keeps the
    statistics as they are, for fine-tuning.
    """

    epochs: Count = 25
    lr: Rate = 5e-3
    batch_size: Annotated[int, Field(ge=2)] = 64
    curriculum: dict[Annotated[int, Field(ge=1, strict=False)], Annotated[float, Field(gt=0, lt=1)]] = {}
    precision: Literal["fp64", "fp32", "tf32", "bf16"] = "fp32"
    channels_last: bool = True
    cuda_graph: bool = False
    compile: bool = False
    freeze_batchnorm: bool = False
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
        """Whether the run trains or loads a teacher: a loss or the student's start needs it, or it is given."""
        return self.losses.distilled or self.teacher.ready or self.student.init_from == "teacher"

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
        raise explained(error) from None


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


def explained(error: ValidationError) -> ConfigError:
    """The first problem that pydantic found, with the dotted key and what it takes."""
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
                yield f"{prefix}{key}", value

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
