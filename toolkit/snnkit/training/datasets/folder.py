"""Images of one's own: ROOT/train/CLASS/*.png and ROOT/test/CLASS/*.png."""

from pathlib import Path

import numpy as np

from snnkit.config import DataConfig
from snnkit.errors import ConfigError, DataError
from snnkit.training.datasets.files import damaged, find
from snnkit.training.datasets.split import Array, Dataset, Split, hold_out

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def image_folder(config: DataConfig, timesteps: int | None = None) -> Dataset:  # noqa: ARG001
    """Your own pictures, ROOT/{train,test}/CLASS/*.png, scaled to data.size; a tenth is held out to validate.

    Classes are the folders' names in alphabetical order. Pictures are read as RGB, or as grey where the first one is.
    """
    if config.size is None:
        raise ConfigError("an image folder needs data.size", "set it to [height, width]")
    folder = find(config, ("image-folder",), ("train", "test"))
    classes = tuple(sorted(path.name for path in (folder / "train").iterdir() if path.is_dir()))
    if unknown := sorted({path.name for path in (folder / "test").iterdir() if path.is_dir()} - {*classes}):
        raise DataError(f"'{folder / 'test'}' has the class '{unknown[0]}', which 'train' has not", "make them equal")
    files = {part: _files(folder / part, classes) for part in ("train", "test")}
    mode = _mode(files["train"][0][0])
    splits = []
    for part in ("train", "test"):
        x = np.stack([_picture(path, config.size, mode) for path, _ in files[part]])
        splits.append(Split(x, np.array([label for _, label in files[part]], np.int64)))
    count = len(splits[0]) // 10 if config.validation is None else config.validation
    train, validation = hold_out(splits[0], count, config.name)
    return Dataset(config.name, train, validation, splits[1], classes)


def _files(folder: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    found = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).glob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
    if not found:
        raise DataError(f"there are no pictures in '{folder}'", f"put them into {folder}/CLASS/, as {SUFFIXES[0]}")
    return found


def _mode(path: Path) -> str:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            return "L" if picture.mode in ("1", "L", "LA", "I;16") else "RGB"
    except (OSError, UnidentifiedImageError) as error:
        raise damaged(path, str(error)) from None


def _picture(path: Path, size: tuple[int, int], mode: str) -> Array:
    """uint8 [C, H, W]; scaled with antialiasing if it is of another size."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            pixels = picture.convert(mode)
            if pixels.size != size[::-1]:
                pixels = pixels.resize(size[::-1], Image.Resampling.BILINEAR)
    except (OSError, UnidentifiedImageError) as error:
        raise damaged(path, str(error)) from None
    array = np.asarray(pixels)
    return array[None] if mode == "L" else array.transpose(2, 0, 1)
