"""Several processes, started by torchrun, against one process with the same global batch."""

import os
import subprocess
import sys

import pytest

from snnkit.config import load_config
from snnkit.errors import ConfigError
from snnkit.runs import Run
from snnkit.training.trainer import distill

# 20 epochs of one step, so that every step's loss is a record; statistics of batches would differ from those of shares
SETTINGS = (
    *("teacher.channels=[4, 8]", "teacher.epochs=1", "student.channels=[4, 6]", "student.timesteps=2"),
    *("train.epochs=20", "train.batch_size=1256", "train.threads=1", "data.augment.crop=0", "losses.feature=0"),
    *("losses.ensemble=0.3", "train.precision=fp64", "train.freeze_batchnorm=true", "train.ema=0.9"),
)


def torchrun(*arguments, folder):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "snnkit"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=300, cwd=folder, env=environment
    )


def test_two_processes_train_what_one_trains(tmp_path):
    config = load_config(None, SETTINGS)
    one, two = Run(tmp_path / "one"), Run(tmp_path / "two")
    distill(config, one)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    done = torchrun("distill", "config.yaml", "-o", two.path, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1  # one process prints
    assert done.stderr.count("student epoch 20/20") == 1
    expected, found = one.read_metrics(), two.read_metrics()
    assert len(found) == len(expected) == 22
    for mine, theirs in zip(found[:-1], expected[:-1], strict=True):
        assert (mine["phase"], mine["epoch"]) == (theirs["phase"], theirs["epoch"])
        for name in mine.keys() - {"phase", "epoch", "seconds"}:
            assert mine[name] == pytest.approx(theirs[name], abs=1e-9), (mine["epoch"], name)
    assert found[-1]["student"] == expected[-1]["student"]


def test_a_batch_must_be_shared_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr("snnkit.training.parallel.size", lambda: 3)
    monkeypatch.setattr("snnkit.training.parallel.barrier", lambda: None)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    with pytest.raises(ConfigError, match="64 samples cannot be shared by 3 processes"):
        distill(load_config(None), Run(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
