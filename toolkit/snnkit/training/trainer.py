"""Distillation: train or load the teacher, then train the student with the weighted losses, exactly resumable."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snnkit.analysis.accuracy import Accuracy
from snnkit.config import DistillConfig, differences, load_config, resolve
from snnkit.errors import ConfigError, RunFolderError, UnavailableError, UsageError
from snnkit.files import write_atomically
from snnkit.runs import Run, environment
from snnkit.training import checkpoint as checkpoints
from snnkit.training import losses
from snnkit.training.checkpoint import Checkpoint
from snnkit.training.data import load_dataset
from snnkit.training.evaluation import evaluate, firing_rates
from snnkit.training.fit import Session, Terms, fit
from snnkit.training.models import build_student, build_teacher, tapped
from snnkit.training.neurons import reset_neurons
from snnkit.training.progress import Progress


@dataclass(frozen=True)
class Summary:
    """The outcome of a run. ``student`` (the last epoch) counts; ``best`` was chosen on the validation split.

    Accuracies are on the test split; ``firing_rates`` are spikes per neuron and timestep there, by module path.
    ``finished`` is false, and the student's figures are missing, after a stop.
    """

    run: Path
    finished: bool
    teacher: Accuracy | None = None
    student: Accuracy | None = None
    best: Accuracy | None = None
    best_epoch: int = 0
    firing_rates: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def accuracies(self) -> dict[str, Accuracy]:
        """What was measured, by the network's name."""
        found = {
            "teacher": self.teacher,
            "student": self.student,
            f"student, best epoch ({self.best_epoch})": self.best,
        }
        return {name: accuracy for name, accuracy in found.items() if accuracy is not None}

    def to_json(self) -> dict[str, Any]:
        """The same, for machines; accuracies in percent."""

        def figures(accuracy: Accuracy | None) -> dict[str, Any] | None:
            if accuracy is None:
                return None
            interval = {"interval_95": list(accuracy.interval)}
            return {"accuracy": accuracy.percent, **dataclasses.asdict(accuracy), **interval}

        return {
            "run": str(self.run),
            "finished": self.finished,
            "teacher": figures(self.teacher),
            "student": figures(self.student),
            "best": figures(self.best),
            "best_epoch": self.best_epoch,
            "firing_rates": self.firing_rates,
            "seconds": self.seconds,
        }


def distill(
    config: DistillConfig,
    run: Run,
    *,
    resume: bool = False,
    stop_after: int | None = None,
    time_limit: float | None = None,
    device: str = "cpu",
    quiet: bool = True,
) -> Summary:
    """Runs ``config`` in the directory ``run``; with ``resume`` goes on from its last checkpoint, exactly.

    ``stop_after`` epochs (of teacher and student together, in this call) or after the epoch in which ``time_limit``
    seconds are over, it stops. The teacher is trained or loaded if a loss needs it or a checkpoint is given. Unless
    ``quiet``, progress is reported on stderr.
    """
    if stop_after is not None and stop_after < 1:
        raise UsageError(f"cannot stop after {stop_after} epochs", "give 1 or more")
    start = time.perf_counter()
    data = load_dataset(config.data.name, config.data.root)
    last = _begin(config, run, resume=resume)
    with _reproducible(config.train.threads, device) as torch_device:
        session = Session(config, run, data, torch_device, Progress(quiet=quiet), stop_after, time_limit)
        _check_models(session)
        teacher = teacher_accuracy = None
        if config.uses_teacher:
            teacher = _teacher(session, last)
            if teacher is None:
                return Summary(run.path, finished=False, seconds=time.perf_counter() - start)
            teacher_accuracy = evaluate(teacher, data.test)
            session.progress.note(f"teacher: {teacher_accuracy.percent:.2f} % of {len(data.test)} test samples")

        student = _student(session, last, teacher)
        if student is None:
            return Summary(run.path, False, teacher_accuracy, seconds=time.perf_counter() - start)
        accuracy = evaluate(student, data.test)
        rates = firing_rates(student, torch.from_numpy(data.test.x).to(torch_device))
        best = checkpoints.read(run.best)
        student.load_state_dict(best.tensors)
        summary = Summary(
            run.path,
            finished=True,
            teacher=teacher_accuracy,
            student=accuracy,
            best=evaluate(student, data.test),
            best_epoch=best.header["epoch"],
            firing_rates=rates,
            seconds=time.perf_counter() - start,
        )
    session.progress.note(f"student: {accuracy.percent:.2f} % of {len(data.test)} test samples")
    record = {"phase": "test", **dataclasses.asdict(summary)}
    del record["run"], record["finished"]
    run.append_metrics(record)
    return summary


def load_student(run: Run) -> nn.Module:
    """The student of a run with its last weights, in eval mode, on the CPU."""
    last = checkpoints.read(run.last)
    if last.header["phase"] != "student":
        raise RunFolderError(f"the student in '{run.path}' is not trained yet", "continue the run with --resume")
    config = load_config(run.config)
    with torch.random.fork_rng(devices=[]):
        student = build_student(tuple(last.header["input_shape"]), len(last.header["classes"]), config.student)
    student.load_state_dict(last.state("model"))
    return student.eval()


def _begin(config: DistillConfig, run: Run, *, resume: bool) -> Checkpoint | None:
    """Opens or fills the run directory; the checkpoint to continue from, if any."""
    if resume:
        return _continued(config, run)
    if run.last.exists():
        raise RunFolderError(
            f"'{run.path}' holds a run already", "continue it with --resume, or start over with --force"
        )
    run.path.mkdir(parents=True, exist_ok=True)
    run.truncate_metrics(0)
    write_atomically(run.config, config.to_yaml())
    run.write_json(run.environment, {**environment(), "threads": config.train.threads or torch.get_num_threads()})
    return None


def _continued(config: DistillConfig, run: Run) -> Checkpoint | None:
    if changed := differences(load_config(Run.open(run.path).config), config):
        raise ConfigError(
            f"the run in '{run.path}' was started with another configuration: {', '.join(changed)}",
            "resume with the run's own config.yaml, or start over with --force",
        )
    last = checkpoints.read(run.last) if run.last.is_file() else None  # stopped in the first epoch: from the beginning
    run.truncate_metrics(last.header["records"] if last else 0)
    return last


@contextmanager
def _reproducible(threads: int | None, device: str) -> Iterator[torch.device]:
    """Deterministic algorithms and the configured thread count; the caller's settings are put back."""
    try:
        torch_device = torch.device(device)
        torch.empty(0, device=torch_device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise UnavailableError(f"the device '{device}' cannot be used: {reason}", "use --device cpu") from None
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads or before[0])
    torch.use_deterministic_algorithms(torch_device.type == "cpu")  # on CUDA some layers have none
    try:
        with torch.random.fork_rng([torch_device] if torch_device.type == "cuda" else []):
            yield torch_device
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


def _teacher(session: Session, last: Checkpoint | None) -> nn.Module | None:
    """The teacher in eval mode, trained here or loaded; None if training was stopped before its end."""
    config, run = session.config, session.run
    torch.manual_seed(config.train.seed)
    teacher = build_teacher(session.data.input_shape, len(session.data.classes), config.teacher).to(session.device)
    if run.teacher.is_file():
        checkpoints.load_weights(teacher, run.teacher)
        return teacher.eval()
    if last and last.header["phase"] == "student":
        raise RunFolderError(f"'{run.teacher}' is missing", "the run cannot be continued; start over with --force")
    if config.teacher.checkpoint:
        checkpoints.load_weights(teacher, config.teacher.checkpoint)
    else:

        def objective(x: Tensor, y: Tensor) -> tuple[Tensor, Terms]:
            logits = teacher(x)
            return logits, {"cross_entropy": (1.0, nn.functional.cross_entropy(logits, y))}

        modules = nn.ModuleDict({"model": teacher})
        if not fit(session, "teacher", modules, objective, config.teacher.epochs, config.teacher.lr, last):
            return None
    checkpoints.write(run.teacher, teacher.state_dict(), {"model": config.teacher.model})
    return teacher.eval()


def _student(session: Session, last: Checkpoint | None, teacher: nn.Module | None) -> nn.Module | None:
    """The student after its last epoch; None if training was stopped before it."""
    config = session.config
    torch.manual_seed(config.train.seed)
    student = build_student(session.data.input_shape, len(session.data.classes), config.student).to(session.device)
    projectors = nn.ModuleList()
    if teacher is not None and config.losses.feature:
        projectors = _projectors(student, teacher, session.x[:2]).to(session.device)
    weights = config.losses
    extra: dict[str, tuple[float, Callable[..., Tensor]]] = {
        name: (weight, resolve(name, {}, "loss")) for name, weight in weights.extra.items()
    }

    def objective(x: Tensor, y: Tensor) -> tuple[Tensor, Terms]:
        reset_neurons(student)
        with tapped(student) as spikes:
            logits = student(x)
        terms: Terms = {"cross_entropy": (weights.cross_entropy, losses.cross_entropy(logits, y))}
        if weights.ensemble:
            terms["ensemble"] = weights.ensemble, losses.ensemble(logits, weights.temperature)
        if teacher is not None and weights.distilled:
            with torch.no_grad(), tapped(teacher) as features:
                target = teacher(x)
            if weights.kl:
                terms["kl"] = weights.kl, losses.distillation(logits, target, weights.temperature)
            if weights.feature:
                distances = [
                    losses.feature_alignment(projector(spike.mean(0)), feature)
                    for projector, spike, feature in zip(projectors, spikes, features, strict=True)
                ]
                terms["feature"] = weights.feature, torch.stack(distances).mean()
            for name, (weight, function) in extra.items():
                terms[name] = weight, function(logits, target, y)
        return logits.sum(0), terms

    modules = nn.ModuleDict({"model": student, "projectors": projectors})
    resumed = last if last and last.header["phase"] == "student" else None
    finished = fit(session, "student", modules, objective, config.train.epochs, config.train.lr, resumed)
    return student.eval() if finished else None


def _check_models(session: Session) -> None:
    """One forward pass of both models, so that what does not fit together is named before anything is trained."""
    config, x = session.config, session.x[:2]
    shape, classes = session.data.input_shape, len(session.data.classes)
    student = build_student(shape, classes, config.student).to(session.device)
    _check_logits(student, x, (config.student.timesteps, len(x), classes), "student")
    if config.uses_teacher:
        teacher = build_teacher(shape, classes, config.teacher).to(session.device)
        _check_logits(teacher, x, (len(x), classes), "teacher")
        if config.losses.feature:
            _projectors(student, teacher, x)


def _check_logits(model: nn.Module, x: Tensor, expected: tuple[int, ...], what: str) -> None:
    model.eval()
    reset_neurons(model)
    with torch.no_grad():
        logits = model(x)
    if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(
            f"the {what} returns logits of shape {found} for {len(x)} samples, expected {expected}",
            "a teacher returns [samples, classes], a student [timesteps, samples, classes]",
        )


def _projectors(student: nn.Module, teacher: nn.Module, x: Tensor) -> nn.ModuleList:
    """One projector for each pair of tapped stages."""
    student.eval(), teacher.eval()
    with torch.no_grad(), tapped(student) as spikes, tapped(teacher) as features:
        reset_neurons(student)
        student(x), teacher(x)
    shapes = [tuple(spike.shape) for spike in spikes], [tuple(feature.shape) for feature in features]
    if (
        len(spikes) != len(features)
        or not spikes
        or [len(s) for s in sum(zip(*shapes, strict=True), ())] != [5, 4] * len(spikes)
    ):
        raise ConfigError(
            f"the feature loss cannot pair the student's taps {shapes[0]} with the teacher's {shapes[1]}",
            "give both models as many 'taps', [T, N, C, H, W] and [N, C, H, W], or set losses.feature to 0",
        )
    return nn.ModuleList(
        losses.AffineProjector(spike.shape[2], feature.shape[1])
        for spike, feature in zip(spikes, features, strict=True)
    )
