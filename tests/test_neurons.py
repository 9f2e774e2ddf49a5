import numpy as np
import pytest
import torch
from spikingjelly.activation_based import neuron, surrogate

from snnkit.training import neuron_steps
from snnkit.training.neurons import SpikingNeuron, decay_on_grid, is_neuron, reset_neurons

SURROGATES = {
    "sigmoid": surrogate.Sigmoid(4.0),
    "triangle": surrogate.PiecewiseQuadratic(1.0),
    "atan": surrogate.ATan(2.0),
}


@pytest.mark.parametrize("reset", ["zero", "subtract"])
@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("decay", [0, 2048, 1365])
def test_spikes_and_gradients_equal_spikingjellys_own_nodes(decay, name, reset):
    torch.manual_seed(0)
    x = torch.randn(5, 3, 2, 4, 4, requires_grad=True)
    alpha = SURROGATES[name].alpha
    own = SpikingNeuron(voltage_decay=decay, v_threshold=0.7, reset=reset, surrogate=name, surrogate_alpha=alpha)
    options = {
        "v_threshold": 0.7,
        "v_reset": 0.0 if reset == "zero" else None,
        "surrogate_function": SURROGATES[name],
        "detach_reset": True,
        "step_mode": "m",
    }
    other = neuron.LIFNode(tau=4096 / decay, decay_input=False, **options) if decay else neuron.IFNode(**options)
    spikes, expected = own(x), other(x)
    assert torch.equal(spikes, expected)
    assert 0 < spikes.mean() < 1
    weight = torch.randn_like(spikes)
    (gradient,) = torch.autograd.grad((spikes * weight).sum(), x)
    (expected_gradient,) = torch.autograd.grad((expected * weight).sum(), x)
    assert torch.equal(gradient, expected_gradient)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("reset", ["zero", "subtract"])
@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("tau", [2.0, 3.0])
def test_a_learned_tau_equals_spikingjellys_own_node(tau, name, reset):
    torch.manual_seed(0)
    x = torch.randn(5, 3, 2, 4, 4, requires_grad=True)
    own = SpikingNeuron(
        voltage_decay=decay_on_grid(tau),
        learned=True,
        v_threshold=0.7,
        reset=reset,
        surrogate=name,
        surrogate_alpha=SURROGATES[name].alpha,
    )
    other = neuron.ParametricLIFNode(
        init_tau=4096 / decay_on_grid(tau),
        decay_input=False,
        v_threshold=0.7,
        v_reset=0.0 if reset == "zero" else None,
        surrogate_function=SURROGATES[name],
        detach_reset=True,
        step_mode="m",
    )
    assert torch.equal(own.w, other.w)
    spikes, expected = own(x), other(x)
    assert torch.equal(spikes, expected)
    assert 0 < spikes.mean() < 1
    weight = torch.randn_like(spikes)
    gradients = torch.autograd.grad((spikes * weight).sum(), (x, own.w))
    for gradient, other_gradient in zip(
        gradients, torch.autograd.grad((expected * weight).sum(), (x, other.w)), strict=True
    ):
        assert torch.equal(gradient, other_gradient)
        assert gradient.abs().sum() > 0
    assert own.voltage_decay == decay_on_grid(tau)
    own.w.data.fill_(0.3)
    assert own.voltage_decay == round(4096 / (1 + np.exp(-0.3)))
    assert list(own.state_dict()) == ["w"]


class HeavisideWithSigmoidGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x >= 0).to(x)

    @staticmethod
    def backward(ctx, gradient):
        s = torch.sigmoid(4.0 * ctx.saved_tensors[0])
        return gradient * 4.0 * s * (1 - s)


@pytest.mark.parametrize("voltage_decay", [0, 1365])
@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_a_filtered_current_follows_its_equation(reset, voltage_decay):
    torch.manual_seed(0)
    x = (torch.rand(6, 3, 2, 4, 4) - 0.2).requires_grad_()
    own = SpikingNeuron(voltage_decay=voltage_decay, current_decay=1024, v_threshold=0.7, reset=reset)
    spikes = own(x)
    u = v = torch.zeros_like(x[0])
    expected = []
    for current in x:
        u = u * (1 - 1024 / 4096) + current
        v = v * (1 - voltage_decay / 4096) + u
        fired = HeavisideWithSigmoidGradient.apply(v - 0.7)
        expected.append(fired)
        v = v * (1 - fired.detach()) if reset == "zero" else v - 0.7 * fired.detach()
    expected = torch.stack(expected)
    assert 0.1 < spikes.mean() < 0.9
    assert torch.equal(spikes, expected)
    weight = torch.randn_like(spikes)
    (gradient,) = torch.autograd.grad((spikes * weight).sum(), x)
    (expected_gradient,) = torch.autograd.grad((expected * weight).sum(), x)
    assert torch.allclose(gradient, expected_gradient, atol=1e-6)
    assert gradient[0].abs().sum() > 0


@pytest.mark.parametrize(
    "options", [{}, {"learned": True}, {"current_decay": 2048}], ids=["lif", "learned", "filtered"]
)
def test_under_bf16_autocast_the_state_is_float32(options, monkeypatch):
    """Spikes of bf16 currents are those of the same numbers in float32; only their type differs."""
    torch.manual_seed(0)
    own = SpikingNeuron(voltage_decay=2048, v_threshold=0.7, **options)
    states, equations = [], neuron_steps._states

    def spy(*arguments):
        for before, v, fired in equations(*arguments):
            states.append(v.dtype)
            yield before, v, fired

    monkeypatch.setattr(neuron_steps, "_states", spy)
    linear = torch.nn.Linear(8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        current = linear(torch.randn(5, 16, 8))
        assert current.dtype == torch.bfloat16
        current.retain_grad()
        spikes = own(current)
    assert states == [torch.float32] * 5
    assert spikes.dtype == torch.bfloat16
    exact = current.detach().float().requires_grad_()
    assert torch.equal(spikes.float(), own(exact))
    assert 0.05 < spikes.float().mean() < 0.95
    weight = torch.randn_like(exact)
    (spikes.float() * weight).sum().backward()
    (own(exact) * weight).sum().backward()
    assert current.grad.dtype == torch.bfloat16
    assert torch.allclose(current.grad.float(), exact.grad, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_layout_of_the_input_is_kept(layout):
    x = torch.randn(6, 8, 4, 4).contiguous(memory_format=layout).unflatten(0, (3, 2)).requires_grad_()
    for options in ({}, {"reset": "subtract"}, {"current_decay": 2048}):
        spikes = SpikingNeuron(voltage_decay=2048, **options)(x)
        (gradient,) = torch.autograd.grad((spikes * spikes).sum(), x)
        assert spikes.stride() == gradient.stride() == x.stride()


def test_no_state_is_kept_for_the_gradient():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        x = torch.randn(3, 2, 5, dtype=torch.bfloat16, requires_grad=True)
        SpikingNeuron(voltage_decay=2048)(x)
    assert [tensor is x for tensor in kept] == [True]


def test_it_follows_its_equation_and_fires_at_the_threshold():
    x = torch.tensor([0.5, 0.75, 0.25, 1.0])[:, None]
    leaky = SpikingNeuron(voltage_decay=2048)
    # v: 0.5, 0.25 + 0.75 = 1.0 fires, 0.25, 0.125 + 1.0 fires
    assert leaky(x)[:, 0].tolist() == [0, 1, 0, 1]
    rests = SpikingNeuron(voltage_decay=0, reset="subtract")
    # v: 0.5, 1.25 fires and keeps 0.25, 0.5, 1.5 fires
    assert rests(x)[:, 0].tolist() == [0, 1, 0, 1]
    assert rests(torch.full((4, 1), 0.75))[:, 0].tolist() == [0, 1, 1, 1]  # 0.75, 1.5, 1.25, 1.0


def test_it_keeps_no_state_and_others_are_reset():
    own = SpikingNeuron(voltage_decay=2048)
    x = torch.full((3, 1, 3), 0.6)
    assert torch.equal(own(x), own(x))
    assert dict(own.state_dict()) == {}
    node = neuron.IFNode(step_mode="m")
    first = node(x)
    assert not torch.equal(first, node(x))
    reset_neurons(torch.nn.Sequential(node))
    assert torch.equal(first, node(x))
    assert is_neuron(node)
    assert is_neuron(own)
    assert not is_neuron(torch.nn.ReLU())


def test_decays_lie_on_the_12_bit_grid():
    assert [decay_on_grid(tau) for tau in (2.0, 4.0, 3.0, 1.5)] == [2048, 1024, 1365, 2731]
    assert decay_on_grid(1.00001) == 4095
    assert decay_on_grid(1e9) == 1
    assert np.float32(4096 / decay_on_grid(3.0)) != 3.0
