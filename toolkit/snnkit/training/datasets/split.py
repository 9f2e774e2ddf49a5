"""Samples in memory: small as stored, and as networks take them."""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from snnkit.errors import DataError

Array: TypeAlias = npt.NDArray[Any]
Encoding: TypeAlias = Literal["direct", "events", "rate", "latency"]


@dataclass(frozen=True, eq=False)
class Split:
    """Samples as they are kept, and their labels ``y``, int64 [N].

    ``stored`` has the samples first: images [N, C, H, W], uint8 0..255 or float32 0..1, or event frames
    [N, T, C, H, W], uint8. ``encoding`` says how they enter a spiking network: ``events`` as they are, ``rate`` and
    ``latency`` as spikes over ``timesteps``, ``direct`` as the same image at every timestep. A split may be empty.
    """

    stored: Array
    y: npt.NDArray[np.int64]
    encoding: Encoding = "direct"
    timesteps: int | None = None

    def __len__(self) -> int:
        return len(self.y)

    def first(self, count: int | None) -> "Split":
        """The first ``count`` samples; None: all."""
        return Split(self.stored[:count], self.y[:count], self.encoding, self.timesteps)

    @property
    def images(self) -> npt.NDArray[np.float32]:
        """Still images float32 [N, C, H, W] in 0..1, as a teacher sees them: of events the mean over time."""
        images: npt.NDArray[np.float32] = self.stored
        if self.encoding == "events":
            images = self.stored.mean(axis=1, dtype=np.float32)
        elif self.stored.dtype == np.uint8:
            images = np.divide(self.stored, 255, dtype=np.float32)
        return images

    @property
    def x(self) -> Array:
        """Raw inputs as a network takes them: float32 [N, C, H, W] in 0..1, or events uint8 [T, N, C, H, W]."""
        if self.encoding == "direct":
            return self.images
        if self.encoding == "events":
            return self.stored.swapaxes(0, 1)
        from snnkit.training.spikes import encode

        assert self.timesteps is not None
        return encode(self.images, self.encoding, self.timesteps)

    @property
    def still(self) -> "Split":
        """The same samples as images, as a teacher sees them."""
        return self if self.encoding == "direct" else Split(self.images, self.y)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training, validation and test samples; only ``validation`` may choose anything, and it may be empty."""

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """What a student sees of one sample: (C, H, W), or (T, C, H, W) where time is in the data."""
        shape = self.train.stored.shape[1:]
        return (self.train.timesteps, *shape) if self.train.timesteps is not None else shape

    @property
    def image_shape(self) -> tuple[int, ...]:
        """What a teacher sees of one sample: (C, H, W)."""
        return self.input_shape[1:] if self.train.encoding != "direct" else self.input_shape


def hold_out(split: Split, count: int, what: str) -> tuple[Split, Split]:
    """The rest, and ``count`` samples held out: the same share of every class, always the same ones, in file order."""
    empty = Split(split.stored[:0], split.y[:0], split.encoding, split.timesteps)
    if count == 0:
        return split, empty
    from sklearn.model_selection import train_test_split

    try:
        rest, held = train_test_split(np.arange(len(split)), test_size=count, stratify=split.y, random_state=0)
    except ValueError as error:
        raise DataError(f"cannot hold {count} of {what} out: {error}", "set data.validation to fit, or to 0") from None
    rest.sort(), held.sort()
    return tuple(Split(split.stored[part], split.y[part], split.encoding, split.timesteps) for part in (rest, held))  # type: ignore[return-value]
