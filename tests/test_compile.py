"""Compiled training steps: the same network, losses and gradients as operator by operator."""

import copy

import pytest
import torch

from snnkit.config import load_config
from snnkit.errors import ConfigError
from snnkit.runs import Run
from snnkit.training import checkpoint
from snnkit.training.encoding import Encoder
from snnkit.training.models import build_student, build_teacher
from snnkit.training.neurons import SpikingNeuron
from snnkit.training.objective import StudentObjective
from snnkit.training.passes import Passes, tapped
from snnkit.training.trainer import distill

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # its compiler's own

NEURONS = {
    "if": {"voltage_decay": 0},
    "lif": {"voltage_decay": 2048},
    "plif": {"voltage_decay": 1365, "learned": True},
    "cuba": {"voltage_decay": 1024, "current_decay": 2048},
}


@pytest.fixture
def traced(monkeypatch):
    """Compiled as far as the kernels, which are torch's own: what is checked is what is traced."""
    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **how: whole(model, backend="aot_eager", **how))
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("surrogate", ["sigmoid", "triangle", "atan"])
@pytest.mark.parametrize("reset", ["zero", "subtract"])
@pytest.mark.parametrize("kind", NEURONS)
def test_a_written_out_neuron_is_the_fused_one(kind, reset, surrogate):
    neuron = SpikingNeuron(**NEURONS[kind], reset=reset, surrogate=surrogate, surrogate_alpha=2.0)
    written = torch.compile(neuron, backend="eager", fullgraph=True)
    x = (torch.randint(-64, 96, (4, 3, 5, 6)) / 64).requires_grad_()
    weights = torch.randn(4, 3, 5, 6)
    found = []
    for run in (neuron, written):
        spikes = run(x)
        (spikes * weights).sum().backward()
        found.append((spikes, x.grad, *(parameter.grad for parameter in neuron.parameters())))
        x.grad = None
        neuron.zero_grad()
    torch._dynamo.reset()
    assert set(found[0][0].unique().tolist()) == {0.0, 1.0}
    assert torch.equal(found[0][0], found[1][0])
    for plain, compiled in zip(*found, strict=True):
        assert torch.allclose(plain, compiled, rtol=1e-5, atol=1e-6)
    half = torch.compile(neuron, backend="eager", fullgraph=True)(x.detach().bfloat16())
    assert half.dtype is torch.bfloat16
    assert torch.equal(half, neuron(x.detach().bfloat16()))


@pytest.mark.parametrize("features", ["spike", "membrane"])
def test_a_compiled_objective_is_the_plain_one(features, traced):
    settings = ("student.channels=[4, 6]", "teacher.channels=[4, 8]")
    mixed = (f"losses.features={features}", "losses.ensemble=0.3", "losses.feature=1", "train.curriculum={2: 0.5}")
    config = load_config(None, [*settings, *mixed, "train.precision=fp64"])
    torch.manual_seed(0)
    x, y = torch.rand(4, 3, 16, 16, dtype=torch.float64), torch.randint(10, (4,))
    student, teacher = (
        build((3, 16, 16), 10, section).double()
        for build, section in ((build_student, config.student), (build_teacher, config.teacher))
    )
    plain = StudentObjective(student, teacher, config, Encoder("direct", 4), x).double()
    compiled = copy.deepcopy(plain)
    compiled.compile_passes()
    for timesteps in (2, 4, 2):
        found = []
        for objective in (plain, compiled):
            objective.train().set_timesteps(timesteps)
            objective.zero_grad()
            logits, values = objective(x, y)
            sum(values.values()).backward()
            found.append((logits, values, [p.grad for p in objective.parameters()]))
        (logits, values, gradients), (others, theirs, slopes) = found
        assert torch.allclose(logits, others, rtol=1e-5)
        assert values.keys() == theirs.keys() == {"cross_entropy", "ensemble", "kl", "feature"}
        assert all(value.item() == pytest.approx(theirs[name].item(), rel=1e-5) for name, value in values.items())
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-8) for a, b in zip(gradients, slopes, strict=True))
        pulls, others = plain.gradients(x, y), compiled.gradients(x, y)
        assert others == pytest.approx(pulls, rel=1e-4)
        assert others["feature"] > 0


def test_taps_of_a_compiled_pass_are_those_of_this_pass(traced):
    student = build_student((3, 16, 16), 10, load_config(None, ["student.channels=[4, 6]"]).student).eval()
    passes = Passes(student, outputs=True, inputs=True)
    passes.compile()
    with torch.no_grad():
        for x in torch.rand(3, 2, 3, 16, 16):
            seen = passes(x)
            with tapped(student) as outputs, tapped(student, inputs=True) as inputs:
                logits = student(x)
            assert torch.equal(seen.logits, logits)
            for found, expected in zip((*seen.outputs, *seen.inputs), (*outputs, *inputs), strict=True):
                assert torch.allclose(found, expected)


MLP = ("teacher.model=mlp", "student.model=mlp", "teacher.channels=[16]", "student.channels=[16]", "losses.feature=0")


def test_a_compiled_run_learns_and_goes_on_exactly(tmp_path):
    settings = (*MLP, "teacher.epochs=2", "train.epochs=4", "train.threads=1", "train.compile=true", "train.ema=0.9")
    config, whole, pieces = load_config(None, settings), Run(tmp_path / "whole"), Run(tmp_path / "pieces")
    summary = distill(config, whole)
    assert not distill(config, pieces, stop_after=4).finished
    distill(config, pieces, resume=True)
    expected, found = (checkpoint.read(run.last).tensors for run in (whole, pieces))
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    plain = distill(load_config(None, [*settings, "train.compile=false"]), Run(tmp_path / "plain"))
    assert abs(summary.student.percent - plain.student.percent) < 5
    assert plain.student.percent > 30


def test_a_failing_compiler_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "/nowhere/c++"))
    config = load_config(None, [*MLP, "teacher.epochs=1", "train.epochs=1", "train.compile=true"])
    with pytest.raises(ConfigError, match=r"cannot be compiled: .*compiler"):
        distill(config, Run(tmp_path))
