"""Event data: frames, the formats, tonic, and the whole way from recordings to spikes of the integer network."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

import snnkit
from snnkit.config import load_config
from snnkit.errors import ConfigError, DataError, UnavailableError
from snnkit.pipeline import evaluate, load_samples, quantize_run
from snnkit.runs import Run
from snnkit.training.data import load_dataset
from snnkit.training.datasets.events import read_nmnist
from snnkit.training.datasets.frames import Recording, frames

SHAPE = (2, 6, 5)


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def recording(seed: int = 0, events: int = 60) -> Recording:
    generator = np.random.default_rng(seed)
    p, y, x = (generator.integers(0, size, events) for size in SHAPE)
    return Recording(np.sort(generator.integers(1000, 9000, events)), x, y, p)


# --- frames -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timesteps", [1, 3, 8])
def test_frames_of_equal_time(timesteps):
    events = recording()
    edges = np.linspace(events.t[0], events.t[-1] + 1, timesteps + 1)
    axes = [events.t, events.p, events.y, events.x]
    bins = [edges, *(np.arange(size + 1) for size in SHAPE)]
    expected = np.histogramdd(np.stack(axes, 1), bins)[0]
    found = frames(events, timesteps, SHAPE, binary=False)
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)
    assert np.array_equal(frames(events, timesteps, SHAPE), expected > 0)


def test_frames_of_equal_count_are_tonics():
    tonic = pytest.importorskip("tonic")
    events = recording()
    array = tonic.io.make_structured_array(events.x, events.y, events.t, events.p)
    theirs = tonic.transforms.ToFrame(sensor_size=(5, 6, 2), n_event_bins=4)(array)
    found = frames(events, 4, SHAPE, binning="count", binary=False)
    assert np.array_equal(found, theirs)
    assert found.sum((1, 2, 3)).tolist() == [15] * 4


def test_frames_of_few_events():
    nothing = Recording(*(np.zeros(0, np.uint8) for _ in range(4)))
    assert not frames(nothing, 3, SHAPE).any()
    one = Recording(np.array([7]), np.array([1]), np.array([2]), np.array([0]))
    for binning in ("time", "count"):
        found = frames(one, 3, SHAPE, binning=binning)
        assert found.sum() == found[0, 0, 2, 1] == 1
    many = Recording(*(np.zeros(1000, np.uint8) for _ in range(4)))
    assert frames(many, 1, SHAPE, binary=False).max() == 255


# --- events-npz -------------------------------------------------------------------------------------------------------


def moving_bars(recordings: int = 160) -> dict[str, np.ndarray]:
    """Two classes on 6 x 6 pixels: half a column of events that moves right, half a row that moves down; noise."""
    generator = np.random.default_rng(0)
    parts, labels = [], np.arange(recordings) % 2
    for label in labels:
        t = np.repeat(np.arange(6) * 100, 6) + generator.integers(0, 50, 36)
        along, across = np.repeat(np.arange(6), 6), np.tile(np.arange(3), 12)
        x, y = (along, across) if label == 0 else (across, along)
        noise = generator.random(36) < 0.1
        x, y = (np.where(noise, generator.integers(0, 6, 36), place) for place in (x, y))
        order = np.argsort(t, kind="stable")
        parts.append(np.stack([t, x, y, generator.integers(0, 2, 36)])[:, order])
    t, x, y, p = np.concatenate(parts, 1)
    return {
        **{"t": t.astype(np.uint32), "x": x.astype(np.uint8), "y": y.astype(np.uint8), "p": p.astype(np.uint8)},
        "offsets": np.arange(recordings + 1) * 36,
        "label": labels.astype(np.uint8),
        "is_test": (np.arange(recordings) >= 120).astype(np.uint8),
        "classes": np.array(["right", "down"]),
    }


@pytest.fixture
def bars(tmp_path: Path) -> Path:
    np.savez(tmp_path / "bars.npz", **moving_bars())
    return tmp_path / "bars.npz"


def test_recordings_of_ones_own(bars):
    for root in (bars, bars.parent):
        data = load_dataset("events-npz", str(root), timesteps=3)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [108, 12, 40]
    assert data.classes == ("right", "down")
    assert data.input_shape == (3, 2, 6, 6)
    assert data.test.x.shape == (3, 40, 2, 6, 6)
    assert data.test.stored.max() == 1
    raw = moving_bars()
    part = slice(130 * 36, 131 * 36)
    one = Recording(*(raw[name][part] for name in "txyp"))
    assert np.array_equal(data.test.stored[10], frames(one, 3, (2, 6, 6)))
    counted = load_dataset("events-npz", str(bars), timesteps=3, binning="count", size=(8, 7), validation=0)
    assert np.array_equal(counted.test.stored[10], frames(one, 3, (2, 8, 7), binning="count"))
    with pytest.raises(DataError, match="one frame a timestep"):
        load_dataset("events-npz", str(bars))
    with pytest.raises(ConfigError, match="which need no encoding"):
        load_dataset("events-npz", str(bars), timesteps=3, encoding="rate")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("offsets"), "has no array offsets"),
        (lambda a: a.update(x=a["x"].astype(float)), "x is float64"),
        (lambda a: a.update(p=a["p"][:-1]), "differ in length"),
        (lambda a: a.update(p=a["p"] + 1), "p from 1 to 2"),
        (lambda a: a.update(label=a["label"][:-1]), "159 labels need 160 offsets"),
        (lambda a: a.update(offsets=a["offsets"] + 1), "offsets must rise from 0 to 5760"),
        (lambda a: a.update(is_test=a["is_test"] * 0), "is_test must be 0 for some"),
        (lambda a: a.update(t=a["t"][::-1]), "t falls inside a recording"),
        (lambda a: a.update(label=a["label"] + 1), "but there are 2 classes"),
        (lambda a: a.update(label=np.array([{}] * 160)), "damaged: Object arrays cannot be loaded"),
    ],
)
def test_recordings_that_cannot_be_used_are_named(tmp_path, change, message):
    arrays = moving_bars()
    change(arrays)
    np.savez(tmp_path / "bars.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_dataset("events-npz", str(tmp_path), timesteps=3)


def test_files_that_are_no_recordings_are_named(tmp_path, bars):
    bars.write_bytes(bars.read_bytes()[:500])
    with pytest.raises(DataError, match=r"bars\.npz' is damaged"):
        load_dataset("events-npz", str(bars), timesteps=3)
    (tmp_path / "other.npz").touch()
    with pytest.raises(DataError, match=r"holds 2 \.npz files"):
        load_dataset("events-npz", str(tmp_path), timesteps=3)


# --- N-MNIST and tonic ------------------------------------------------------------------------------------------------


def nmnist_bytes(events: Recording) -> bytes:
    """In the official format, with an event of y = 240 wherever 2**13 us more have passed."""
    content, base = b"", 0
    for t, x, y, p in zip(events.t, events.x, events.y, events.p, strict=True):
        while t - base >= 2**13:
            content += bytes([0, 240, 0, 0, 0])
            base += 2**13
        rest = int(t) - base
        content += bytes([int(x), int(y), int(p) << 7 | rest >> 16, rest >> 8 & 255, rest & 255])
    return content


@pytest.mark.parametrize("folder", ["N-MNIST", "NMNIST", ""])
def test_official_nmnist_files(tmp_path, folder):
    written = {}
    for part, count in (("Train", 4), ("Test", 2)):
        for digit in range(10):
            (tmp_path / folder / part / str(digit)).mkdir(parents=True)
            for index in range(count):
                events = recording(seed=digit * 10 + index + 100 * count)
                path = tmp_path / folder / part / str(digit) / f"{index:05}.bin"
                path.write_bytes(nmnist_bytes(events))
                written[part, digit, index] = path, events
    path, events = written["Train", 3, 1]
    found = read_nmnist(path)
    for name in "txyp":
        assert np.array_equal(getattr(found, name), getattr(events, name))
    tonic = pytest.importorskip("tonic")
    theirs = tonic.io.read_mnist_file(str(path), dtype=tonic.datasets.NMNIST.dtype)
    for name in "txyp":
        assert np.array_equal(getattr(found, name), theirs[name])
    data = load_dataset("n-mnist", str(tmp_path), timesteps=2, validation=10)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [30, 10, 20]
    assert np.array_equal(data.test.stored[13], frames(written["Test", 6, 1][1], 2, (2, 34, 34)))
    assert data.test.y[13] == 6
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"00001\.bin' is damaged"):
        load_dataset("n-mnist", str(tmp_path), timesteps=2)


def test_the_real_nmnist():
    if "SNNKIT_DATA" not in os.environ:
        pytest.skip("SNNKIT_DATA is not set")
    try:
        data = load_dataset("n-mnist", timesteps=4, validation=100)
    except DataError as error:
        pytest.skip(str(error))
    assert data.input_shape == (4, 2, 34, 34)
    assert len(data.classes) == 10
    active = data.test.stored.mean((0, 2, 3, 4))
    assert (active > 0.02).all()
    assert (active < 0.5).all()
    # the recordings show digits: a nearest-mean classifier on the time average is far above chance
    means = np.stack([data.train.still.x[data.train.y == label].mean(0) for label in range(10)])
    distances = ((data.test.still.x[:, None] - means) ** 2).sum((2, 3, 4))
    assert (distances.argmin(1) == data.test.y).mean() > 0.5


class FakeSet:
    """What tonic's classification sets look like."""

    sensor_size = (5, 6, 2)

    def __init__(self, save_to: str, train: bool = True) -> None:
        self.location = Path(save_to) / type(self).__name__
        if not self.location.is_dir():
            self.download()
        self.targets = [f"class {index % 3}" for index in range(30 if train else 9)]

    def download(self) -> None:
        raise OSError("no network")

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        import tonic

        events = recording(index)
        return tonic.io.make_structured_array(events.x, events.y, events.t, events.p), self.targets[index]


class Unsplit(FakeSet):
    def __init__(self, save_to: str) -> None:
        super().__init__(save_to)


def test_tonics_sets_by_name(tmp_path, monkeypatch):
    tonic = pytest.importorskip("tonic")
    for kind in (FakeSet, Unsplit):
        monkeypatch.setattr(tonic.datasets, kind.__name__, kind, raising=False)
    with pytest.raises(DataError, match="the files of 'tonic:FakeSet' are not there") as error:
        load_dataset("tonic:FakeSet", str(tmp_path), timesteps=2)
    assert str(tmp_path / "FakeSet") in error.value.hint
    with pytest.raises(UnavailableError, match="cannot be downloaded: no network"):
        load_dataset("tonic:FakeSet", str(tmp_path), timesteps=2, download=True)
    for kind in (FakeSet, Unsplit):
        (tmp_path / kind.__name__).mkdir()
    data = load_dataset("tonic:FakeSet", str(tmp_path), timesteps=2, validation=3)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [27, 3, 9]
    assert data.classes == ("class 0", "class 1", "class 2")
    assert np.array_equal(data.test.stored[4], frames(recording(4), 2, SHAPE))
    assert data.test.y.tolist() == [0, 1, 2] * 3
    data = load_dataset("tonic:Unsplit", str(tmp_path), timesteps=2, validation=3)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [21, 3, 6]
    with pytest.raises(ConfigError, match="tonic has no data set 'NMNISTT'") as error:
        load_dataset("tonic:NMNISTT")
    assert "'NMNIST'" in error.value.hint


def test_without_tonic_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tonic.datasets", None)
    monkeypatch.setitem(sys.modules, "tonic", None)
    with pytest.raises(UnavailableError, match="tonic is not installed") as error:
        load_dataset("tonic:NMNIST", timesteps=2)
    assert "snnkit[events]" in error.value.hint


# --- the whole way ----------------------------------------------------------------------------------------------------

SMALL = (
    *("teacher.channels=[4, 8]", "teacher.epochs=3", "student.channels=[8, 8]", "student.timesteps=3"),
    *("train.epochs=6", "train.batch_size=12", "train.threads=1", "data.augment.crop=0"),
)


def test_from_recordings_to_the_integer_networks_spikes(tmp_path, bars):
    config = load_config(None, [*SMALL, "data.name=events-npz", f"data.root={bars}", "data.binning=count"])
    run = Run(tmp_path / "run")
    summary = snnkit.distill(config, run)
    assert summary.teacher.percent > 80
    assert summary.student.percent > 80
    net = quantize_run(run.path).network
    assert (net.input.encoding, net.input.bits, net.input.shape) == ("events", 1, (2, 6, 6))
    samples = load_samples(net)
    assert np.array_equal(samples.x, load_dataset("events-npz", str(bars), timesteps=3, binning="count").test.x)
    (reference, onnx), (agreement,) = evaluate(net, samples, ["reference", "onnxruntime"])
    assert agreement.identical
    assert reference.accuracy == onnx.accuracy
    assert reference.accuracy.percent > 80
    assert load_samples(net, count=5).x.shape == (3, 5, 2, 6, 6)


@pytest.mark.parametrize("coding", ["rate", "latency"])
def test_coded_images_go_the_same_way(tmp_path, coding):
    config = load_config(None, [*SMALL, f"data.encoding={coding}", "train.batch_size=64", "train.epochs=4"])
    run = Run(tmp_path / "run")
    summary = snnkit.distill(config, run)
    assert summary.student.percent > 50
    assert summary.teacher.percent > 80
    net = quantize_run(run.path).network
    assert net.input.encoding == "events"
    samples = load_samples(net)
    assert np.array_equal(samples.x, load_dataset("digits", timesteps=3, encoding=coding).test.x)
    ((result,), _) = evaluate(net, samples, ["reference"])
    assert result.accuracy.percent > summary.student.percent - 10


def test_a_stopped_run_on_coded_images_resumes_exactly(tmp_path):
    overrides = [*SMALL, "data.encoding=rate", "train.epochs=2", "teacher.epochs=1", "data.augment.cutmix=1.0"]
    config = load_config(None, [*overrides, "train.batch_size=128", "data.augment.flip=true", "data.validation=0"])
    whole, stopped = Run(tmp_path / "whole"), Run(tmp_path / "stopped")
    first = snnkit.distill(config, whole)
    snnkit.distill(config, stopped, stop_after=2)
    second = snnkit.distill(config, stopped, resume=True)
    assert first.student == second.student
    assert whole.last.read_bytes() == stopped.last.read_bytes()
