"""The verdict: exit code 0 for a good network; 1 where it is inaccurate, does not fit, diverges or costs too much."""

import dataclasses
import json
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import yaml

import snnkit
from snnkit.analysis.chips import load_chip
from snnkit.cli.main import run as snnkit_command
from snnkit.errors import UsageError
from snnkit.network import quantize, save
from snnkit.validation import Gate, Limits, Validation, parse_energy, validate
from snnkit_targets import onnxruntime
from tests.networks import raw_inputs
from tests.test_cli import fails
from tests.test_network import float_network

EXAMPLES = Path(__file__).parent.parent / "examples"
SNNKIT = Path(sys.executable).with_name("snnkit")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on digits, short but real, whose first layer the host computes."""
    run = tmp_path_factory.mktemp("trained") / "digits"
    epochs = ["--set", "train.epochs=6", "--set", "teacher.epochs=5"]
    for arguments in (
        ["distill", EXAMPLES / "digits.yaml", "-q", "-o", run, *epochs],
        ["quantize", run, "--stem", "host"],
    ):
        subprocess.run([SNNKIT, *arguments], check=True, capture_output=True, timeout=300)
    return run


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    """A network file that nobody trained, and its data, as arguments."""
    net = quantize(float_network())
    raw = raw_inputs(net, samples=8)
    np.save(tmp_path / "x.npy", raw)
    np.save(tmp_path / "y.npy", snnkit.predictions(snnkit.run(net, raw, "reference")))
    file = save(net, tmp_path / "net.safetensors")
    return [str(file), "--data", f"{tmp_path / 'x.npy'},{tmp_path / 'y.npy'}"]


def verdict(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, dict[str, object]]]:
    """The exit code, and the gates by name."""
    code = snnkit_command(["validate", *arguments, "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["schema"] == 1
    assert result["passed"] == (code == 0)
    return code, {gate["name"]: gate for gate in result["gates"]}


def test_the_example_of_a_ci_passes_a_good_network(trained: Path, tmp_path: Path) -> None:
    """The workflow's own command, run where its job would run it; its artifact is JUnit's XML."""
    workflow = yaml.safe_load((EXAMPLES / "validate.yml").read_text())
    steps = workflow["jobs"]["validate"]["steps"]
    (line,) = [step["run"] for step in steps if step.get("run", "").startswith("snnkit validate")]
    shutil.copytree(trained, tmp_path / "models" / "digits")
    command = [SNNKIT, *shlex.split(line)[1:]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verdict: pass" in done.stdout
    (artifact,) = [step["with"]["path"] for step in steps if "upload-artifact" in step.get("uses", "")]
    suite = ET.parse(tmp_path / artifact).getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("10", "0")
    names = {case.get("name") for case in suite.iter("testcase")}
    assert {"fits loihi1", "reference and onnxruntime agree", "drop on reference"} <= names


def test_the_float_student_is_measured_on_the_same_samples(trained: Path) -> None:
    from snnkit.runs import Run
    from snnkit.training.data import load_dataset
    from snnkit.training.evaluation import evaluate
    from snnkit.training.trainer import load_student

    student = evaluate(load_student(Run(trained)), load_dataset("digits").test.first(50))
    result = validate(trained, limits=Limits(max_drop=100), samples=50)
    (gate,) = [gate for gate in result.gates if gate.name.startswith("drop")]
    assert result.evaluations[0].accuracy is not None
    assert gate.value == pytest.approx(student.percent - result.evaluations[0].accuracy.percent)
    assert any("same samples" in line for line in gate.details)
    alone = validate(trained / "network.safetensors", limits=Limits(max_drop=100), samples=50)
    (gate,) = [gate for gate in alone.gates if gate.name.startswith("drop")]
    recorded = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()][-1]["student"]
    assert gate.value == pytest.approx(
        100 * recorded["correct"] / recorded["samples"] - alone.evaluations[0].accuracy.percent
    )
    assert any("as the network's file records it" in line for line in gate.details)


def test_an_inaccurate_network_fails(capsys: pytest.CaptureFixture[str], small: list[str], tmp_path: Path) -> None:
    labels = np.load(tmp_path / "y.npy")
    assert verdict(capsys, *small, "--min-accuracy", "100")[0] == 0
    labels[:2] = 1 - labels[:2]
    np.save(tmp_path / "y.npy", labels)
    code, gates = verdict(capsys, *small, "--min-accuracy", "75.1", "-t", "reference", "-t", "onnxruntime")
    assert code == 1
    gate = gates["accuracy on onnxruntime"]
    assert (gate["passed"], gate["value"], gate["limit"]) == (False, 75.0, 75.1)
    assert gates["reference and onnxruntime agree"]["passed"]
    assert verdict(capsys, *small, "--min-accuracy", "75")[0] == 0  # the limit itself is enough


def test_a_network_that_loses_too_much_fails(capsys: pytest.CaptureFixture[str], trained: Path) -> None:
    net = snnkit.load(trained)
    broken = [
        dataclasses.replace(node, weight=np.roll(node.weight, 1, axis=0)) if node.name == "classifier" else node
        for node in net.nodes
    ]
    worse = trained.parent / "worse"
    shutil.copytree(trained, worse, dirs_exist_ok=True)
    save(dataclasses.replace(net, nodes=tuple(broken)), worse / "network.safetensors")
    code, gates = verdict(capsys, str(worse), "--max-drop", "0.5", "--samples", "60")
    assert code == 1
    assert gates["drop on reference"]["value"] > 50


def test_a_network_that_does_not_fit_fails(
    capsys: pytest.CaptureFixture[str], small: list[str], tmp_path: Path
) -> None:
    content = load_chip("loihi1").model_dump(mode="json", exclude_none=True)
    content["name"] = "tiny"
    content["neurons_per_core"]["value"] = 4
    content["cores"]["value"] = 1
    content["mesh"] |= {"rows": 1, "columns": 1, "cores_per_tile": 1}
    chip = tmp_path / "tiny.yaml"
    chip.write_text(yaml.safe_dump(content))
    code, gates = verdict(capsys, *small, "--chip", str(chip))
    assert code == 1
    assert not gates["fits tiny"]["passed"]
    assert gates["fits tiny"]["value"] == len(gates["fits tiny"]["details"]) > 0
    assert snnkit_command(["validate", *small, "--chip", str(chip)]) == 1
    output = capsys.readouterr().out
    assert "FAIL" in output
    assert f"verdict: FAIL, 1 of {len(gates)} gates" in output


def test_targets_that_diverge_fail(
    capsys: pytest.CaptureFixture[str], small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner that subtracts the threshold at a spike is caught, and the verdict says what it does."""
    honest = onnxruntime.run

    def faulty(net, inputs, options):
        nodes = [dataclasses.replace(n, reset="subtract") if n.name == "lif" else n for n in net.nodes]
        return honest(dataclasses.replace(net, nodes=tuple(nodes)), inputs, options)

    raw = raw_inputs(quantize(float_network()), samples=300)
    np.save(tmp_path / "x.npy", raw)
    data = [small[0], "--data", str(tmp_path / "x.npy")]
    monkeypatch.setattr(onnxruntime, "run", faulty)
    junit = tmp_path / "out" / "v.xml"
    code, gates = verdict(capsys, *data, "-t", "reference", "-t", "onnxruntime", "--junit", str(junit))
    assert code == 1
    gate = gates["reference and onnxruntime agree"]
    assert gate["value"] > 0
    assert any("likely cause: reset: onnxruntime subtracts the threshold" in line for line in gate["details"])
    (failure,) = ET.parse(junit).getroot().iter("failure")
    assert "likely cause: reset" in failure.text


def test_junit_holds_any_name() -> None:
    """Names of files may hold what XML and UTF-8 cannot."""
    gates = (Gate("fits \x07\ud800<tiny>", False, "1 \uffff", "0", details=('a "b" & \udcff',)),)
    text = Validation(network="run\x00\udc80 & more", data="", samples=1, gates=gates).junit()
    root = ET.fromstring(text.encode())
    (case,) = root.iter("testcase")
    assert (case.get("classname"), case.get("name")) == ("run & more", "fits <tiny>")
    (failure,) = root.iter("failure")
    assert (failure.get("message"), failure.text) == ("1 ; wanted: 0", '1 ; wanted: 0\na "b" & ')


def test_a_recording_must_agree(capsys: pytest.CaptureFixture[str], small: list[str], tmp_path: Path) -> None:
    trace = str(tmp_path / "chip.npz")
    assert snnkit_command(["run", *small, "--save-trace", trace]) == 0
    capsys.readouterr()
    assert verdict(capsys, *small, "--against", trace, "-t", "onnxruntime")[0] == 0
    with np.load(trace) as file:
        arrays = dict(file)
    arrays["spikes.lif"] = ~arrays["spikes.lif"]
    np.savez(trace, **arrays)
    code, gates = verdict(capsys, *small, "--against", trace, "-t", "onnxruntime")
    assert code == 1
    assert not gates["onnxruntime and reference agree"]["passed"]


def test_a_target_that_cannot_run_it_fails(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, small: list[str]
) -> None:
    float_file = save(float_network(), tmp_path / "float.safetensors")
    code, gates = verdict(capsys, str(float_file), *small[1:], "-t", "reference", "-t", "lava")
    assert code == 1
    assert not gates["runs on lava"]["passed"]
    assert gates["runs on reference"]["passed"]
    assert "float" in gates["runs on lava"]["details"][0]


def test_the_upper_end_of_the_energy_counts(capsys: pytest.CaptureFixture[str], small: list[str]) -> None:
    arguments = [*small, "--model", "truenorth", "--max-energy"]
    _, gates = verdict(capsys, *arguments, "1mJ")
    gate = gates["energy by truenorth, int8"]
    models = json_of(capsys, *arguments, "1mJ")["models"]
    assert gate["value"] == models[0]["high"] > 5 * models[0]["low"]
    between = (models[0]["low"] + models[0]["high"]) / 2
    assert verdict(capsys, *arguments, f"{between * 1e12:.0f}pJ")[0] == 1
    assert verdict(capsys, *arguments, f"{models[0]['high'] * 1e12 + 1:.0f}pJ")[0] == 0
    assert any("unknown, not counted: neuron updates" in line for line in gate["details"])
    _, gates = verdict(capsys, *small, "--max-energy", "1mJ", "--chip", "loihi1")
    davies = gates["energy by loihi1-davies2018, int8"]
    assert any("lower bound only" in line for line in davies["details"])
    assert not any("needs a mapping" in line for line in davies["details"])


def json_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    snnkit_command(["validate", *arguments, "--json"])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--max-energy", "5"], "'5' is no energy"),
        (["--max-energy", "-5uJ"], "'-5uJ' is no energy"),
        (["--max-energy", "5 uj"], "'5 uj' is no energy"),
        (["--max-energy", "1e999J"], "--max-energy inf is no limit"),
        (["--min-accuracy", "101"], "--min-accuracy 101 is no limit"),
        (["--min-accuracy", "nan"], "--min-accuracy nan is no limit"),
        (["--max-drop", "-1"], "--max-drop -1 is no limit"),
        (["--max-drop", "1"], "there is no float student"),
        (["--target", "refrence"], "there is no target 'refrence'"),
        (["--chip", "loihi9"], "there is no chip 'loihi9'"),
        (["--model", "loihi"], "there is no energy model 'loihi'"),
    ],
)
def test_what_cannot_be_answered_is_no_verdict(
    capsys: pytest.CaptureFixture[str], small: list[str], tmp_path: Path, arguments: list[str], error: str
) -> None:
    found, _ = fails(capsys, "validate", *small, *arguments, "--junit", str(tmp_path / "v.xml"))
    assert error in found
    assert not (tmp_path / "v.xml").exists()


def test_accuracy_needs_labels(capsys: pytest.CaptureFixture[str], small: list[str], tmp_path: Path) -> None:
    error, hint = fails(capsys, "validate", small[0], "--data", str(tmp_path / "x.npy"), "--min-accuracy", "50")
    assert "without labels" in error
    assert "y.npy" in hint


@pytest.mark.parametrize(
    ("text", "joules"), [("1uJ", 1e-6), ("250 nJ", 2.5e-7), ("1.5µJ", 1.5e-6), ("2e-3 mJ", 2e-6), ("3J", 3.0)]
)
def test_energies_are_read_with_their_unit(text: str, joules: float) -> None:
    assert parse_energy(text) == pytest.approx(joules)
    with pytest.raises(UsageError, match="is no energy"):
        parse_energy(text.removesuffix("J"))
