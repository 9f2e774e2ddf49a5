"""The exponential moving average of a model's weights."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from snnkit.training.neurons import reset_neurons

BATCHES = 50  # of training samples, from which the averaged model's BN statistics are computed


class MovingAverage:
    """``w_ema = d w_ema + (1 - d) w`` after every step, d = min(``decay``, (1 + n) / (10 + n)) at step n.

    The small d of the first steps keeps the random initial weights out of a short run. ``model`` is a model of its
    own; its BN statistics belong to other weights until :meth:`recompute_statistics`.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._averages: list[Tensor] = list(self.model.parameters())
        self._weights: list[Tensor] = list(model.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after step ``step`` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._weights, 1 - decay)

    @torch.no_grad()
    def recompute_statistics(self, batches: Iterable[Tensor]) -> None:
        """BN statistics of the averaged weights, from scratch: the mean over the batches."""
        norms = [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
        self.model.train()
        for batch in batches:
            reset_neurons(self.model)
            self.model(batch)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        self.model.eval()
