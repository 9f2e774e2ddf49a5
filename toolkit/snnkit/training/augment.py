"""Augmentation of training batches, drawn from the run's own generator so that a resumed run repeats it."""

import torch
from torch import Tensor
from torch.nn import functional as F


def shift(x: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Moves each image of [N, C, H, W] by -``pixels``..``pixels`` rows and columns of its own; zeros move in."""
    if not pixels:
        return x
    samples, _, height, width = x.shape
    dy, dx = torch.randint(0, 2 * pixels + 1, (2, samples, 1, 1), generator=generator).to(x.device)
    rows = dy + torch.arange(height, device=x.device)[:, None]
    columns = dx + torch.arange(width, device=x.device)
    padded = F.pad(x, (pixels,) * 4)
    sample = torch.arange(samples, device=x.device)[:, None, None]
    return padded[sample, :, rows, columns].permute(0, 3, 1, 2).contiguous()
