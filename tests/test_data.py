import dataclasses

import numpy as np
import pytest

from snnkit.errors import ConfigError, DataError
from snnkit.training import data as data_module
from snnkit.training.data import Split, load_dataset


def test_digits_are_split_once_stratified_and_without_overlap():
    data = load_dataset("digits")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [1257, 180, 360]
    assert data.input_shape == (1, 8, 8)
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


def test_an_unknown_data_set_names_the_nearest():
    with pytest.raises(ConfigError, match="there is no data set 'digit'") as error:
        load_dataset("digit")
    assert "'digits'" in error.value.hint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: Split(s.x * 255, s.y), "must be in 0..1"),
        (lambda s: Split(s.x * np.float32(np.nan), s.y), "must be in 0..1"),
        (lambda s: Split(s.x.astype(np.float64), s.y), "must be float32 and int64"),
        (lambda s: Split(s.x, s.y + 5), "but there are 10 classes"),
        (lambda s: Split(s.x[:5], s.y), "holds 5 samples"),
        (lambda s: Split(s.x[:, :, :4], s.y), r"those of the training split \(1, 8, 8\)"),
    ],
)
def test_data_that_cannot_be_used_is_named(monkeypatch, change, message):
    good = load_dataset("digits")
    bad = dataclasses.replace(good, test=change(good.test))
    monkeypatch.setitem(data_module.DATASETS, "own", lambda root: bad)
    with pytest.raises(DataError, match=message):
        load_dataset("own")


def test_a_function_that_returns_something_else_is_refused(monkeypatch):
    monkeypatch.setitem(data_module.DATASETS, "own", lambda root: 3)
    with pytest.raises(DataError, match="returned int"):
        load_dataset("own")
