"""Chip files, ``snnkit check`` as a user meets it, and the example networks that fit a chip."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

import snnkit
from snnkit.analysis.chips import list_chips, load_chip
from snnkit.analysis.mapping import map_network
from snnkit.cli.main import run as snnkit_command
from snnkit.errors import ConfigError, UsageError
from snnkit.network import Network, apply, fold_batchnorm, fold_pooling, materialise_shortcuts, quantize, save
from snnkit.runs import Run
from tests.test_cli import fails, tree
from tests.test_network import float_network

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def net_file(tmp_path: Path) -> Path:
    return save(quantize(float_network()), tmp_path / "input" / "net.safetensors")


# --- chip files -------------------------------------------------------------------------------------------------------


def test_every_number_of_a_chip_has_a_source() -> None:
    assert list_chips() == ["loihi1", "loihi2"]
    for name in list_chips():
        chip = load_chip(name)
        assert chip.name == name
        for field, value in chip:
            assert isinstance(value, str | bool | None) or value.source, field
    assert not load_chip("loihi1").approximate
    assert load_chip("loihi2").approximate


def chip_file(folder: Path, **changes: object) -> Path:
    content = load_chip("loihi1").model_dump(mode="json", exclude_none=True)
    for key, value in changes.items():
        if value is None:
            del content[key]
        else:
            content[key] = value
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"cores": {"value": 128}}, "cores.source: Field required"),
        ({"cores": {"value": 128, "source": ""}}, "cores.source"),
        ({"cores": {"value": "128", "source": "me"}}, "cores.value"),
        ({"cores": {"value": -1, "source": "me"}}, "cores.value"),
        ({"cores": {"value": 129, "source": "me"}}, "the mesh has 128 places for 129 cores"),
        ({"neurons_per_core": {"value": 8192, "source": "me"}}, "index_bits cannot name 8192 neurons"),
        ({"neuron_per_core": 1}, "neuron_per_core: Extra inputs are not permitted"),
        ({"memory_words": None}, "memory_words: Field required"),
        ({"bias_exponent": {"low": 7, "high": 0, "source": "me"}}, "low 7 is above high 0"),
        ({"resets": {"values": ["none"], "source": "me"}}, "resets.values"),
    ],
)
def test_a_wrong_chip_file_is_refused_by_key(tmp_path: Path, changes: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_chip(chip_file(tmp_path, **changes))
    assert problem in str(caught.value)


def test_chips_are_found_by_name_or_path(tmp_path: Path) -> None:
    mine = load_chip(chip_file(tmp_path, name="mine"))
    assert (mine.name, mine.cores) == ("mine", load_chip("loihi1").cores)
    with pytest.raises(UsageError) as caught:
        load_chip("loihi3")
    assert caught.value.hint.startswith("did you mean 'loihi")
    with pytest.raises(UsageError, match="cannot be read"):
        load_chip(tmp_path / "missing.yaml")
    (tmp_path / "broken.yaml").write_text("name: [")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_chip(tmp_path / "broken.yaml")


def test_what_a_chip_file_leaves_out_is_not_checked(tmp_path: Path) -> None:
    chip = load_chip(chip_file(tmp_path, input_axons=None, threshold_configurations=None, step=None))
    mapping = map_network(quantize(float_network()), chip)
    assert mapping.unchecked == ("input axons", "threshold configurations")
    assert mapping.latency_first.seconds is mapping.throughput is None


# --- the command ------------------------------------------------------------------------------------------------------


def test_check_says_what_does_not_fit(capsys: pytest.CaptureFixture[str], net_file: Path) -> None:
    assert snnkit_command(["check", str(net_file), "--chip", "loihi1", "--chip", "loihi2"]) == 1
    output = " ".join(capsys.readouterr().out.split())
    for text in ("(first generation): does NOT fit", "Intel Loihi 2, approximate: fits", "bits of an input value",
                 "--stem host", "2 of 128 cores, 50 neurons", "after 6 steps", "every 4 steps",
                 "not published for this chip, so not checked: input axons"):  # fmt: skip
        assert text in output
    assert snnkit_command(["check", str(net_file), "-c", "loihi2"]) == 0


def test_check_as_json(capsys: pytest.CaptureFixture[str], net_file: Path, tmp_path: Path) -> None:
    data = tmp_path / "x.npy"
    np.save(data, np.random.default_rng(0).random((5, 1, 4, 4), dtype=np.float32))
    arguments = ["check", str(net_file), "--chip", "loihi1", "--json"]
    assert snnkit_command([*arguments, "--data", str(data)]) == 1
    content = json.loads(capsys.readouterr().out)
    mapping = content["chips"]["loihi1"]
    assert content["schema"] == 1
    assert not mapping["fits"]
    assert mapping["grid"] == {"rows": 4, "columns": 8, "cores_per_tile": 4}
    assert mapping["latency_first"]["steps"] == 6
    (violation,) = mapping["violations"]
    assert set(violation) == {"layer", "what", "value", "limit", "source", "remedy"}
    first, second = mapping["cores"]
    assert (first["core"], first["chip"], first["layers"]) == (0, 0, {"lif": 48})
    assert set(second["utilisation"]) == {"neurons", "axons_in", "axons_out", "memory"}
    spikes = mapping["layers"][0]["spikes"]
    assert spikes > 0
    all_of_them = pytest.approx(spikes, rel=1e-12)  # in which order a processor adds decides on the last bit
    assert mapping["spikes_between_cores"]["between_cores"] == all_of_them  # each goes to the readout's only core
    assert mapping["spikes_between_cores"]["within_tile"] == all_of_them
    assert snnkit_command(arguments) == 1
    assert json.loads(capsys.readouterr().out)["chips"]["loihi1"]["spikes_between_cores"] is None


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["--chip", "lohi1"], "there is no chip 'lohi1'", "did you mean 'loihi1'?"),
        ([], "Missing option '--chip'", "see 'snnkit check --help'"),
        (["--chip", "loihi1", "--chips", "0"], "Invalid value for '--chips'", "see 'snnkit check --help'"),
        (["--chip", "loihi1", "--chip", "copy.yaml"], "have the same name", "a name of its own"),
    ],
)
def test_wrong_calls(
    capsys: pytest.CaptureFixture[str],
    net_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    error: str,
    hint: str,
) -> None:
    monkeypatch.chdir(chip_file(net_file.parent).rename(net_file.parent / "copy.yaml").parent)
    before = tree(net_file.parent)
    found, remedy = fails(capsys, "check", str(net_file), *arguments)
    assert error in found
    assert hint in remedy
    assert tree(net_file.parent) == before


def test_a_float_network_cannot_be_checked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = save(float_network(), tmp_path / "float.safetensors")
    error, hint = fails(capsys, "check", str(path), "--chip", "loihi1")
    assert "float network" in error
    assert "quantize" in hint


# --- networks that fit ------------------------------------------------------------------------------------------------


def untrained(model: str, **student: object) -> Network:
    """The integer network of an untrained student for CIFAR-100, with the first weights of its artificial twin.

    Few of them round to 0, which would take no memory.
    """
    from snnkit.config import DistillConfig, TeacherConfig
    from snnkit.training.lower import lower
    from snnkit.training.models import build_student, build_teacher, initialise

    config = DistillConfig.model_validate({"student": {"model": model, **student}})
    module = build_student((3, 32, 32), 100, config.student)
    twin = TeacherConfig(model=model, channels=config.student.channels, width=config.student.width)
    initialise(module, build_teacher((3, 32, 32), 100, twin).state_dict())
    net = lower(module, (3, 32, 32), timesteps=config.student.timesteps)
    return quantize(apply(net, [fold_batchnorm, materialise_shortcuts, fold_pooling]))


@pytest.mark.parametrize(("model", "cores1", "cores2"), [("resnet18", 2510, 176), ("vgg11", 731, 73)])
def test_large_networks_on_both_chips(model: str, cores1: int, cores2: int) -> None:
    net = untrained(model)
    first, second = (map_network(net, load_chip(name)) for name in ("loihi1", "loihi2"))
    assert (len(first.cores), len(second.cores)) == (cores1, cores2)
    assert not first.fits
    assert second.fits == (model == "vgg11")
    assert second.chips == (2 if model == "resnet18" else 1)


def test_the_example_for_cifar_fits_one_loihi_2_chip() -> None:
    student = snnkit.load_config(EXAMPLES / "cifar100_loihi2.yaml").student
    net = untrained(student.model, **student.model_dump(exclude={"model"}))
    mapping = map_network(net, load_chip("loihi2"))
    assert mapping.fits
    assert len(mapping.cores) <= 64  # half of the chip, whose file is approximate


def test_the_example_for_digits_fits_one_loihi_1_chip(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    quick = [f"--set={key}" for key in ("teacher.epochs=2", "train.epochs=2")]
    assert snnkit_command(["distill", str(EXAMPLES / "digits_loihi1.yaml"), "-o", run, "-q", *quick]) == 0
    assert snnkit_command(["quantize", run]) == 0
    capsys.readouterr()
    assert snnkit_command(["check", run, "--chip", "loihi1", "--samples", "20"]) == 0
    assert "(first generation): fits" in capsys.readouterr().out
    mapping = json.loads(Run.open(run).mapping.read_text())["chips"]["loihi1"]
    assert mapping["fits"]
    assert len(mapping["cores"]) == mapping["cores_used"] <= 128
    assert mapping["spikes_between_cores"]["between_cores"] > 0
