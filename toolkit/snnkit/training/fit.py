"""The training loop of both phases, exactly resumable: a checkpoint at the end of an epoch holds all it goes on from.

The random numbers of an epoch follow from the seed, the phase, the epoch and, but for the order of the samples, the
process. So nothing random has to be kept, and several processes go through the same batches as one.
"""

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from snnkit.config import DistillConfig, Optimisation
from snnkit.errors import ConfigError, RunFolderError
from snnkit.runs import Run
from snnkit.training import checkpoint as checkpoints
from snnkit.training import parallel
from snnkit.training.augment import Augmentation, Labels
from snnkit.training.checkpoint import Checkpoint, Storage
from snnkit.training.data import Dataset
from snnkit.training.ema import BATCHES, MovingAverage
from snnkit.training.evaluation import evaluate
from snnkit.training.objective import Objective, StudentObjective
from snnkit.training.progress import Progress
from snnkit.training.schedule import build_optimizer, learning_rate, timesteps_at
from snnkit.training.steps import Graphed, Recorder, Step, eager, named

PHASES = ("teacher", "student")
TOGETHER = 8  # batches that a GPU augments at once, because launching so many small kernels takes as long as a step


class Session:
    """What both phases share: configuration, run, training data on the device, and when to stop."""

    def __init__(
        self,
        config: DistillConfig,
        run: Run,
        data: Dataset,
        device: torch.device,
        progress: Progress,
        storage: Storage,
        stop_after: int | None,
        time_limit: float | None,
    ) -> None:
        self.config, self.run, self.data, self.device = config, run, data, device
        self.progress, self.storage = progress, storage
        self.x = torch.from_numpy(data.train.stored).to(device)
        self.y = torch.from_numpy(data.train.y).to(device)
        self.dtype = torch.float64 if config.train.precision == "fp64" else torch.float32
        self.layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
        self.batch_size = min(config.train.batch_size, len(self.y))
        if self.batch_size % parallel.size():
            raise ConfigError(
                f"a batch of {self.batch_size} samples cannot be shared by {parallel.size()} processes",
                "make train.batch_size, which is that of all processes together, a multiple of their number",
            )
        self.epochs_left = math.inf if stop_after is None else stop_after
        self.deadline = math.inf if time_limit is None else time.perf_counter() + time_limit

    def stopped(self, epoch_seconds: float) -> bool:
        """Whether to stop here: enough epochs, or no time for another one of ``epoch_seconds``."""
        over = self.epochs_left <= 0 or time.perf_counter() + epoch_seconds >= self.deadline
        return parallel.agreed(over, self.device)

    def placed(self, model: nn.Module) -> nn.Module:
        """The model on the device, in the precision and memory layout of the configuration."""
        return model.to(self.device, self.dtype).to(memory_format=self.layout)  # type: ignore[call-overload, no-any-return]

    def inputs(self, x: Tensor) -> Tensor:
        """A batch in the same precision and layout."""
        x = x.to(self.dtype)
        return x.contiguous(memory_format=self.layout) if x.dim() == 4 else x

    def seed(self, phase: str, epoch: int, *more: int) -> int:
        """A seed for this epoch."""
        numbers = np.random.SeedSequence((self.config.train.seed, PHASES.index(phase), epoch, *more))
        return int(numbers.generate_state(1, np.uint64)[0] >> np.uint64(1))


def fit(
    session: Session, phase: str, objective: Objective, settings: Optimisation, last: Checkpoint | None
) -> nn.Module | None:
    """Trains ``objective``, writing checkpoints as the session's storage says; None if it was stopped before the end.

    Returns the network that counts, in eval mode: the objective's model or, with ``settings.ema``, its moving average.
    """
    config, run, device, batch_size = session.config, session.run, session.device, session.batch_size
    steps = len(session.y) // batch_size  # a last, smaller batch is left out, by chance of the order
    epochs, all_steps, warmup = settings.epochs, settings.epochs * steps, settings.warmup_epochs * steps
    session.placed(objective)
    optimizer = build_optimizer(objective, settings)
    average = MovingAverage(objective.model, settings.ema) if settings.ema else None
    averaged = average.model if average else None
    model = averaged or objective.model
    step = _step(session, objective)
    done, best, seconds = 0, -1, 0.0
    if last:
        checkpoints.restore_training_state(last, objective, averaged, optimizer)
        done, best = last.header["epoch"], last.header["best"]
    session.progress.start(phase, epochs, done)
    try:
        if done < epochs and session.stopped(0.0):
            return None
        for epoch in range(done, epochs):
            started = time.perf_counter()
            _train_mode(objective, freeze=config.train.freeze_batchnorm)
            torch.manual_seed(session.seed(phase, epoch, parallel.rank()))
            chance = torch.Generator().manual_seed(session.seed(phase, epoch, parallel.rank(), 1))
            augment = Augmentation(config.data.augment, chance)
            batches = _order(session, phase, epoch, steps)
            sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64, device=device))
            trace = torch.zeros(steps, dtype=torch.float64, device=device)  # every step's loss, read after the epoch
            shares = [parallel.share(batch) for batch in batches]
            for number, (x, labels, expected) in enumerate(_augmented(session, augment, shares)):
                now = epoch * steps + number
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(now, all_steps, warmup, settings.lr)
                objective.set_timesteps(timesteps_at(now, all_steps, objective.curriculum, objective.timesteps))
                optimizer.zero_grad()
                outcome = step(x, labels)
                if settings.grad_clip:
                    nn.utils.clip_grad_norm_(objective.parameters(), settings.grad_clip)
                optimizer.step()
                if average:
                    average.update(now)
                trace[number] = outcome.loss
                sums["correct"] += (outcome.logits.argmax(1) == expected).sum()
                for name, value in outcome.values.items():
                    sums[name] += value
            objective.set_timesteps(objective.timesteps)
            means = _means(sums, trace, steps, batch_size)
            if not math.isfinite(means["loss"]):
                number = int((~parallel.total(trace).isfinite()).nonzero()[0]) + 1
                raise ConfigError(
                    f"the {phase}'s loss is {means['loss']} at step {number} of {steps} in epoch {epoch + 1}",
                    f"use a smaller lr, train.warmup_epochs or train.grad_clip; {_last_good(run)}",
                )
            session.epochs_left -= 1
            elapsed = time.perf_counter() - started
            seconds = max(seconds, elapsed)  # of a whole epoch, as far as is known
            stop = epoch + 1 < epochs and session.stopped(2 * seconds - elapsed)
            kept = stop or epoch + 1 == epochs or (epoch + 1) % session.storage.every == 0
            split = session.data.validation if phase == "student" else session.data.validation.still
            if average and not config.train.freeze_batchnorm and (kept or len(split)):
                samples = _statistics_batches(session, phase, epoch, batches)
                average.recompute_statistics(objective.encode(x) for x in samples)
            validation = evaluate(model, split) if len(split) else None
            header = {"phase": phase, "epoch": epoch + 1, "correct": validation.correct if validation else None}
            better = epoch + 1 == epochs if validation is None else validation.correct > best
            best = max(best, validation.correct if validation else -1)
            record: dict[str, Any] = {
                "phase": phase,
                "epoch": epoch + 1,
                **means,
                "validation_accuracy": validation.percent if validation else None,
                "seconds": round(time.perf_counter() - started, 3),
            }
            if parallel.is_first():
                if isinstance(objective, StudentObjective):
                    still, labels = Augmentation.none()(session.x[batches[0]], session.y[batches[0]])
                    record["gradients"] = objective.gradients(session.inputs(still), labels)
                with _disk(run, phase, epoch + 1):
                    if better and phase == "student":
                        checkpoints.write_weights(run.best, model, header, session.storage)
                    run.append_metrics(record)  # before the checkpoint: a resume cuts off what comes after it
                    header |= {
                        "best": best,
                        "records": len(run.read_metrics()),
                        "input_shape": session.data.input_shape,
                        "image_shape": session.data.image_shape,
                        "classes": session.data.classes,
                    }
                    if kept:
                        checkpoints.write_training_state(
                            run.last, objective, averaged, optimizer, header, session.storage
                        )
            seconds = time.perf_counter() - started
            session.progress.epoch(record)
            if epoch == done and record.get("gradients"):
                session.progress.gradients(record["gradients"])
            seen, classes = steps * batch_size, len(session.data.classes)
            if epoch == settings.warmup_epochs + 1 and at_chance(means["train_accuracy"], seen, classes):
                section = "teacher" if phase == "teacher" else "train"
                start = "" if phase == "teacher" else ", or student.init_from=teacher"
                session.progress.note(
                    f"the {phase} is no better than chance after {epoch + 1} epochs; "
                    f"try another {section}.lr, {section}.optimizer=adamw{start}"
                )
            if stop:
                return None
    finally:
        session.progress.end()
    parallel.barrier()  # what the first process has written can be read
    return model.eval()


def _step(session: Session, objective: Objective) -> Step:
    """How a step is computed: compiled, as the configuration says."""
    if not session.config.train.compile:
        return _launched(session, objective)
    objective.compile_passes()
    return named(_launched(session, objective))


def _launched(session: Session, objective: Objective) -> Step:
    """Kernel by kernel, or on a GPU as one graph."""
    if not (session.config.train.cuda_graph and session.device.type == "cuda"):
        return eager(parallel.wrap(objective, session.device), objective.weights)
    if parallel.size() > 1 or session.data.train.encoding == "rate":
        raise ConfigError(
            "train.cuda_graph is for one process and for inputs without chance of their own (data.encoding rate)",
            "set train.cuda_graph to false",
        )
    return Graphed(objective, Recorder(session.device))


def _train_mode(objective: nn.Module, *, freeze: bool) -> None:
    objective.train()
    for module in objective.modules():
        if freeze and isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def _order(session: Session, phase: str, epoch: int, steps: int) -> tuple[Tensor, ...]:
    """The epoch's global batches: indices on the device, the same in all processes."""
    generator = torch.Generator().manual_seed(session.seed(phase, epoch))
    order = torch.randperm(len(session.y), generator=generator)[: steps * session.batch_size]
    return order.to(session.device).split(session.batch_size)  # type: ignore[no-untyped-call, no-any-return]


def _augmented(
    session: Session, augment: Augmentation, batches: Sequence[Tensor]
) -> Iterator[tuple[Tensor, Labels, Tensor]]:
    """Of each batch of indices the images as they are trained on, the labels to learn, and the images' own."""
    together = TOGETHER if session.device.type == "cuda" else 1
    for start in range(0, len(batches), together):
        group = batches[start : start + together]
        chosen = torch.cat(list(group))
        expected = session.y[chosen]
        found = augment.batches(session.x[chosen], expected, len(group))
        for (x, labels), own in zip(found, expected.chunk(len(group)), strict=True):
            yield session.inputs(x), labels, own


def _means(sums: dict[str, Tensor], trace: Tensor, steps: int, batch_size: int) -> dict[str, float]:
    """Loss, terms and accuracy of the epoch over all processes, fetched from the device at once."""
    names = [name for name in sums if name != "correct"]
    values = parallel.total(torch.stack([trace.sum(), sums["correct"], *(sums[name] for name in names)])).tolist()
    scale = steps * parallel.size()
    return {
        "loss": values[0] / scale,
        **{name: value / scale for name, value in zip(names, values[2:], strict=True)},
        "train_accuracy": 100.0 * values[1] / (steps * batch_size),
    }


def at_chance(percent: float, samples: int, classes: int) -> bool:
    """Whether so many percent of correct answers cannot be told from guessing: five standard deviations."""
    chance = 1 / classes
    return percent / 100 < chance + 5 * math.sqrt(chance * (1 - chance) / samples)


def _statistics_batches(session: Session, phase: str, epoch: int, batches: tuple[Tensor, ...]) -> Iterator[Tensor]:
    """Inputs for the moving average's BN statistics, augmented as in training, the same in all processes."""
    generator = torch.Generator().manual_seed(session.seed(phase, epoch, 0, 2))
    augment = Augmentation(session.config.data.augment, generator)
    for x, _, _ in _augmented(session, augment, batches[:BATCHES]):
        yield x


def _last_good(run: Run) -> str:
    if not run.last.is_file():
        return "there is no checkpoint yet"
    header = checkpoints.read_header(run.last)
    return f"the last good checkpoint is that of {header['phase']} epoch {header['epoch']}, '{run.last}'"


@contextmanager
def _disk(run: Run, phase: str, epoch: int) -> Iterator[None]:
    """Names what is left when the disk takes no more."""
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"the checkpoint of {phase} epoch {epoch} cannot be written: {error.strerror or error}",
            f"make room, then go on with --resume; {_last_good(run)}",
        ) from None
