"""A residual network distilled on real data: every spike is the same on the reference and on the real Lava."""

from pathlib import Path

import pytest
from torch import nn

import snnkit
from snnkit.analysis.accuracy import Accuracy
from snnkit.analysis.compare import compare
from snnkit.config import StudentConfig, TeacherConfig
from snnkit.network import Conv2d, Network
from snnkit.network.depth import latency, relays
from snnkit.pipeline import quantize_run
from snnkit.runs import Run
from snnkit.training.models.parts import Kind, Shape
from snnkit.training.models.resnet import _resnet
from snnkit_targets import lava

EXAMPLE = Path(__file__).parent.parent / "examples" / "digits.yaml"


def residual(input_shape: Shape, classes: int, config: StudentConfig | TeacherConfig) -> nn.Module:
    """Three blocks: two with the identity as a shortcut, one with a strided 1x1 convolution."""
    kind = Kind(config) if isinstance(config, StudentConfig) else Kind()
    return _resnet(kind, input_shape, classes, config, "residual", (16, 32), (2, 1))


def distilled(folder: Path, *settings: str) -> Network:
    """The integer student of a short training on handwritten digits."""
    run = Run(folder / "run")
    changes = ["teacher.channels=null", "student.channels=null", "student.init_from=teacher", "losses.feature=0"]
    snnkit.distill(snnkit.load_config(EXAMPLE, [*changes, *settings]), run, quiet=True)
    return quantize_run(run.path, weight_bits=8).network


def check(net: Network, samples: int, accuracy: float) -> None:
    """Both targets on test samples: no spike and no answer differs, and most answers are right."""
    test = snnkit.load_dataset("digits").test
    first = test.first(samples)
    expected = snnkit.run(net, first.x, "reference", record="raster")
    trace = snnkit.run(net, first.x, "lava", record="raster")
    agreement = compare(net, expected, trace)
    assert agreement.identical, agreement
    assert sorted(agreement.compared) == sorted(neuron.name for neuron in net.neurons)
    assert trace.steps == samples * net.timesteps + latency(net)
    assert f"{sum(relays(net).values())} relay neurons added" in trace.notes
    assert all(0.01 < rate < 0.6 for rate in expected.firing_rates().values())
    answers = snnkit.predictions(snnkit.run(net, test.x, "reference"))
    assert Accuracy.of(answers, test.y).percent > accuracy


def test_a_residual_network_is_identical_on_lava(lava_environment: lava.Environment, tmp_path: Path) -> None:
    name = f"{__name__}:residual"
    net = distilled(tmp_path, f"teacher.model={name}", f"student.model={name}", "teacher.epochs=6", "train.epochs=6")
    shortcuts = [node for node in net.nodes if isinstance(node, Conv2d) and node.weight.shape[2:] == (1, 1)]
    assert sorted(node.groups for node in shortcuts) == [1, 16, 16]  # 1x1 and identities
    check(net, 40, 85.0)


@pytest.mark.slow
def test_a_resnet_20_is_identical_on_lava(lava_environment: lava.Environment, tmp_path: Path) -> None:
    net = distilled(tmp_path, "teacher.model=resnet20", "student.model=resnet20", "teacher.epochs=8", "train.epochs=8")
    check(net, 40, 85.0)
