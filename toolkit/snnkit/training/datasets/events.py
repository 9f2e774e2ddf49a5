"""Recordings of event cameras: N-MNIST's official files, and the format ``events-npz`` for recordings of one's own."""

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from snnkit.config import DataConfig
from snnkit.errors import DataError
from snnkit.training.datasets.files import damaged, find
from snnkit.training.datasets.frames import Recording, frames
from snnkit.training.datasets.split import Array, Dataset, Split, hold_out

SENSOR = (2, 34, 34)  # N-MNIST's
DIGITS = tuple("0123456789")
ARRAYS = ("t", "x", "y", "p", "offsets", "label", "is_test")
FORMAT = "give t, x, y, p one value an event, label and is_test one a recording, offsets one more than recordings"


def n_mnist(config: DataConfig, timesteps: int | None) -> Dataset:
    """MNIST seen by a moving event camera, 34x34 pixels (Orchard et al. 2015): the official files, or an events-npz.

    60,000 recordings to train and 10,000 to test, as Train/DIGIT/*.bin and Test/DIGIT/*.bin; 5,000 are held out.
    """

    def download(root: Path) -> None:
        from snnkit.training.datasets.tonic_sets import tonic_class

        for train in (True, False):
            tonic_class("NMNIST")(str(root), train=train)

    folder = _npz_file(config) or find(
        config, ("N-MNIST", "NMNIST", "n-mnist"), ("Train|*.npz", "Test|*.npz"), download
    )
    if not (folder / "Train").is_dir():
        return _from_npz(folder, config, timesteps, shape=SENSOR, classes=DIGITS)
    parts = []
    for part in ("Train", "Test"):
        files = sorted((folder / part).glob("[0-9]/*.bin"))
        if not files:
            raise DataError(f"there are no recordings in '{folder / part}'", "put the folders 0 to 9 into it")
        labels = np.array([int(path.parent.name) for path in files], np.int64)
        parts.append(to_split(files, labels, config, timesteps, SENSOR, read_nmnist))
    return split_events(config, parts[0], parts[1], DIGITS)


def events_npz(config: DataConfig, timesteps: int | None) -> Dataset:
    """Your own recordings in one .npz: t, x, y, p [events]; offsets [N + 1]; label, is_test [N]; classes (optional).

    ``offsets`` cut the events into recordings, in each of which ``t`` does not fall; ``p`` is 0 or 1, ``is_test`` says
    which recordings are the test split, ``classes`` names the labels. All are integers, but for the names.
    data.root is the file or its folder, data.size the sensor's [height, width] (default: up to the last event).
    """
    place = _npz_file(config) or find(config, ("events-npz",), ("*.npz",))
    return _from_npz(place, config, timesteps)


def split_events(config: DataConfig, train: Split, test: Split, classes: tuple[str, ...]) -> Dataset:
    """A data set of event frames; by default a tenth of the training recordings is held out, at most 5,000."""
    count = min(5000, len(train) // 10) if config.validation is None else config.validation
    train, validation = hold_out(train, count, config.name)
    return Dataset(config.name, train, validation, test, classes)


def to_split(
    items: Sequence[Any] | Array,
    labels: Array,
    config: DataConfig,
    timesteps: int | None,
    shape: tuple[int, int, int],
    read: Callable[[Any], Recording],
) -> Split:
    """Every recording read, checked against the sensor's ``shape`` and cut into frames."""
    if timesteps is None:
        raise DataError(f"'{config.name}' holds events, which are cut into one frame a timestep", "give timesteps")
    stored = np.empty((len(items), timesteps, *shape), np.uint8)
    for index, item in enumerate(items):
        recording = read(item)
        for name, limit in zip(("p", "y", "x"), shape, strict=True):
            values = getattr(recording, name)
            if len(values) and not (values.min() >= 0 and values.max() < limit):
                raise DataError(
                    f"recording {index} of '{config.name}' has {name} from {values.min()} to {values.max()}, "
                    f"but the sensor has 0 to {limit - 1}",
                    "set data.size to the sensor's [height, width], or get the file again",
                )
        stored[index] = frames(recording, timesteps, shape, binning=config.binning)
    return Split(stored, labels.astype(np.int64), "events")


def read_nmnist(path: Path) -> Recording:
    """A .bin file: 40 bits an event, x, y, polarity and 23 bits of microseconds; y = 240 marks 2**13 us more."""
    content = path.read_bytes()
    if not content or len(content) % 5:
        raise damaged(path, f"{len(content)} bytes are not whole events of 5")
    x, y, high, middle, low = np.frombuffer(content, np.uint8).reshape(-1, 5).T.astype(np.int64)
    overflow = y == 240
    t = ((high & 127) << 16 | middle << 8 | low) + (overflow.cumsum() << 13)
    events = ~overflow
    if (np.diff(t[events]) < 0).any():
        raise damaged(path, "its timestamps fall")
    return Recording(t[events], x[events], y[events], (high >> 7)[events])


def _npz_file(config: DataConfig) -> Path | None:
    """``data.root`` where it is a file."""
    return Path(config.root) if config.root and Path(config.root).is_file() else None


def _from_npz(
    place: Path,
    config: DataConfig,
    timesteps: int | None,
    *,
    shape: tuple[int, int, int] | None = None,
    classes: tuple[str, ...] | None = None,
) -> Dataset:
    paths = [place] if place.is_file() else sorted(place.glob("*.npz"))
    if len(paths) != 1:
        raise DataError(f"'{place}' holds {len(paths)} .npz files", "name one of them as data.root")
    arrays = _arrays(paths[0])
    names = arrays.pop("classes", None)
    offsets, labels, is_test = arrays["offsets"], arrays["label"], arrays["is_test"].astype(bool)
    if names is not None:
        classes = tuple(str(name) for name in names)
    elif classes is None:
        classes = tuple(str(label) for label in range(int(labels.max()) + 1))
    if config.size is not None:
        shape = (2, *config.size)
    elif shape is None:
        shape = (2, int(arrays["y"].max()) + 1, int(arrays["x"].max()) + 1)

    def read(index: int) -> Recording:
        part = slice(int(offsets[index]), int(offsets[index + 1]))
        return Recording(*(arrays[name][part] for name in ("t", "x", "y", "p")))

    train, test = (
        to_split(chosen, labels[chosen], config, timesteps, shape, read)
        for chosen in (np.flatnonzero(~is_test), np.flatnonzero(is_test))
    )
    return split_events(config, train, test, classes)


def _arrays(path: Path) -> dict[str, Array]:
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in (*ARRAYS, "classes") if name in file}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise damaged(path, str(error)) from None
    if missing := [name for name in ARRAYS if name not in arrays]:
        raise DataError(f"'{path}' has no array {', '.join(missing)}", FORMAT)
    for name in ARRAYS:
        if arrays[name].ndim != 1 or arrays[name].dtype.kind not in "iub":
            raise DataError(f"'{path}': {name} is {arrays[name].dtype} {arrays[name].shape}", "give integers, one axis")
    events, offsets = len(arrays["t"]), arrays["offsets"].astype(np.int64)
    recordings = len(arrays["label"])
    fault = None
    if any(len(arrays[name]) != events for name in ("x", "y", "p")) or not events:
        fault = "t, x, y and p differ in length, or are empty"
    elif len(offsets) != recordings + 1 or len(arrays["is_test"]) != recordings:
        fault = f"{recordings} labels need {recordings + 1} offsets and {recordings} is_test"
    elif offsets[0] != 0 or offsets[-1] != events or (np.diff(offsets) < 0).any():
        fault = f"offsets must rise from 0 to {events}"
    elif arrays["is_test"].all() or not arrays["is_test"].any():
        fault = "is_test must be 0 for some recordings and 1 for others"
    else:
        falls = np.flatnonzero(np.diff(arrays["t"].astype(np.int64)) < 0) + 1
        if inside := {*falls.tolist()} - {*offsets.tolist()}:
            fault = f"t falls inside a recording, at event {min(inside)}"
    if fault:
        raise DataError(f"'{path}' is not usable: {fault}", FORMAT)
    return arrays | {"offsets": offsets}
