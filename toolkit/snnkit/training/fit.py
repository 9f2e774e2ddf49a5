"""The training loop of both phases, exactly resumable: every epoch ends with a checkpoint of all it goes on from."""

import math
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from snnkit.config import DistillConfig
from snnkit.errors import ConfigError
from snnkit.runs import Run
from snnkit.training import checkpoint as checkpoints
from snnkit.training.augment import shift
from snnkit.training.checkpoint import Checkpoint
from snnkit.training.data import Dataset
from snnkit.training.evaluation import evaluate
from snnkit.training.progress import Progress

Terms: TypeAlias = dict[str, tuple[float, Tensor]]  # loss by name: its weight and its value
Objective: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Terms]]  # (x, y) -> logits [N, K], terms


class Session:
    """What both phases share: configuration, run, training data on the device, and when to stop."""

    def __init__(
        self,
        config: DistillConfig,
        run: Run,
        data: Dataset,
        device: torch.device,
        progress: Progress,
        stop_after: int | None,
        time_limit: float | None,
    ) -> None:
        self.config, self.run, self.data, self.device, self.progress = config, run, data, device, progress
        self.x = torch.from_numpy(data.train.x).to(device)
        self.y = torch.from_numpy(data.train.y).to(device)
        self.epochs_left = math.inf if stop_after is None else stop_after
        self.deadline = math.inf if time_limit is None else time.perf_counter() + time_limit

    @property
    def stopped(self) -> bool:
        return self.epochs_left <= 0 or time.perf_counter() >= self.deadline


def fit(
    session: Session,
    phase: str,
    modules: nn.ModuleDict,
    objective: Objective,
    epochs: int,
    lr: float,
    last: Checkpoint | None,
) -> bool:
    """Trains ``modules`` for ``epochs``, writing a checkpoint after each; false if it was stopped before the end."""
    run, train = session.run, session.config.train
    batch_size = min(train.batch_size, len(session.y))
    steps = len(session.y) // batch_size  # a last, smaller batch is left out, by chance of the order
    optimizer = torch.optim.AdamW(modules.parameters(), lr=lr, weight_decay=train.weight_decay)
    generator = torch.Generator().manual_seed(train.seed)
    done, best = 0, -1
    if last:
        checkpoints.restore_training_state(last, modules, optimizer, generator)
        done, best = last.header["epoch"], last.header["best"]
    session.progress.start(phase, epochs, done)
    try:
        for epoch in range(done, epochs):
            if session.stopped:
                return False
            started = time.perf_counter()
            modules.train()
            sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=session.device))
            correct = torch.zeros((), dtype=torch.int64, device=session.device)
            order = torch.randperm(len(session.y), generator=generator)[: steps * batch_size]
            for step, batch in enumerate(order.to(session.device).split(batch_size)):  # type: ignore[no-untyped-call]
                for group in optimizer.param_groups:
                    group["lr"] = lr * (1 + math.cos(math.pi * (epoch + step / steps) / epochs)) / 2
                x, y = shift(session.x[batch], session.config.data.shift, generator), session.y[batch]
                logits, terms = objective(x, y)
                loss = torch.stack([weight * value for weight, value in terms.values()]).sum()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                correct += (logits.detach().argmax(1) == y).sum()
                for name, value in {"loss": loss, **{name: value for name, (_, value) in terms.items()}}.items():
                    sums[name] += value.detach()
            means = {name: float(total) / steps for name, total in sums.items()}
            if not math.isfinite(means["loss"]):
                raise ConfigError(f"the {phase}'s loss is {means['loss']} in epoch {epoch + 1}", "use a smaller lr")

            validation = evaluate(modules["model"], session.data.validation)
            header = {"phase": phase, "epoch": epoch + 1, "correct": validation.correct}
            if phase == "student" and validation.correct > best:
                best = validation.correct
                checkpoints.write(run.best, modules["model"].state_dict(), header)
            record: dict[str, Any] = {
                "phase": phase,
                "epoch": epoch + 1,
                **means,
                "train_accuracy": 100.0 * int(correct) / (steps * batch_size),
                "validation_accuracy": validation.percent,
                "seconds": round(time.perf_counter() - started, 3),
            }
            run.append_metrics(record)  # before the checkpoint: a resume cuts off what comes after it
            header |= {
                "best": best,
                "records": len(run.read_metrics()),
                "input_shape": session.data.input_shape,
                "classes": session.data.classes,
            }
            checkpoints.write_training_state(run.last, modules, optimizer, generator, header)
            session.progress.epoch(record)
            session.epochs_left -= 1
    finally:
        session.progress.end()
    return True
