"""Data sets as arrays, split once and for all. Numpy only: targets that need no torch read them, too."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from pydantic import ValidationError

from snnkit.config import DataConfig, explained, resolve
from snnkit.errors import ConfigError, DataError
from snnkit.training.datasets.cifar import cifar10, cifar100
from snnkit.training.datasets.digits import digits
from snnkit.training.datasets.events import events_npz, n_mnist
from snnkit.training.datasets.folder import image_folder
from snnkit.training.datasets.idx import fashion_mnist, mnist
from snnkit.training.datasets.split import Dataset, Split
from snnkit.training.datasets.tonic_sets import tonic_set

__all__ = ["DATASETS", "Dataset", "Split", "load_configured", "load_dataset", "settings_of"]

# A loader takes the data section and, for event frames, the number of timesteps (None: not known)
Loader: TypeAlias = Callable[[DataConfig, int | None], Dataset]
DATASETS: dict[str, Loader] = {
    "digits": digits,
    "mnist": mnist,
    "fashion-mnist": fashion_mnist,
    "cifar-10": cifar10,
    "cifar-100": cifar100,
    "image-folder": image_folder,
    "n-mnist": n_mnist,
    "events-npz": events_npz,
}
TONIC = "tonic:"


def load_dataset(name: str, root: str | None = None, *, timesteps: int | None = None, **settings: Any) -> Dataset:
    """The data set called ``name``: of snnkit, ``tonic:NAME``, or the user's own ``module:function``.

    ``root`` and ``settings`` are keys of the configuration's data section. ``timesteps`` is needed where time is in
    the input: event data, and ``encoding`` rate or latency. Raises :class:`DataError` with the remedy where files are
    missing or damaged.
    """
    try:
        config = DataConfig.model_validate({"name": name, "root": root, **settings})
    except ValidationError as error:
        raise explained(error) from None
    return load_configured(config, timesteps)


def load_configured(config: DataConfig, timesteps: int | None) -> Dataset:
    """The data set of a configuration's data section, checked."""
    name = config.name
    if name in DATASETS:
        data = DATASETS[name](config, timesteps)
    elif name.startswith(TONIC):
        data = tonic_set(name.removeprefix(TONIC), config, timesteps)
    else:
        own: Callable[..., Any] = resolve(name, DATASETS, "data set")
        data = own(config.root, **config.options)
    if not isinstance(data, Dataset):
        raise DataError(f"'{name}' returned {type(data).__name__}, not a Dataset", "return a snnkit Dataset")
    if config.encoding != "direct":
        data = _coded(data, config, timesteps)
    for part in ("train", "validation", "test"):
        _check(data, part)
    return data


def settings_of(metadata: Mapping[str, Any], name: str | None = None) -> DataConfig | None:
    """The data section that a network's metadata records, for another set ``name`` if given; None if it has none."""
    name = name or metadata.get("dataset")
    if not isinstance(name, str):
        return None
    try:
        return DataConfig.model_validate({**metadata.get("data", {}), "name": name})
    except (ValidationError, TypeError):
        raise DataError("the network's metadata do not say how to read its data", "give --data x.npy,y.npy") from None


def _coded(data: Dataset, config: DataConfig, timesteps: int | None) -> Dataset:
    """The same images, entering as spikes."""
    if data.train.encoding != "direct":
        raise ConfigError(f"'{data.name}' holds events, which need no encoding", "leave out data.encoding")
    if timesteps is None:
        raise DataError(f"'{data.name}' in {config.encoding} coding needs a number of timesteps", "give timesteps")
    parts = {
        part: dataclasses.replace(getattr(data, part), encoding=config.encoding, timesteps=timesteps)
        for part in ("train", "validation", "test")
    }
    return dataclasses.replace(data, **parts)


def _check(data: Dataset, part: str) -> None:
    split: Split = getattr(data, part)
    stored, y = split.stored, split.y
    dtypes = ("uint8",) if split.encoding == "events" else ("float32", "uint8")
    fault = None
    if stored.dtype.name not in dtypes or y.dtype != np.int64:
        fault = f"its samples are {stored.dtype} and its labels {y.dtype}; they must be {' or '.join(dtypes)} and int64"
    elif len(stored) != len(y):
        fault = f"it holds {len(stored)} samples and {len(y)} labels"
    elif not len(split) and part != "validation":
        fault = "it is empty"
    elif stored.shape[1:] != data.train.stored.shape[1:]:
        fault = f"its samples are {stored.shape[1:]}, those of the training split {data.train.stored.shape[1:]}"
    elif stored.dtype == np.float32 and len(split) and not (stored.min() >= 0 and stored.max() <= 1):
        fault = f"its values span {stored.min():g} to {stored.max():g}; they must be in 0..1"
    elif len(split) and (y.min() < 0 or y.max() >= len(data.classes)):
        fault = f"its labels span {y.min()} to {y.max()}, but there are {len(data.classes)} classes"
    if fault:
        raise DataError(f"the {part} split of '{data.name}' is not usable: {fault}", "correct the data set")
