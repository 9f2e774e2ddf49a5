"""The run directory: where a run keeps its configuration, checkpoints, metrics and results."""

import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from snnkit import __version__
from snnkit.errors import RunFolderError
from snnkit.files import write_atomically

PACKAGES = ("numpy", "torch", "spikingjelly", "scikit-learn", "safetensors", "onnx", "onnxruntime")
FILES = (
    *("config.yaml", "environment.json", "metrics.jsonl"),
    *("last.safetensors", "best.safetensors", "teacher.safetensors", "network.safetensors"),
    *("energy.json", "timesteps.json", "mapping.json", "quantization.json", "evaluation.json"),
    *("report.html", "report.json"),
    *("saliency.json", "saliency.png"),
)
FOLDERS = ("exports", "traces")


class Run:
    """A run directory; the properties are the paths of its files, present or not."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def last(self) -> Path:
        return self.path / "last.safetensors"

    @property
    def best(self) -> Path:
        return self.path / "best.safetensors"

    @property
    def teacher(self) -> Path:
        return self.path / "teacher.safetensors"

    @property
    def network(self) -> Path:
        return self.path / "network.safetensors"

    @property
    def quantization(self) -> Path:
        return self.path / "quantization.json"

    @property
    def exports(self) -> Path:
        return self.path / "exports"

    @property
    def traces(self) -> Path:
        return self.path / "traces"

    @property
    def energy(self) -> Path:
        return self.path / "energy.json"

    @property
    def timesteps(self) -> Path:
        return self.path / "timesteps.json"

    @property
    def mapping(self) -> Path:
        return self.path / "mapping.json"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def report_data(self) -> Path:
        return self.path / "report.json"

    @property
    def saliency(self) -> Path:
        return self.path / "saliency.json"

    @classmethod
    def create(
        cls, path: str | os.PathLike[str] | None, name: str, *, resume: bool = False, force: bool = False
    ) -> "Run":
        """A folder to run in: ``path``, or a fresh ``runs/NAME-N`` where none is given.

        A folder that is not empty is refused; ``resume`` opens it as it is, ``force`` removes the files of the run
        that is in it (and no others).
        """
        if resume and force:
            raise RunFolderError("--resume and --force exclude each other", "give one of them")
        if path is None:
            if resume:
                raise RunFolderError("there is no run to resume", "name its folder with -o")
            return cls._fresh(Path("runs"), name)
        run = cls(path)
        if resume:
            return cls.open(path)
        if run.path.exists() and not run.path.is_dir():
            raise RunFolderError(f"'{run.path}' is a file", "give another folder with -o")
        if run.path.is_dir() and any(run.path.iterdir()):
            if not force:
                raise RunFolderError(
                    f"the folder '{run.path}' is not empty", "continue it with --resume, or start over with --force"
                )
            run._clear()
        run.path.mkdir(parents=True, exist_ok=True)
        return run

    @classmethod
    def _fresh(cls, root: Path, name: str) -> "Run":
        root.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            try:
                (root / f"{name}-{number}").mkdir()
            except FileExistsError:
                number += 1
            else:
                return cls(root / f"{name}-{number}")

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Run":
        """An existing run; raises :class:`RunFolderError` where there is none."""
        run = cls(path)
        if not run.path.is_dir():
            raise RunFolderError(f"there is no run directory '{run.path}'", "'snnkit distill' makes one")
        if not run.config.is_file():
            raise RunFolderError(
                f"'{run.path}' is not a run directory: it has no config.yaml", "give the folder that 'distill' wrote"
            )
        return run

    def _clear(self) -> None:
        for name in FILES:
            (self.path / name).unlink(missing_ok=True)
        for stored in ("last", "best", "teacher"):  # in pieces
            for piece in self.path.glob(f"{stored}-[ab]-*-of-*.safetensors"):
                piece.unlink()
        for name in FOLDERS:
            if (self.path / name).is_dir():
                shutil.rmtree(self.path / name)

    def write_json(self, path: Path, content: Any) -> Path:
        """Writes ``content`` as indented JSON, in one move."""
        return write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl, one an epoch; a last line that was cut off is left out."""
        if not self.metrics.is_file():
            return []
        lines = self.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Appends one record as one line."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")

    def truncate_metrics(self, count: int) -> None:
        """Keeps the first ``count`` records: those up to the checkpoint that a run continues from."""
        records = self.read_metrics()
        if len(records) < count:
            raise RunFolderError(
                f"'{self.metrics}' holds {len(records)} records, but the checkpoint comes after {count}",
                "the run cannot be continued exactly; start over with --force",
            )
        write_atomically(self.metrics, "".join(json.dumps(record) + "\n" for record in records[:count]))


def environment(packages: Iterable[str] = PACKAGES) -> dict[str, Any]:
    """Python, platform, processors and package versions, without importing the packages."""
    versions: dict[str, str | None] = {"snnkit": __version__}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "versions": versions,
    }
