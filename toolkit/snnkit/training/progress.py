"""What a user sees of a training run, on stderr: a bar on a terminal, otherwise one line an epoch."""

import sys
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import Progress as Bars
from rich.progress import TaskID


class Progress:
    """Reports phases, epochs and notes; ``quiet`` says nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._bars: Bars | None = None
        self._task = TaskID(0)
        self._epochs = 0

    def start(self, phase: str, epochs: int, done: int) -> None:
        """A phase of ``epochs`` begins, or goes on after ``done``."""
        self._epochs = epochs
        if not self.quiet and sys.stderr.isatty():
            self._bars = Bars(console=Console(stderr=True), transient=True)
            self._task = self._bars.add_task(phase, total=epochs, completed=done)
            self._bars.start()

    def epoch(self, record: dict[str, Any]) -> None:
        """An epoch is over; ``record`` is its line in metrics.jsonl."""
        split = "training" if record["validation_accuracy"] is None else "validation"
        percent = record["train_accuracy"] if split == "training" else record["validation_accuracy"]
        text = (
            f"{record['phase']} epoch {record['epoch']}/{self._epochs}: "
            f"loss {record['loss']:.3f}, {split} {percent:.2f} %"
        )
        if self._bars:
            self._bars.update(self._task, advance=1, description=text)
        else:
            left = timedelta(seconds=round((self._epochs - record["epoch"]) * record["seconds"]))
            self.note(f"{text}, {record['seconds']:.1f} s, {left} left")

    def gradients(self, norms: dict[str, float]) -> None:
        """How much each loss pulls, by the norms of their weighted gradients, beside the first; nothing for one."""
        (first, unit), *others = norms.items()
        if others and unit:
            shares = ", ".join(f"{name} {norm / unit:.2g}" for name, norm in others)
            self.note(f"gradients at the student's last stage, of the {first}'s: {shares}")

    def end(self) -> None:
        """The phase is over or interrupted."""
        if self._bars:
            self._bars.stop()
            self._bars = None

    def note(self, text: str) -> None:
        """One line."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)
