"""scikit-learn's handwritten digits: the data set that needs no file."""

import numpy as np

from snnkit.config import DataConfig
from snnkit.training.datasets.split import Dataset, Split


def digits(config: DataConfig, timesteps: int | None = None) -> Dataset:  # noqa: ARG001
    """1,797 handwritten digits of 8x8 pixels and 17 grey levels, from scikit-learn (UCI Optical Recognition, test set).

    1,257 to train, 180 to validate, 360 to test, stratified.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    x = (raw.images[:, None] / 16.0).astype(np.float32)
    y = raw.target.astype(np.int64)
    x, x_test, y, y_test = train_test_split(x, y, test_size=360, stratify=y, random_state=0)
    validation = Split(x[:0], y[:0])
    if count := 180 if config.validation is None else config.validation:
        x, x_validation, y, y_validation = train_test_split(x, y, test_size=count, stratify=y, random_state=0)
        validation = Split(x_validation, y_validation)
    names = tuple(str(name) for name in raw.target_names)
    return Dataset("digits", Split(x, y), validation, Split(x_test, y_test), names)
