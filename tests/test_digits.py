"""The promise, on real data: every spike of every layer is the same on all targets, the real Lava included."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import snnkit
from snnkit.analysis.accuracy import Accuracy
from snnkit.analysis.compare import compare
from snnkit.network import Network, Trace
from snnkit.network.ir import Synapse
from snnkit.pipeline import quantize_run
from snnkit.runs import Run
from snnkit_targets import lava

EXAMPLE = Path(__file__).parent.parent / "examples" / "digits.yaml"


@pytest.fixture(scope="module", params=["lif", "if"])
def student(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Network:
    """The integer student of a full training, as the example configures it, but for the neuron."""
    run = Run(tmp_path_factory.mktemp(request.param) / "run")
    config = snnkit.load_config(EXAMPLE, [f"student.neuron={request.param}"])
    snnkit.distill(config, run, quiet=True)
    return quantize_run(run.path).network


def without_biases(net: Network) -> Network:
    return dataclasses.replace(
        net,
        nodes=tuple(
            dataclasses.replace(node, bias=np.zeros_like(node.bias))
            if isinstance(node, Synapse) and node.bias is not None
            else node
            for node in net.nodes
        ),
    )


def planted(net: Network) -> Network:
    """One weight of the second convolution, changed by the least amount."""
    victim = net.synapses[1]
    weight = victim.weight.copy()
    position = np.unravel_index(np.argmax(np.abs(weight.astype(int)) < 127), weight.shape)
    weight[position] += 1
    changed = dataclasses.replace(victim, weight=weight)
    return dataclasses.replace(net, nodes=tuple(changed if node is victim else node for node in net.nodes))


def run(net: Network, target: str, **options: str) -> Trace:
    return snnkit.run(net, snnkit.load_dataset("digits").test.x, target, record="raster", **options)


@pytest.mark.parametrize("biases", [True, False])
def test_every_spike_is_identical_on_all_targets(
    student: Network, biases: bool, lava_environment: lava.Environment
) -> None:
    net = student if biases else without_biases(student)
    reference = run(net, "reference")
    assert reference.samples == 360
    assert reference.overflows == dict.fromkeys(reference.overflows, 0)
    for name, rate in reference.firing_rates().items():
        assert 0.01 <= rate <= 0.6, f"{name} fires at {rate:.3f}"
    onnx = [{"form": form, "synapses": s} for form in ("unrolled", "step", "scan") for s in ("float32", "int8")]
    for target, options in [*(("onnxruntime", chosen) for chosen in onnx), ("lava", {})]:
        trace = run(net, target, **options)
        assert target != "lava" or any("Lava 0.10.0 fixed_pt" in note for note in trace.notes)
        agreement = compare(net, reference, trace)
        assert agreement.identical, agreement


def test_one_changed_weight_is_seen(student: Network, lava_environment: lava.Environment) -> None:
    reference = run(student, "reference")
    for target in ("onnxruntime", "lava"):
        agreement = compare(student, reference, run(planted(student), target))
        assert not agreement.identical
        assert agreement.divergence is not None
        assert agreement.divergence.node == student.neurons[1].name


def test_the_integer_student_is_as_good_as_it_says(student: Network) -> None:
    test = snnkit.load_dataset("digits").test
    accuracy = Accuracy.of(snnkit.predictions(run(student, "reference")), test.y)
    assert accuracy.percent > 95.0
    assert student.metadata["dataset"] == "digits"
    assert student.metadata["classes"] == [str(digit) for digit in range(10)]
