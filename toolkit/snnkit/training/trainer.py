"""Distillation: train or load the teacher, then train the student with the weighted losses, exactly resumable."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snnkit.analysis.accuracy import Accuracy
from snnkit.config import DistillConfig, differences, load_config
from snnkit.errors import ConfigError, RunFolderError, UnavailableError, UsageError
from snnkit.files import write_atomically
from snnkit.runs import Run, environment
from snnkit.training import checkpoint as checkpoints
from snnkit.training import parallel
from snnkit.training.augment import Augmentation
from snnkit.training.checkpoint import Checkpoint, Storage
from snnkit.training.data import load_configured
from snnkit.training.devices import memory_kept, torch_defaults
from snnkit.training.encoding import Encoder
from snnkit.training.evaluation import evaluate, firing_rates
from snnkit.training.fit import Session, fit
from snnkit.training.models import build_student, build_teacher, initialise
from snnkit.training.neurons import reset_neurons
from snnkit.training.objective import StudentObjective, TeacherObjective
from snnkit.training.progress import Progress


@dataclass(frozen=True)
class Summary:
    """The outcome of a run. ``student`` (the last epoch) counts; ``best`` was chosen on the validation split, where
    there is none it is the last, too.

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
            return None if accuracy is None else accuracy.to_json()

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
    storage: Storage = Storage(),  # noqa: B008 - frozen
) -> Summary:
    """Runs ``config`` in the directory ``run``; with ``resume`` goes on from its last checkpoint, exactly.

    ``stop_after`` epochs (of teacher and student together, in this call), or where ``time_limit`` seconds would not
    suffice for another epoch, it stops. The teacher is trained or loaded if a loss needs it or a checkpoint is given.
    Unless ``quiet``, progress is reported on stderr. Under ``torchrun`` the processes share every batch.
    """
    if stop_after is not None and stop_after < 1:
        raise UsageError(f"cannot stop after {stop_after} epochs", "give 1 or more")
    start = time.perf_counter()
    data = load_configured(config.data, config.student.timesteps)
    with (
        reproducible(config.train.threads, parallel.device_name(device)) as torch_device,
        fast(torch_device, config.train.precision),
        parallel.group(torch_device),
    ):
        progress = Progress(quiet=quiet or not parallel.is_first())
        last = _begin(config, run, resume=resume)
        session = Session(config, run, data, torch_device, progress, storage, stop_after, time_limit)
        _check_models(session, last)
        if not resume and parallel.is_first():
            _write_beginning(config, run)
        if storage.compact or not (last is None or last.header.get("exact", True)):
            progress.note("compact checkpoints: a resumed run comes close to an uninterrupted one, not bit for bit")
        teacher = teacher_accuracy = None
        if config.uses_teacher:
            teacher = _teacher(session, last)
            if teacher is None:
                return Summary(run.path, finished=False, seconds=time.perf_counter() - start)
            teacher_accuracy = evaluate(teacher, data.test.still)
            progress.note(f"teacher: {teacher_accuracy.percent:.2f} % of {len(data.test)} test samples")

        student = _student(session, last, teacher)
        if student is None:
            return Summary(run.path, False, teacher_accuracy, seconds=time.perf_counter() - start)
        if storage.compact:  # what is kept of it counts
            student.load_state_dict(_kept(checkpoints.read(run.last)))
        accuracy = evaluate(student, data.test)
        rates = firing_rates(student, data.test)
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
    progress.note(f"student: {accuracy.percent:.2f} % of {len(data.test)} test samples")
    if parallel.is_first():
        record = {"phase": "test", **dataclasses.asdict(summary)}
        del record["run"], record["finished"]
        run.append_metrics(record)
    return summary


@torch_defaults()
def load_student(run: Run) -> nn.Module:
    """The student of a run with its last weights, in eval mode, on the CPU."""
    last = checkpoints.read(run.last)
    if last.header["phase"] != "student":
        raise RunFolderError(f"the student in '{run.path}' is not trained yet", "continue the run with --resume")
    config = load_config(run.config)
    with torch.random.fork_rng(devices=[]):
        student = build_student(tuple(last.header["input_shape"]), len(last.header["classes"]), config.student)
    student.load_state_dict(_kept(last))
    return student.eval()


def _kept(last: Checkpoint) -> dict[str, Tensor]:
    """The network that counts, of a checkpoint in the student's phase."""
    return last.state("ema") or last.state("model")


@torch_defaults()
def load_teacher(run: Run) -> nn.Module:
    """The teacher of a run, in eval mode, on the CPU."""
    last = checkpoints.read(run.last)
    if not run.teacher.is_file():
        raise RunFolderError(f"the run in '{run.path}' has no teacher", "give one whose losses need it, e.g. losses.kl")
    config = load_config(run.config)
    with torch.random.fork_rng(devices=[]):
        teacher = build_teacher(tuple(last.header["image_shape"]), len(last.header["classes"]), config.teacher)
    checkpoints.load_weights(teacher, run.teacher)
    return teacher.eval()


def _begin(config: DistillConfig, run: Run, *, resume: bool) -> Checkpoint | None:
    """The checkpoint to continue from, if any; says what speaks against running here."""
    if not resume:
        if run.last.exists():
            raise RunFolderError(
                f"'{run.path}' holds a run already", "continue it with --resume, or start over with --force"
            )
        return None
    if changed := differences(load_config(Run.open(run.path).config), config):
        raise ConfigError(
            f"the run in '{run.path}' was started with another configuration: {', '.join(changed)}",
            "resume with the run's own config.yaml, or start over with --force",
        )
    last = checkpoints.read(run.last) if run.last.is_file() else None  # stopped in the first epoch: from the beginning
    if last and last.header["phase"] == "student" and last.header["best"] >= 0 and not run.best.is_file():
        raise RunFolderError(f"'{run.best}' is missing", "copy it, too; or start over with --force")
    if parallel.is_first():
        run.truncate_metrics(last.header["records"] if last else 0)
        for left in run.path.glob(".*.part"):  # by a process that was killed while it wrote
            left.unlink()
    parallel.barrier()
    return last


def _write_beginning(config: DistillConfig, run: Run) -> None:
    run.path.mkdir(parents=True, exist_ok=True)
    write_atomically(run.config, config.to_yaml())
    run.truncate_metrics(0)
    run.write_json(run.environment, {**environment(), "threads": config.train.threads or torch.get_num_threads()})


@contextmanager
def reproducible(threads: int | None, device: str) -> Iterator[torch.device]:
    """Deterministic algorithms, the configured thread count and torch's defaults; the caller's are put back."""
    try:
        torch_device = torch.device(device)
        torch.empty(0, device=torch_device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise UnavailableError(f"the device '{device}' cannot be used: {reason}", "use --device cpu") from None
    debugging: Any = torch.utils.deterministic
    before = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        debugging.fill_uninitialized_memory,
    )
    torch.set_num_threads(threads or before[0])
    torch.use_deterministic_algorithms(torch_device.type == "cpu")  # on CUDA some layers have none
    debugging.fill_uninitialized_memory = False  # which all operators fill
    try:
        with torch.random.fork_rng([torch_device] if torch_device.type == "cuda" else []), torch_defaults():
            yield torch_device
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        debugging.fill_uninitialized_memory = before[2]


@contextmanager
def fast(device: torch.device, precision: str) -> Iterator[None]:
    """On a GPU: TF32 as ``precision`` says, and the kernels that cuDNN finds quickest; on a CPU memory stays; put back
    afterwards.
    """
    if device.type != "cuda":
        with memory_kept():
            yield
        return
    cudnn: Any = torch.backends.cudnn
    matmul, conv = torch.backends.cuda.matmul, cudnn.conv
    before = matmul.fp32_precision, conv.fp32_precision, cudnn.benchmark
    matmul.fp32_precision = conv.fp32_precision = "tf32" if precision in ("tf32", "bf16") else "ieee"
    cudnn.benchmark = True
    try:
        yield
    finally:
        matmul.fp32_precision, conv.fp32_precision, cudnn.benchmark = before


def _teacher(session: Session, last: Checkpoint | None) -> nn.Module | None:
    """The teacher in eval mode, trained here or loaded; None if training was stopped before its end."""
    config, run = session.config, session.run
    torch.manual_seed(config.train.seed)
    teacher = session.placed(build_teacher(session.data.image_shape, len(session.data.classes), config.teacher))
    if run.teacher.is_file():
        checkpoints.load_weights(teacher, run.teacher)
        return teacher.eval()
    if last and last.header["phase"] == "student":
        raise RunFolderError(f"'{run.teacher}' is missing", "the run cannot be continued; start over with --force")
    if config.teacher.checkpoint:
        checkpoints.load_weights(teacher, config.teacher.checkpoint)
    elif not config.teacher.ready:
        objective = TeacherObjective(teacher, config, _encoder(session))
        trained = fit(session, "teacher", objective, config.teacher, last)
        if trained is None:
            return None
        teacher = trained
    if parallel.is_first():
        checkpoints.write_weights(run.teacher, teacher, {"model": config.teacher.model}, session.storage)
    if session.storage.compact:
        parallel.barrier()
        checkpoints.load_weights(teacher, run.teacher)
    return teacher.eval()


def _student(session: Session, last: Checkpoint | None, teacher: nn.Module | None) -> nn.Module | None:
    """The student after its last epoch; None if training was stopped before it."""
    config = session.config
    torch.manual_seed(config.train.seed)
    student = session.placed(build_student(session.data.input_shape, len(session.data.classes), config.student))
    resumed = last if last and last.header["phase"] == "student" else None
    if not resumed:
        _initialise(student, teacher, config)
    objective = StudentObjective(student, teacher, config, _encoder(session), _sample(session))
    return fit(session, "student", objective, config.train, resumed)


def _initialise(student: nn.Module, teacher: nn.Module | None, config: DistillConfig) -> None:
    """The weights that the student starts from, where the configuration names any."""
    if config.student.init_from == "teacher":
        assert teacher is not None
        initialise(student, teacher.state_dict())
    elif config.student.init_from:
        initialise(student, checkpoints.read_weights(config.student.init_from))


def _encoder(session: Session) -> Encoder:
    return Encoder(session.data.train.encoding, session.config.student.timesteps)


def _sample(session: Session) -> Tensor:
    """Two inputs as they leave the augmentation, but not changed by it."""
    return session.inputs(Augmentation.none()(session.x[:2], session.y[:2])[0])


def _check_models(session: Session, last: Checkpoint | None) -> None:
    """One forward pass of both models, so that what does not fit together is named before anything is trained.

    A run that goes on with its student needs the files no more that it started from.
    """
    config, x, encoder = session.config, _sample(session), _encoder(session)
    classes = len(session.data.classes)
    student = session.placed(build_student(session.data.input_shape, classes, config.student))
    _check_logits(student, encoder.student(x), (config.student.timesteps, 2, classes), "student")
    teacher = None
    if config.uses_teacher:
        teacher = session.placed(build_teacher(session.data.image_shape, classes, config.teacher))
        _check_logits(teacher, encoder.teacher(x), (2, classes), "teacher")
        if config.teacher.checkpoint and not session.run.teacher.is_file():
            checkpoints.load_weights(teacher, config.teacher.checkpoint)
    if not last or last.header["phase"] == "teacher":
        _initialise(student, teacher, config)
    for timesteps in StudentObjective(student, teacher, config, encoder, x).curriculum:
        student.timesteps = timesteps  # type: ignore[assignment]
        _check_logits(student, encoder.student(x), (timesteps, 2, classes), "student")


def _check_logits(model: nn.Module, x: Tensor, expected: tuple[int, ...], what: str) -> None:
    model.eval()
    reset_neurons(model)
    try:
        with torch.no_grad():
            logits = model(x)
    except RuntimeError as error:
        first_line = str(error).split("\n")[0]
        raise ConfigError(
            f"the {what} fails on an input of shape {tuple(x.shape)}: {first_line}",
            "give a model that takes the data set's samples",
        ) from None
    if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(
            f"the {what} returns logits of shape {found} for 2 samples, expected {expected}",
            "a teacher returns [samples, classes], a student [timesteps, samples, classes]",
        )
