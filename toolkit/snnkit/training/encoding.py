"""How still images enter a spiking network while it is trained: on the device, batch by batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from snnkit.training.datasets.split import Encoding
from snnkit.training.spikes import mixed


def as_floats(x: Tensor) -> Tensor:
    """Images in 0..1: uint8 levels divided by 255, floats as they are."""
    return x.float() / 255 if x.dtype == torch.uint8 else x


def direct(x: Tensor, timesteps: int) -> Tensor:
    """The same image at every timestep: [N, ...] to [T, N, ...], without a copy."""
    return x.expand(timesteps, *x.shape)


def rate(x: Tensor, timesteps: int, seed: int = 0) -> Tensor:
    """Bernoulli spikes [T, N, ...] of x's dtype, with the values of x in 0..1 as probabilities.

    Equals :func:`snnkit.training.spikes.rate` bit for bit, on every device.
    """
    levels = x.float() * 2**24
    pixels = torch.arange(x[:1].numel(), device=x.device).view(1, *x.shape[1:])
    samples = torch.arange(len(x), device=x.device).view(-1, *(1,) * (x.dim() - 1))
    base = mixed(mixed(seed) ^ samples)
    spikes = [(mixed(base ^ (pixels * timesteps + t)) & 0xFFFFFF) < levels for t in range(timesteps)]
    return torch.stack(spikes).to(x.dtype)


def latency(x: Tensor, timesteps: int) -> Tensor:
    """Time to first spike [T, N, ...] of x's dtype: one spike at ``round((1 - x) (T - 1))``; none where x is 0."""
    when = ((1 - x.float()) * (timesteps - 1)).round()
    steps = torch.arange(timesteps, dtype=torch.float32, device=x.device).view(-1, *(1,) * x.dim())
    return ((when == steps) & (x > 0)).to(x.dtype)


@dataclass(frozen=True)
class Encoder:
    """What student and teacher see of a training batch, images [N, C, H, W] or event frames [T, N, C, H, W]."""

    encoding: Encoding
    timesteps: int

    def student(self, x: Tensor) -> Tensor:
        """Images for a student that repeats them itself (``direct``), else spikes [T, N, C, H, W].

        Rates are drawn with a seed from torch's random state.
        """
        if self.encoding == "rate":
            return rate(x, self.timesteps, int(torch.randint(2**31 - 1, ())))
        return latency(x, self.timesteps) if self.encoding == "latency" else x

    def teacher(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W]: of events the mean over time."""
        return x.mean(0) if self.encoding == "events" else x
