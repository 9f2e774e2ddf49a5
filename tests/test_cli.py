"""The command line as a user meets it: two-line errors, exit codes, JSON, and nothing written on bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import snnkit
from snnkit import plugins
from snnkit.cli.main import run as snnkit_command
from snnkit.network import quantize, save
from tests.golden import GOLDEN
from tests.networks import raw_inputs
from tests.test_network import float_network

EXAMPLES = Path(__file__).parent.parent / "examples"
SNNKIT = Path(sys.executable).with_name("snnkit")


@pytest.fixture
def net_file(tmp_path: Path) -> Path:
    return save(quantize(float_network()), tmp_path / "input" / "net.safetensors")


@pytest.fixture
def arrays(tmp_path: Path) -> str:
    """Six samples with labels, as files."""
    net = quantize(float_network())
    np.save(tmp_path / "x.npy", raw_inputs(net, samples=6))
    np.save(tmp_path / "y.npy", np.array([0, 1, 0, 1, 0, 1]))
    return f"{tmp_path / 'x.npy'},{tmp_path / 'y.npy'}"


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    """Runs a command that must fail with 2; returns the error and the hint, the only two lines."""
    assert snnkit_command(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    error, hint = captured.err.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    return error.removeprefix("error: "), hint.removeprefix("hint: ")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys; from snnkit.cli.main import run; code = run(sys.argv[1:]);"
        "heavy = {'torch', 'numpy', 'onnx', 'onnxruntime', 'pydantic', 'rich', 'yaml', 'h5py'} & set(sys.modules);"
        "print(sorted(heavy), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert done.stdout


def test_importing_snnkit_is_light() -> None:
    script = "import sys, snnkit; assert not {'torch', 'numpy'} & set(sys.modules); assert callable(snnkit.load)"
    subprocess.run([sys.executable, "-c", script], check=True)
    for name in snnkit.__all__:
        assert callable(getattr(snnkit, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = snnkit.nothing


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["rn"], "No such command 'rn'", "did you mean 'run'?"),
        (["run"], "Missing argument 'NET'", "see 'snnkit run --help'"),
        (["run", "x", "--targt", "lava"], "No such option: --targt", "did you mean '--target'?"),
        (["run", "missing.safetensors"], "there is no network file 'missing.safetensors'", "check the path"),
        (["quantize", "missing"], "there is no run directory 'missing'", "'snnkit distill' makes one"),
        (["distill", "missing.yaml"], "cannot read the configuration 'missing.yaml'", "YAML"),
        (["list", "target"], "there is no kind 'target'", "did you mean 'targets'?"),
        (
            ["distill", "x.yaml", "--stop-after", "many"],
            "Invalid value for '--stop-after'",
            "see 'snnkit distill --help'",
        ),
    ],
)
def test_errors_are_two_lines(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    error: str,
    hint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    found, remedy = fails(capsys, *arguments)
    assert error in found
    assert hint in remedy
    assert not list(tmp_path.iterdir())


def test_an_unknown_config_key_names_the_nearest(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("train: {epoch: 3}\n")
    before = tree(tmp_path)
    error, hint = fails(capsys, "distill", "config.yaml", "-o", "out")
    assert "unknown key 'train.epoch'" in error
    assert "train.epochs" in hint
    assert tree(tmp_path) == before


@pytest.mark.parametrize("key", ["teacher.checkpoint", "student.init_from"])
def test_weights_that_are_missing_are_named_before_anything_is_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, key: str
) -> None:
    settings = ["--set", f"{key}=missing.safetensors", "-o", str(tmp_path / "out")]
    error, _ = fails(capsys, "distill", str(EXAMPLES / "digits.yaml"), *settings)
    assert "there is no weight file 'missing.safetensors'" in error
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty_is_left_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("keep")
    for arguments in (["distill", str(EXAMPLES / "digits.yaml"), "-o"], ["quickstart", "-o"]):
        error, hint = fails(capsys, *arguments, str(tmp_path / "mine"))
        assert "is not empty" in error
        assert "--force" in hint
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["precious.txt"]


def test_damaged_network_files(capsys: pytest.CaptureFixture[str], net_file: Path) -> None:
    content = net_file.read_bytes()
    for name, damaged in {
        "truncated": content[: len(content) // 2],
        "foreign": b"\x08\0\0\0\0\0\0\0{}      ",
        "newer": content.replace(b'\\"format_version\\": 1', b'\\"format_version\\": 7'),
        "empty": b"",
    }.items():
        bad = net_file.with_name(f"{name}.safetensors")
        bad.write_bytes(damaged)
        before = tree(net_file.parent)
        for arguments in (["run", str(bad)], ["export", str(bad), "-t", "onnx"], ["inspect", str(bad)]):
            error, _ = fails(capsys, *arguments)
            assert bad.name in error
            if name == "newer":
                assert "format version 7" in error
        assert tree(net_file.parent) == before


def test_unknown_targets_and_exporters(capsys: pytest.CaptureFixture[str], net_file: Path, arrays: str) -> None:
    error, hint = fails(capsys, "run", str(net_file), "--data", arrays, "--target", "onnxruntme")
    assert (error, hint) == ("there is no target 'onnxruntme'", "did you mean 'onnxruntime'?")
    error, hint = fails(capsys, "export", str(net_file), "--target", "onx")
    assert (error, hint) == ("there is no exporter 'onx'", "did you mean 'onnx'?")


def test_all_reasons_at_once(capsys: pytest.CaptureFixture[str], tmp_path: Path, arrays: str) -> None:
    float_file = save(float_network(), tmp_path / "float.safetensors")
    before = tree(tmp_path)
    for arguments in (
        [
            "run",
            str(float_file),
            "--data",
            arrays,
            "-t",
            "onnxruntime",
            "-t",
            "lava",
            "-O",
            "onnxruntime.synapses=int8",
        ],
        [
            "export",
            str(float_file),
            "-t",
            "onnx",
            "-t",
            "lava",
            "-O",
            "onnx.synapses=int8",
            "-o",
            str(tmp_path / "out"),
        ],
    ):
        error, _ = fails(capsys, *arguments)
        assert "onnx" in error
        assert "lava: " in error
        assert error.count("float") >= 2
    assert tree(tmp_path) == before


def test_lava_without_python_3_10(
    capsys: pytest.CaptureFixture[str], net_file: Path, arrays: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SNNKIT_LAVA_PYTHON", sys.executable)
    error, hint = fails(capsys, "run", str(net_file), "--data", arrays, "--target", "lava")
    assert "lava" in error
    assert "not a Python 3.10" in error
    assert "SNNKIT_LAVA_PYTHON=" in hint


def test_run_on_files_of_ones_own(
    capsys: pytest.CaptureFixture[str], net_file: Path, arrays: str, tmp_path: Path
) -> None:
    saved = tmp_path / "predictions.npz"
    arguments = ["run", str(net_file), "--data", arrays.split(",")[0], "--save", str(saved)]
    assert snnkit_command(arguments) == 0
    assert "predictions: " in capsys.readouterr().out
    with np.load(saved) as file:
        assert file["predictions"].shape == (6,)
        assert file["readouts"].shape == (6, 2)
        chosen = file["predictions"]
    assert (
        snnkit_command(["run", str(net_file), "--data", arrays, "--json", "-t", "onnxruntime", "-t", "reference"]) == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert result["schema"] == 1
    first, second = result["targets"]
    assert (first["name"], second["name"]) == ("onnxruntime", "reference")
    assert first["samples"] == 6
    assert first["correct"] == int((chosen == [0, 1, 0, 1, 0, 1]).sum())
    assert first["accuracy"] == pytest.approx(100 * first["correct"] / 6)
    assert result["compared"][0]["identical"] is True


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 5, 5), np.float32), "the network takes [samples, 1 x 4 x 4]"),
        (np.zeros((2, 1, 4, 4), np.uint8), "uint8"),
        (np.full((2, 1, 4, 4), 7.0), "outside 0..1"),
        (np.array([{}], dtype=object), "allow_pickle"),
    ],
)
def test_data_that_does_not_fit(
    capsys: pytest.CaptureFixture[str], net_file: Path, tmp_path: Path, array: np.ndarray, message: str
) -> None:
    np.save(tmp_path / "bad.npy", array)
    error, _ = fails(
        capsys, "run", str(net_file), "--data", str(tmp_path / "bad.npy"), "--save", str(tmp_path / "p.npz")
    )
    assert message in error
    assert not (tmp_path / "p.npz").exists()


def test_targets_that_differ_exit_with_one(
    capsys: pytest.CaptureFixture[str], net_file: Path, arrays: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner that loses one spike is caught, and the place is named."""
    import dataclasses

    from snnkit_targets import onnxruntime

    honest = onnxruntime.run

    def faulty(*arguments: object) -> object:
        trace = honest(*arguments)
        rasters = {name: raster.copy() for name, raster in trace.rasters.items()}
        rasters["lif"][2, 3, 1, 0, 2] ^= True
        return dataclasses.replace(trace, rasters=rasters)

    monkeypatch.setattr(onnxruntime, "run", faulty)
    assert snnkit_command(["run", str(net_file), "--data", arrays, "-t", "reference", "-t", "onnxruntime"]) == 1
    output = capsys.readouterr().out
    assert "DIFFERENT spikes {'lif': 1}" in output
    assert "timestep 2, lif, sample 3, neuron 18" in output


def test_options_that_are_in_the_way(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A sum of two branches has no place in a .net file, but in a directory."""
    path = save(GOLDEN["residual, 1x1"], tmp_path / "net.safetensors")
    np.save(tmp_path / "x.npy", np.zeros((1, 1, 6, 6), np.float32))
    for command in (["export", str(path)], ["run", str(path), "--data", str(tmp_path / "x.npy")]):
        if command[0] == "run" and plugins.target("lava").available():
            continue
        error, hint = fails(capsys, *command, "-t", "lava", "-O", "lava.form=net")
        assert "node 'lif2' (LIF) sums several inputs, and netx is strictly sequential" in error
        assert hint == "these options are in the way; without them it works"


def test_export_beside_a_file(capsys: pytest.CaptureFixture[str], net_file: Path, tmp_path: Path) -> None:
    assert snnkit_command(["export", str(net_file), "-t", "onnx"]) == 0
    assert (net_file.parent / "net.onnx").is_file()
    assert snnkit_command(["export", str(net_file), "-t", "onnx", "-o", str(tmp_path / "out"), "--json"]) == 0
    output = capsys.readouterr().out
    assert json.loads(output[output.index("{") :])["exports"] == {"onnx": [str(tmp_path / "out" / "net.onnx")]}


def test_inspect_list_and_energy(capsys: pytest.CaptureFixture[str], net_file: Path, arrays: str) -> None:
    assert snnkit_command(["inspect", str(net_file), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert [node["node"] for node in described["nodes"]] == ["x", "conv", "lif", "flat", "fc", "out"]
    for kind, expected in {"exporters": "lava", "targets": "reference", "energy-models": "loihi1-davies2018"}.items():
        assert snnkit_command(["list", kind, "--json"]) == 0
        assert expected in [row["name"] for row in json.loads(capsys.readouterr().out)[kind]]
    assert snnkit_command(["energy", str(net_file), "--data", arrays]) == 0
    table = capsys.readouterr().out
    assert "at least 23.6 pJ" in table
    assert "modelled" in table
    assert "static power" in table
    assert snnkit_command(["energy", str(net_file), "--data", arrays, "--json", "-m", "horowitz2014-45nm"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {model["precision"] for model in result["models"]} == {"fp32", "fp16", "int8"}


def test_energy_at_a_rate(capsys: pytest.CaptureFixture[str], net_file: Path, arrays: str) -> None:
    arguments = ["energy", str(net_file), "--data", arrays, "-m", "truenorth", "-m", "spinnaker2", "--rate", "500"]
    assert snnkit_command(arguments) == 0
    table = " ".join(capsys.readouterr().out.split())
    assert "power at 500 inferences a second" in table
    assert "that rate is out of reach: 250 Hz is the most" in table  # four ticks of 1 ms
    assert "unknown" in table
    assert "all models: modelled, none is measured" in table
    assert snnkit_command([*arguments, "--json"]) == 0
    truenorth, _ = json.loads(capsys.readouterr().out)["models"]
    assert truenorth["power"]["watts"] == pytest.approx(500 * truenorth["joules"])
    assert truenorth["latency"]["first_answer"]["timesteps"] == 4 + 2
    for rate in ("0", "-1", "nan"):
        error, _ = fails(capsys, *arguments[:-1], rate)
        assert "is no rate" in error


def test_tables_fit_a_narrow_terminal(net_file: Path) -> None:
    environment = {**os.environ, "COLUMNS": "40"}
    done = subprocess.run(
        [SNNKIT, "inspect", net_file], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    lines = done.stdout.split("quantization:")[0].split("dataset:")[0].split("classes:")[0].splitlines()
    assert max(len(line) for line in lines) <= 40


def test_a_terminal_without_the_characters_gets_others(net_file: Path) -> None:
    line, environment = [SNNKIT, "check", net_file, "--chip", "loihi1"], {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(line, env=environment, capture_output=True, check=False, timeout=60)
    assert done.returncode == 1  # it does not fit, which is an answer
    assert b"(at least 3.52 us)" in done.stdout
    assert done.stderr == b""


def test_output_into_a_closed_pipe_is_no_error(net_file: Path) -> None:
    done = subprocess.run(
        f"{SNNKIT} inspect {net_file} | true", shell=True, capture_output=True, text=True, check=False, timeout=60
    )
    assert "Traceback" not in done.stderr
    assert "error" not in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_training_with_their_exit_code(tmp_path: Path, number: int, code: int) -> None:
    command = [SNNKIT, "distill", EXAMPLES / "digits.yaml", "-o", tmp_path / "run", "--set", "train.epochs=500"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        metrics = tmp_path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while not metrics.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert metrics.exists()
        child.send_signal(number)
        _, errors = child.communicate(timeout=30)
    assert child.returncode == code
    assert "Traceback" not in errors
    assert not list((tmp_path / "run").glob(".*.part"))
