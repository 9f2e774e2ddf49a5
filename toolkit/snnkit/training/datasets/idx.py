"""MNIST and Fashion-MNIST: idx files, gzipped or not, in torchvision's layout or flat."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from snnkit.config import DataConfig
from snnkit.training.datasets.files import damaged, find
from snnkit.training.datasets.split import Array, Dataset, Split, hold_out

FILES = tuple(f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def mnist(config: DataConfig, timesteps: int | None = None) -> Dataset:  # noqa: ARG001
    """70,000 handwritten digits of 28x28 pixels (LeCun et al. 1998): 55,000 / 5,000 held out / 10,000."""
    return _idx_set(config, "MNIST", tuple("0123456789"))


def fashion_mnist(config: DataConfig, timesteps: int | None = None) -> Dataset:  # noqa: ARG001
    """70,000 pictures of clothes, 28x28 pixels (Xiao et al. 2017): 55,000 / 5,000 held out / 10,000."""
    return _idx_set(config, "FashionMNIST", CLOTHES)


def _idx_set(config: DataConfig, official: str, classes: tuple[str, ...]) -> Dataset:
    def download(root: Path) -> None:
        import torchvision

        getattr(torchvision.datasets, official)(root, download=True)

    folders = (f"{official}/raw", config.name, official)
    folder = find(config, folders, [f"{name}.gz|{name}" for name in FILES], download)
    arrays = [_read(folder, name) for name in FILES]
    splits = []
    for x, y, name in zip(arrays[::2], arrays[1::2], FILES[::2], strict=True):
        if x.ndim != 3 or y.shape != x.shape[:1]:
            raise damaged(folder / name, f"it holds {x.shape} for labels {y.shape}")
        splits.append(Split(x[:, None], y.astype(np.int64)))
    train, validation = hold_out(splits[0], 5000 if config.validation is None else config.validation, config.name)
    return Dataset(config.name, train, validation, splits[1], classes)


def _read(folder: Path, name: str) -> Array:
    """An idx file of bytes: 0, 0, 8, number of axes, their lengths in big-endian 32 bits, the values."""
    path = folder / f"{name}.gz"
    path = path if path.is_file() else folder / name
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(path, str(error)) from None
    axes = content[3] if len(content) > 3 else 0
    start = 4 + 4 * axes
    if content[:3] != b"\0\0\x08" or len(content) < start:
        raise damaged(path, "it is no idx file of bytes")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", axes, 4))
    if len(content) != start + math.prod(shape):
        raise damaged(path, f"its header says {shape}, but it holds {len(content) - start} values")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
