"""Events, one (time, x, y, polarity) each, cut into one frame a timestep."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from snnkit.training.datasets.split import Array

Binning = Literal["time", "count"]


@dataclass(frozen=True, eq=False)
class Recording:
    """Events in order of time: ``t`` in any unit, ``x``, ``y`` in pixels, ``p`` the polarity; integers [events]."""

    t: Array
    x: Array
    y: Array
    p: Array

    def __len__(self) -> int:
        return len(self.t)


def frames(
    recording: Recording, timesteps: int, shape: tuple[int, int, int], *, binning: Binning = "time", binary: bool = True
) -> Array:
    """Frames uint8 [T, *shape] with shape (polarities, height, width): whether each pixel had an event, or how many.

    ``time`` cuts from the first to the last event into windows of the same length, ``count`` into windows of the same
    number of events. Counts end at 255.
    """
    if not len(recording):
        return np.zeros((timesteps, *shape), np.uint8)
    if binning == "time":
        elapsed = recording.t.astype(np.int64) - int(recording.t[0])
        step = elapsed * timesteps // (int(elapsed[-1]) + 1)
    else:
        step = np.arange(len(recording)) * timesteps // len(recording)
    places = np.ravel_multi_index(
        tuple(np.asarray(axis, np.int64) for axis in (step, recording.p, recording.y, recording.x)),
        (timesteps, *shape),
    )
    counts = np.bincount(places, minlength=timesteps * int(np.prod(shape)))
    return np.minimum(counts, 1 if binary else 255).astype(np.uint8).reshape(timesteps, *shape)
