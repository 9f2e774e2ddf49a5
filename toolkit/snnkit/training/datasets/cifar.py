"""CIFAR-10 and CIFAR-100 from their official python files.

They are pickles: a file is opened only after its published MD5 matches, and by an unpickler that makes nothing but
numpy arrays, dicts, lists, strings, bytes and numbers.
"""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy._core import multiarray

from snnkit.config import DataConfig
from snnkit.training.datasets.files import checked_bytes, damaged, find
from snnkit.training.datasets.split import Dataset, Split, hold_out

CIFAR10_MD5 = {  # as torchvision lists them
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
CIFAR100_MD5 = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}


def cifar10(config: DataConfig, timesteps: int | None = None) -> Dataset:  # noqa: ARG001
    """60,000 colour pictures of 32x32 pixels in 10 classes (Krizhevsky 2009): 45,000 / 5,000 held out / 10,000."""
    return _cifar(config, "CIFAR10", "cifar-10-batches-py", CIFAR10_MD5, b"labels", b"label_names")


def cifar100(config: DataConfig, timesteps: int | None = None) -> Dataset:  # noqa: ARG001
    """60,000 colour pictures of 32x32 pixels in 100 classes (Krizhevsky 2009): 45,000 / 5,000 held out / 10,000."""
    return _cifar(config, "CIFAR100", "cifar-100-python", CIFAR100_MD5, b"fine_labels", b"fine_label_names")


def _cifar(
    config: DataConfig, official: str, folder_name: str, md5: Mapping[str, str], labels: bytes, names: bytes
) -> Dataset:
    def download(root: Path) -> None:
        import torchvision

        getattr(torchvision.datasets, official)(root, download=True)

    folders = (folder_name, f"{config.name}/{folder_name}", config.name)
    folder = find(config, folders, tuple(md5), download)
    *training, test, meta = (_unpickled(folder / name, published) for name, published in md5.items())
    parts = []
    for contents in (training, [test]):
        x = np.concatenate([content[b"data"] for content in contents]).reshape(-1, 3, 32, 32)
        y = np.concatenate([np.asarray(content[labels], np.int64) for content in contents])
        parts.append(Split(x, y))
    classes = tuple(name.decode() for name in meta[names])
    train, validation = hold_out(parts[0], 5000 if config.validation is None else config.validation, config.name)
    return Dataset(config.name, train, validation, parts[1], classes)


ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): multiarray._reconstruct,  # numpy's name of it before 2.0
    ("numpy._core.multiarray", "_reconstruct"): multiarray._reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def _unpickled(path: Path, md5: str) -> dict[bytes, Any]:
    try:
        content = _Unpickler(io.BytesIO(checked_bytes(path, md5)), encoding="bytes").load()
    except pickle.UnpicklingError as error:
        raise damaged(path, str(error)) from None
    if not isinstance(content, dict):
        raise damaged(path, f"it holds {type(content).__name__}, not a dict")
    return content
