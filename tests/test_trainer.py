"""Training: the numbers that the defaults promise, exact continuation, and what users may bring."""

import itertools
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from snnkit.config import load_config
from snnkit.errors import ConfigError, RunFolderError, UnavailableError, UsageError
from snnkit.network import verify
from snnkit.runs import Run
from snnkit.training import checkpoint
from snnkit.training.data import load_dataset
from snnkit.training.ema import MovingAverage
from snnkit.training.evaluation import evaluate
from snnkit.training.fit import at_chance
from snnkit.training.lower import lower_run
from snnkit.training.objective import StudentObjective
from snnkit.training.progress import Progress
from snnkit.training.schedule import build_optimizer, learning_rate, timesteps_at
from snnkit.training.trainer import distill, load_student

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = (
    *("teacher.channels=[4, 8]", "teacher.epochs=2", "student.channels=[4, 6]", "student.timesteps=2"),
    *("train.epochs=4", "train.batch_size=128", "train.threads=1", "losses.ensemble=0.3"),
)
PLAIN = ("losses.kl=0", "losses.feature=0")


def small(*overrides):
    return load_config(None, [*SMALL, *overrides])


def without_times(run):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in run.read_metrics()]


def assert_same_runs(a, b):
    for name in ("last", "best", "teacher"):
        x, y = (checkpoint.read(getattr(run, name)) for run in (a, b))
        assert x.header == y.header, name
        assert x.tensors.keys() == y.tensors.keys(), name
        for key, tensor in x.tensors.items():
            assert tensor.dtype == y.tensors[key].dtype
            assert torch.equal(tensor, y.tensors[key]), key
    assert without_times(a) == without_times(b)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("whole"))
    return run, distill(small(), run)


def test_the_example_reaches_what_it_says(tmp_path):
    config = load_config(EXAMPLES / "digits.yaml")
    summary = distill(config, Run(tmp_path))
    assert summary.teacher.percent >= 99
    assert summary.student.percent >= 97
    assert summary.best_epoch in range(1, config.train.epochs + 1)
    assert len(summary.firing_rates) == 3
    assert all(0.01 < rate < 0.6 for rate in summary.firing_rates.values())


def test_a_run_leaves_its_records(whole):
    run, summary = whole
    assert summary.finished
    assert load_config(run.config) == small()
    assert json.loads(run.environment.read_text())["threads"] == 1
    records = run.read_metrics()
    assert [(record["phase"], record.get("epoch")) for record in records] == [
        *(("teacher", 1), ("teacher", 2), ("student", 1), ("student", 2), ("student", 3), ("student", 4)),
        ("test", None),
    ]
    student = records[2]
    assert student["loss"] == pytest.approx(
        student["cross_entropy"] + 0.3 * student["ensemble"] + student["kl"] + 0.1 * student["feature"], rel=1e-5
    )
    assert set(student["gradients"]) == {"cross_entropy", "ensemble", "kl", "feature"}
    assert records[-1]["student"] == {"correct": summary.student.correct, "samples": 360}
    epochs = {record["epoch"]: record["validation_accuracy"] for record in records if record["phase"] == "student"}
    assert epochs[summary.best_epoch] == max(epochs.values())


def test_a_summary_is_json(whole):
    summary = whole[1]
    found = json.loads(json.dumps(summary.to_json()))
    assert found["student"]["accuracy"] == summary.student.percent
    assert found["student"]["samples"] == 360
    assert found["finished"]
    assert list(summary.accuracies()) == ["teacher", "student", f"student, best epoch ({summary.best_epoch})"]


def test_the_last_epoch_counts_and_is_lowered(whole):
    run, summary = whole
    student = load_student(run)
    assert not student.training
    assert evaluate(student, load_dataset("digits").test) == summary.student
    net = lower_run(run)
    assert verify(net) == "float"
    assert (net.timesteps, net.input.shape) == (2, (1, 8, 8))
    assert net.metadata["dataset"] == "digits"
    assert net.metadata["classes"] == list("0123456789")
    assert net.metadata["accuracy"]["student"] == {"correct": summary.student.correct, "samples": 360}


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_stopped_and_resumed_run_equals_one_that_was_not_stopped(whole, tmp_path, stop):
    run = Run(tmp_path)
    torch.manual_seed(stop)  # the caller's random state does not matter
    first = distill(small(), run, stop_after=stop)
    assert not first.finished
    assert first.student is None
    assert len(run.read_metrics()) == stop
    run.append_metrics({"phase": "teacher", "epoch": 99})  # killed between the record and its checkpoint
    torch.rand(5)
    second = distill(small(), run, resume=True)
    assert_same_runs(run, whole[0])
    assert (second.student, second.best, second.firing_rates) == (
        whole[1].student,
        whole[1].best,
        whole[1].firing_rates,
    )
    distill(small(), run, resume=True)  # nothing is left to do
    assert_same_runs(run, whole[0])


def test_a_run_without_a_checkpoint_resumes_from_its_beginning(whole, tmp_path):
    run = Run(tmp_path)
    assert not distill(small(), run, time_limit=0.0).finished
    assert not run.last.exists()
    distill(small(), run, resume=True, stop_after=6)
    assert_same_runs(run, whole[0])


def test_a_changed_configuration_is_refused(tmp_path):
    run = Run(tmp_path)
    distill(small(*PLAIN), run, stop_after=1)
    with pytest.raises(ConfigError, match=r"another configuration: student\.tau, train\.lr"):
        distill(small(*PLAIN, "train.lr=0.1", "student.tau=3.0"), run, resume=True)
    with pytest.raises(RunFolderError, match="holds a run already"):
        distill(small(*PLAIN), run)
    with pytest.raises(RunFolderError, match="there is no run directory"):
        distill(small(), Run(tmp_path / "missing"), resume=True)


def test_without_its_teacher_a_student_is_not_continued(whole, tmp_path):
    run = Run(tmp_path)
    distill(small(), run, stop_after=3)
    run.teacher.unlink()
    with pytest.raises(RunFolderError, match=r"teacher\.safetensors' is missing"):
        distill(small(), run, resume=True)


def test_losses_of_weight_0_need_no_teacher(tmp_path):
    summary = distill(small(*PLAIN, "losses.ensemble=0"), Run(tmp_path))
    assert summary.teacher is None
    assert not Run(tmp_path).teacher.exists()
    assert {"kl", "feature", "ensemble"}.isdisjoint(Run(tmp_path).read_metrics()[0])


def test_teachers_are_loaded_from_safetensors_and_torch_files(whole, tmp_path):
    weights = load_file(whole[0].teacher)
    torch.save(weights, tmp_path / "a.pt")
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "b.pt")
    for index, path in enumerate((whole[0].teacher, tmp_path / "a.pt", tmp_path / "b.pt")):
        run = Run(tmp_path / f"run{index}")
        summary = distill(small(f"teacher.checkpoint={path}", "train.epochs=1"), run)
        assert summary.teacher == whole[1].teacher
        assert [record["phase"] for record in run.read_metrics()] == ["student", "test"]
        assert load_file(run.teacher).keys() == weights.keys()


class Payload:
    def __reduce__(self):
        return (print, ("executed",))


def test_weight_files_that_do_not_fit_are_refused(whole, tmp_path, capsys):
    torch.save({"weight": Payload()}, tmp_path / "pickle.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "cut.safetensors").write_bytes(whole[0].teacher.read_bytes()[:200])
    for name, message in [
        ("missing.pt", "no weight file"),
        ("pickle.pt", "cannot be read as weights"),
        ("list.pt", "no state dict"),
        ("cut.safetensors", "cannot be read as weights"),
    ]:
        with pytest.raises(ConfigError, match=message):
            distill(small(f"teacher.checkpoint={tmp_path / name}"), Run(tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"does not fit the model.*size mismatch"):
        distill(small(f"teacher.checkpoint={whole[0].teacher}", "teacher.channels=[4, 9]"), Run(tmp_path / "run"))
    assert "executed" not in capsys.readouterr().out


def test_checkpoints_that_are_damaged_or_foreign_are_refused(whole, tmp_path):
    with pytest.raises(RunFolderError, match="no checkpoint"):
        load_student(Run(tmp_path))
    damaged = tmp_path / "last.safetensors"
    damaged.write_bytes(whole[0].last.read_bytes()[:-10])
    with pytest.raises(RunFolderError, match="not a readable checkpoint"):
        checkpoint.read(damaged)
    lower_run(whole[0])
    checkpoint.write(damaged, {}, {"format_version": 99})
    with pytest.raises(RunFolderError, match="newer snnkit"):
        checkpoint.read(damaged)
    distill(small(), run := Run(tmp_path / "run"), stop_after=1)
    with pytest.raises(RunFolderError, match="not trained yet"):
        load_student(run)


def test_training_that_diverges_stops_with_the_reason(tmp_path):
    with pytest.raises(ConfigError, match=r"student's loss is (nan|inf)"):
        distill(small(*PLAIN, "train.lr=1e30"), Run(tmp_path))


OWN = """
import torch
from torch import nn
from spikingjelly.activation_based import layer, neuron

def student(shape, classes, config):
    size, timesteps = config.options["size"], getattr(config, "timesteps", 2)
    return nn.Sequential(Repeat(timesteps), layer.Flatten(step_mode="m"), nn.Linear(64, size),
                         neuron.IFNode(v_threshold=0.5, step_mode="m"), nn.Linear(size, classes))

class Repeat(nn.Module):
    def __init__(self, timesteps):
        super().__init__()
        self.timesteps = timesteps

    def forward(self, x):
        return x.unsqueeze(0).repeat(self.timesteps, 1, 1, 1, 1)

def teacher(shape, classes, config):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes), nn.Dropout(0.1))

class Several(nn.Linear):
    def forward(self, x):
        return x, x

def several(shape, classes, config):
    return Several(1, 1)

def text(shape, classes, config):
    return "no module"

def mean_squared(logits, teacher, labels):
    return (logits - teacher).square().mean()
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_models.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield ("student.model=own_models:student", "teacher.model=own_models:teacher", "student.options={size: 20}")
    sys.modules.pop("own_models", None)


def test_users_bring_models_and_losses(own, tmp_path):
    settings = (*own, "losses.feature=0", "losses.extra={'own_models:mean_squared': 0.1}", "train.epochs=3")
    run = Run(tmp_path / "run")
    summary = distill(small(*settings), run)
    assert summary.student.percent > 40
    assert run.read_metrics()[-2]["own_models:mean_squared"] > 0
    assert list(summary.firing_rates) == ["3"]
    assert [node.name for node in lower_run(run)] == ["input", "1", "2", "3", "4", "readout"]
    stopped = Run(tmp_path / "stopped")  # dropout draws from torch's random state, which is saved, too
    distill(small(*settings), stopped, stop_after=1)
    distill(small(*settings), stopped, resume=True)
    assert_same_runs(run, stopped)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["student.model=own_models:teacher"], r"student returns logits of shape \(2, 10\)"),
        (
            ["teacher.model=own_models:student", "teacher.options={size: 3}"],
            r"teacher returns logits of shape .*expected \(2, 10\)",
        ),
        (["student.model=own_models:several", "losses.feature=0"], "student returns logits of shape tuple"),
        (["student.model=own_models:missing"], "cannot be loaded"),
        (["student.model=own_models:text"], "returned str"),
        (["student.model=own_models:student", "student.options={size: 4}"], "feature loss cannot pair"),
        (["student.model=convnets"], "there is no student model 'convnets'"),
    ],
)
def test_models_that_do_not_fit_are_named_before_anything_is_trained(own, tmp_path, settings, message):
    run = Run(tmp_path / "run")
    with pytest.raises(ConfigError, match=message):
        distill(small(*settings), run)
    assert run.read_metrics() == []


def test_settings_of_the_process_are_put_back(tmp_path):
    def settings():
        filled = torch.utils.deterministic.fill_uninitialized_memory
        return torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), filled

    before, state = settings(), torch.get_rng_state()
    distill(small(*PLAIN), Run(tmp_path), stop_after=1)
    assert settings() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_progress_is_one_line_an_epoch_on_stderr(tmp_path, capsys):
    distill(small(), Run(tmp_path / "a"), stop_after=3, quiet=False)
    out, err = capsys.readouterr()
    assert out == ""
    *lines, pulls = err.splitlines()
    starts = [line.split(":")[0] for line in lines]
    assert starts == ["teacher epoch 1/2", "teacher epoch 2/2", "teacher", "student epoch 1/4"]
    norms = Run(tmp_path / "a").read_metrics()[-1]["gradients"]
    shares = ", ".join(f"{name} {norms[name] / norms['cross_entropy']:.2g}" for name in ("ensemble", "kl", "feature"))
    assert pulls == f"gradients at the student's last stage, of the cross_entropy's: {shares}"
    distill(small(*PLAIN), Run(tmp_path / "b"), stop_after=1, quiet=True)
    assert capsys.readouterr() == ("", "")


def test_a_run_that_stays_at_chance_is_told_what_to_try(tmp_path, capsys):
    distill(small(*PLAIN, "train.lr=1e-9"), Run(tmp_path), stop_after=2, quiet=False)
    assert "student is no better than chance after 2 epochs; try another train.lr" in capsys.readouterr().err
    assert at_chance(10.4, 1000, 10)  # 104 right, by chance 100 with a standard deviation of 9.5
    assert not at_chance(15.0, 1000, 10)


def test_progress_is_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = Progress()
    progress.start("student", 2, 0)
    progress.epoch({"phase": "student", "epoch": 1, "loss": 1.0, "validation_accuracy": 50.0, "seconds": 1.0})
    progress.end()
    assert "seconds" not in capsys.readouterr().err


def test_what_cannot_be_asked_for(tmp_path):
    with pytest.raises(UsageError, match="stop after 0"):
        distill(small(), Run(tmp_path), stop_after=0)
    with pytest.raises(UnavailableError, match="device 'nonsense'"):
        distill(small(), Run(tmp_path), device="nonsense")


def test_a_model_without_taps_is_fine_without_the_feature_loss(whole):
    assert not hasattr(nn.Linear(1, 1), "taps")
    assert load_student(whole[0]).taps == ("stages.0.neuron", "stages.1.neuron")


def test_the_schedule_warms_up_and_ends_at_0():
    rates = [learning_rate(step, 20, 5, 0.1) for step in range(20)]
    assert rates[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert rates[5] == pytest.approx(0.1)
    assert rates[5 + 15 // 3] == pytest.approx(0.1 * (1 + math.cos(math.pi / 3)) / 2)
    assert all(a > b for a, b in itertools.pairwise(rates[5:]))
    assert learning_rate(20, 20, 5, 0.1) == pytest.approx(0)
    found = [timesteps_at(step, 10, {2: 0.6, 1: 0.3}, 4) for step in range(10)]
    assert found == [1, 1, 1, 2, 2, 2, 4, 4, 4, 4]


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_biases_and_normalisation_do_not_decay(kind):
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    with torch.no_grad():
        net[1].bias.fill_(1.0)
    optimizer = build_optimizer(net, small(f"train.optimizer={kind}", "train.weight_decay=0.1", "train.lr=0.5").train)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for old, new in zip(before, net.parameters(), strict=True):
        # Nesterov's first step is 1.9 times as long
        assert torch.allclose(new, old * (1 - 0.05 * (1.9 if kind == "sgd" else 1)) if old.dim() > 1 else old)
    if kind == "sgd":
        assert all((group["momentum"], group["nesterov"]) == (0.9, True) for group in optimizer.param_groups)


def test_the_moving_average_follows_its_equation_and_has_statistics_of_its_own():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).double()
    average = MovingAverage(net, 0.5)
    expected = net[0].weight.detach().clone()
    for step in range(9):
        with torch.no_grad():
            net[0].weight.add_(1.0)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * net[0].weight.detach()
    assert torch.allclose(average.model[0].weight, expected)
    batches = [torch.rand(4, 1, 5, 5, dtype=torch.float64) for _ in range(3)]
    average.recompute_statistics(iter(batches))
    means = [average.model[0](batch).mean((0, 2, 3)) for batch in batches]
    assert torch.allclose(average.model[1].running_mean, torch.stack(means).mean(0))
    assert not average.model.training
    assert average.model[1].momentum == 0.1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_seed_gives_the_same_metrics(tmp_path, precision):
    runs = [Run(tmp_path / name) for name in "ab"]
    for run in runs:
        distill(small("train.epochs=1", f"train.precision={precision}", "train.optimizer=sgd", "train.lr=0.1"), run)
    assert without_times(runs[0]) == without_times(runs[1])
    assert_same_runs(*runs)


def test_half_precision_learns_as_full_precision_does(whole, tmp_path):
    distill(small("train.precision=bf16"), Run(tmp_path))
    full, half = (
        [r["train_accuracy"] for r in run.read_metrics() if "epoch" in r] for run in (whole[0], Run(tmp_path))
    )
    assert half == pytest.approx(full, abs=3)


def test_the_curriculum_sets_the_timesteps_of_training_only(tmp_path, monkeypatch):
    seen = []
    forward = StudentObjective.forward

    def spy(self, *arguments):
        if self.training:
            seen.append(self.model.timesteps)
        return forward(self, *arguments)

    monkeypatch.setattr(StudentObjective, "forward", spy)
    run = Run(tmp_path)
    distill(small(*PLAIN, "student.timesteps=3", "train.curriculum={1: 0.25, 2: 0.75}"), run)
    assert seen == [1] * 9 + [2] * 18 + [3] * 9
    assert load_student(run).timesteps == 3


def test_without_validation_nothing_is_chosen(tmp_path, capsys):
    run = Run(tmp_path)
    summary = distill(small(*PLAIN, "data.validation=0"), run, quiet=False)
    assert summary.best == summary.student
    assert summary.best_epoch == 4
    assert [record.get("validation_accuracy") for record in run.read_metrics()] == [None] * 5
    err = capsys.readouterr().err
    assert "student epoch 1/4: loss" in err
    assert "training" in err
    assert "left" in err


def test_a_time_limit_leaves_out_the_epoch_that_would_not_fit(tmp_path, monkeypatch):
    clock = iter(range(0, 10**6, 10))  # every look at it takes 10 seconds
    monkeypatch.setattr("snnkit.training.fit.time.perf_counter", lambda: float(next(clock)))
    run = Run(tmp_path)
    assert not distill(small(*PLAIN), run, time_limit=75.0).finished
    assert [record["epoch"] for record in run.read_metrics()] == [1, 2]
    assert distill(small(*PLAIN), run, resume=True).finished


def test_precision_reaches_the_weights(tmp_path):
    distill(small(*PLAIN, "train.precision=fp64", "train.epochs=1", "train.ema=0.5"), run := Run(tmp_path))
    last = checkpoint.read(run.last)
    assert last.tensors["model.classifier.weight"].dtype == torch.float64
    assert last.state("ema").keys() == last.state("model").keys()
    assert load_student(run).classifier.weight.dtype == torch.float32


def test_the_moving_averages_statistics_are_those_of_the_encoded_input(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(MovingAverage, "recompute_statistics", lambda self, batches: seen.append(next(iter(batches))))
    settings = (*PLAIN, "data.encoding=rate", "train.epochs=1", "train.ema=0.5")
    distill(small(*settings), Run(tmp_path))
    (batch,) = seen
    assert batch.shape[0] == small(*settings).student.timesteps
    assert batch.dim() == 5
    assert set(batch.unique().tolist()) <= {0.0, 1.0}
