import numpy as np
import pytest
import torch
from spikingjelly.activation_based import neuron, surrogate

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
