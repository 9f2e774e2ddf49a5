"""Lowering: the float network is the torch student, spike by spike."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import layer, neuron
from torch import nn

from snnkit.config import load_config
from snnkit.errors import UnsupportedError
from snnkit.network import LIF, AvgPool2d, Conv2d, Readout, predictions, verify
from snnkit.training.data import load_dataset
from snnkit.training.evaluation import classify
from snnkit.training.lower import lower
from snnkit.training.models import build_student
from snnkit.training.neurons import SpikingNeuron, is_neuron, reset_neurons
from snnkit_targets import reference


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def trained(digits, *overrides):
    """A student after a few steps: its statistics and spikes are no longer those of its initialisation."""
    config = load_config(None, overrides)
    torch.manual_seed(0)
    student = build_student((1, 8, 8), 10, config.student)
    optimizer = torch.optim.Adam(student.parameters(), 5e-3)
    x, y = torch.from_numpy(digits.train.x), torch.from_numpy(digits.train.y)
    for batch in torch.randperm(1257)[:1024].split(64):
        logits = student(x[batch])
        optimizer.zero_grad()
        F.cross_entropy(logits.mean(0), y[batch]).backward()
        optimizer.step()
    return student.eval()


def spikes_of(model, x):
    """Output spikes of every neuron, [T, N, ...] by module path, and what the model returns."""
    rasters = {}
    handles = [
        module.register_forward_hook(lambda _m, _i, out, name=name: rasters.setdefault(name, []).append(out))
        for name, module in model.named_modules()
        if is_neuron(module)
    ]
    reset_neurons(model)
    with torch.no_grad():
        answer = model(x)
    for handle in handles:
        handle.remove()
    return {name: outs[0] if len(outs) == 1 else torch.stack(outs) for name, outs in rasters.items()}, answer


def assert_same_spikes(net, model, x, given=None):
    """Runs the network by the reference target; single spikes may differ only by float rounding at the threshold."""
    rasters, answer = spikes_of(model, x if given is None else given)
    trace = reference.run(net, x.numpy(), reference.Options(record="raster"))
    assert set(trace.rasters) == set(rasters)
    for name, raster in rasters.items():
        found = trace.rasters[name]
        assert found.shape == tuple(raster.shape)
        assert 0 < found.mean() < 0.9
        assert (found != raster.numpy().astype(bool)).mean() < 1e-4, name
    return trace, answer


@pytest.mark.parametrize(
    "overrides",
    [["student.neuron=lif"], ["student.neuron=if"], ["student.tau=3.0", "student.reset=subtract"]],
    ids=["lif", "if", "tau 3, subtract"],
)
def test_a_student_and_its_network_agree_on_all_digits(digits, overrides):
    student = trained(digits, *overrides)
    net = lower(student, (1, 8, 8), timesteps=4, metadata={"dataset": "digits"})
    assert verify(net) == "float"
    assert net.metadata == {"dataset": "digits"}
    assert [node.name for node in net][1:4] == ["stages.0.conv", "stages.0.norm", "stages.0.neuron"]
    x = torch.from_numpy(digits.test.x)
    trace, logits = assert_same_spikes(net, student, x)
    assert np.array_equal(predictions(trace), classify(student, x).numpy())
    differs = np.abs(trace.readouts - logits.sum(0).numpy()).max(1) > 1e-3
    assert differs.mean() < 0.02  # samples with a spike that rounding moved


@pytest.mark.parametrize("kind", ["lif", "if"])
def test_each_spike_follows_the_networks_equation(digits, kind):
    """Layer by layer on torch's own currents: a spike that differs has v within 1e-5 of the threshold."""
    student = trained(digits, f"student.neuron={kind}")
    net = lower(student, (1, 8, 8), timesteps=4)
    inputs = {}
    for name, module in student.named_modules():
        if is_neuron(module):
            module.register_forward_hook(lambda _m, args, out, name=name: inputs.update({name: (args[0], out)}))
    with torch.no_grad():
        student(torch.from_numpy(digits.test.x))
    for node in net.neurons:
        current, expected = (tensor.numpy() for tensor in inputs[node.name])
        v = np.zeros_like(current[0])
        keep = np.float32(1 - int(node.voltage_decay) / 4096)
        for x, spikes in zip(current, expected, strict=True):
            v = v * keep + x
            fired = v > node.v_threshold
            differs = fired != spikes.astype(bool)
            assert np.abs(v - node.v_threshold)[differs].max(initial=0) < 1e-5
            assert differs.mean() < 1e-5
            v = np.where(spikes.astype(bool), np.float32(0), v)


def test_a_voltage_at_the_threshold_fires_in_both():
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 1, bias=False), neuron.IFNode(v_threshold=0.3), nn.Linear(1, 1))
    model[1].weight.data.fill_(1.0)
    theta = np.float32(0.3)
    net = lower(model, (1, 1, 1), timesteps=1)
    x = np.array([np.nextafter(theta, np.float32(0)), theta, np.nextafter(theta, np.float32(1))], np.float32)
    trace = reference.run(net, x.reshape(3, 1, 1, 1), reference.Options())
    assert trace.spikes_per_step["2"].tolist() == [[0, 1, 1]]
    rasters, _ = spikes_of(model, torch.from_numpy(x).reshape(3, 1, 1, 1))
    assert rasters["2"].flatten().tolist() == [0, 1, 1]


def spikingjelly_model(step_mode, **options):
    torch.manual_seed(1)
    mode = {"step_mode": step_mode}
    return nn.Sequential(
        layer.Conv2d(1, 6, 3, padding="same", **mode),
        layer.BatchNorm2d(6, **mode),
        neuron.LIFNode(v_threshold=0.25, **options, **mode),
        layer.AvgPool2d(2, **mode),
        layer.Conv2d(6, 8, 3, stride=2, padding=1, groups=2, **mode),
        nn.Identity(),
        neuron.IFNode(v_threshold=0.2, **mode),
        layer.Dropout(0.3, **mode),
        layer.AdaptiveAvgPool2d(1, **mode),
        layer.Flatten(**mode),
        layer.Linear(8, 10, **mode),
    ).eval()


@pytest.mark.parametrize(
    "options",
    [{"decay_input": False}, {"decay_input": True}, {"decay_input": True, "v_reset": None, "tau": 4.0}],
    ids=["plain", "decayed input", "decayed input, soft reset"],
)
def test_a_users_spikingjelly_network_in_multi_step_mode(digits, options):
    model = spikingjelly_model("m", **options)
    net = lower(model, (1, 8, 8), timesteps=5, input_has_time=True)
    x = torch.from_numpy(digits.test.x[:40])
    trace, answer = assert_same_spikes(net, model, x, x.expand(5, *x.shape))
    assert np.allclose(trace.readouts, answer.sum(0).numpy(), atol=1e-3)
    assert [node.kernel_size for node in net if isinstance(node, AvgPool2d)] == [(2, 2), (2, 2)]


@pytest.mark.parametrize("decay_input", [True, False])
def test_a_learned_time_constant_of_spikingjelly_is_put_on_the_grid(digits, decay_input):
    model = spikingjelly_model("m")
    model[2] = neuron.ParametricLIFNode(init_tau=3.0, decay_input=decay_input, v_threshold=0.25, step_mode="m")
    model[2].w.data.fill_(-np.log(4096 / 1234 - 1))  # as learned: on the grid, so that both compute the same
    net = lower(model, (1, 8, 8), timesteps=5, input_has_time=True)
    assert int(net["2"].voltage_decay) == 1234
    x = torch.from_numpy(digits.test.x[:40])
    trace, answer = assert_same_spikes(net, model, x, x.expand(5, *x.shape))
    assert np.allclose(trace.readouts, answer.sum(0).numpy(), atol=1e-3)


class Loop(nn.Module):
    """Single-step layers in a loop over time, as in many tutorials."""

    def __init__(self, average):
        super().__init__()
        self.body, self.average = spikingjelly_model("s"), average

    def forward(self, x):
        outs = [self.body(x) for _ in range(5)]
        if self.average:
            total = 0.0
            for out in outs:
                total = total + out
            return total / 5
        return torch.stack(outs)


@pytest.mark.parametrize("average", [True, False])
def test_a_loop_over_time_is_folded(digits, average):
    model = Loop(average)
    net = lower(model, (1, 8, 8), timesteps=5)
    x = torch.from_numpy(digits.test.x[:40])
    trace, answer = assert_same_spikes(net, model, x)
    assert np.allclose(trace.readouts, 5 * answer if average else answer.sum(0), atol=1e-3)
    again = lower(model.body, (1, 8, 8), timesteps=5)  # the same, one timestep a call
    assert np.array_equal(reference.run(again, x.numpy(), reference.Options()).readouts, trace.readouts)


class Residual(nn.Module):
    """Time folded by hand, a shortcut that enters the neuron as current, spikes of the last layer as the answer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.first, self.second, self.last = (SpikingNeuron(voltage_decay=2048, v_threshold=0.3) for _ in range(3))
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.fc = nn.Linear(256, 10)

    def forward(self, x):
        x = self.first(self.stem(x).repeat(3, 1, 1, 1).view(3, -1, 4, 8, 8))
        time, samples = x.shape[:2]
        y = self.norm(self.conv(x.flatten(0, 1)))
        x = self.second(y.view(time, samples, 4, 8, 8) + x)
        x = self.last(self.fc(x.reshape(time * samples, -1)).unflatten(0, (time, samples)))
        return x.mean(0)


def test_a_residual_addition_becomes_two_inputs(digits):
    torch.manual_seed(2)
    model = Residual().eval()
    net = lower(model, (1, 8, 8), timesteps=3)
    assert {edge.source for edge in net["second"].inputs} == {"norm", "first"}
    assert net.readout.mode == "count"
    x = torch.from_numpy(digits.test.x[:40])
    trace, answer = assert_same_spikes(net, model, x)
    assert np.array_equal(trace.readouts, np.rint(3 * answer.numpy()))


def test_nodes_that_do_not_lead_to_the_answer_are_left_out():
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), neuron.IFNode())
            self.readout, self.unused = nn.Linear(4, 2), nn.Linear(4, 3)

        def forward(self, x):
            x = self.body(x)
            self.unused(x)
            return self.readout(x)

    net = lower(TwoHeads(), (1, 2, 2), timesteps=2)
    assert [node.name for node in net] == ["input", "body.0", "body.1", "body.2", "readout", "readout_2"]
    assert isinstance(net["readout_2"], Readout)


class Refused(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular")
        self.relu = nn.ReLU()
        self.quadratic = neuron.QIFNode(step_mode="m")
        self.biased = neuron.LIFNode(v_reset=-1.0, step_mode="m")
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(64, 10)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        x = self.quadratic(self.relu(self.conv(x)).unsqueeze(0).expand(4, -1, -1, -1, -1))
        x = self.biased(x * self.scale)
        x = torch.sigmoid(self.pool(x.flatten(0, 1)))
        return self.fc(x.flatten(1)).view(-1, 4, 10)


def test_every_obstacle_is_listed_at_once():
    model = Refused().train()
    with pytest.raises(UnsupportedError) as error:
        lower(model, (1, 8, 8), timesteps=4)
    expected = [
        "circular",
        "ReLU",
        "QIFNode",
        "mul()",
        "v_reset -1.0",
        "MaxPool2d",
        "sigmoid()",
        "makes (3, 4",
    ]
    assert len(error.value.reasons) == len(expected)
    for text, reason in zip(expected, error.value.reasons, strict=True):
        assert text in reason
    assert model.training  # the user's model is untouched


def with_neuron(forward):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.out = nn.Linear(4, 4), nn.Linear(4, 2)
            self.neuron, self.steps = neuron.IFNode(), neuron.IFNode(step_mode="m")

    Model.forward = forward
    return Model()


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda m, x: m.out(m.fc(x.flatten(1))), "no spiking neurons"),
        (lambda m, x: m.out(m.steps(m.fc(x.flatten(1)))), "multi-step neuron, but its input"),
        (lambda m, x: m.out(m.neuron(m.neuron(x.flatten(1)))), "does not get timestep"),
        (lambda m, x: [m.out(m.neuron(x.flatten(1))) for _ in range(3)][-1], "does not return all 2 timesteps"),
        (lambda m, x: m.neuron(m.fc(x.flatten(1))) + 1, "adds a constant"),
        (lambda m, x: (m.neuron(x.flatten(1)), 1), "must return one tensor"),
        (lambda m, x: m.out(m.steps(x.flatten(1).expand(3, 3, 4))), "makes (3, 3, 4)"),
        (lambda m, x: m.out(m.steps(x.flatten(1).expand(2, 3, 4)).mean(0)), "comes after the sum or mean"),
        (lambda m, x: m.steps(x.flatten(1).expand(2, 3, 4)).mean(1), "mean()"),
        (lambda m, x: m.steps(x.flatten(1).expand(2, 3, 4)).chunk(2), "several tensors"),
        (lambda m, x: m.out(x.flatten(1)) if x.sum() > 0 else x, "cannot be traced"),
        (lambda m, x: m.out(m.neuron(x.flatten(1)).transpose(0, 1)), "transpose()"),
    ],
)
def test_what_would_be_wrong_is_refused(forward, message):
    with pytest.raises(UnsupportedError, match="the model cannot be lowered") as error:
        lower(with_neuron(forward), (1, 2, 2), timesteps=2)
    assert any(message in reason for reason in error.value.reasons), error.value.reasons


def test_a_linear_layer_on_a_map_is_refused():
    with pytest.raises(UnsupportedError, match="is not flat"):
        lower(nn.Sequential(nn.Linear(2, 2), neuron.IFNode()), (1, 2, 2), timesteps=2)


def test_a_model_may_tell_images_from_events_by_their_axes():
    def forward(m, x):
        if x.dim() == 4:
            x = x.unsqueeze(0).expand(2, -1, -1, -1, -1)
        return m.out(m.steps(m.fc(x.flatten(2))))

    model = with_neuron(forward)
    for encoding in ("direct", "events"):
        net = lower(model, (1, 2, 2), timesteps=2, encoding=encoding)
        assert [node.name for node in net][2:] == ["fc", "steps", "out", "readout"]


def test_parameters_are_copied_as_float32():
    model = spikingjelly_model("s").double()
    net = lower(model, (1, 8, 8), timesteps=2)
    assert model[0].weight.dtype == torch.float64
    assert all(isinstance(node, Conv2d) and node.weight.dtype == np.float32 for node in net.synapses[:2])
    lif = [node for node in net if isinstance(node, LIF)]
    assert [int(node.voltage_decay) for node in lif] == [2048, 0]
    assert lif[0].v_threshold == np.nextafter(np.float32(0.5), np.float32(0))  # 0.25 times tau 2
