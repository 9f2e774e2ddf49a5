"""Quantisation-aware fine-tuning: the integer network itself is trained, and is exported as it was trained.

Batch normalisation is folded, scales and thresholds stay as they were chosen; weights and biases move to what the
rounded network needs. Its answers are drawn to those of the float student at every timestep, besides the run's own
losses. Nothing is selected: the last epoch counts.
"""

import math
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from snnkit.analysis.accuracy import Accuracy
from snnkit.config import DistillConfig, load_config
from snnkit.errors import ConfigError, UsageError
from snnkit.network import LIF, Network, Readout
from snnkit.network.ir import Array, Synapse, reads_input
from snnkit.runs import Run
from snnkit.training import checkpoint as checkpoints
from snnkit.training import losses
from snnkit.training.augment import Augmentation, Labels
from snnkit.training.data import Dataset
from snnkit.training.encoding import Encoder
from snnkit.training.integer import IntegerNetwork, Neurons, key
from snnkit.training.neurons import reset_neurons
from snnkit.training.objective import StudentObjective, Values
from snnkit.training.progress import Progress
from snnkit.training.schedule import learning_rate
from snnkit.training.trainer import fast, load_teacher, reproducible


@dataclass(frozen=True)
class Finetuning:
    """``epochs`` of ``samples`` random training samples each (None: all), with Adam at ``lr``, which falls to 0 as half
    a cosine. ``lr`` is in units of the largest weight that the format holds.
    """

    epochs: int
    samples: int | None = None
    lr: float = 1e-3
    seed: int = 0
    device: str = "cpu"
    quiet: bool = True

    def __post_init__(self) -> None:
        if self.epochs < 1 or (self.samples is not None and self.samples < 2):
            raise UsageError("fine-tuning needs at least one epoch of two samples", "leave it out, or give more")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UsageError(f"the learning rate {self.lr} is not positive", "give e.g. 0.001")


def finetune(
    run: Run, data: Dataset, folded: Network, integer: Network, student: nn.Module, settings: Finetuning
) -> tuple[Network, tuple[dict[str, Any], ...]]:
    """Trains ``integer``, the quantised ``folded`` network of the run's ``student``; that network, a record an epoch.

    On the training split, with the run's augmentation, losses, teacher and batch size; exactly the same on a CPU for
    the same seed.
    """
    config = _config(run)
    # integers of up to 11 bits are exact in TF32, and no weight or input has more
    with reproducible(config.train.threads, settings.device) as device, fast(device, "tf32"):
        torch.manual_seed(settings.seed)
        neuron = config.student
        model = IntegerNetwork(
            integer, unrounded(folded, integer), surrogate=neuron.surrogate, alpha=neuron.surrogate_alpha
        )
        layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
        objective = _Objective(model, student, run, config, data).placed(device, layout)
        x, y = (torch.from_numpy(array).to(device) for array in (data.train.stored, data.train.y))
        size = min(settings.samples or len(y), len(y))
        batch = min(config.train.batch_size, size)
        steps = size // batch
        optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], lr=settings.lr)
        progress, records = Progress(quiet=settings.quiet), []
        progress.start("fine-tuning", settings.epochs, 0)
        try:
            for epoch in range(settings.epochs):
                started = time.perf_counter()
                seeds = np.random.SeedSequence((settings.seed, epoch)).generate_state(3, np.uint32).tolist()
                torch.manual_seed(seeds[0])
                order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seeds[1]))[: steps * batch]
                augment = Augmentation(config.data.augment, torch.Generator().manual_seed(seeds[2]))
                sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64, device=device))
                for step, chosen in enumerate(order.to(device).split(batch)):  # type: ignore[no-untyped-call]
                    rate = learning_rate(epoch * steps + step, settings.epochs * steps, 0, settings.lr)
                    optimizer.param_groups[0]["lr"] = rate
                    images, labels = augment(x[chosen], y[chosen])
                    logits, values = objective(_laid_out(images, layout), labels)
                    loss = torch.stack([objective.weights[name] * value for name, value in values.items()]).sum()
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    model.clip()
                    correct = (logits.detach().argmax(1) == y[chosen]).sum()
                    for name, value in {"loss": loss, **values, "correct": correct}.items():
                        sums[name] += value.detach()
                means = {name: float(value) / steps for name, value in sums.items()}
                if not math.isfinite(means["loss"]):
                    raise ConfigError(
                        f"the loss of fine-tuning is {means['loss']} in epoch {epoch + 1}",
                        "use a smaller learning rate",
                    )
                held = data.validation
                validation = Accuracy.of(model.predict(torch.from_numpy(held.x)), held.y) if len(held) else None
                record: dict[str, Any] = {
                    "phase": "fine-tuning",
                    "epoch": epoch + 1,
                    "train_accuracy": 100.0 * means.pop("correct") / batch,
                    **means,
                    "validation_accuracy": validation.percent if validation else None,
                    "seconds": round(time.perf_counter() - started, 3),
                }
                records.append(record)
                progress.epoch(record)
        finally:
            progress.end()
        return model.cpu().network(), tuple(records)


def unrounded(folded: Network, integer: Network) -> dict[str, Array]:
    """The float weights of each synapse in integer units: what the integer ones were rounded from."""
    scales = integer.metadata["quantization"]["scales"]
    found: dict[str, Array] = {}
    for node in folded.nodes:
        if not isinstance(node, LIF | Readout):
            continue
        for edge in node.inputs:
            synapse = folded[edge.source]
            if isinstance(synapse, Synapse):
                scale = np.asarray(scales[node.name], np.float64).reshape(-1, *[1] * (synapse.weight.ndim - 1))
                gain = integer.input.scale if reads_input(folded, synapse) else 1.0
                found[synapse.name] = synapse.weight.astype(np.float64) * gain * scale
    return found


class _Objective(nn.Module):
    """The run's own losses of the integer network, and its divergence from the float student at every timestep."""

    def __init__(
        self, model: IntegerNetwork, student: nn.Module, run: Run, config: DistillConfig, data: Dataset
    ) -> None:
        super().__init__()
        taps = [key(str(name)) for name in getattr(student, "taps", ())]
        neurons = {name for name, layer in model.layers.items() if isinstance(layer, Neurons)}
        model.taps = [f"layers.{name}" for name in taps]  # type: ignore[assignment]
        if config.losses.features == "membrane" or not neurons.issuperset(taps):
            config = _without_features(config)  # currents are in other units here
        teacher = load_teacher(run) if run.teacher.is_file() and config.losses.distilled else None
        if teacher is None:
            config = _without_teacher(config)
        encoder = Encoder(data.train.encoding, config.student.timesteps)
        sample = Augmentation.none()(torch.from_numpy(data.train.stored[:2]), torch.from_numpy(data.train.y[:2]))[0]
        self.own = StudentObjective(model, teacher, config, encoder, sample)
        if len(self.own.projectors):
            self.own.projectors.load_state_dict(checkpoints.read(run.last).state("projectors"))
        self.weights = {**self.own.weights, "student": STUDENT_WEIGHT}
        self.temperature = config.losses.temperature
        self.frozen = [student, *([teacher] if teacher else [])]  # in a list: not trained

    def placed(self, device: torch.device, layout: torch.memory_format) -> "_Objective":
        """All networks on the device and in the memory layout."""
        for module in (self, *self.frozen):
            module.to(device).to(memory_format=layout)  # type: ignore[call-overload]
        return self

    def forward(self, x: Tensor, labels: Labels) -> tuple[Tensor, Values]:
        seen: list[Tensor] = []

        def keep(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen.extend((inputs[0], output))

        handle = self.own.model.register_forward_hook(keep)
        try:
            logits, values = self.own(x, labels)
        finally:
            handle.remove()
        encoded, answers = seen
        student = self.frozen[0].eval()
        with torch.no_grad(), self.own.autocast(encoded):
            reset_neurons(student)
            target = student(encoded)
        values["student"] = losses.divergence(target.float(), answers, self.temperature)
        return logits, values


STUDENT_WEIGHT = 1.0


def _config(run: Run) -> DistillConfig:
    """The run's, without what holds for its training only."""
    config = load_config(run.config)
    return config.model_copy(update={"train": config.train.model_copy(update={"curriculum": {}})})


def _without_features(config: DistillConfig) -> DistillConfig:
    return config.model_copy(update={"losses": config.losses.model_copy(update={"feature": 0.0})})


def _without_teacher(config: DistillConfig) -> DistillConfig:
    gone = {"kl": 0.0, "feature": 0.0, "activation_map": 0.0, "extra": {}}
    return config.model_copy(update={"losses": config.losses.model_copy(update=gone)})


def _laid_out(x: Tensor, layout: torch.memory_format) -> Tensor:
    return x.contiguous(memory_format=layout) if x.dim() == 4 else x
