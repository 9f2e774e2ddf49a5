"""Training steps as a GPU runs them: nothing waits for the device, and captured ones compute what plain ones do."""

from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from snnkit.config import load_config
from snnkit.errors import ConfigError
from snnkit.runs import Run
from snnkit.training import checkpoint, fit, parallel
from snnkit.training.augment import Augmentation
from snnkit.training.data import load_dataset
from snnkit.training.devices import sent
from snnkit.training.ema import MovingAverage
from snnkit.training.encoding import Encoder
from snnkit.training.models import build_student, build_teacher
from snnkit.training.objective import StudentObjective
from snnkit.training.schedule import build_optimizer
from snnkit.training.steps import WARM_UP, Graphed, Outcome, eager
from snnkit.training.trainer import distill

AUGMENTED = "data.augment={crop: 4, flip: true, autoaugment: cifar10, cutout: 16, mixup: 0.2, cutmix: 1.0, p: 0.5}"
LOSSES = ("losses.ensemble=0.3", "losses.label_smoothing=0.1", "losses.feature=0.1", "losses.kl=1")
MODELS = ("student.model=resnet18", "student.width=0.0625", "teacher.width=0.0625", "train.optimizer=sgd")


class Transfers(TorchDispatchMode):
    """Every copy to another device, and whether the processor waits for it."""

    def __init__(self):
        super().__init__()
        self.waiting = []
        self.copies = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is torch.ops.aten._to_copy.default and result.device != args[0].device:
            self.copies += 1
            self.waiting += [] if kwargs.get("non_blocking") else [args[0].shape]
        return result


@pytest.mark.parametrize("teacher", ["resnet18", "wide_resnet28_8"])
def test_a_step_never_waits_for_the_device(teacher, monkeypatch):
    monkeypatch.setattr(StudentObjective, "autocast", lambda *_: nullcontext())  # shapes alone have none
    settings = [AUGMENTED, *LOSSES, *MODELS, f"teacher.model={teacher}", "train.ema=0.9"]
    config = load_config(None, [*settings, "losses.stages=[0, [1, 1], [3, 2]]"])
    device = torch.device("meta")  # computes shapes alone: to ask it for a value is an error
    x, y = (
        torch.zeros(32, 3, 32, 32, dtype=torch.uint8, device=device),
        torch.zeros(32, dtype=torch.long, device=device),
    )
    with device:
        student = build_student((3, 32, 32), 100, config.student)
        objective = StudentObjective(
            student, build_teacher((3, 32, 32), 100, config.teacher), config, Encoder("direct", 4), x[:2].float()
        )
    optimizer, average = build_optimizer(objective, config.train), MovingAverage(student, 0.9)
    augment, step = (
        Augmentation(config.data.augment, torch.Generator().manual_seed(0)),
        eager(objective, objective.weights),
    )
    with Transfers() as transfers:
        for number in range(4):
            images, labels = augment(x, y)
            optimizer.zero_grad()
            outcome = step(images, labels)
            torch.nn.utils.clip_grad_norm_(objective.parameters(), 5.0)
            optimizer.step()
            average.update(number)
    assert transfers.copies > 40
    assert transfers.waiting == []
    assert set(outcome.values) == {"cross_entropy", "ensemble", "kl", "feature"}
    assert {parameter.grad.device for parameter in objective.parameters()} == {device}


def test_what_is_sent_arrives():
    tensor = torch.arange(3)
    assert sent(tensor, torch.device("cpu")) is tensor


class Replaying:
    """Captures as CUDA does: capturing computes nothing, replaying writes where capturing would have written."""

    def __init__(self, objective):
        self.objective, self.captured, self.ran, self.replayed = objective, 0, 0, 0

    def run(self, work):
        self.ran += 1
        return work()

    def capture(self, work):
        self.captured += 1
        parameters = list(self.objective.parameters())
        assert all(parameter.grad is None for parameter in parameters)
        buffers = {name: buffer.clone() for name, buffer in self.objective.named_buffers()}
        fixed = work()
        gradients = [parameter.grad for parameter in parameters]
        for name, buffer in self.objective.named_buffers():
            buffer.copy_(buffers[name])
        for tensor in (fixed.logits, fixed.loss, *fixed.values.values(), *gradients):
            tensor.fill_(torch.nan)

        def replay():
            self.replayed += 1
            for parameter in parameters:
                parameter.grad = None
            found = work()
            assert isinstance(found, Outcome)
            for old, new in zip(
                (fixed.logits, fixed.loss, *fixed.values.values()),
                (found.logits, found.loss, *found.values.values()),
                strict=True,
            ):
                old.copy_(new)
            for gradient, parameter in zip(gradients, parameters, strict=True):
                gradient.copy_(parameter.grad)

        return fixed, replay


def test_captured_steps_train_what_plain_steps_train(tmp_path, monkeypatch):
    settings = (
        *("teacher.channels=[4, 8]", "teacher.epochs=1", "student.channels=[4, 6]", "student.timesteps=2"),
        *("train.epochs=4", "train.batch_size=128", "train.threads=1", "train.curriculum={1: 0.4}", "train.ema=0.9"),
        *("train.precision=fp64", "train.grad_clip=1", "data.augment={crop: 1, mixup: 0.4, cutmix: 1.0, p: 0.5}"),
    )
    config = load_config(None, settings)
    plain, captured = Run(tmp_path / "plain"), Run(tmp_path / "captured")
    distill(config, plain)
    made = []

    def graphed(_session, objective):
        made.append(Replaying(objective))
        return Graphed(objective, made[-1])

    monkeypatch.setattr(fit, "_step", graphed)
    distill(config, captured)
    steps = len(load_dataset("digits").train) // 128
    assert [(m.ran, m.captured, m.replayed) for m in made] == [
        (WARM_UP, 1, steps - WARM_UP),
        (2 * WARM_UP, 2, 4 * steps - 2 * WARM_UP),  # one and two timesteps
    ]
    expected, found = (checkpoint.read(run.last).tensors for run in (plain, captured))
    for name, tensor in expected.items():
        assert torch.allclose(found[name].double(), tensor.double(), rtol=1e-9, atol=1e-9), name


def test_what_cannot_be_captured_is_refused_and_a_cpu_has_no_graphs(tmp_path, monkeypatch):
    config = load_config(None, ["train.cuda_graph=true", "data.encoding=rate", "teacher.epochs=1", "train.epochs=1"])

    class Session:
        data = type("Data", (), {"train": type("Split", (), {"encoding": "rate"})})
        device = torch.device("cuda")

    Session.config = config
    with pytest.raises(ConfigError, match=r"inputs without chance of their own"):
        fit._step(Session, None)
    Session.data.train.encoding = "direct"
    monkeypatch.setattr(parallel, "size", lambda: 2)
    with pytest.raises(ConfigError, match=r"for one process"):
        fit._step(Session, None)
    monkeypatch.undo()
    assert distill(config, Run(tmp_path)).finished
