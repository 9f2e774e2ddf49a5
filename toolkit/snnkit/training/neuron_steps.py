"""The equations of a spiking neuron and their gradient, operator by operator: on a CPU, and for a compiler."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from snnkit.training.surrogates import SLOPES


class Steps(torch.autograd.Function):
    """The spikes of synaptic currents [T, N, ...], and their gradient from the currents alone: no state is kept for it.

    ``apply(currents, w, tau, threshold, subtract, surrogate, alpha)``: v decays by v sigmoid(w), by v / tau where w is
    None, and not where both are; ``surrogate`` names a slope. Every number is that of SpikingJelly's nodes.
    """

    @staticmethod
    def forward(
        ctx: Any,
        currents: Tensor,
        w: Tensor | None,
        tau: float | None,
        threshold: float,
        subtract: bool,
        surrogate: str,
        alpha: float,
    ) -> Tensor:
        ctx.save_for_backward(currents, w)
        ctx.constants = tau, threshold, subtract, surrogate, alpha
        q = None if w is None else w.sigmoid()
        return sequence([fired.to(currents.dtype) for _, _, fired in _states(currents, q, tau, threshold, subtract)])

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        currents, w = ctx.saved_tensors
        tau, threshold, subtract, surrogate, alpha = ctx.constants
        q = None if w is None else w.sigmoid()
        states = list(_states(currents, q, tau, threshold, subtract))
        gradients: list[Tensor] = []
        carried, by_q = None, torch.zeros((), device=currents.device)
        for slope, (before, v, fired) in zip(reversed(slopes[0].unbind(0)), reversed(states), strict=True):
            gradient = SLOPES[surrogate](v - threshold, alpha).mul_(full(slope))
            if carried is not None:
                gradient += carried if subtract else carried.addcmul_(carried, fired, value=-1)
            gradients.insert(0, gradient.to(slope.dtype))
            if q is not None and before is not None:
                by_q = by_q - (gradient * before).sum()
            carried = _decayed(gradient, q, tau)
        by_w = None if q is None else by_q * (1 - q) * q
        return sequence(gradients), by_w, None, None, None, None, None


def _states(
    currents: Tensor, q: Tensor | None, tau: float | None, threshold: float, subtract: bool
) -> Iterator[tuple[Tensor | None, Tensor, Tensor]]:
    """At each timestep v of the step before, after its reset (None: at rest), v before the reset, and the spikes."""
    before = None
    for current in currents.unbind(0):
        v = full(current) if before is None else _decayed(before, q, tau).add_(full(current))
        fired = v.clone().ge_(threshold)
        yield before, v, fired
        before = v.add(fired, alpha=-threshold) if subtract else v.addcmul(v, fired, value=-1)


def _decayed(v: Tensor, q: Tensor | None, tau: float | None) -> Tensor:
    """A tensor of its own."""
    if q is not None:
        return v - v * q
    return v.clone() if tau is None else v - v / tau


def full(x: Tensor) -> Tensor:
    """In float32, or more where it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def sequence(steps: list[Tensor]) -> Tensor:
    """[T, N, ...] of T tensors [N, ...], in whose layout it is: stacked they would be contiguous."""
    return torch.cat(steps).unflatten(0, (len(steps), len(steps[0])))  # type: ignore[no-untyped-call, no-any-return]
