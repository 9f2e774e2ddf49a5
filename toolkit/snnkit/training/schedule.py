"""What changes from step to step: learning rate and timesteps. And what is optimised how."""

import math
from collections.abc import Mapping

import torch
from torch import nn

from snnkit.config import Optimisation


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Linear from ``peak / warmup`` to ``peak`` over the ``warmup`` steps, then half a cosine to 0 over the rest."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def timesteps_at(step: int, steps: int, curriculum: Mapping[int, float], full: int) -> int:
    """The timesteps to train with: the first of the curriculum whose share of all steps is not over, else ``full``."""
    for timesteps, share in sorted(curriculum.items(), key=lambda entry: entry[1]):
        if step < share * steps:
            return timesteps
    return full


def build_optimizer(modules: nn.Module, settings: Optimisation) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum 0.9; biases and normalisation (all vectors) do not decay."""
    parameters = [parameter for parameter in modules.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    fused = all(parameter.is_cuda for parameter in parameters)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=0.9, nesterov=True, fused=fused or None)
    return torch.optim.AdamW(groups, lr=settings.lr, fused=fused or None)
