"""Every loss against its equation written out in numpy, and its gradient against finite differences."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from snnkit.config import load_config
from snnkit.errors import ConfigError
from snnkit.training import losses
from snnkit.training.augment import over_labels
from snnkit.training.encoding import Encoder
from snnkit.training.neurons import SpikingNeuron
from snnkit.training.objective import StudentObjective
from snnkit.training.passes import tapped

DIRECT = Encoder("direct", 2)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(a, b, temperature=1.0):
    p, q = softmax(a / temperature), softmax(b / temperature)
    return temperature**2 * (p * (np.log(p) - np.log(q))).sum(-1).mean()


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(4, 6, 5, generator=generator, dtype=torch.float64)
    teacher = torch.randn(6, 5, generator=generator, dtype=torch.float64) * 3
    labels = torch.tensor([0, 4, 2, 1, 1, 3])
    return student, teacher, labels


def test_cross_entropy_is_the_mean_over_timesteps(logits):
    student, _, labels = logits
    p = softmax(student.numpy())
    expected = np.mean([-np.log(p[t, n, labels[n]]) for t in range(4) for n in range(6)])
    assert float(losses.cross_entropy(student, labels)) == pytest.approx(expected, rel=1e-12)
    target = 0.9 * np.eye(5)[labels] + 0.1 / 5
    expected = -(target * np.log(p)).sum(-1).mean()
    assert float(losses.cross_entropy(student, labels, 0.1)) == pytest.approx(expected, rel=1e-12)


def test_mixed_samples_are_weighted_between_both_labels(logits):
    student, _, labels = logits
    p, other = softmax(student.numpy()), labels.flip(0)
    mixed = 0.7 * np.eye(5)[labels] + 0.3 * np.eye(5)[other]
    value = over_labels(lambda y: losses.cross_entropy(student, y), (labels, other, 0.7))
    assert float(value) == pytest.approx(-(mixed * np.log(p)).sum(-1).mean(), rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_follows_its_equation(logits, temperature):
    student, teacher, _ = logits
    expected = kl(teacher.numpy(), student.numpy(), temperature)
    assert float(losses.distillation(student, teacher, temperature)) == pytest.approx(expected, rel=1e-12)
    assert float(losses.distillation(teacher.expand(4, 6, 5), teacher, temperature)) == pytest.approx(0, abs=1e-12)


def test_ensemble_is_the_distillation_from_the_constant_mean(logits):
    student = logits[0].clone().requires_grad_()
    expected = losses.distillation(student, student.detach().mean(0), 2.0)
    value = losses.ensemble(student, 2.0)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (value, expected)]
    assert torch.equal(*gradients)


def test_entropy_is_0_for_uniform_and_log_k_for_certain_answers(logits):
    p = softmax(logits[0].numpy())
    expected = np.log(5) + (p * np.log(p)).sum(-1).mean()
    assert float(losses.entropy(logits[0])) == pytest.approx(expected, rel=1e-12)
    assert float(losses.entropy(torch.zeros(2, 3, 5))) == pytest.approx(0, abs=1e-6)
    assert float(losses.entropy(1e3 * torch.eye(5)[None])) == pytest.approx(math.log(5), rel=1e-6)


def test_prefix_compares_each_running_mean_with_the_next_one(logits):
    z = logits[0].numpy()
    means = [z[: t + 1].mean(0) for t in range(4)]
    expected = np.mean([kl(means[t + 1], means[t], 2.0) for t in range(3)])
    assert float(losses.prefix(logits[0], 2.0)) == pytest.approx(expected, rel=1e-12)
    assert float(losses.prefix(logits[0][:1], 2.0)) == 0
    assert float(losses.prefix(logits[0][:1].expand(3, 6, 5), 2.0)) == pytest.approx(0, abs=1e-12)


def test_gradients_equal_finite_differences(logits):
    student, teacher, labels = logits
    student = student.clone().requires_grad_()
    constant = student.detach().cumsum(0) / torch.arange(1, 5)[:, None, None]
    for loss in (
        lambda z: losses.cross_entropy(z, labels),
        lambda z: losses.cross_entropy(z.mean(0, keepdim=True), labels, 0.1),
        lambda z: losses.distillation(z, teacher, 4.0),
        losses.entropy,
    ):
        assert torch.autograd.gradcheck(loss, student)

    def prefix(z):  # its target is a constant, which finite differences would move
        means = z.cumsum(0) / torch.arange(1, 5)[:, None, None]
        return losses.divergence(constant[1:], means[:-1], 2.0)

    assert torch.autograd.gradcheck(prefix, student)
    gradients = [torch.autograd.grad(f(student), student)[0] for f in (prefix, lambda z: losses.prefix(z, 2.0))]
    assert torch.allclose(*gradients, atol=1e-14)
    torch.manual_seed(0)
    projector = losses.AffineProjector(2, 3).double()
    features = torch.randn(3, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randn(3, 3, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda f: losses.feature_alignment(projector(f), target), features)
    spikes = torch.rand(2, 3, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: losses.activation_map_alignment(s, target[:, 0]), spikes)


@pytest.mark.parametrize("projector", [losses.AffineProjector(4, 7), losses.ChannelwiseProjector(4)])
def test_projectors_commute_with_the_average_over_time(projector):
    projector = projector.double()
    with torch.no_grad():
        for parameter in projector.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    spikes = (torch.rand(5, 3, 4, 6, 6, generator=torch.Generator().manual_seed(1)) > 0.5).double()
    each = torch.stack([projector(step) for step in spikes]).mean(0)
    assert torch.allclose(projector(spikes.mean(0)), each, atol=1e-13)


def test_feature_alignment_follows_its_equation_and_averages_the_larger_map():
    torch.manual_seed(0)
    student = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    teacher = torch.randn(4, 3, 4, 4, dtype=torch.float64) * 5 + 2
    pooled = student.numpy().reshape(4, 3, 4, 2, 4, 2).mean((3, 5))

    def normal(f):
        mean, var = f.mean((0, 2, 3), keepdims=True), f.var((0, 2, 3), keepdims=True)
        return (f - mean) / np.sqrt(var + 1e-5)

    expected = ((normal(pooled) - normal(teacher.numpy())) ** 2).sum((1, 2, 3)).mean() / (3 * 4 * 4)
    assert float(losses.feature_alignment(student, teacher)) == pytest.approx(expected, rel=1e-12)
    assert float(losses.feature_alignment(teacher * 3 - 1, teacher)) == pytest.approx(0, abs=1e-6)


def test_the_activation_map_of_a_global_average_is_the_classic_one():
    torch.manual_seed(0)
    head = nn.Linear(3, 5).double()
    features = torch.rand(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    logits = head(features.mean((2, 3)))
    found = losses.class_activation_map(features, logits)
    weight, f = head.weight.detach().numpy(), features.detach().numpy()
    for n, k in enumerate(logits.argmax(1)):
        expected = sum(weight[k, c] * f[n, c] for c in range(3)) / 16
        assert np.allclose(found[n].numpy(), expected, atol=1e-14)


def test_activation_maps_are_compared_as_distributions_over_pixels():
    torch.manual_seed(0)
    spikes = (torch.rand(3, 2, 5, 8, 8) > 0.7).double()
    target = torch.randn(2, 4, 4, dtype=torch.float64)
    rates = spikes.numpy().mean((0, 2)).reshape(2, 4, 2, 4, 2).mean((2, 4)).reshape(2, 16)

    def normal(m):
        return (m - m.mean(1, keepdims=True)) / (m.std(1, keepdims=True) + 1e-5)

    expected = kl(normal(target.numpy().reshape(2, 16)), normal(rates))
    assert float(losses.activation_map_alignment(spikes, target)) == pytest.approx(expected, rel=1e-12)
    same = spikes.mean((0, 2)) * 7 - 2
    assert float(losses.activation_map_alignment(spikes, same)) == pytest.approx(0, abs=1e-8)


class Teacher(nn.Module):
    taps = ("a", "b")

    def __init__(self, channels=6):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, 2, padding=1)
        self.head = nn.Linear(channels, 3)

    def forward(self, x):
        return self.head(self.b(self.a(x)).mean((2, 3)))


class Student(nn.Module):
    taps = ("a_neuron", "b_neuron")

    def __init__(self, channels=4, taps=taps):
        super().__init__()
        self.taps, self.timesteps = taps, 2
        self.a, self.b = nn.Conv2d(1, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1)
        self.a_neuron, self.b_neuron = (SpikingNeuron(voltage_decay=2048, v_threshold=0.1) for _ in "ab")
        self.a_out, self.b_out = nn.Identity(), nn.Identity()
        self.head = nn.Linear(channels, 3)

    def forward(self, x):
        s = self.a_out(self.a_neuron(self.a(x).expand(self.timesteps, *[-1] * 4)))
        s = self.b_out(self.b_neuron(self.b(s.flatten(0, 1)).unflatten(0, s.shape[:2])))
        return self.head(s.mean((3, 4)))


def objective(*settings, student=None, teacher=None):
    torch.manual_seed(0)
    config = load_config(None, ["losses.kl=0", "losses.feature=0", "student.timesteps=2", *settings])
    x = torch.rand(3, 1, 8, 8)
    return StudentObjective(student or Student(), teacher or Teacher(), config, DIRECT, x), x


@pytest.mark.parametrize("features", ["spike", "membrane"])
def test_features_are_spikes_or_the_currents_into_the_neurons(features):
    made, x = objective("losses.feature=1", f"losses.features={features}", "losses.stages=[1]")
    (teacher,) = (passes.model for passes in made._teacher)
    _, values = made(x, torch.tensor([0, 1, 2]))
    mine = made.model
    with torch.no_grad(), tapped(teacher) as theirs:
        teacher(x)
        spikes = mine.a_neuron(mine.a(x).expand(2, *[-1] * 4))
        found = mine.b(spikes.flatten(0, 1)).unflatten(0, (2, 3))
        found = mine.b_neuron(found) if features == "spike" else found
        expected = losses.feature_alignment(made.projectors[0](found.mean(0)), theirs[1])
    assert values["feature"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert len(made.projectors) == 1
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(name.startswith("_teacher") for name in made.state_dict())


@pytest.mark.parametrize("features", ["spike", "membrane"])
def test_how_much_each_loss_pulls_at_the_last_stage(features):
    names = ("cross_entropy", "kl", "feature")
    made, x = objective("losses.kl=2", "losses.feature=30", f"losses.features={features}", "losses.stages=[1]")
    labels = torch.tensor([0, 1, 2])
    found = made.gradients(x, labels)
    mine, (teacher,) = made.model, (passes.model for passes in made._teacher)
    with torch.no_grad(), tapped(teacher) as theirs:
        target = teacher(x)
        spikes = mine.a_neuron(mine.a(x).expand(2, *[-1] * 4))
        current = mine.b(spikes.flatten(0, 1)).unflatten(0, (2, 3))
    leaf = (mine.b_neuron(current) if features == "spike" else current).detach().requires_grad_()
    sent = leaf if features == "spike" else mine.b_neuron(leaf)
    logits = mine.head(sent.mean((3, 4)))
    values = (
        losses.cross_entropy(logits, labels),
        2 * losses.distillation(logits, target, 4.0),
        30 * losses.feature_alignment(made.projectors[0](leaf.mean(0)), theirs[1]),
    )
    expected = [torch.autograd.grad(value, leaf, retain_graph=True)[0].norm().item() for value in values]
    assert [found[name] for name in names] == pytest.approx(expected, rel=1e-5)
    assert min(expected) > 0


def constant(logits, _teacher, _labels):
    return torch.ones((), device=logits.device)


def endless(logits, _teacher, _labels):
    return (logits * torch.inf).sum()


def test_a_loss_without_a_finite_gradient_is_left_out():
    extra = "losses.extra={tests.test_losses:constant: 1.0, tests.test_losses:endless: 1.0}"
    made, x = objective("losses.stages=[0]", "losses.feature=1", extra)
    found = made.gradients(x, torch.tensor([0, 1, 2]))
    assert set(found) == {"cross_entropy", "feature"}
    assert found["feature"] == 0  # it is of the first stage alone


def test_stages_of_different_numbers_are_paired_by_name():
    made, x = objective("losses.feature=1", "losses.stages=[[0, 1]]", student=Student(taps=("b_neuron",)))
    _, values = made(x, torch.tensor([0, 1, 2]))
    (teacher,) = (passes.model for passes in made._teacher)
    with torch.no_grad(), tapped(teacher) as theirs, tapped(made.model) as mine:
        teacher(x), made.model(x)
        expected = losses.feature_alignment(made.projectors[0](mine[0].mean(0)), theirs[1])
    assert values["feature"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_all_losses_at_once_reach_every_weight_and_leave_the_teacher_alone():
    names = ("ensemble", "entropy", "prefix", "kl", "feature", "activation_map")
    made, x = objective(*(f"losses.{name}=0.5" for name in names), "losses.kl_on=mean", "losses.cross_entropy_on=mean")
    logits, values = made(x, (torch.tensor([0, 1, 2]), torch.tensor([2, 2, 2]), 0.25))
    assert logits.shape == (3, 3)
    assert set(values) == {"cross_entropy", *names}
    assert set(made.weights) == set(values)
    for value in values.values():
        value.backward(retain_graph=True)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_losses_are_of_full_precision_under_autocast(precision):
    made, x = objective("losses.feature=1", "losses.activation_map=1", f"train.precision={precision}")
    kinds = []
    handle = made.model.b.register_forward_hook(lambda *arguments: kinds.append(arguments[-1].dtype))
    logits, values = made(x, torch.tensor([0, 1, 2]))
    handle.remove()
    assert kinds == [torch.bfloat16 if precision == "bf16" else torch.float32]
    assert {value.dtype for value in (logits, *values.values())} == {torch.float32}


@pytest.mark.parametrize(
    ("settings", "models", "message"),
    [
        (["losses.feature=1", "losses.projector=none"], {}, "'none' cannot map 4 channels to 6"),
        (["losses.feature=1", "losses.stages=[2]"], {}, "names stage 2, but there are 2 in the student"),
        (["losses.feature=1", "losses.stages=[[1, 3]]"], {}, "names stage 3, but there are 2 in the teacher"),
        (["losses.feature=1"], {"student": Student(taps=("b_out",))}, "cannot pair"),
        (
            ["losses.feature=1", "losses.features=membrane"],
            {"student": Student(taps=("a_out", "b_out"))},
            "taps 'a_out'",
        ),
        (["losses.activation_map=1"], {"student": Student(taps=())}, "class activation maps need"),
        (["train.curriculum={2: 0.5}"], {}, "has 2 timesteps, the student 2"),
        (["train.curriculum={1: 0.5}"], {"student": nn.Linear(1, 1)}, "needs a student that reads its 'timesteps'"),
    ],
)
def test_what_the_losses_cannot_do_is_said_at_once(settings, models, message):
    with pytest.raises(ConfigError, match=message):
        objective(*settings, **models)


def test_a_channelwise_projector_or_none_needs_equal_widths():
    for kind, parameters in (("channelwise", 2), ("none", 0)):
        made, _ = objective("losses.feature=1", f"losses.projector={kind}", teacher=Teacher(4))
        assert all(len(list(projector.parameters())) == parameters for projector in made.projectors)


def test_weights_of_0_alone_are_refused():
    with pytest.raises(ConfigError, match="all weights are 0"):
        load_config(None, ["losses.cross_entropy=0", "losses.kl=0", "losses.feature=0"])
