"""What is minimised: a module that takes a batch and returns the logits and every loss by name, for both phases.

One module holds all that is trained, and its forward pass computes all that is derived from it, so that
DistributedDataParallel can wrap it.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from snnkit.config import DistillConfig, LossesConfig, resolve
from snnkit.errors import ConfigError
from snnkit.training import losses
from snnkit.training.augment import Labels, over_labels
from snnkit.training.encoding import Encoder
from snnkit.training.neuron_steps import full
from snnkit.training.neurons import is_neuron, reset_neurons
from snnkit.training.passes import Passes, tapped

Values = dict[str, Tensor]  # losses by name, before they are weighted


class Objective(nn.Module):
    """The base of both: ``model`` is trained, ``weights`` are those of the losses that :meth:`forward` returns.

    ``forward(x, labels)`` takes an augmented batch; it returns logits [N, K] and the losses. ``bf16``: forward passes
    under autocast; losses are of full precision. ``curriculum`` maps numbers of timesteps to the share of the steps up
    to which they hold, then there are ``timesteps``. The passes collect the ``outputs`` of the taps, or the ``inputs``.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Mapping[str, float],
        *,
        bf16: bool,
        outputs: bool = False,
        inputs: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.weights = dict(weights)
        self.bf16 = bf16
        self.curriculum: dict[int, float] = {}
        self.timesteps = 1
        self.passes = Passes(model, outputs=outputs, inputs=inputs)

    def set_timesteps(self, timesteps: int) -> None:
        """What the model's next passes run."""
        if self.curriculum:
            self.model.timesteps = timesteps  # type: ignore[assignment]

    def encode(self, x: Tensor) -> Tensor:
        """An augmented batch as ``model`` takes it."""
        raise NotImplementedError

    def compile_passes(self) -> None:
        """The networks' passes are compiled from now on."""
        self.passes.compile()

    def autocast(self, x: Tensor) -> torch.autocast:
        """Without the cache of converted weights, which within another autocast outlives the step that changes them."""
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False)


class TeacherObjective(Objective):
    """Cross-entropy of an artificial network."""

    def __init__(self, model: nn.Module, config: DistillConfig, encoder: Encoder) -> None:
        super().__init__(model, {"cross_entropy": 1.0}, bf16=config.train.precision == "bf16")
        self.smoothing, self.encoder = config.losses.label_smoothing, encoder

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder.teacher(x)

    def forward(self, x: Tensor, labels: Labels) -> tuple[Tensor, Values]:
        with self.autocast(x):
            logits = full(self.passes(self.encode(x)).logits)
        return logits, {
            "cross_entropy": over_labels(partial(losses.cross_entropy, logits[None], smoothing=self.smoothing), labels)
        }


class StudentObjective(Objective):
    """The weighted losses of a spiking student, with or without a teacher, which stays as it is.

    ``sample`` are a few inputs, with which the student's and the teacher's stages are paired.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module | None, config: DistillConfig, encoder: Encoder, sample: Tensor
    ) -> None:
        weights = config.losses
        names = ("cross_entropy", "ensemble", "entropy", "prefix", "kl", "feature", "activation_map")
        used = {name: value for name in names if (value := getattr(weights, name))}
        distils = teacher is not None and weights.distilled
        membrane = weights.features == "membrane"
        super().__init__(
            student,
            {**used, **weights.extra},
            bf16=config.train.precision == "bf16",
            outputs=distils and bool(weights.activation_map or (weights.feature and not membrane)),
            inputs=distils and bool(weights.feature and membrane),
        )
        self.settings, self.encoder, self.timesteps = weights, encoder, config.student.timesteps
        self.curriculum = _checked_curriculum(student, config)
        self.extra: dict[str, Callable[..., Tensor]] = {name: resolve(name, {}, "loss") for name in weights.extra}
        self.projectors = nn.ModuleList()
        self._teacher: tuple[Passes, ...] = ()
        if teacher is not None and distils:
            features = bool(weights.feature or weights.activation_map)
            passes = Passes(teacher.eval().requires_grad_(False), outputs=features)
            self._teacher = (passes,)  # no part of what is trained
            probe = _probe(student, teacher, encoder, sample)
            if weights.feature:
                self.projectors = _projectors(student, probe, weights)
            if weights.activation_map:
                _check_maps(probe)

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder.student(x)

    def compile_passes(self) -> None:
        for passes in (self.passes, *self._teacher):
            passes.compile()

    def forward(self, x: Tensor, labels: Labels) -> tuple[Tensor, Values]:
        s = self.settings
        reset_neurons(self.model)
        with self.autocast(x):
            seen = self.passes(self.encode(x))
        logits, spikes = full(seen.logits), seen.outputs
        aligned = seen.inputs if s.features == "membrane" else spikes
        average = logits.mean(0, keepdim=True)
        values: Values = {}
        if s.cross_entropy:
            answers = logits if s.cross_entropy_on == "steps" else average
            loss = partial(losses.cross_entropy, answers, smoothing=s.label_smoothing)
            values["cross_entropy"] = over_labels(loss, labels)
        if s.ensemble:
            values["ensemble"] = losses.ensemble(logits, s.temperature)
        if s.entropy:
            values["entropy"] = losses.entropy(logits)
        if s.prefix:
            values["prefix"] = losses.prefix(logits, s.temperature)
        for teacher in self._teacher:
            target, features, activation_map = self._ask(teacher, self.encoder.teacher(x))
            if s.kl:
                answers = logits if s.kl_on == "steps" else average
                values["kl"] = losses.distillation(answers, target, s.temperature)
            if s.feature:
                pairs = _chosen(aligned, features, s)
                distances = [
                    losses.feature_alignment(projector(_mean(mine)), full(theirs))
                    for projector, (mine, theirs) in zip(self.projectors, pairs, strict=True)
                ]
                values["feature"] = torch.stack(distances).mean()
            if s.activation_map and activation_map is not None:
                values["activation_map"] = losses.activation_map_alignment(full(spikes[-1]), activation_map)
            for name, function in self.extra.items():
                values[name] = over_labels(partial(function, logits, target), labels)
        return average[0], values

    def gradients(self, x: Tensor, labels: Labels) -> dict[str, float]:
        """The norm of each weighted loss's gradient by what the last tapped stage sends; leaves the eval mode behind.

        With ``features: membrane`` by what enters its neurons. Empty for a student without taps; a loss without a
        finite gradient is left out.
        """
        if not getattr(self.model, "taps", ()):
            return {}
        self.eval()
        inputs = self.settings.features == "membrane"
        with torch.enable_grad(), self.passes.plain(), _leaf(self.model, inputs=inputs) as leaves:
            _, values = self(x, labels)
        found = {}
        for name, value in values.items():
            if value.requires_grad:
                (slope,) = torch.autograd.grad(self.weights[name] * value, leaves, retain_graph=True, allow_unused=True)
                found[name] = 0.0 if slope is None else float(full(slope).norm())
        return {name: norm for name, norm in found.items() if math.isfinite(norm)}

    def _ask(self, teacher: Passes, x: Tensor) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """The teacher's logits, features and, where a loss needs it, class activation map."""
        if not self.settings.activation_map:
            with torch.no_grad(), self.autocast(x):
                seen = teacher(x)
            return full(seen.logits), seen.outputs, None
        with torch.enable_grad(), self.autocast(x), teacher.plain(), _leaf(teacher.model) as leaves:
            seen = teacher(x)
        logits, features = full(seen.logits), seen.outputs
        activation_map = losses.class_activation_map(leaves[0], logits)
        return logits.detach(), [feature.detach() for feature in features], full(activation_map)


def _mean(sequence: Tensor) -> Tensor:
    """The average over time, summed in full precision."""
    return sequence.mean(0, dtype=torch.float32 if sequence.dtype is torch.bfloat16 else None)


@contextmanager
def _leaf(model: nn.Module, *, inputs: bool = False) -> Iterator[list[Tensor]]:
    """Starts the graph at the last tapped stage, whose output, or ``inputs``, is collected; what is before is free."""
    found: list[Tensor] = []

    def cut(x: Tensor) -> Tensor:
        found.append(x.detach().requires_grad_())
        return found[0]

    stage = model.get_submodule(model.taps[-1])  # type: ignore[index, arg-type]
    if inputs:
        handle = stage.register_forward_pre_hook(lambda _module, entering: (cut(entering[0]),))
    else:
        handle = stage.register_forward_hook(lambda _module, _inputs, output: cut(output))
    try:
        yield found
    finally:
        handle.remove()


def _chosen(mine: list[Tensor], theirs: list[Tensor], settings: LossesConfig) -> list[tuple[Tensor, Tensor]]:
    """The pairs of stages that are aligned."""
    return [(mine[a], theirs[b]) for a, b in _stages(settings, len(mine))]


def _stages(settings: LossesConfig, count: int) -> list[tuple[int, int]]:
    """Their numbers in the student, which has ``count``, and in the teacher."""
    stages = range(count) if settings.stages is None else settings.stages
    return [(stage, stage) if isinstance(stage, int) else stage for stage in stages]


def _probe(student: nn.Module, teacher: nn.Module, encoder: Encoder, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs of all taps of both."""
    student.eval(), teacher.eval()
    with torch.no_grad(), tapped(student) as spikes, tapped(teacher) as features:
        reset_neurons(student)
        student(encoder.student(x)), teacher(encoder.teacher(x))
    return spikes, features


def _projectors(student: nn.Module, probe: tuple[list[Tensor], list[Tensor]], settings: LossesConfig) -> nn.ModuleList:
    """One projector for each aligned pair of stages; says what cannot be paired."""
    spikes, features = probe
    shapes = [tuple(spike.shape) for spike in spikes], [tuple(feature.shape) for feature in features]
    dimensions = {spike.dim() for spike in spikes}, {feature.dim() for feature in features}
    if dimensions != ({5}, {4}) or (settings.stages is None and len(spikes) != len(features)):
        raise ConfigError(
            f"the feature loss cannot pair the student's taps {shapes[0]} with the teacher's {shapes[1]}",
            "name the pairs in losses.stages, e.g. [[0, 0], [3, 2]], give both models as many 'taps', [T, N, C, H, W] "
            "and [N, C, H, W], or set losses.feature to 0",
        )
    for pair in _stages(settings, len(spikes)):
        for stage, taps, whose in zip(pair, (spikes, features), ("student", "teacher"), strict=True):
            if stage >= len(taps):
                raise ConfigError(
                    f"losses.stages names stage {stage}, but there are {len(taps)} in the {whose}",
                    f"give 0 to {len(taps) - 1}",
                )
    if settings.features == "membrane":
        for name in student.taps:  # type: ignore[union-attr]
            if not is_neuron(student.get_submodule(name)):
                raise ConfigError(
                    f"losses.features: membrane needs neurons, but the student taps '{name}'",
                    "tap the stages' last neurons, or use spike",
                )
    projectors = nn.ModuleList()
    for spike, feature in _chosen(spikes, features, settings):
        mine, theirs = spike.shape[2], feature.shape[1]
        if settings.projector != "1x1" and mine != theirs:
            raise ConfigError(
                f"the projector '{settings.projector}' cannot map {mine} channels to {theirs}",
                "set losses.projector to 1x1",
            )
        kinds: dict[str, Callable[[], nn.Module]] = {
            "none": nn.Identity,
            "channelwise": lambda mine=mine: losses.ChannelwiseProjector(mine),  # type: ignore[misc]
            "1x1": lambda mine=mine, theirs=theirs: losses.AffineProjector(mine, theirs),  # type: ignore[misc]
        }
        projectors.append(kinds[settings.projector]())
    return projectors


def _check_maps(probe: tuple[list[Tensor], list[Tensor]]) -> None:
    spikes, features = probe
    if not spikes or not features or (spikes[-1].dim(), features[-1].dim()) != (5, 4):
        raise ConfigError(
            "the class activation maps need a last tapped stage with pixels in both models",
            "give the models 'taps', or set losses.activation_map to 0",
        )


def _checked_curriculum(student: nn.Module, config: DistillConfig) -> dict[int, float]:
    curriculum = config.train.curriculum
    if curriculum and not isinstance(getattr(student, "timesteps", None), int):
        raise ConfigError(
            f"train.curriculum needs a student that reads its 'timesteps'; '{config.student.model}' has none",
            "leave the curriculum out",
        )
    if longest := [steps for steps in curriculum if steps >= config.student.timesteps]:
        raise ConfigError(
            f"train.curriculum has {longest[0]} timesteps, the student {config.student.timesteps}",
            "a curriculum leads up to the student's timesteps from below",
        )
    return dict(curriculum)
