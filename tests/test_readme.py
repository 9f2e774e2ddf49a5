"""README is run: its commands one after the other, its Python as it stands, its lines without snnkit elsewhere."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import snnkit
from snnkit_exporters import _lava_directory as directory
from snnkit_targets import lava

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def block(language: str, containing: str) -> str:
    (found,) = [text for text in blocks(language) if containing in text]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, lava_environment: lava.Environment) -> Path:
    """A clone's folder in which README's separate commands have been run, each from the files of the one before."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "examples", folder / "examples")
    environment = Path(sys.executable).parent
    for line in block("sh", "snnkit distill examples/digits.yaml").splitlines():
        command = line.split("#")[0].split()
        if command:
            assert command[0] == "snnkit"
            done = subprocess.run(
                [environment / "snnkit", *command[1:]], cwd=folder, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return folder


def test_first_screen_shows_the_two_commands() -> None:
    first = "\n".join(README.splitlines()[:40])
    assert "make quickstart" in first
    assert "make test" in first


def test_the_ten_lines_of_python(folder: Path) -> None:
    code = block("python", "import snnkit")
    assert len([line for line in code.splitlines() if line.strip()]) <= 14
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "correct" in done.stdout


def test_onnx_runs_without_snnkit(folder: Path) -> None:
    code = block("python", "import onnxruntime")
    assert "snnkit" not in code
    x = snnkit.load_dataset("digits").test.x
    np.save(folder / "x.npy", x)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = snnkit.predictions(snnkit.run(snnkit.load(folder / "runs" / "digits"), x, "reference"))
    assert done.stdout.split() == [str(label) for label in expected[:10]]


def test_the_net_file_runs_in_netx_without_snnkit(folder: Path, lava_environment: lava.Environment) -> None:
    """In the worker's environment, which has no torch: its stand-in for slayer is registered first."""
    code = block("python", "from lava.lib.dl.netx import hdf5")
    assert "snnkit" not in code
    x = snnkit.load_dataset("digits").test.x
    np.save(folder / "x.npy", x)
    folders = [str(lava.WORKER.parent), str(directory.STANDALONE)]
    start = f"import sys; sys.path[:0] = {folders!r}; import lava_netx; lava_netx.stand_in()\n"
    done = subprocess.run(
        [lava_environment.python, "-I", "-W", "ignore", "-c", start + code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=lava.worker_environment(),
    )
    assert done.returncode == 0, done.stderr
    expected = snnkit.run(snnkit.load(folder / "runs" / "digits"), x[:1], "reference").readouts[0]
    values = [float(value) for value in done.stdout.replace("[", " ").replace("]", " ").split()]
    np.testing.assert_array_equal(values, expected)


def test_own_model_example(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "own_model.py", tmp_path / "own"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert lines["reference"] == lines["onnxruntime"]
    assert int(lines["reference"].split()[0]) > 300  # of 360
    assert {path.name for path in (tmp_path / "own").iterdir()} == {
        "network.net",
        "network.onnx",
        "network.safetensors",
    }
