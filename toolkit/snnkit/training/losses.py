"""The student's losses, each a pure function. Logits are [T, N, K] for a student and [N, K] for a teacher."""

from torch import Tensor, nn
from torch.nn import functional as F


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy at every timestep, mean over time (temporal efficient training: Deng et al., ICLR 2022).

    ``(1/T) sum_t CE(z_t, y)`` with labels [N]: each timestep must be right, not only their average.
    """
    timesteps = logits.shape[0]
    return F.cross_entropy(logits.flatten(0, 1), labels.repeat(timesteps))


def distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence from the teacher to the student's every timestep (Hinton et al. 2015).

    ``(1/T) sum_t tau^2 KL(softmax(z_A / tau) || softmax(z_t / tau))``, mean over the batch; the factor tau^2 keeps the
    gradient's size independent of the temperature.
    """
    target = F.log_softmax(teacher / temperature, dim=-1).expand(logits.shape)
    answer = F.log_softmax(logits / temperature, dim=-1)
    divergence = F.kl_div(answer, target, reduction="none", log_target=True).sum(-1)
    return divergence.mean() * temperature**2


def ensemble(logits: Tensor, temperature: float) -> Tensor:
    """Divergence from the student's own time average, taken as a constant, to its every timestep."""
    return distillation(logits, logits.mean(0).detach(), temperature)


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


def standardise(features: Tensor, eps: float = 1e-5) -> Tensor:
    """Zero mean and unit variance per channel, over the batch and all pixels of [N, C, H, W]."""
    return F.batch_norm(features, None, None, training=True, eps=eps)


def feature_alignment(projected: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared distance of standardised features, [N, C, h, w] and [N, C, H, W]; a larger map is averaged down.

    ``||N(A F + b) - N(F_A)||^2 / (C H W)``, mean over the batch, N the standardisation per channel.
    """
    (height, width), (rows, columns) = projected.shape[2:], teacher.shape[2:]
    if (height, width) != (rows, columns):
        size = min(height, rows), min(width, columns)
        projected, teacher = F.adaptive_avg_pool2d(projected, size), F.adaptive_avg_pool2d(teacher, size)
    return F.mse_loss(standardise(projected), standardise(teacher))
