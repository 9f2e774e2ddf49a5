"""Data sets as arrays, split once and for all. Numpy only: targets that need no torch read them, too."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from snnkit.config import resolve
from snnkit.errors import DataError


@dataclass(frozen=True, eq=False)
class Split:
    """``x`` float32 [N, C, H, W] in 0..1, ``y`` int64 [N]."""

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training, validation and test samples; only ``validation`` may choose anything."""

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.train.x.shape[1:]


def digits(root: str | None = None) -> Dataset:  # noqa: ARG001 - it ships with scikit-learn
    """1,797 handwritten digits of 8x8 pixels and 17 grey levels, from scikit-learn (UCI Optical Recognition, test set).

    1,257 to train, 180 to validate, 360 to test, stratified.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    x = (raw.images[:, None] / 16.0).astype(np.float32)
    y = raw.target.astype(np.int64)
    x, x_test, y, y_test = train_test_split(x, y, test_size=360, stratify=y, random_state=0)
    x, x_validation, y, y_validation = train_test_split(x, y, test_size=180, stratify=y, random_state=0)
    return Dataset(
        "digits",
        Split(x, y),
        Split(x_validation, y_validation),
        Split(x_test, y_test),
        tuple(str(name) for name in raw.target_names),
    )


DATASETS: dict[str, Callable[..., Dataset]] = {"digits": digits}


def load_dataset(name: str, root: str | None = None) -> Dataset:
    """The data set called ``name``, or what the user's own ``module:function`` returns for ``root``."""
    data = resolve(name, DATASETS, "data set")(root)
    if not isinstance(data, Dataset):
        raise DataError(f"'{name}' returned {type(data).__name__}, not a Dataset", "return a snnkit Dataset")
    for part in ("train", "validation", "test"):
        _check(data, part)
    return data


def _check(data: Dataset, part: str) -> None:
    split: Split = getattr(data, part)
    fault = None
    if split.x.dtype != np.float32 or split.y.dtype != np.int64:
        fault = f"x is {split.x.dtype} and y {split.y.dtype}; they must be float32 and int64"
    elif len(split.x) != len(split.y) or not len(split):
        fault = f"it holds {len(split.x)} samples and {len(split.y)} labels"
    elif split.x.shape[1:] != data.input_shape:
        fault = f"its samples are {split.x.shape[1:]}, those of the training split {data.input_shape}"
    elif not (split.x.min() >= 0 and split.x.max() <= 1):
        fault = f"its values span {split.x.min():g} to {split.x.max():g}; they must be in 0..1"
    elif split.y.min() < 0 or split.y.max() >= len(data.classes):
        fault = f"its labels span {split.y.min()} to {split.y.max()}, but there are {len(data.classes)} classes"
    if fault:
        raise DataError(f"the {part} split of '{data.name}' is not usable: {fault}", "correct the data set")
