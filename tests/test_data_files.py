"""Image data sets from files: synthetic ones, and the real ones where SNNKIT_DATA has them."""

import gzip
import hashlib
import io
import os
import pickle
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torchvision
from PIL import Image

from snnkit.config import DataConfig
from snnkit.errors import ConfigError, DataError, UnavailableError
from snnkit.training.data import load_dataset
from snnkit.training.datasets import cifar, idx
from snnkit.training.datasets.files import find


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def real(name: str):
    if "SNNKIT_DATA" not in os.environ:
        pytest.skip("SNNKIT_DATA is not set")
    try:
        return load_dataset(name)
    except DataError as error:
        if "are not there" in str(error):
            pytest.skip(str(error))
        raise


# --- idx --------------------------------------------------------------------------------------------------------------


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def clothes(tmp_path: Path) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    arrays = {}
    for name, count in zip(idx.FILES, (60, 60, 20, 20), strict=True):
        images = "images" in name
        arrays[name] = generator.integers(0, 256, (count, 6, 5), np.uint8) if images else np.arange(count) % 10
        arrays[name] = arrays[name].astype(np.uint8)
    return arrays


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("folder", ["FashionMNIST/raw", "", "fashion-mnist"])
def test_idx_files_are_found_and_read(tmp_path, clothes, packed, folder):
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for name, array in clothes.items():
        content = idx_bytes(array)
        (tmp_path / folder / (f"{name}.gz" if packed else name)).write_bytes(
            gzip.compress(content) if packed else content
        )
    data = load_dataset("fashion-mnist", str(tmp_path), validation=10)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [50, 10, 20]
    assert data.classes[9] == "Ankle boot"
    assert np.array_equal(data.test.stored[:, 0], clothes["t10k-images-idx3-ubyte"])
    assert np.array_equal(data.test.y, clothes["t10k-labels-idx1-ubyte"])
    order = {image.tobytes(): label for image, label in zip(*list(clothes.values())[:2], strict=True)}
    for split in (data.train, data.validation):
        assert [order[image.tobytes()] for image in split.stored] == split.y.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: gzip.compress(content)[:-20], "damaged"),
        (lambda content: b"no gzip", "damaged: Not a gzipped"),
        (lambda content: gzip.compress(content[:-1]), r"says \(20, 6, 5\), but it holds 599 values"),
        (lambda content: gzip.compress(b"\0\0\x0d" + content[3:]), "no idx file of bytes"),
        (lambda content: gzip.compress(b""), "no idx file of bytes"),
        (lambda content: gzip.compress(idx_bytes(np.zeros((7, 6, 5), np.uint8))), r"holds \(7, 6, 5\) for labels"),
    ],
)
def test_idx_files_that_are_damaged_are_named(tmp_path, clothes, change, message):
    for name, array in clothes.items():
        content = gzip.compress(idx_bytes(array))
        (tmp_path / f"{name}.gz").write_bytes(change(idx_bytes(array)) if name.startswith("t10k-images") else content)
    with pytest.raises(DataError, match=message) as error:
        load_dataset("fashion-mnist", str(tmp_path), validation=0)
    assert "t10k-images-idx3-ubyte" in str(error.value)


def test_without_a_network_the_files_are_named(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torchvision.datasets, "MNIST", refuse)
    monkeypatch.delenv("SNNKIT_DATA", raising=False)
    with pytest.raises(UnavailableError, match=r"'mnist' cannot be downloaded.*no network") as error:
        load_dataset("mnist", str(tmp_path), download=True)
    assert "train-images-idx3-ubyte.gz" in error.value.hint
    assert str(tmp_path) in error.value.hint


def test_a_download_is_used(tmp_path, clothes, monkeypatch):
    def download(root: Path, *, download: bool) -> None:
        (root / "MNIST" / "raw").mkdir(parents=True)
        for name, array in clothes.items():
            (root / "MNIST" / "raw" / name).write_bytes(idx_bytes(array))

    monkeypatch.setattr(torchvision.datasets, "MNIST", download)
    monkeypatch.setenv("SNNKIT_DATA", str(tmp_path / "new"))
    assert len(load_dataset("mnist", download=True, validation=0).train) == 60


def test_the_real_fashion_mnist_is_read_as_torchvision_reads_it(tmp_path):
    data = real("fashion-mnist")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [55000, 5000, 10000]
    assert np.bincount(data.validation.y).tolist() == [500] * 10
    assert data.train.stored.dtype == np.uint8
    folder = find(DataConfig(), ("FashionMNIST/raw", "fashion-mnist", "FashionMNIST"), ["t10k-images-idx3-ubyte*"])
    packed = next(folder.glob("t10k-images-idx3-ubyte*"))
    (tmp_path / "images").write_bytes(
        gzip.decompress(packed.read_bytes()) if packed.suffix == ".gz" else packed.read_bytes()
    )
    expected = torchvision.datasets.mnist.read_image_file(str(tmp_path / "images"))
    assert np.array_equal(data.test.stored[:, 0], expected.numpy())


# --- CIFAR ------------------------------------------------------------------------------------------------------------


class Payload:
    def __reduce__(self):
        return (print, ("executed",))


def write_cifar100(folder: Path, monkeypatch: pytest.MonkeyPatch, **change: object) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    contents: dict[str, object] = {"meta": {b"fine_label_names": [f"class {i}".encode() for i in range(100)]}}
    for part, count in (("train", 300), ("test", 100)):
        arrays[part] = generator.integers(0, 256, (count, 3072), np.uint8)
        contents[part] = {b"data": arrays[part], b"fine_labels": [i % 100 for i in range(count)]}
    for name, content in (contents | change).items():
        raw = pickle.dumps(content, protocol=3)
        (folder / name).write_bytes(raw)
        monkeypatch.setitem(cifar.CIFAR100_MD5, name, hashlib.md5(raw).hexdigest())
    return arrays


def test_cifar_files_are_read(tmp_path, monkeypatch):
    arrays = write_cifar100(tmp_path / "cifar-100-python", monkeypatch)
    data = load_dataset("cifar-100", str(tmp_path), validation=100)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [200, 100, 100]
    assert data.classes[7] == "class 7"
    assert np.array_equal(data.test.stored, arrays["test"].reshape(-1, 3, 32, 32))
    assert data.test.y.tolist() == list(range(100))


def test_cifar_files_are_opened_only_as_published(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "cifar-100-python"
    write_cifar100(folder, monkeypatch)
    content = (folder / "test").read_bytes()
    (folder / "test").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match=r"test' is damaged: its MD5 is") as error:
        load_dataset("cifar-100", str(tmp_path))
    assert "get it again" in error.value.hint
    for content, message in (([1], "holds list"), ({b"data": Payload()}, "asks for builtins.print")):
        write_cifar100(folder, monkeypatch, test=content)
        with pytest.raises(DataError, match=message):
            load_dataset("cifar-100", str(tmp_path))
    assert "executed" not in capsys.readouterr().out


def test_the_published_md5_are_torchvisions():
    for kind, ours in (
        (torchvision.datasets.CIFAR10, cifar.CIFAR10_MD5),
        (torchvision.datasets.CIFAR100, cifar.CIFAR100_MD5),
    ):
        theirs = dict([*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])])
        assert ours == theirs


def test_the_real_cifar_100_is_read_as_torchvision_reads_it():
    data = real("cifar-100")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [45000, 5000, 10000]
    assert np.bincount(data.validation.y).tolist() == [50] * 100
    root = find(DataConfig(), ("cifar-100",), ["cifar-100-python"])
    expected = torchvision.datasets.CIFAR100(root, train=False)
    assert np.array_equal(data.test.stored.transpose(0, 2, 3, 1), expected.data)
    assert data.test.y.tolist() == expected.targets
    assert data.classes == tuple(expected.classes)


# --- folders ----------------------------------------------------------------------------------------------------------


def write_folder(root: Path, mode: str = "RGB") -> dict[tuple[str, str, int], np.ndarray]:
    generator = np.random.default_rng(0)
    pictures = {}
    for part, count in (("train", 10), ("test", 3)):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                shape = (6, 8) if mode == "L" else (6, 8, 3)
                pictures[part, name, index] = pixels = generator.integers(0, 256, shape, np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{index:02}.png")
    return pictures


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_folders_of_images(tmp_path, mode):
    pictures = write_folder(tmp_path, mode)
    data = load_dataset("image-folder", str(tmp_path), size=(6, 8))
    assert data.classes == ("cat", "dog")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [18, 2, 6]
    assert data.test.y.tolist() == [0, 0, 0, 1, 1, 1]
    first = pictures["test", "cat", 0]
    assert np.array_equal(data.test.stored[0], first[None] if mode == "L" else first.transpose(2, 0, 1))
    assert load_dataset("image-folder", str(tmp_path), size=(3, 4)).input_shape == (1 if mode == "L" else 3, 3, 4)


def test_folders_that_cannot_be_read_are_named(tmp_path):
    write_folder(tmp_path)
    with pytest.raises(ConfigError, match=r"needs data\.size"):
        load_dataset("image-folder", str(tmp_path))
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, "png")
    (tmp_path / "test" / "dog" / "01.png").write_bytes(buffer.getvalue()[:40])
    with pytest.raises(DataError, match=r"01\.png' is damaged"):
        load_dataset("image-folder", str(tmp_path), size=(6, 8))
    (tmp_path / "test" / "bird").mkdir()
    with pytest.raises(DataError, match="has the class 'bird'"):
        load_dataset("image-folder", str(tmp_path), size=(6, 8))
    for path in (tmp_path / "train").rglob("*.png"):
        path.unlink()
    (tmp_path / "test" / "bird").rmdir()
    with pytest.raises(DataError, match="there are no pictures in"):
        load_dataset("image-folder", str(tmp_path), size=(6, 8))
