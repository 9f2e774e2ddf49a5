"""Saliency consistency: does a spiking student look where its teacher looks, and do its maps tell the truth?

The maps are SmoothGrad x input (Smilkov et al. 2017; Shrikumar et al. 2016), through the surrogate gradient and all
timesteps in a spiking network. Such a map is worth no more than what it has over the map of a network with random
weights (Adebayo et al., NeurIPS 2018): on images with much empty background the factor x alone makes any two maps
alike. Therefore the agreement of the gradients without x is measured, too, and both for re-initialised students.
The surrogate is part of a spiking network's map: everything is repeated at half and at double its width.
"""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from snnkit.config import DistillConfig, StudentConfig, differences, load_config
from snnkit.errors import UnavailableError, UnsupportedError, UsageError
from snnkit.network.ir import Array
from snnkit.runs import Run
from snnkit.training.data import Dataset, load_configured
from snnkit.training.models import build_student
from snnkit.training.progress import Progress
from snnkit.training.saliency_maps import Maps, describe, mean_logits, saliency_maps, scalable, surrogate_width
from snnkit.training.saliency_measures import (
    Estimate,
    blur,
    bootstrap,
    insertion_minus_deletion,
    overlap,
    prediction_stays,
    ranking,
    spearman,
)
from snnkit.training.saliency_picture import draw
from snnkit.training.trainer import load_student, load_teacher, reproducible

TOP, KEPT = 0.1, 0.3  # shares of the pixels: of the overlap, and kept for the prediction
WIDTHS = (1.0, 0.5, 2.0)  # of the surrogate, in units of the one that the student was trained with
EXAMPLES = 6


@dataclass(frozen=True)
class Measures:
    """A network's maps in figures; ``width`` is that of the surrogate, in units of the one trained with.

    ``faithfulness``: insertion minus deletion AUC, minus the same for a random order. ``kept``: percent of the images
    whose prediction stays when only the top 30 % of the pixels is kept. Other pixels are replaced by blurred or by
    black ones; the factor x compares with black. With the teacher: ``correlation`` (Spearman) of the saliency,
    ``gradient_correlation`` of the gradients without x, ``overlap`` of the top 10 % (by chance: 0.05).
    ``reinitialised_*``: the same for students with random weights.
    """

    network: str
    width: float
    faithfulness: Estimate
    kept: Estimate
    faithfulness_black: Estimate
    kept_black: Estimate
    correlation: Estimate | None = None
    gradient_correlation: Estimate | None = None
    overlap: Estimate | None = None
    reinitialised_correlation: Estimate | None = None
    reinitialised_gradient_correlation: Estimate | None = None
    reinitialised_overlap: Estimate | None = None


@dataclass(frozen=True)
class Saliency:
    """What was measured on the first ``samples`` test images; ``picture`` or, in ``note``, why there is none."""

    run: Path
    samples: int
    surrogates: dict[str, str]
    settings: dict[str, float]
    rows: tuple[Measures, ...]
    picture: Path | None
    note: str = ""

    def row(self, network: str, width: float = 1.0) -> Measures:
        """The figures of one network."""
        return next(row for row in self.rows if (row.network, row.width) == (network, width))

    def to_json(self) -> dict[str, Any]:
        """The same, for machines."""
        return {**dataclasses.asdict(self), "run": str(self.run), "picture": self.picture and str(self.picture)}


def saliency(
    path: str | os.PathLike[str],
    *,
    undistilled: str | os.PathLike[str] | None = None,
    samples: int = 2000,
    seed: int = 0,
    copies: int = 8,
    noise: float = 0.15,
    steps: int = 10,
    reinitialisations: int = 3,
    device: str = "cpu",
    quiet: bool = True,
) -> Saliency:
    """Measures the maps of a run's teacher and student, and of the student of a second run without distillation.

    ``copies`` of each image get Gaussian noise of deviation ``noise`` (images span 0..1); deletion and insertion take
    ``steps``; the batches are as large as in training. Writes saliency.json and saliency.png into the run.
    """
    if min(samples, copies, steps, reinitialisations) < 1 or min(noise, seed) < 0:
        raise UsageError(
            "samples, copies, steps and reinitialisations must be at least 1, noise and seed at least 0", "raise them"
        )
    run = Run.open(path)
    config = load_config(run.config)
    teacher, students = load_teacher(run), {"student": load_student(run)}
    if undistilled is not None:
        students["undistilled"] = _undistilled(Run.open(undistilled), config)
    data = load_configured(config.data, config.student.timesteps)
    if len(data.input_shape) != 3:
        shape = " x ".join(map(str, data.input_shape))
        raise UnsupportedError(
            f"saliency cannot be measured on '{data.name}'",
            [f"its samples are {shape}, not images [C, H, W]; spikes over time have no blurred copy"],
            "use a run on images",
        )
    progress = Progress(quiet=quiet)
    with reproducible(config.train.threads, device) as torch_device:
        x = torch.from_numpy(data.test.first(samples).images)
        study = _Study(x, torch_device, config.train.batch_size, seed=seed, copies=copies, noise=noise, steps=steps)
        progress.note(f"saliency of {len(study.x)} images: teacher")
        reference = study.maps(teacher)
        values = {("teacher", 1.0): study.use(teacher, [reference])[0]}
        maps = {"teacher": reference}
        for name, student in students.items():
            widths = WIDTHS if scalable(student) else (1.0,)
            progress.note(f"saliency of {len(study.x)} images: {name}, surrogate width {', '.join(map(str, widths))}")
            found = []
            for width in widths:
                with surrogate_width(student, width):
                    found.append(study.maps(student))
            for width, own, used in zip(widths, found, study.use(student, found), strict=True):
                values[name, width] = {**used, **study.agreement(own, reference)}
            maps[name] = found[0]
        if undistilled is not None:
            first, second = values["student", 1.0], values["undistilled", 1.0]
            values["student - undistilled", 1.0] = {name: first[name] - second[name] for name in first}
        progress.note(f"saliency of {len(study.x)} images: {reinitialisations} students with random weights")
        values["student", 1.0] |= study.at_random(data, config.student, reference, reinitialisations)
    picture, note = _picture(run, data, study.x, maps)
    result = Saliency(
        run=run.path,
        samples=len(study.x),
        surrogates={name: describe(student) for name, student in students.items()},
        settings={
            **{"seed": seed, "copies": copies, "noise": noise, "steps": steps, "blur": study.sigma},
            **{"reinitialisations": reinitialisations, "top": TOP, "kept": KEPT},
        },
        rows=tuple(
            Measures(network, width, **{name: bootstrap(array, seed=seed) for name, array in measured.items()})
            for (network, width), measured in values.items()
        ),
        picture=picture,
        note=note,
    )
    run.write_json(run.saliency, result.to_json())
    return result


class _Study:
    """The images that all networks are judged on, and what the networks share: noise, blurred copies, random order."""

    def __init__(
        self, x: Tensor, device: torch.device, batch_size: int, *, seed: int, copies: int, noise: float, steps: int
    ) -> None:
        self.x, self.device, self.batch_size, self.seed = x, device, batch_size, seed
        self.copies, self.noise, self.steps = copies, noise, steps
        self.sigma = max(x.shape[2:]) / 4  # leaves the colour of a region, not its shape
        self.random = ranking(torch.zeros(len(x), *x.shape[2:]), self._generator(1))

    def _generator(self, purpose: int) -> torch.Generator:
        return torch.Generator().manual_seed(1000 * purpose + self.seed)

    def maps(self, model: nn.Module) -> Maps:
        """The model's maps; it is moved to the device."""
        model.to(self.device)
        return saliency_maps(
            model, self.x, copies=self.copies, noise=self.noise, seed=self.seed, batch_size=self.batch_size
        )

    def use(self, model: nn.Module, maps: list[Maps]) -> list[dict[str, Array]]:
        """M1, faithfulness and kept, of several maps of one model."""
        found: list[dict[str, Array]] = [{} for _ in maps]
        for suffix, blurred in (("", True), ("_black", False)):
            at_random, _ = self._replaced(model, self.random, blurred=blurred)
            for measured, own in zip(found, maps, strict=True):
                score, stays = self._replaced(model, ranking(own.saliency, self._generator(2)), blurred=blurred)
                measured[f"faithfulness{suffix}"] = (score - at_random).numpy()
                measured[f"kept{suffix}"] = 100.0 * stays.double().numpy()
        return found

    def _replaced(self, model: nn.Module, ranks: Tensor, *, blurred: bool) -> tuple[Tensor, Tensor]:
        def logits(x: Tensor) -> Tensor:
            return mean_logits(model, x)

        scores, stays = [], []
        for start in range(0, len(self.x), self.batch_size):
            batch = slice(start, start + self.batch_size)
            x, order = self.x[batch].to(self.device), ranks[batch].to(self.device)
            other = blur(x, self.sigma) if blurred else torch.zeros_like(x)
            scores.append(insertion_minus_deletion(logits, x, other, order, self.steps))
            stays.append(prediction_stays(logits, x, other, order, KEPT))
        return torch.cat(scores), torch.cat(stays)

    def agreement(self, own: Maps, teacher: Maps) -> dict[str, Array]:
        """M2 of a student's maps."""
        ranks = ranking(own.saliency, self._generator(2)), ranking(teacher.saliency, self._generator(3))
        return {
            "correlation": spearman(own.saliency, teacher.saliency),
            "gradient_correlation": spearman(own.gradient, teacher.gradient),
            "overlap": overlap(*ranks, TOP),
        }

    def at_random(self, data: Dataset, config: StudentConfig, teacher: Maps, times: int) -> dict[str, Array]:
        """M3: M2 of students with random weights, the mean of several."""
        found = []
        for index in range(times):
            torch.manual_seed(1000 * (10 + index) + self.seed)
            student = build_student(data.input_shape, len(data.classes), config).to(self.device)
            _settle(student, self.x[: self.batch_size].to(self.device))
            found.append(self.agreement(self.maps(student), teacher))
        return {f"reinitialised_{name}": np.mean([one[name] for one in found], axis=0) for name in found[0]}


@torch.no_grad()
def _settle(model: nn.Module, x: Tensor) -> None:
    """Takes the statistics of the batch normalisations from ``x``: without them random weights reach no threshold."""
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = None  # a plain mean
            module.train()
    mean_logits(model, x)
    model.eval()


def _undistilled(run: Run, config: DistillConfig) -> nn.Module:
    other = load_config(run.config)
    if other.losses.distilled:
        raise UsageError(
            f"the student of '{run.path}' is distilled", "train one with --set losses.kl=0 --set losses.feature=0"
        )
    free = ("data.augment", "data.root", "data.download")
    changed = [key for key in differences(config, other) if key.startswith("data.") and not key.startswith(free)]
    if changed:
        raise UsageError(
            f"the run in '{run.path}' is on other data: {', '.join(changed)}", "give runs on the same data"
        )
    return load_student(run)


def _picture(run: Run, data: Dataset, x: Tensor, maps: dict[str, Maps]) -> tuple[Path | None, str]:
    """An image of each of the first classes, drawn with its maps; or why not."""
    labels = data.test.y[: len(x)].tolist()
    chosen = [labels.index(label) for label in sorted(set(labels))[:EXAMPLES]]
    answers = {name: [f"says {data.classes[own.predicted[i]]}" for i in chosen] for name, own in maps.items()}
    captions = {"image": [data.classes[labels[i]] for i in chosen], **answers}
    path = run.saliency.with_suffix(".png")
    try:
        return draw(path, x[chosen], {name: own.saliency[chosen] for name, own in maps.items()}, captions), ""
    except UnavailableError as error:
        path.unlink(missing_ok=True)  # that of an earlier measurement
        return None, f"{error}; {error.hint}"
