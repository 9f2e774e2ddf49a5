"""Any event data set of tonic's (https://tonic.readthedocs.io) by its name, as frames."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from snnkit.config import DataConfig
from snnkit.errors import ConfigError, DataError, UnavailableError, did_you_mean
from snnkit.training.datasets.events import split_events, to_split
from snnkit.training.datasets.files import roots
from snnkit.training.datasets.frames import Recording
from snnkit.training.datasets.split import Array, Dataset, hold_out


def tonic_set(name: str, config: DataConfig, timesteps: int | None) -> Dataset:
    """The classification set ``name`` of tonic's; a set without a test split gives a fifth of each class to it."""
    kind = tonic_class(name)
    sensor = getattr(kind, "sensor_size", None)
    if not (isinstance(sensor, tuple) and len(sensor) == 3 and all(isinstance(size, int) for size in sensor)):
        raise ConfigError(f"tonic's {name} is no classification set of one sensor", "choose another one")
    width, height, polarities = sensor
    parts = (True, False) if "train" in inspect.signature(kind.__init__).parameters else (None,)
    sets = [_opened(kind, name, config, part) for part in parts]
    names, labels = _labels(sets)
    splits = [
        to_split(range(len(part)), label, config, timesteps, (polarities, height, width), _reader(part))
        for part, label in zip(sets, labels, strict=True)
    ]
    train, test = splits if len(splits) == 2 else hold_out(splits[0], len(splits[0]) // 5, config.name)
    return split_events(config, train, test, names)


def tonic_class(name: str) -> Any:
    """The class of tonic's called ``name``."""
    try:
        import tonic.datasets
    except ImportError:
        raise UnavailableError("tonic is not installed", "pip install 'snnkit[events]'") from None
    known = [key for key, value in vars(tonic.datasets).items() if inspect.isclass(value)]
    if name not in known:
        raise ConfigError(f"tonic has no data set '{name}'", did_you_mean(name, known))
    return getattr(tonic.datasets, name)


def _opened(kind: Any, name: str, config: DataConfig, train: bool | None) -> Any:
    """The set in the first root that has it; downloaded there only if the configuration allows it."""

    class MissingError(Exception):
        pass

    def refuse(_self: object) -> None:
        raise MissingError

    offline = type(kind.__name__, (kind,), {"download": refuse})  # tonic names its folders after the class
    arguments = {} if train is None else {"train": train}
    for root in roots(config.root):
        try:
            return offline(str(root), **arguments)
        except (MissingError, FileNotFoundError):
            continue
    target = roots(config.root)[0]
    wanted = f"put tonic's files into {target / name}, or set data.root or SNNKIT_DATA"
    if not config.download:
        looked = ", ".join(str(root) for root in roots(config.root))
        raise DataError(
            f"the files of 'tonic:{name}' are not there; looked in {looked}", f"{wanted}, or set data.download to true"
        )
    try:
        Path(target).mkdir(parents=True, exist_ok=True)
        return kind(str(target), **arguments)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UnavailableError(f"'tonic:{name}' cannot be downloaded: {reason}", wanted) from None


def _labels(sets: Sequence[Any]) -> tuple[tuple[str, ...], list[Array]]:
    """Names of the classes, and the labels of each part as integers."""
    targets = [np.asarray(part.targets) for part in sets]
    if targets[0].ndim != 1 or targets[0].dtype.kind not in "iuUS":
        raise ConfigError(f"tonic's {type(sets[0]).__name__} has no single label a recording", "choose another one")
    values, indices = np.unique(np.concatenate(targets), return_inverse=True)
    if targets[0].dtype.kind in "iu":
        names = getattr(sets[0], "classes", None) or [str(label) for label in range(int(values.max()) + 1)]
        return tuple(str(name) for name in names), targets
    return tuple(str(value) for value in values), np.split(indices, [len(targets[0])])[: len(sets)]


def _reader(part: Any) -> Any:
    def read(index: int) -> Recording:
        events = part[index][0]
        names = events.dtype.names
        y = events["y"] if "y" in names else np.zeros(len(events), np.int64)
        order = np.argsort(events["t"], kind="stable")
        return Recording(events["t"][order], events["x"][order], y[order], events["p"][order].astype(np.int64))

    return read
