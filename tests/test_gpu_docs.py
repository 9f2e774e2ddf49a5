"""docs/gpu.md: every training command of it is one that the command line takes, for networks that fit together."""

import itertools
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from snnkit.cli.main import run
from snnkit.config import load_config
from snnkit.network import save
from snnkit.training.encoding import Encoder
from snnkit.training.models import build_student, build_teacher, initialise
from snnkit.training.objective import StudentObjective
from tests.golden import GOLDEN
from tests.networks import raw_inputs

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "cifar100_resnet18.yaml"
PAGE = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line)[1:] for line in PAGE.splitlines() if line.startswith("snnkit distill ")]


def overrides(command):
    return [value for flag, value in itertools.pairwise(command) if flag == "--set"]


def test_the_page_has_commands():
    assert len(COMMANDS) >= 12
    assert any("--resume" in command for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[3:4]))
def test_commands_are_taken(command, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    config = EXAMPLE if command[1] == "runs/distilled/config.yaml" else command[1]  # the run's own, which resumes
    assert run(["distill", str(config), *command[2:], "--dry-run"]) == 0
    assert "model: resnet18" in capsys.readouterr().out


@pytest.mark.parametrize("settings", sorted({tuple(overrides(command)) for command in COMMANDS}))
def test_networks_fit_together(settings, monkeypatch):
    narrow = ("teacher.width=0.0625", "student.width=0.0625", "train.precision=fp32")
    config = load_config(EXAMPLE, [*settings, *narrow])
    x = torch.rand(2, 3, 32, 32)
    student = build_student((3, 32, 32), 100, config.student)
    teacher = build_teacher((3, 32, 32), 100, config.teacher) if config.uses_teacher else None
    if config.student.init_from == "teacher":
        assert teacher is not None
        initialise(student, teacher.state_dict())
    objective = StudentObjective(student, teacher, config, Encoder("direct", 4), x)
    _, values = objective(x, torch.tensor([3, 5]))
    assert set(values) == set(objective.weights)
    assert all(value.isfinite() for value in values.values())


def test_a_network_and_its_configuration_are_all_that_running_needs(tmp_path, capsys):
    net, folder = GOLDEN["residual, 1x1"], tmp_path / "shipped"
    save(net, folder / "network.safetensors")
    (folder / "config.yaml").write_text(load_config(EXAMPLE).to_yaml())
    np.save(tmp_path / "x.npy", raw_inputs(net, samples=3))
    np.save(tmp_path / "y.npy", np.array([0, 1, 0]))
    data = f"{tmp_path / 'x.npy'},{tmp_path / 'y.npy'}"
    assert run(["run", str(folder), "--target", "reference", "--data", data]) == 0
    assert "of 3" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "network.safetensors"]
