"""Networks as they are trained: NeuroBench and SpikingJelly count what we count, on images, in batches of any size."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import snnkit
from snnkit.analysis.counts import count
from snnkit.config import DistillConfig
from snnkit.network import Affine, Conv2d, Network, apply, fold_batchnorm, fold_pooling, materialise_shortcuts, quantize
from snnkit.network.ir import Array
from snnkit.pipeline import quantize_run
from snnkit.runs import Run
from snnkit.training.lower import lower
from snnkit.training.models import build_student
from snnkit.training.rebuild import to_torch
from snnkit_targets import reference
from tests.test_data_files import real
from tests.test_memory import fashion_network
from tests.test_neurobench import DispatchCounterMode, SynOpCounter, neurobench

EXAMPLE = Path(__file__).parent.parent / "examples" / "digits.yaml"


def digits(folder: Path) -> tuple[Network, Array]:
    """The student of the example for digits, after a short training, and the whole test split."""
    run = Run(folder / "run")
    config = snnkit.load_config(EXAMPLE, ["train.epochs=3", "teacher.epochs=3"])
    snnkit.distill(config, run, quiet=True)
    return quantize_run(run.path).network, snnkit.load_dataset("digits").test.x


def fashion(folder: Path) -> tuple[Network, Array]:
    return fashion_network(), real("fashion-mnist").test.x[:24]


def residual(folder: Path) -> tuple[Network, Array]:
    """A ResNet-18 of a sixteenth of the width, whose normalisations have seen the images, so that all layers spike."""
    torch.manual_seed(0)
    x = np.random.default_rng(0).random((4, 3, 32, 32), np.float32)
    config = DistillConfig.model_validate({"student": {"model": "resnet18", "width": 0.0625, "timesteps": 2}})
    module = build_student((3, 32, 32), 100, config.student)
    with torch.no_grad():
        for _ in range(30):
            module.train()(torch.from_numpy(x))
    net = lower(module.eval(), (3, 32, 32), timesteps=2)
    return quantize(apply(net, [fold_batchnorm, materialise_shortcuts, fold_pooling])), x


NETWORKS = [digits, fashion, residual]


@pytest.mark.parametrize("made", NETWORKS, ids=lambda made: made.__name__)
def test_neurobench_counts_the_same(made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net, x = made(tmp_path)
    counts = count(net, x, reference.run(net, x, reference.Options(record="raster")))
    assert min(node.spikes for node in counts.nodes if node.kind == "LIF") > 0
    for batch in (1, len(x)) if len(x) < 100 else (len(x),):
        found = neurobench(net, x, batch, capsys)
        operations = found["SynapticOperations"]
        assert operations["Effective_ACs"] == counts.mean("effective_acs") > 0
        assert operations["Effective_MACs"] == counts.mean("effective_macs") > 0
        assert operations["Dense"] == counts.mean("dense")
        assert found["ActivationSparsity"] == pytest.approx(counts.activation_sparsity)
        assert found["ParameterCount"] == counts.parameters


@pytest.mark.parametrize("made", NETWORKS, ids=lambda made: made.__name__)
def test_spikingjelly_counts_the_same_where_its_definition_applies(made, tmp_path: Path) -> None:
    """It counts every weight, and takes whatever is not 0 or 1 for something else: binary events, no weight of zero."""
    net, x = made(tmp_path)
    entry = dataclasses.replace(net.input, encoding="events", bits=1, scale=1.0)
    nodes = [
        dataclasses.replace(node, weight=np.where(node.weight == 0, 1, node.weight).astype(np.int8))
        if isinstance(node, Conv2d | Affine)
        else node
        for node in (entry, *net.nodes[1:])
    ]
    net = dataclasses.replace(net, nodes=tuple(nodes))
    levels = (np.arange(net.timesteps) + 0.5).reshape(-1, *[1] * x.ndim) / net.timesteps
    events = (x[None, :12] > levels).astype(np.uint8)
    counter = SynOpCounter()
    with torch.no_grad(), DispatchCounterMode([counter]):
        to_torch(net)(torch.from_numpy(events))
    counts = count(net, events, reference.run(net, events, reference.Options(record="raster")))
    assert counter.get_total() == counts.total("effective_acs") > 0
    assert counts.total("spikes") > 0
