"""Data sets: what a split is, how sets are named, and what is refused."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

from snnkit.config import DataConfig, load_config
from snnkit.errors import ConfigError, DataError
from snnkit.training import data as data_module
from snnkit.training import spikes
from snnkit.training.data import Dataset, Split, load_dataset, settings_of
from snnkit.training.datasets import files
from snnkit.training.datasets.split import hold_out


def test_digits_are_split_once_stratified_and_without_overlap():
    data = load_dataset("digits")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [1257, 180, 360]
    assert data.input_shape == data.image_shape == (1, 8, 8)
    assert data.classes == tuple("0123456789")
    for split in (data.train, data.validation, data.test):
        assert (split.x.dtype, split.y.dtype) == (np.float32, np.int64)
        assert split.x.min() == 0
        assert split.x.max() == 1
        shares = np.bincount(split.y, minlength=10) / len(split)
        assert np.abs(shares - 0.1).max() < 0.012
    again = load_dataset("digits")
    assert np.array_equal(again.test.x, data.test.x)
    images = [image.tobytes() for split in (data.train, data.validation, data.test) for image in split.x]
    assert len(set(images)) == 1797


def test_without_validation_all_is_trained_on():
    data, usual = load_dataset("digits", validation=0), load_dataset("digits")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [1437, 0, 360]
    assert np.array_equal(data.test.x, usual.test.x)
    assert data.validation.x.shape == (0, 1, 8, 8)
    with pytest.raises(ConfigError, match="validation"):
        load_dataset("digits", validation=-1)


def test_images_are_kept_as_levels_and_given_as_floats():
    levels = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
    split = Split(levels, np.array([0, 1]))
    assert split.x.dtype == np.float32
    assert np.array_equal(split.x, levels.astype(np.float32) / np.float32(255))
    assert split.still is split
    assert len(split.first(1)) == 1
    floats = split.x
    assert Split(floats, split.y).x is floats


def test_events_are_kept_by_sample_and_given_by_time():
    frames = (np.random.default_rng(0).random((5, 3, 2, 4, 4)) < 0.3).astype(np.uint8)
    split = Split(frames, np.arange(5), "events")
    assert split.x.dtype == np.uint8
    assert np.array_equal(split.x, frames.swapaxes(0, 1))
    assert np.array_equal(split.still.x, frames.mean(1, dtype=np.float32))
    data = Dataset("events", split, split, split, tuple("01234"))
    assert data.input_shape == (3, 2, 4, 4)
    assert data.image_shape == (2, 4, 4)


@pytest.mark.parametrize("coding", ["rate", "latency"])
def test_still_images_may_enter_as_spikes(coding):
    plain, coded = load_dataset("digits"), load_dataset("digits", timesteps=3, encoding=coding)
    assert coded.input_shape == (3, 1, 8, 8)
    assert coded.image_shape == (1, 8, 8)
    assert np.array_equal(coded.test.x, spikes.encode(plain.test.x, coding, 3))
    assert np.array_equal(coded.test.first(4).x, coded.test.x[:, :4])
    assert np.array_equal(coded.test.still.x, plain.test.x)
    assert coded.test.still.encoding == "direct"
    with pytest.raises(DataError, match="needs a number of timesteps"):
        load_dataset("digits", encoding=coding)


def test_holding_out_takes_the_same_share_of_every_class():
    y = np.repeat(np.arange(4), [40, 40, 20, 100])
    split = Split(np.arange(200, dtype=np.uint8)[:, None, None, None], y)
    rest, held = hold_out(split, 20, "it")
    assert np.bincount(held.y).tolist() == [4, 4, 2, 10]
    assert sorted([*rest.stored.flat, *held.stored.flat]) == list(range(200))
    assert np.array_equal(hold_out(split, 20, "it")[1].stored, held.stored)
    with pytest.raises(DataError, match="cannot hold 199 of it out") as error:
        hold_out(split, 199, "it")
    assert "data.validation" in error.value.hint


def test_an_unknown_data_set_names_the_nearest():
    with pytest.raises(ConfigError, match="there is no data set 'digit'") as error:
        load_dataset("digit")
    assert "'digits'" in error.value.hint
    with pytest.raises(ConfigError, match="unknown key 'binings'"):
        load_dataset("digits", binings="count")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: Split(s.x * 255, s.y), "must be in 0..1"),
        (lambda s: Split(s.x * np.float32(np.nan), s.y), "must be in 0..1"),
        (lambda s: Split(s.x.astype(np.float64), s.y), "must be float32 or uint8 and int64"),
        (lambda s: Split(s.x, s.y, "events"), "must be uint8 and int64"),
        (lambda s: Split(s.x, s.y + 5), "but there are 10 classes"),
        (lambda s: Split(s.x[:5], s.y), "holds 5 samples"),
        (lambda s: Split(s.x[:0], s.y[:0]), "it is empty"),
        (lambda s: Split(s.x[:, :, :4], s.y), r"those of the training split \(1, 8, 8\)"),
    ],
)
def test_data_that_cannot_be_used_is_named(monkeypatch, change, message):
    good = load_dataset("digits")
    bad = dataclasses.replace(good, test=change(good.test))
    monkeypatch.setitem(data_module.DATASETS, "own", lambda config, timesteps: bad)
    with pytest.raises(DataError, match=message):
        load_dataset("own")


def test_users_bring_a_function(tmp_path, monkeypatch):
    (tmp_path / "own_data.py").write_text(
        "from snnkit.training.data import load_dataset\n"
        "def some(root, other='digits'): return load_dataset(other, root)\n"
        "def nothing(root): return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert load_dataset("own_data:some").name == "digits"
    with pytest.raises(ConfigError, match="there is no data set 'digitss'"):
        load_dataset("own_data:some", options={"other": "digitss"})
    with pytest.raises(DataError, match="returned int"):
        load_dataset("own_data:nothing")


def test_metadata_lead_back_to_the_same_data():
    section = DataConfig(name="events-npz", root="a", size=(5, 6), binning="count")
    metadata = {
        "dataset": section.name,
        "data": section.model_dump(mode="json", exclude={"name", "download", "augment"}, exclude_defaults=True),
    }
    assert settings_of(metadata) == section
    assert settings_of(metadata, "digits").name == "digits"
    assert settings_of({"dataset": "digits"}) == DataConfig()
    assert settings_of({}) is None
    with pytest.raises(DataError, match="do not say how"):
        settings_of({"dataset": "digits", "data": {"colour": 3}})


def test_data_are_looked_for_in_three_places(tmp_path, monkeypatch):
    monkeypatch.setenv("SNNKIT_DATA", str(tmp_path / "env"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "platform", "linux")
    places = [tmp_path / "root", tmp_path / "env", tmp_path / "cache" / "snnkit" / "data"]
    assert files.roots(str(tmp_path / "root")) == places
    for place in reversed(places):  # the earlier one wins
        (place / "usual").mkdir(parents=True)
        (place / "usual" / "x.bin").touch()
        assert files.find(DataConfig(root=str(places[0])), ["usual"], ["x.bin"]) == place / "usual"
    (places[0] / "usual" / "x.bin").rename(places[0] / "x.bin")
    assert files.find(DataConfig(root=str(places[0])), ["usual"], ["y|x.*"]) == places[0]


def test_missing_files_are_named_with_the_place_to_put_them(tmp_path, monkeypatch):
    monkeypatch.setenv("SNNKIT_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, expected in [
        ("mnist", "train-images-idx3-ubyte.gz"),
        ("fashion-mnist", "t10k-labels-idx1-ubyte.gz"),
        ("cifar-10", "data_batch_1"),
        ("cifar-100", "cifar-100-python"),
        ("n-mnist", "N-MNIST"),
        ("events-npz", "*.npz"),
    ]:
        with pytest.raises(DataError, match=f"the files of '{name}' are not there") as error:
            load_dataset(name, timesteps=4)
        assert str(tmp_path) in error.value.hint
        assert expected in error.value.hint
        assert "SNNKIT_DATA" in error.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("example", "name"), [("fashion_mnist", "fashion-mnist"), ("n_mnist", "n-mnist")])
def test_examples_are_valid(example, name):
    config = load_config(Path(__file__).parents[1] / "examples" / f"{example}.yaml")
    assert config.data.name == name
    assert name in data_module.DATASETS


@pytest.mark.parametrize("settings", [["data.augment.mixup=-1"], ["data.size=[3]"], ["data.encoding=none"]])
def test_settings_are_checked(settings):
    with pytest.raises(ConfigError):
        load_config(None, settings)
    assert load_config(None, ["data.size=[3, 4]"]).data.size == (3, 4)
