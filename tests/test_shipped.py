"""The network in examples/cifar100_resnet18, as it is shipped."""

from pathlib import Path

import numpy as np
import pytest

import snnkit
from snnkit.analysis.compare import compare
from snnkit.config import load_config
from snnkit.network import Network, verify
from snnkit.network.ir import Array
from snnkit_targets import lava
from tests.networks import raw_inputs
from tests.test_data_files import real

FOLDER = Path(__file__).parent.parent / "examples" / "cifar100_resnet18"


@pytest.fixture(scope="module")
def net() -> Network:
    return snnkit.load(FOLDER)


def test_it_is_the_network_of_its_configuration(net: Network) -> None:
    config = load_config(FOLDER / "config.yaml")
    assert verify(net) == "integer"
    assert (config.student.model, net.timesteps, net.metadata["dataset"]) == ("resnet18", 4, config.data.name)
    assert (len(net.neurons), len(net.metadata["classes"])) == (17, 100)


def test_targets_agree_on_it(net: Network, lava_environment: lava.Environment) -> None:
    inputs = raw_inputs(net, samples=2)
    expected, *others = (
        snnkit.run(net, inputs, target, record="raster") for target in ("reference", "onnxruntime", "lava")
    )
    assert sum(raster.sum() for raster in (expected.rasters or {}).values()) > 100_000
    assert all(compare(net, expected, other).identical for other in others)


def correct(net: Network, images: Array, labels: Array) -> int:
    return int((snnkit.predictions(snnkit.run(net, images, "reference")) == labels).sum())


def test_the_first_500_test_images_give_the_published_number(net: Network) -> None:
    test = real("cifar-100").test.first(500)
    assert correct(net, test.x, test.y) == 382


@pytest.mark.slow
def test_all_test_images_give_the_published_number(net: Network) -> None:
    test = real("cifar-100").test
    assert correct(net, test.x, test.y) == 7546
    assert np.bincount(test.y).tolist() == [100] * 100
