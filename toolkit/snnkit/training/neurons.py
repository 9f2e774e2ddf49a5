"""The spiking neuron that students are trained with: SpikingJelly's multi-step kernels, without hidden state."""

import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import Tensor, nn

from snnkit.network.ir import DECAY_ONE

SURROGATES = {"sigmoid": surrogate.Sigmoid, "triangle": surrogate.PiecewiseQuadratic, "atan": surrogate.ATan}


def decay_on_grid(tau: float) -> int:
    """The decay 1/tau on the 12-bit grid of neuromorphic chips, 1..4095: the nearest to 4096/tau."""
    return min(max(round(DECAY_ONE / tau), 1), DECAY_ONE - 1)


class SpikingNeuron(nn.Module):
    """A layer of (leaky) integrate-and-fire neurons on [T, N, ...], starting at rest with every call.

    ``v = v (1 - voltage_decay/4096) + x; s = v >= v_threshold``; then v = 0 (reset ``zero``) or
    v -= v_threshold (``subtract``). ``voltage_decay`` 0 is IF. The reset is detached from the gradient.
    """

    def __init__(
        self,
        *,
        voltage_decay: int,
        v_threshold: float = 1.0,
        reset: str = "zero",
        surrogate: str = "sigmoid",
        surrogate_alpha: float = 4.0,
    ) -> None:
        super().__init__()
        self.voltage_decay = voltage_decay
        self.v_threshold = v_threshold
        self.reset = reset
        self.surrogate = SURROGATES[surrogate](alpha=surrogate_alpha)

    def extra_repr(self) -> str:
        return f"voltage_decay={self.voltage_decay}, v_threshold={self.v_threshold}, reset={self.reset}"

    def forward(self, x_seq: Tensor) -> Tensor:
        rest = torch.zeros(x_seq.shape[1:], dtype=torch.float32, device=x_seq.device)
        v_reset = 0.0 if self.reset == "zero" else None
        if self.voltage_decay:
            tau = DECAY_ONE / self.voltage_decay
            spikes, _, _ = functional.lif_multi_step(
                x_seq, rest, tau, False, self.v_threshold, v_reset, self.surrogate, detach_reset=True
            )
        else:
            spikes, _, _ = functional.if_multi_step(
                x_seq, rest, self.v_threshold, v_reset, self.surrogate, detach_reset=True
            )
        return spikes  # type: ignore[no-any-return]


def is_neuron(module: nn.Module) -> bool:
    """Whether the module is a spiking neuron: snnkit's or any of SpikingJelly's."""
    return isinstance(module, SpikingNeuron | neuron.BaseNode)


def reset_neurons(model: nn.Module) -> None:
    """Puts neurons that keep their state (SpikingJelly's) to rest; every sample starts from there."""
    for module in model.modules():
        if isinstance(module, neuron.BaseNode):
            module.reset()
