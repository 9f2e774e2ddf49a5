"""Still images as spike trains, on the host: what a network runs on that was trained with rate or latency coding.

:mod:`snnkit.training.encoding` computes the same, bit for bit, on torch tensors.
"""

from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Coding: TypeAlias = Literal["rate", "latency"]
MULTIPLIERS = (0x9E3779B1, 0x7FEB352D, 0x846CA68B)  # below 2**32, so that products of 31-bit numbers fit into int64
MASK = 0x7FFFFFFF


def encode(x: npt.NDArray[np.float32], coding: Coding, timesteps: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Images [N, ...] in 0..1 as spikes uint8 [T, N, ...]; see :func:`rate` and :func:`latency`."""
    return rate(x, timesteps, seed) if coding == "rate" else latency(x, timesteps)


def rate(x: npt.NDArray[np.float32], timesteps: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Bernoulli spikes: at each timestep with the pixel's value as probability, independently.

    The random numbers are a hash of (seed, sample, timestep, pixel): the first samples of a set are encoded alike
    however many follow.
    """
    spikes = np.empty((timesteps, *x.shape), np.uint8)
    levels = x * np.float32(2**24)
    pixels = np.arange(int(np.prod(x.shape[1:], dtype=np.int64)), dtype=np.int64).reshape(1, *x.shape[1:])
    samples = np.arange(len(x), dtype=np.int64).reshape(-1, *(1,) * (x.ndim - 1))
    for t in range(timesteps):
        spikes[t] = (mixed(mixed(mixed(seed) ^ samples) ^ (pixels * timesteps + t)) & 0xFFFFFF) < levels
    return spikes


def latency(x: npt.NDArray[np.float32], timesteps: int) -> npt.NDArray[np.uint8]:
    """Time to first spike: one spike at ``rint((1 - x) (T - 1))``, the brighter the earlier; none where x is 0."""
    when = np.rint((np.float32(1) - x) * np.float32(timesteps - 1))
    steps = np.arange(timesteps, dtype=np.float32).reshape(-1, *(1,) * x.ndim)
    spikes: npt.NDArray[np.uint8] = ((when == steps) & (x > 0)).astype(np.uint8)
    return spikes


def mixed(value: Any) -> Any:
    """A 31-bit hash of non-negative integers below 2**31: a multiplicative mixer (after Wellons' lowbias32)."""
    value = (value ^ (value >> 16)) * MULTIPLIERS[0] & MASK
    value = (value ^ (value >> 15)) * MULTIPLIERS[1] & MASK
    value = (value ^ (value >> 14)) * MULTIPLIERS[2] & MASK
    return value ^ (value >> 16)
