"""The whole way on real data that ships with scikit-learn: teacher, students, integers, exports, targets, energy."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snnkit import plugins
from snnkit.analysis.accuracy import Accuracy
from snnkit.analysis.compare import Agreement
from snnkit.analysis.counts import OpCounts
from snnkit.analysis.energy import Energy, list_models
from snnkit.config import DistillConfig
from snnkit.pipeline import energy, evaluate, export_all, load, load_samples, quantize_run, write_energy
from snnkit.records import write as record
from snnkit.reporting import report
from snnkit.runs import Run

EXPORTS = ("onnx", "lava")
TARGETS = ("reference", "onnxruntime", "lava")


@dataclass(frozen=True)
class Row:
    """A network on a runner: accuracy on the test split and spikes per inference, or why it was not run."""

    name: str
    accuracy: Accuracy | None
    spikes: float | None = None
    note: str = ""


@dataclass(frozen=True, eq=False)
class Quickstart:
    """Everything that was measured and written; ``not_run`` maps a target to why, and the remedy."""

    run: Path
    rows: tuple[Row, ...]
    agreements: tuple[Agreement, ...]
    not_run: dict[str, str]
    counts: OpCounts
    energies: tuple[Energy, ...]
    files: tuple[Path, ...]
    next_commands: tuple[str, ...]
    seconds: float

    @property
    def identical(self) -> bool:
        """Whether all targets that ran gave the same spikes and readouts."""
        return all(agreement.identical for agreement in self.agreements)

    def to_json(self) -> dict[str, Any]:
        """The same, for machines."""
        rows = [
            {"name": row.name, "spikes_per_inference": row.spikes, "note": row.note}
            | ({} if row.accuracy is None else row.accuracy.to_json())
            for row in self.rows
        ]
        return {
            "run": str(self.run),
            "networks": rows,
            "compared": [agreement.to_json() for agreement in self.agreements],
            "not_run": self.not_run,
            "counts": self.counts.to_json(),
            "energy": [estimate.to_json() for estimate in self.energies],
            "files": [str(path) for path in self.files],
            "next": list(self.next_commands),
            "seconds": self.seconds,
        }


def quickstart(
    path: str | os.PathLike[str] | None = None, *, force: bool = False, seed: int = 0, quiet: bool = False
) -> Quickstart:
    """Trains a teacher, a student without and one with distillation, and takes the latter all the way.

    Writes a run directory: ``path``, or a fresh ``runs/quickstart-N``. A target that is not available is reported
    as not run, with the remedy.
    """
    from snnkit.training.trainer import distill

    start = time.perf_counter()
    config = DistillConfig.model_validate({"name": "quickstart", "train": {"seed": seed, "threads": 1}})
    run = Run.create(path, config.name, force=force)
    distilled = distill(config, run, quiet=quiet)
    plain_losses = config.losses.model_copy(update={"kl": 0.0, "feature": 0.0})
    plain_config = config.model_copy(update={"name": "undistilled", "losses": plain_losses})
    plain = distill(plain_config, Run.create(run.path / "undistilled", "undistilled", force=force), quiet=quiet)
    rows = [
        Row("teacher (ANN, float)", distilled.teacher),
        Row("student without distillation (float)", plain.student),
        Row("student, distilled (float)", distilled.student),
    ]

    quantize_run(run.path)
    net = load(run.path)
    exports = export_all(run.path, EXPORTS)
    samples = load_samples(net)
    not_run = {name: missing for name in TARGETS if (missing := plugins.target(name).available())}
    results, agreements = evaluate(net, samples, [name for name in TARGETS if name not in not_run])
    for result in results:
        name, spikes = f"student, distilled, integer: {result.trace.target}", result.trace.spikes_per_inference
        rows.append(Row(name, result.accuracy, spikes))
    rows += [Row(f"student, distilled, integer: {name}", None, note=missing) for name, missing in not_run.items()]
    counts, energies = energy(net, samples, list_models())
    write_energy(run.path, counts, energies)
    record(run.path, samples, results, agreements, not_run)
    written = report(run.path)

    files = [run.config, run.metrics, run.teacher, run.last, run.network, run.energy, run.evaluation]
    return Quickstart(
        run=run.path,
        rows=tuple(rows),
        agreements=tuple(agreements),
        not_run=not_run,
        counts=counts,
        energies=tuple(energies),
        files=(*files, *(path for paths in exports.values() for path in paths), written.data, written.page),
        next_commands=(
            *_activation(),
            f"snnkit inspect {run.path}",
            f"snnkit run {run.path} --target reference --target lava",
            f"snnkit energy {run.path} --timesteps",
            f"snnkit check {run.path} --chip loihi1 --chip loihi2",
            "snnkit distill examples/digits.yaml -o runs/mine --set train.epochs=40",
            "python examples/own_model.py",
        ),
        seconds=time.perf_counter() - start,
    )


def _activation() -> list[str]:
    """What puts ``snnkit`` on the path, where it lives in a virtual environment."""
    script = Path(sys.executable).parent / "activate"
    if not script.is_file():
        return []
    return [f"source {os.path.relpath(script) if script.is_relative_to(Path.cwd()) else script}"]
