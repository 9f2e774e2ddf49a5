import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from snnkit.config import DistillConfig, differences, known_keys, load_config, resolve
from snnkit.errors import ConfigError

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("name: mine\ntrain: {epochs: 3, lr: 1e-3}\nstudent:\n  channels: [4, 8]\n")
    config = load_config(path, ["train.epochs=7", "data.root=null", "student.neuron=if"])
    assert (config.name, config.train.epochs, config.train.lr) == ("mine", 7, 1e-3)
    assert config.student.channels == (4, 8)
    assert config.student.neuron == "if"
    assert config.train.batch_size == DistillConfig().train.batch_size


def test_resolved_yaml_reads_back_the_same(tmp_path):
    config = load_config(None, ["train.lr=0.00001", "losses.extra={'m:f': 0.5}", "student.options={a: [1, 2]}"])
    path = tmp_path / "resolved.yaml"
    path.write_text(config.to_yaml())
    assert load_config(path) == config
    assert differences(load_config(path, ["train.seed=3", "losses.kl=0"]), config) == ["losses.kl", "train.seed"]


def test_the_example_is_valid():
    assert load_config(EXAMPLES / "digits.yaml").data.name == "digits"


@pytest.mark.parametrize(
    ("override", "message", "hint"),
    [
        ("train.epoch=3", "unknown key 'train.epoch'", "did you mean 'train.epochs'"),
        ("trian.epochs=3", "unknown key 'trian'", "did you mean 'train'"),
        ("train.epochs=true", "'train.epochs' is True: input should be a valid integer", "train.epochs"),
        ("train.epochs=0", "'train.epochs' is 0: input should be greater than or equal to 1", "train.epochs"),
        ("train.lr=.nan", "'train.lr' is nan", "train.lr"),
        ("student.tau=1.0", "'student.tau' is 1.0: input should be greater than 1", "student.tau"),
        ("student.neuron=adex", "input should be 'lif', 'if', 'plif' or 'cuba'", "student.neuron"),
        ("student.channels=[8, a]", "'student.channels.1' is 'a'", "student.channels"),
        ("data=3", "'data' is 3", "data"),
        ("train.seed.x=3", "'train.seed' is {'x': 3}", "train.seed"),
        ("train.epochs", "not of the form key=value", "--set"),
        ("train.epochs=[1", "not valid YAML", "quotes"),
    ],
)
def test_errors_name_the_key_and_what_it_takes(override, message, hint):
    with pytest.raises(ConfigError) as error:
        load_config(None, [override])
    assert message in str(error.value)
    assert hint in error.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("- 1", "no mapping"),
        ("name: a\nname: b", "'name' occurs twice"),
        ("name: !!python/object:os.system x", "not valid YAML"),
    ],
)
def test_unreadable_files_are_refused(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(path)
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "missing.yaml")


def test_a_value_is_no_section(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("train: {seed: 1}")
    with pytest.raises(ConfigError, match="is a value, not a section"):
        load_config(path, ["train.seed.x=1"])


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValidationError):
        DistillConfig().name = "other"
    assert "losses.kl" in set(known_keys())


def test_resolve_finds_names_and_the_users_functions(tmp_path, monkeypatch):
    (tmp_path / "own_module.py").write_text("def double(x):\n    return 2 * x\nvalue = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert resolve("negate", {"negate": abs}, "function") is abs
    assert resolve("own_module:double", {}, "function")(4) == 8
    for name, message in [
        ("negat", "there is no function"),
        ("own_module:missing", "cannot be loaded"),
        ("no_such_module:f", "cannot be loaded"),
        ("own_module:value", "is not a function"),
    ]:
        with pytest.raises(ConfigError, match=message):
            resolve(name, {"negate": abs}, "function")


def test_config_runs_and_data_load_no_torch():
    code = (
        "import sys, snnkit.config, snnkit.runs, snnkit.training.data as d; d.load_dataset('digits');"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
