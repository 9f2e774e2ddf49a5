"""Checkpoints in pieces, and what is left of a run that was killed or whose disk is full."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from snnkit.config import load_config
from snnkit.errors import ConfigError, RunFolderError, UsageError
from snnkit.runs import Run
from snnkit.training import checkpoint, pieces
from snnkit.training.checkpoint import Storage
from snnkit.training.models import build_teacher
from snnkit.training.schedule import build_optimizer
from snnkit.training.trainer import distill, load_student

SMALL = (
    *("teacher.channels=[4, 8]", "teacher.epochs=2", "student.channels=[4, 6]", "student.timesteps=2"),
    *("train.epochs=8", "train.batch_size=256", "train.threads=1", "train.ema=0.9", "train.grad_clip=5"),
    *("train.curriculum={1: 0.5}", "train.warmup_epochs=1"),
)


def tensors():
    torch.manual_seed(0)
    return {
        "large": torch.randn(900, 1000),  # 3.4 MiB: longer than a piece
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        **{f"middle{index}": torch.randn(100, 700) for index in range(5)},
        "counter": torch.arange(7),
        "half": torch.randn(33, 5).bfloat16(),
    }


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_pieces_hold_what_one_file_holds_and_stay_under_their_size(tmp_path):
    path, expected = tmp_path / "last.safetensors", tensors()
    checkpoint.write(path, expected, {"epoch": 1}, shard_mb=1)
    parts = sorted(tmp_path.glob("last-*"))
    assert len(parts) == 5
    assert parts[0].name == "last-a-00001-of-00005.safetensors"
    assert all(part.stat().st_size < 2**20 for part in (*parts, path))
    assert_equal(checkpoint.read(path).tensors, expected)
    assert checkpoint.read(path).header == {"epoch": 1, "format_version": checkpoint.FORMAT_VERSION}
    checkpoint.write(path, expected, {"epoch": 2}, shard_mb=2)  # the other letter; the old pieces go
    assert {part.name[5] for part in tmp_path.glob("last-*")} == {"b"}
    assert_equal(checkpoint.read(path).tensors, expected)
    checkpoint.write(path, expected, {"epoch": 3})
    assert [file.name for file in tmp_path.iterdir()] == ["last.safetensors"]
    assert_equal(checkpoint.read(path).tensors, expected)


def test_pieces_of_nothing_are_refused():
    with pytest.raises(UsageError, match="pieces of 0 MiB"):
        Storage(shard_mb=0)


def test_many_small_tensors_stay_under_the_size(tmp_path):
    many = {f"{'name' * 10}{index}": torch.zeros(3) for index in range(9000)}
    checkpoint.write(tmp_path / "last.safetensors", many, {}, shard_mb=1)
    assert all(part.stat().st_size < 2**20 for part in tmp_path.glob("last-*"))
    assert checkpoint.read(tmp_path / "last.safetensors").tensors.keys() == many.keys()


@pytest.mark.parametrize("stop", range(7))
def test_an_interruption_between_two_files_leaves_the_old_checkpoint(tmp_path, monkeypatch, stop):
    path, old, new = tmp_path / "last.safetensors", tensors(), {"other": torch.ones(900, 1000)}
    checkpoint.write(path, old, {"epoch": 1}, shard_mb=1)
    written = []
    replace = Path.replace

    def interrupted(self, target):
        written.append(target)
        if len(written) > stop:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    try:
        checkpoint.write(path, new, {"epoch": 2}, shard_mb=1)
    except KeyboardInterrupt:
        expected = old
    else:
        expected = new
    monkeypatch.undo()
    assert (expected is new) == (stop >= 5)  # 4 pieces and their list
    assert_equal(checkpoint.read(path).tensors, expected)


def test_pieces_that_are_missing_or_of_another_checkpoint_are_refused(tmp_path):
    path = tmp_path / "last.safetensors"
    checkpoint.write(path, tensors(), {}, shard_mb=1)
    second = sorted(tmp_path.glob("last-*"))[1]
    content = second.read_bytes()
    second.write_bytes(content[:-1] + b"?")
    with pytest.raises(RunFolderError, match=r"00002-of-00005.*belongs to another checkpoint"):
        checkpoint.read(path)
    second.unlink()
    with pytest.raises(RunFolderError, match=r"00002-of-00005.*is missing"):
        checkpoint.read(path)


def without_times(run):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in run.read_metrics()]


def assert_same_runs(a, b):
    for name in ("last", "best", "teacher"):
        x, y = (checkpoint.read(getattr(run, name)) for run in (a, b))
        assert x.header == y.header
        assert_equal(x.tensors, y.tensors)
    assert without_times(a) == without_times(b)


def test_resume_reads_either_form_and_a_compact_one_comes_close(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pieces, "MIB", 2**13)
    config = load_config(None, SMALL)
    whole, mixed, compact = (Run(tmp_path / name) for name in ("whole", "mixed", "compact"))
    distill(config, whole)
    for storage, resume in ((Storage(shard_mb=2), False), (Storage(), True), (Storage(shard_mb=2), True)):
        distill(config, mixed, resume=resume, stop_after=3, storage=storage)
    assert len(list(mixed.path.glob("last-*"))) > 2
    distill(config, mixed, resume=True, storage=Storage(shard_mb=2))
    assert_same_runs(whole, mixed)
    assert_equal(dict(load_student(mixed).state_dict()), checkpoint.read(whole.last).state("ema"))
    capsys.readouterr()
    distill(config, compact, stop_after=5, storage=Storage(compact=True), quiet=False)
    assert "not bit for bit" in capsys.readouterr().err
    stored = checkpoint.read(compact.last).tensors
    assert {stored[name].dtype for name in stored if name.endswith("exp_avg")} >= {torch.bfloat16}
    assert stored["ema.classifier.weight"].dtype == stored["model.classifier.weight"].dtype == torch.float16
    assert stored["model.classifier.bias"].dtype == torch.float32
    summary = distill(config, compact, resume=True, quiet=False)
    assert "not bit for bit" in capsys.readouterr().err
    assert summary.finished
    Run.create(mixed.path, "x", force=True)
    assert list(mixed.path.iterdir()) == []


def test_checkpoints_every_few_epochs_and_where_a_run_stops_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "MIB", 2**13)
    config = load_config(None, SMALL)
    whole, rare, moved = (Run(tmp_path / name) for name in ("whole", "rare", "moved"))
    distill(config, whole)
    written = []
    write = checkpoint.write_training_state

    def counted(path, objective, average, optimizer, header, storage):
        written.append((header["phase"], header["epoch"]))
        write(path, objective, average, optimizer, header, storage)

    monkeypatch.setattr(checkpoint, "write_training_state", counted)
    every = Storage(shard_mb=2, every=3)
    distill(config, rare, stop_after=6, storage=every)
    assert written == [("teacher", 2), ("student", 3), ("student", 4)]
    written.clear()
    shutil.copytree(rare.path, moved.path)
    shutil.rmtree(rare.path)
    distill(config, moved, resume=True, storage=every)
    assert written == [("student", 6), ("student", 8)]
    assert_same_runs(whole, moved)

    header = {**checkpoint.read_header(moved.last), "epoch": 3}
    monkeypatch.setattr(checkpoint, "read_header", lambda _path: header)
    moved.best.unlink()
    with pytest.raises(RunFolderError, match=r"best.safetensors' is missing"):
        distill(config, moved, resume=True)
    with pytest.raises(UsageError, match="every 0 epochs"):
        Storage(every=0)


def test_what_a_run_started_from_is_not_needed_to_go_on(tmp_path):
    start = tmp_path / "start.safetensors"
    twin = build_teacher((1, 8, 8), 10, load_config(None, ["teacher.channels=[4, 6]"]).teacher)
    checkpoint.write_weights(start, twin, {}, Storage(shard_mb=1, compact=True))
    assert checkpoint.read(start).tensors["classifier.weight"].dtype == torch.float16
    settings = [*SMALL, f"student.init_from={start}", f"teacher.checkpoint={start}", "teacher.channels=[4, 6]"]
    config, run = load_config(None, settings), Run(tmp_path / "run")
    distill(config, run, stop_after=1)
    for file in tmp_path.glob("start*"):
        file.unlink()
    assert distill(config, run, resume=True).finished
    with pytest.raises(ConfigError, match="there is no weight file"):
        distill(config, Run(tmp_path / "other"))


def test_a_compact_checkpoint_holds_five_bytes_a_parameter(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(32, 64, 3), torch.nn.BatchNorm2d(64), torch.nn.Conv2d(64, 64, 3))
    settings = load_config(None, ["train.optimizer=sgd", "train.lr=0.1"]).train
    optimizer, average = build_optimizer(model, settings), copy.deepcopy(model)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(4, 32, 8, 8)).square().mean().backward()
        optimizer.step()
    average[0].weight.data[0, 0, 0, 0] = 1e6  # beyond float16
    path = tmp_path / "last.safetensors"
    checkpoint.write_training_state(path, model, average, optimizer, {}, Storage(compact=True))
    weights = model[0].weight.numel() + model[2].weight.numel()
    assert path.stat().st_size < 5.0 * weights + 20_000
    expected = copy.deepcopy(model.state_dict()), copy.deepcopy(average.state_dict())
    momenta = [entries["momentum_buffer"].clone() for entries in optimizer.state.values()]
    for tensor in (*model.state_dict().values(), *average.state_dict().values()):
        tensor.zero_()
    optimizer = build_optimizer(model, settings)
    checkpoint.restore_training_state(checkpoint.read(path), model, average, optimizer)
    for module, states in ((model, expected[0]), (average, expected[1])):
        for name, tensor in module.state_dict().items():
            assert torch.allclose(tensor.double(), states[name].double(), rtol=2**-8, atol=1e-7), name
    assert average[0].weight.detach().flatten()[0].item() == pytest.approx(1e6, rel=2**-8)
    for entries, momentum in zip(optimizer.state.values(), momenta, strict=True):
        found = entries["momentum_buffer"].flatten(1) if momentum.dim() > 1 else entries["momentum_buffer"][:, None]
        momentum = momentum.reshape(found.shape)
        limit = momentum.abs().amax(1, keepdim=True) / 254 * 1.001
        assert ((found - momentum).abs() <= limit).all()
        assert float((found - momentum).norm() / momentum.norm()) < 0.02
    assert all(entries["momentum_buffer"].dtype == torch.float32 for entries in optimizer.state.values())


INTERRUPTED = """
import json, os, random, resource, shutil, signal, sys, time
import torch
torch.set_num_threads(1)
from snnkit.config import load_config
from snnkit.errors import SnnkitError
from snnkit.runs import Run
from snnkit.training import checkpoint, pieces
from snnkit.training.checkpoint import Storage
from snnkit.training.trainer import distill

folder, kills, settings = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
pieces.MIB = 2**13
config = load_config(None, settings)
distill(config, Run(f"{folder}/warm"), stop_after=1)  # imports what torch loads late, once for all

def forked(work, seconds=None):  # a process of its own, without importing torch again
    if not (child := os.fork()):
        work()
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]

def go_on(storage, **limits):
    resume = os.path.exists(f"{folder}/killed/config.yaml")
    run = Run.create(f"{folder}/killed", "x", resume=resume, force=not resume)
    distill(config, run, resume=resume, storage=storage, **limits)

start = time.perf_counter()
assert forked(lambda: distill(config, Run(f"{folder}/whole"))) == 0
duration = time.perf_counter() - start
chance, killed, epochs = random.Random(kills), 0, []
for number in range(5 * kills):
    if killed == kills:
        break
    storage = Storage(shard_mb=2) if number % 3 else Storage()
    status = forked(lambda: go_on(storage), chance.uniform(0.1, 0.5) * duration)
    assert status in (0, signal.SIGKILL), status
    if status == 0:  # it was done before: the next one starts over
        shutil.rmtree(f"{folder}/killed")
        continue
    killed += 1
    last = Run(f"{folder}/killed").last
    header = checkpoint.read(last).header if last.is_file() else {"phase": "", "epoch": 0}
    epochs.append([header["phase"], header["epoch"]])
assert forked(lambda: go_on(Storage())) == 0

def full_disk():
    run = Run(f"{folder}/full")
    distill(config, run, stop_after=4)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        distill(config, run, resume=True)
    except SnnkitError as error:
        sys.stdout.write(json.dumps({"error": str(error), "hint": error.hint}) + "\\n")
        sys.stdout.flush()

assert forked(full_disk) == 0
print(json.dumps({"killed": killed, "epochs": epochs}))
"""


def interrupted(folder, kills):
    command = [sys.executable, "-W", "error", "-c", INTERRUPTED, str(folder), str(kills), *SMALL]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    full, killed = done.stdout.splitlines()
    return json.loads(full), json.loads(killed)


@pytest.mark.parametrize("kills", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_runs_go_on_exactly_and_a_full_disk_is_named(tmp_path, kills):
    full, killed = interrupted(tmp_path, kills)
    assert killed["killed"] == kills, killed
    assert len({tuple(epoch) for epoch in killed["epochs"]}) > 1
    assert_same_runs(Run(tmp_path / "whole"), Run(tmp_path / "killed"))
    assert not list((tmp_path / "killed").glob(".*.part"))

    assert "student epoch 3 cannot be written: File too large" in full["error"]
    assert "the last good checkpoint is that of student epoch 2" in full["hint"]
    run = Run(tmp_path / "full")
    assert checkpoint.read(run.last).header["epoch"] == 2
    distill(load_config(None, SMALL), run, resume=True)
    assert_same_runs(Run(tmp_path / "whole"), run)


def test_what_diverges_names_its_step_and_the_last_good_checkpoint(tmp_path):
    run = Run(tmp_path)
    config = load_config(None, [*SMALL, "train.lr=1e30", "train.curriculum={}", "train.grad_clip=0"])
    with pytest.raises(ConfigError, match=r"student's loss is (nan|inf) at step \d of 4 in epoch 1") as error:
        distill(config, run)
    assert "the last good checkpoint is that of teacher epoch 2" in error.value.hint
    assert checkpoint.read(run.last).header["phase"] == "teacher"
