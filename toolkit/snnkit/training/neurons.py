"""The spiking neuron that students are trained with: SpikingJelly's multi-step kernels, without hidden state."""

import math

import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import Tensor, nn

from snnkit.network.ir import DECAY_ONE
from snnkit.training.neuron_steps import Steps, full, sequence

SURROGATES = {"sigmoid": surrogate.Sigmoid, "triangle": surrogate.PiecewiseQuadratic, "atan": surrogate.ATan}


def decay_on_grid(tau: float) -> int:
    """The decay 1/tau on the 12-bit grid of neuromorphic chips, 1..4095: the nearest to 4096/tau."""
    return min(max(round(DECAY_ONE / tau), 1), DECAY_ONE - 1)


class SpikingNeuron(nn.Module):
    """A layer of (leaky) integrate-and-fire neurons on [T, N, ...], starting at rest with every call.

    ``u = u (1 - current_decay/4096) + x; v = v (1 - voltage_decay/4096) + u; s = v >= v_threshold``; then v = 0 (reset
    ``zero``) or v -= v_threshold (``subtract``). ``voltage_decay`` 0 is IF, ``current_decay`` 4096 no filter. With
    ``learned`` the voltage's decay is sigmoid(w), one parameter a layer, that starts there (PLIF: Fang et al., ICCV
    2021) and is on the grid only once the network is lowered. The reset is detached from the gradient. u and v are
    float32 whatever the input's type is, which the spikes take. The kernels are SpikingJelly's on a GPU; on a CPU, and
    where ``torch.compile`` fuses them with what is around, :class:`~snnkit.training.neuron_steps.Steps`.
    """

    def __init__(
        self,
        *,
        voltage_decay: int,
        current_decay: int = DECAY_ONE,
        learned: bool = False,
        v_threshold: float = 1.0,
        reset: str = "zero",
        surrogate: str = "sigmoid",
        surrogate_alpha: float = 4.0,
    ) -> None:
        super().__init__()
        self.initial_decay = voltage_decay
        self.current_decay = current_decay
        self.w = nn.Parameter(torch.tensor(-math.log(DECAY_ONE / voltage_decay - 1))) if learned else None
        self.v_threshold = v_threshold
        self.reset = reset
        self.surrogate_name, self.surrogate = surrogate, SURROGATES[surrogate](alpha=surrogate_alpha)

    @property
    def voltage_decay(self) -> int:
        """The decay on the 12-bit grid; of a learned one, the nearest."""
        return self.initial_decay if self.w is None else decay_on_grid(1.0 / float(self.w.detach().sigmoid()))

    def extra_repr(self) -> str:
        learned = " (learned)" if self.w is not None else ""
        filtered = f"current_decay={self.current_decay}, " if self.current_decay < DECAY_ONE else ""
        return (
            f"voltage_decay={self.voltage_decay}{learned}, {filtered}v_threshold={self.v_threshold}, reset={self.reset}"
        )

    def forward(self, x_seq: Tensor) -> Tensor:
        current = self._filtered(x_seq) if filters(self) else x_seq
        tau = DECAY_ONE / self.initial_decay if self.initial_decay else None
        threshold, subtract = self.v_threshold, self.reset == "subtract"
        if torch.compiler.is_compiling() or x_seq.device.type == "cpu":
            slope = self.surrogate_name, self.surrogate.alpha
            spikes: Tensor = Steps.apply(current, self.w, tau, threshold, subtract, *slope)  # type: ignore[no-untyped-call]
            return spikes.to(x_seq.dtype)
        # float32 and in the layout of the input: anything else leaves the fused kernel or makes it copy
        rest = torch.zeros_like(x_seq[0], dtype=torch.float32)
        v_reset = None if subtract else 0.0
        options = {"surrogate_function": self.surrogate, "detach_reset": True}
        if self.w is not None:
            spikes, _, _ = functional.plif_multi_step(current, rest, self.w, False, threshold, v_reset, **options)
        elif tau is not None:
            spikes, _, _ = functional.lif_multi_step(current, rest, tau, False, threshold, v_reset, **options)
        else:
            spikes, _, _ = functional.if_multi_step(current, rest, threshold, v_reset, **options)
        return spikes.to(x_seq.dtype)

    def _filtered(self, x_seq: Tensor) -> Tensor:
        """The synaptic current u, [T, N, ...] in full precision."""
        keep = 1 - self.current_decay / DECAY_ONE
        first, *others = torch.split(x_seq.flatten(0, 1), x_seq.shape[1])  # unlike unbind, with gradients in its layout
        currents = [full(first)]
        for x in others:
            currents.append(currents[-1] * keep + x)
        return sequence(currents)


def filters(module: nn.Module) -> bool:
    """Whether the module is a neuron whose current decays over several timesteps."""
    return isinstance(module, SpikingNeuron) and module.current_decay < DECAY_ONE


def is_neuron(module: nn.Module) -> bool:
    """Whether the module is a spiking neuron: snnkit's or any of SpikingJelly's."""
    return isinstance(module, SpikingNeuron | neuron.BaseNode)


def reset_neurons(model: nn.Module) -> None:
    """Puts neurons that keep their state (SpikingJelly's) to rest; every sample starts from there."""
    for module in model.modules():
        if isinstance(module, neuron.BaseNode):
            module.reset()
