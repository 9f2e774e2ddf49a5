import numpy as np
import pytest
import torch

from snnkit.training import losses
from snnkit.training.augment import shift


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


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


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_follows_its_equation(logits, temperature):
    student, teacher, _ = logits
    p, q = softmax(teacher.numpy() / temperature), softmax(student.numpy() / temperature)
    expected = temperature**2 * (p * (np.log(p) - np.log(q))).sum(-1).mean()
    assert float(losses.distillation(student, teacher, temperature)) == pytest.approx(expected, rel=1e-12)
    assert float(losses.distillation(teacher.expand(4, 6, 5), teacher, temperature)) == pytest.approx(0, abs=1e-12)


def test_ensemble_is_the_distillation_from_the_constant_mean(logits):
    student = logits[0].clone().requires_grad_()
    expected = losses.distillation(student, student.detach().mean(0), 2.0)
    value = losses.ensemble(student, 2.0)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (value, expected)]
    assert torch.equal(*gradients)


def test_gradients_equal_finite_differences(logits):
    student, teacher, labels = logits
    student = student.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: losses.cross_entropy(z, labels), student)
    assert torch.autograd.gradcheck(lambda z: losses.distillation(z, teacher, 4.0), student)
    torch.manual_seed(0)
    projector = losses.AffineProjector(2, 3).double()
    features = torch.randn(3, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randn(3, 3, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda f: losses.feature_alignment(projector(f), target), features)


def test_the_projector_commutes_with_the_average_over_time():
    torch.manual_seed(0)
    projector = losses.AffineProjector(4, 7).double()
    spikes = (torch.rand(5, 3, 4, 6, 6) > 0.5).double()
    each = torch.stack([projector(step) for step in spikes]).mean(0)
    assert torch.allclose(projector(spikes.mean(0)), each, atol=1e-14)
    assert each.shape == (3, 7, 6, 6)


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


def test_shift_moves_whole_images_and_repeats_with_its_generator():
    image = torch.zeros(1, 2, 5, 5)
    image[0, 0, 2, 2], image[0, 1, 2, 2] = 1.0, 2.0
    batch = image.expand(300, -1, -1, -1)
    moved = shift(batch, 1, torch.Generator().manual_seed(0))
    assert torch.equal(moved[:, 1], 2 * moved[:, 0])
    assert torch.equal(moved[:, 0].sum((1, 2)), torch.ones(300))
    places = {tuple(place.tolist()) for place in moved[:, 0].nonzero()[:, 1:]}
    assert places == {(y, x) for y in (1, 2, 3) for x in (1, 2, 3)}
    assert torch.equal(moved, shift(batch, 1, torch.Generator().manual_seed(0)))
    assert shift(batch, 0, torch.Generator()) is batch
    corner = torch.zeros(200, 1, 3, 3)
    corner[:, :, 0, 0] = 1.0
    totals = shift(corner, 1, torch.Generator().manual_seed(0)).sum((1, 2, 3))
    assert set(totals.tolist()) == {0.0, 1.0}  # what leaves the image does not come back on the other side
