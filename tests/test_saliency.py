"""Saliency maps and what is measured on them, against closed forms and scipy."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from spikingjelly.activation_based import surrogate
from torch import nn

from snnkit.cli.main import run as snnkit_command
from snnkit.config import StudentConfig, load_config
from snnkit.errors import RunFolderError, UnavailableError, UnsupportedError, UsageError
from snnkit.runs import Run
from snnkit.training import saliency as study
from snnkit.training.models import build_student
from snnkit.training.saliency import saliency
from snnkit.training.saliency_maps import saliency_maps, scalable, surrogate_width, surrogates
from snnkit.training.saliency_measures import (
    blur,
    bootstrap,
    insertion_minus_deletion,
    overlap,
    prediction_stays,
    ranking,
    spearman,
)
from snnkit.training.trainer import distill

SMALL = (
    *("teacher.channels=[8, 16]", "teacher.epochs=3", "student.channels=[8, 16]", "student.timesteps=2"),
    *("train.epochs=3", "train.batch_size=128", "train.threads=1"),
)
PLAIN = ("losses.kl=0", "losses.feature=0")
QUICK = {"samples": 40, "copies": 2, "steps": 4, "reinitialisations": 1}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # so small tensors gain nothing from more
    yield
    torch.set_num_threads(before)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Linear(nn.Module):
    """Logits that are linear in the image: of a teacher, or the same at each of three timesteps."""

    def __init__(self, channels=2, size=5, classes=3, *, seed=0, spiking=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, channels, size, size, generator=seeded(seed)))
        self.spiking = spiking

    def forward(self, x):
        logits = torch.einsum("nchw,kchw->nk", x, self.weight)
        return torch.stack([logits - 1, logits, logits + 1]) if self.spiking else logits


class OnePixel(nn.Module):
    """Class 1 if and only if the pixel (0, 1) is bright."""

    def forward(self, x):
        evidence = 80 * (x[:, 0, 0, 1] - 0.5)
        return torch.stack([torch.zeros_like(evidence), evidence], 1)


# --- maps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spiking", [False, True])
def test_the_map_of_a_linear_model_is_input_times_weight(spiking):
    model, x = Linear(spiking=spiking), torch.rand(7, 2, 5, 5, generator=seeded(1))
    maps = saliency_maps(model, x, copies=3, noise=0.0)
    weight = model.weight.detach()[maps.predicted]
    torch.testing.assert_close(maps.saliency, (x * weight).abs().sum(1))
    torch.testing.assert_close(maps.gradient, weight.abs().sum(1))
    assert torch.equal(maps.predicted, Linear()(x).argmax(1))
    assert model.weight.grad is None
    noisy = saliency_maps(model, x, copies=3, noise=0.5)
    torch.testing.assert_close(noisy.saliency, maps.saliency)  # a constant gradient does not feel the noise


def test_the_noise_depends_on_the_seed_only():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3))
    x = torch.rand(9, 1, 5, 5)
    first = saliency_maps(model, x)
    again = saliency_maps(model, x, batch_size=2)
    torch.testing.assert_close(again.saliency, first.saliency)
    torch.testing.assert_close(again.gradient, first.gradient)
    assert not torch.equal(saliency_maps(model, x, seed=1).saliency, first.saliency)


@pytest.mark.parametrize("kind", ["sigmoid", "triangle", "atan"])
def test_a_wider_surrogate_is_that_of_a_student_built_with_half_the_alpha(kind):
    def student(alpha):
        torch.manual_seed(3)
        config = StudentConfig(channels=(6, 8), timesteps=2, v_threshold=0.1, surrogate=kind, surrogate_alpha=alpha)
        return build_student((1, 8, 8), 4, config).eval()

    x = torch.rand(5, 1, 8, 8, generator=seeded())
    wide, narrow = student(1.0), student(2.0)
    expected = saliency_maps(wide, x)
    before = saliency_maps(narrow, x)
    with surrogate_width(narrow, 2.0):
        widened = saliency_maps(narrow, x)
    assert torch.equal(widened.saliency, expected.saliency)
    assert not torch.equal(before.saliency, expected.saliency)
    assert torch.equal(saliency_maps(narrow, x).saliency, before.saliency)


def test_the_surrogates_are_put_back_even_after_an_error():
    shared = surrogate.Sigmoid(alpha=3.0)
    model = nn.Sequential(shared, surrogate.ATan(alpha=5.0), shared)
    with surrogate_width(model, 0.5):
        assert [module.alpha for module in surrogates(model)] == [6.0, 10.0]
    with pytest.raises(ZeroDivisionError), surrogate_width(model, 2.0):
        assert [module.alpha for module in surrogates(model)] == [1.5, 2.5]
        _ = 1 / 0
    assert [module.alpha for module in surrogates(model)] == [3.0, 5.0]


def test_surrogates_whose_width_is_not_in_alpha():
    model = nn.Sequential(surrogate.SuperSpike(), surrogate.Sigmoid())
    assert not scalable(model)
    with surrogate_width(model, 1.0):
        pass
    for other in (model, nn.Linear(1, 1)):
        with pytest.raises(UnsupportedError, match="width cannot be changed"), surrogate_width(other, 2.0):
            pass


# --- measures ---------------------------------------------------------------------------------------------------------


def test_insertion_and_deletion_by_hand():
    x, black = torch.ones(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    ranks = torch.tensor([[[1, 0], [2, 3]], [[0, 3], [1, 2]]])  # the pixel that decides: first, last
    # insertion 0 1 1 1 1 and deletion 1 0 0 0 0: areas 7/8 and 1/8; and the other way round
    for steps in (4, 100):
        score = insertion_minus_deletion(OnePixel(), x, black, ranks, steps)
        torch.testing.assert_close(score, torch.tensor([0.75, -0.75], dtype=torch.float64))
    # two steps: insertion 0 1 1, deletion 1 0 0
    score = insertion_minus_deletion(OnePixel(), x, black, ranks, 2)
    torch.testing.assert_close(score, torch.tensor([0.5, -0.5], dtype=torch.float64))
    assert prediction_stays(OnePixel(), x, black, ranks, 0.3).tolist() == [True, False]


def test_a_random_order_gains_nothing():
    x = torch.rand(600, 2, 5, 5, generator=seeded())
    ranks = ranking(torch.zeros(600, 5, 5), seeded(1))
    scores = insertion_minus_deletion(Linear(), x, blur(x, 1.0), ranks, 10)
    assert abs(scores.mean()) < 4 * scores.std() / 600**0.5
    faithful = ranking(saliency_maps(Linear(), x).saliency, seeded(2))
    black = torch.zeros_like(x)
    gain = insertion_minus_deletion(Linear(), x, black, faithful, 10) - insertion_minus_deletion(
        Linear(), x, black, ranks, 10
    )
    assert gain.mean() > 0.1


def test_ranks_with_ties_at_random():
    maps = torch.tensor([[[0.0, 3.0], [0.0, 5.0]]]).expand(400, 2, 2)
    ranks = ranking(maps, seeded())
    assert torch.equal(ranks.flatten(1).sort(1).values, torch.arange(4).expand(400, 4))
    assert (ranks[:, 1, 1] == 0).all()
    assert (ranks[:, 0, 1] == 1).all()
    assert 150 < int((ranks[:, 0, 0] == 2).sum()) < 250
    assert torch.equal(ranks, ranking(maps, seeded()))


def test_rank_correlation_against_scipy():
    a = torch.randint(0, 6, (8, 4, 5), generator=seeded()).float()
    b = torch.rand(8, 4, 5, generator=seeded(1))
    expected = [
        scipy.stats.spearmanr(x.ravel(), y.ravel()).statistic for x, y in zip(a.numpy(), b.numpy(), strict=True)
    ]
    np.testing.assert_allclose(spearman(a, b), expected, atol=1e-12)
    np.testing.assert_allclose(spearman(b, b.exp()), 1.0)
    np.testing.assert_allclose(spearman(b, -b), -1.0)
    np.testing.assert_array_equal(spearman(torch.ones(2, 3, 3), torch.rand(2, 3, 3)), 0.0)


def test_overlap_by_hand():
    a = torch.arange(10).view(1, 2, 5)
    assert overlap(a, a, 0.3).tolist() == [1.0]
    assert overlap(a, 9 - a, 0.3).tolist() == [0.0]
    assert overlap(a, (a + 2) % 10, 0.3).tolist() == [pytest.approx(1 / 5)]  # pixels 0 1 2 and 8 9 0
    zeros = torch.zeros(2000, 10, 10)
    chance = overlap(ranking(zeros, seeded(1)), ranking(zeros, seeded(2)), 0.1)
    assert chance.mean() == pytest.approx(0.1 / 1.9, abs=0.005)


def test_blur_against_scipy():
    x = torch.rand(2, 3, 9, 12, generator=seeded(), dtype=torch.float64)

    def filtered(image):
        return scipy.ndimage.gaussian_filter(image, 2.0, mode="constant", truncate=20)

    expected = [[filtered(image) / filtered(np.ones_like(image)) for image in sample] for sample in x.numpy()]
    np.testing.assert_allclose(blur(x, 2.0).numpy(), expected, atol=1e-12)


def test_the_bootstrap_interval_covers():
    generator = np.random.default_rng(0)
    estimates = [bootstrap(generator.normal(1.0, 2.0, 60), seed=i, resamples=200) for i in range(300)]
    covered = np.mean([estimate.low <= 1.0 <= estimate.high for estimate in estimates])
    assert 0.90 <= covered <= 0.98
    values = generator.exponential(1.0, 2000)
    estimate = bootstrap(values)
    assert estimate.mean == pytest.approx(values.mean())
    half = 1.96 * values.std() / 2000**0.5
    assert (estimate.low, estimate.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.2 * half)
    assert bootstrap(values) == estimate


def test_maps_of_random_weights_agree_with_nothing():
    """M3 where no factor is shared: the inputs are of one size everywhere."""
    x = torch.rand(200, 2, 5, 5, generator=seeded()).sub(0.5).sign()
    maps = [saliency_maps(Linear(classes=200, seed=seed), x).saliency for seed in range(2)]
    assert abs(bootstrap(spearman(*maps)).mean) < 0.08
    assert bootstrap(spearman(maps[0], maps[0])).low == pytest.approx(1.0)


# --- a whole measurement ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, overrides in (("distilled", ()), ("plain", PLAIN)):
        distill(load_config(None, [*SMALL, *overrides]), Run(folder / name))
    return folder / "distilled", folder / "plain"


@pytest.fixture(scope="module")
def measured(runs):
    return saliency(runs[0], undistilled=runs[1], samples=150, copies=4, steps=5)


def test_all_rows_with_plausible_figures(runs, measured):
    rows = [(row.network, row.width) for row in measured.rows]
    widths = (1.0, 0.5, 2.0)
    students = [(name, width) for name in ("student", "undistilled") for width in widths]
    assert rows == [("teacher", 1.0), *students, ("student - undistilled", 1.0)]
    assert measured.samples == 150
    assert measured.surrogates == dict.fromkeys(("student", "undistilled"), "Sigmoid, alpha 4.0")
    for row in measured.rows:
        for name in ("faithfulness", "kept", "faithfulness_black", "kept_black"):
            estimate = getattr(row, name)
            assert estimate.low <= estimate.mean <= estimate.high
    teacher, student, plain = (measured.row(name) for name in ("teacher", "student", "undistilled"))
    assert teacher.correlation is None
    assert teacher.faithfulness_black.low > 0
    assert student.faithfulness_black.low > 0
    assert student.gradient_correlation.low > student.reinitialised_gradient_correlation.high
    assert student.correlation != measured.row("student", 2.0).correlation
    difference = measured.row("student - undistilled").gradient_correlation
    assert difference.mean == pytest.approx(student.gradient_correlation.mean - plain.gradient_correlation.mean)


def test_the_files_hold_what_is_returned(runs):
    result = saliency(runs[0], **QUICK)
    found = json.loads((runs[0] / "saliency.json").read_text())
    assert found == json.loads(json.dumps(result.to_json()))
    assert found["rows"][1]["overlap"]["mean"] == result.row("student").overlap.mean
    assert found["picture"] == str(runs[0] / "saliency.png")
    assert (runs[0] / "saliency.png").read_bytes().startswith(b"\x89PNG")


def test_a_measurement_can_be_repeated(runs):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = saliency(runs[0], **QUICK)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert saliency(runs[0], **QUICK) == first
    assert saliency(runs[0], **QUICK, seed=1).rows != first.rows


def test_the_command(runs, capsys):
    command = ["saliency", str(runs[0]), "--undistilled", str(runs[1]), "--samples", "20", "-q"]
    assert snnkit_command([*command, "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert captured.err == ""
    assert (result["schema"], result["samples"], len(result["rows"])) == (1, 20, 8)
    assert snnkit_command(command) == 0
    table = capsys.readouterr().out
    assert "random weights" in table
    assert "Sigmoid, alpha 4" in table
    assert "saliency.png" in table


def test_without_matplotlib_there_are_figures_and_a_remedy(runs, monkeypatch):
    assert saliency(runs[0], **QUICK).picture == runs[0] / "saliency.png"
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = saliency(runs[0], **QUICK)
    assert result.picture is None
    assert "pip install 'snnkit[report]'" in result.note
    assert not (runs[0] / "saliency.png").exists()
    assert json.loads((runs[0] / "saliency.json").read_text())["picture"] is None


def test_what_cannot_be_measured(runs, monkeypatch, tmp_path):
    before = {path: path.read_bytes() for path in runs[1].iterdir()}
    with pytest.raises(RunFolderError, match="has no teacher"):
        saliency(runs[1])
    with pytest.raises(RunFolderError, match="there is no run directory"):
        saliency(tmp_path / "missing")
    with pytest.raises(UsageError, match="is distilled"):
        saliency(runs[0], undistilled=runs[0])
    with pytest.raises(UsageError, match="at least 1"):
        saliency(runs[0], samples=0)
    with pytest.raises(UsageError, match="at least 0"):
        saliency(runs[0], seed=-1)
    with pytest.raises(UnavailableError, match="cannot be used"):
        saliency(runs[0], device="cuda:99")
    other = load_config(runs[1] / "config.yaml")
    other = other.model_copy(update={"data": other.data.model_copy(update={"name": "letters"})})
    monkeypatch.setattr(study, "load_config", lambda path: other if path.parent == runs[1] else load_config(path))
    with pytest.raises(UsageError, match=r"is on other data: data\.name"):
        saliency(runs[0], undistilled=runs[1])
    assert {path: path.read_bytes() for path in runs[1].iterdir()} == before


def test_spikes_over_time_are_refused(tmp_path):
    run = Run(tmp_path)
    distill(load_config(None, [*SMALL, "data.encoding=latency", "train.epochs=1", "teacher.epochs=1"]), run)
    with pytest.raises(UnsupportedError, match=r"on 'digits'.*2 x 1 x 8 x 8, not images"):
        saliency(tmp_path)
    assert not run.saliency.exists()


def test_results_are_frozen(measured):
    with pytest.raises(dataclasses.FrozenInstanceError):
        measured.samples = 1
