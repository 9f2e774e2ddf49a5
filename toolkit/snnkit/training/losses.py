"""The losses, each a pure function. Logits are [T, N, K] for a student and [N, K] for a teacher.

A loss over the time average instead of every timestep takes ``logits.mean(0, keepdim=True)``.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy at every timestep, mean over time (temporal efficient training: Deng et al., ICLR 2022).

    ``(1/T) sum_t CE(z_t, y)`` with labels [N]: each timestep must be right, not only their average.
    """
    return F.cross_entropy(logits.flatten(0, 1), labels.repeat(logits.shape[0]), label_smoothing=smoothing)


def divergence(target: Tensor, logits: Tensor, temperature: float = 1.0) -> Tensor:
    """``tau^2 KL(softmax(target / tau) || softmax(logits / tau))`` over the last axis, mean over all others.

    The factor tau^2 keeps the gradient's size independent of the temperature (Hinton et al. 2015).
    """
    p, q = F.log_softmax(target / temperature, dim=-1), F.log_softmax(logits / temperature, dim=-1)
    return F.kl_div(q, p.expand(q.shape), reduction="none", log_target=True).sum(-1).mean() * temperature**2


def distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Divergence from the teacher's answer to the student's every timestep, ``(1/T) sum_t KL_tau(z_A || z_t)``."""
    return divergence(teacher, logits, temperature)


def ensemble(logits: Tensor, temperature: float) -> Tensor:
    """Divergence from the student's own time average, taken as a constant, to its every timestep."""
    return divergence(logits.mean(0).detach(), logits, temperature)


def entropy(logits: Tensor) -> Tensor:
    """``(1/T) sum_t (log K - H(softmax(z_t)))``: 0 for uniform answers, log K for certain ones.

    A confidence penalty (Pereyra et al., ICLR workshop 2017), at every timestep as in TSER (CVPR 2025).
    """
    log_p = F.log_softmax(logits, dim=-1)
    return math.log(logits.shape[-1]) + (log_p.exp() * log_p).sum(-1).mean()


def prefix(logits: Tensor, temperature: float) -> Tensor:
    """Divergence from the mean of the first t + 1 timesteps, taken as a constant, to the mean of the first t.

    It teaches the student to answer with fewer timesteps than it was trained with; 0 for one timestep.
    """
    steps = torch.arange(1, len(logits) + 1, dtype=logits.dtype, device=logits.device)
    means = logits.cumsum(0) / steps[:, None, None]
    return divergence(means[1:].detach(), means[:-1], temperature) if len(logits) > 1 else 0 * logits.sum()


class AffineProjector(nn.Module):
    """``A F + b`` at every pixel: a 1x1 convolution from the student's channels to the teacher's.

    Being affine it commutes with the average over time, so one projection serves all timesteps. It is dropped after
    training.
    """

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(student_channels, teacher_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        projected: Tensor = self.conv(features)
        return projected


class ChannelwiseProjector(nn.Module):
    """``a_c F_c + b_c``: the affine projector between equal widths, without mixing channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> Tensor:
        return features * self.scale[:, None, None] + self.bias[:, None, None]


def standardise(features: Tensor, eps: float = 1e-5) -> Tensor:
    """Zero mean and unit variance per channel, over the batch and all pixels of [N, C, H, W]."""
    return F.batch_norm(features, None, None, training=True, eps=eps)


def _same_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps at the smaller height and width of the two; the larger is averaged down."""
    size = min(a.shape[-2], b.shape[-2]), min(a.shape[-1], b.shape[-1])
    pooled = [x if x.shape[-2:] == size else F.adaptive_avg_pool2d(x, size) for x in (a, b)]
    return pooled[0], pooled[1]


def feature_alignment(projected: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared distance of standardised features, [N, C, h, w] and [N, C, H, W]; a larger map is averaged down.

    ``||N(A F + b) - N(F_A)||^2 / (C H W)``, mean over the batch, N the standardisation per channel.
    """
    projected, teacher = _same_size(projected, teacher)
    return F.mse_loss(standardise(projected), standardise(teacher))


def class_activation_map(features: Tensor, logits: Tensor) -> Tensor:
    """Where a network sees its answer: ``sum_c F_c dz_k/dF_c``, [N, H, W], k the predicted class.

    ``features`` [N, C, H, W] must be a leaf that ``logits`` [N, K] was computed from. For a head of global average
    and linear layer it is the classic map (Zhou et al., CVPR 2016) over H W; in general HiResCAM (Draelos, Carin 2020).
    """
    (gradient,) = torch.autograd.grad(logits.amax(1).sum(), features)
    return (features * gradient).sum(1).detach()


def activation_map_alignment(spikes: Tensor, target: Tensor) -> Tensor:
    """Divergence from the teacher's class activation map [N, H, W] to the student's map of firing rates.

    The student's map is the mean of ``spikes`` [T, N, C, h, w] over time and channels. Both are standardised per
    sample, so that neither's scale matters, then a softmax over the pixels makes them distributions (SAMD, 2025).
    """
    maps = [x.flatten(1) for x in _same_size(spikes.mean((0, 2)), target)]
    answer, goal = [(x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True, correction=0) + 1e-5) for x in maps]
    return divergence(goal, answer)
