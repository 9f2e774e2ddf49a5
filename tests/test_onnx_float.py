"""Float networks in ONNX, against torch and against the graph that torch's own exporter traces.

Two float32 implementations may add in another order, so a membrane within 1e-5 of its threshold may fire in one of
them alone; after that first flip of a sample its spikes differ for good reason. Everywhere else logits agree.
"""

import functools
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

import snnkit
from snnkit.analysis.compare import compare
from snnkit.config import load_config
from snnkit.network import (
    LIF,
    Affine,
    AvgPool2d,
    BatchNorm2d,
    Edge,
    Input,
    Network,
    Readout,
    apply,
    fold_batchnorm,
    fold_pooling,
    materialise_shortcuts,
    quantize,
)
from snnkit.training.lower import lower
from snnkit.training.models import build_student
from snnkit.training.rebuild import Neuron, TorchNetwork, to_torch
from snnkit_exporters import onnx as exporter
from snnkit_targets import onnxruntime, reference

CLOSE = 1e-5


def lively(model: str, settings: list[str]) -> nn.Module:
    """A student with random weights, normalised on digits so that every layer fires."""
    torch.manual_seed(0)
    config = load_config(None, [f"student.model={model}", "student.timesteps=4", *settings])
    student = build_student((1, 8, 8), 10, config.student).train()
    images = torch.tensor(snnkit.load_dataset("digits").train.x[:256])
    norms = [module for module in student.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # plain means
    with torch.no_grad():
        student(images)
    for norm in norms:
        norm.weight.data *= 2.5
    return student.eval()


@functools.cache
def made(model: str) -> Network:
    settings = ["student.width=0.5"] if model == "resnet20" else ["student.neuron=if"]
    net = lower(lively(model, settings), (1, 8, 8), timesteps=4)
    assert any(isinstance(node, BatchNorm2d) for node in net)
    assert model == "convnet" or any(isinstance(node, AvgPool2d) for node in net)
    return net


@pytest.fixture(params=["resnet20", "convnet"])
def net(request: pytest.FixtureRequest) -> Network:
    return made(request.param)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    x: np.ndarray = snnkit.load_dataset("digits").test.x
    return x


@dataclass
class Observed:
    """Logits [B, classes]; spikes and membranes before the reset, both [T, B, *shape], of every neuron node."""

    logits: np.ndarray
    spikes: dict[str, np.ndarray]
    membranes: dict[str, np.ndarray]


class Watched(nn.Module):
    """A rebuilt network whose neurons are watched; gives logits, then each neuron node's spikes."""

    def __init__(self, net: Network, *, membranes: bool) -> None:
        super().__init__()
        assert all((neuron.current_decay == 4096).all() for neuron in net.neurons)
        self.inner: TorchNetwork = to_torch(net)
        self.spikes: dict[str, list[Tensor]] = {}
        self.membranes: dict[str, list[Tensor]] = {}
        for key, module in self.inner.layers.items():
            if isinstance(module, Neuron):
                if membranes:
                    module.register_forward_pre_hook(self._before(key.replace("/", ".")))
                module.register_forward_hook(self._after(key.replace("/", ".")))

    def _before(self, name: str) -> Any:
        def hook(module: Neuron, arguments: tuple[Tensor, Any]) -> None:
            kept = 1 - module.voltage_decay / 4096
            self.membranes.setdefault(name, []).append(module.v * kept + arguments[0])

        return hook

    def _after(self, name: str) -> Any:
        def hook(module: Neuron, arguments: Any, output: Tensor) -> None:
            self.spikes.setdefault(name, []).append(output)

        return hook

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self.spikes, self.membranes = {}, {}
        logits = self.inner.compute(x)
        return logits, *(torch.stack(steps) for steps in self.spikes.values())


def observe(net: Network, images: np.ndarray) -> Observed:
    watched = Watched(net, membranes=True)
    with torch.inference_mode():
        logits, *_ = watched(torch.from_numpy(images))
    spikes = {name: torch.stack(steps).numpy() > 0 for name, steps in watched.spikes.items()}
    return Observed(logits.numpy(), spikes, {n: torch.stack(v).numpy() for n, v in watched.membranes.items()})


def assert_agree(net: Network, torchs: Observed, logits: np.ndarray, spikes: dict[str, np.ndarray]) -> None:
    """The rule above: equal but for samples whose first flip is a membrane on its threshold, at most 1 in 100."""
    samples = len(logits)
    flipped = np.zeros(samples, bool)
    for sample in range(samples):
        first = None
        for neuron in net.neurons:
            differs = torchs.spikes[neuron.name][:, sample] != spikes[neuron.name][:, sample]
            if differs.any():
                t, *place = np.argwhere(differs)[0]
                if first is None or t < first[0]:
                    distance = np.abs(torchs.membranes[neuron.name][:, sample][t] - neuron.v_threshold)
                    first = t, distance[differs[t]].max(), place
        if first is not None:
            assert first[1] < CLOSE, (sample, first)
            flipped[sample] = True
    assert flipped.mean() <= 0.01, flipped.sum()
    assert np.abs(torchs.logits - logits)[~flipped].max() < CLOSE


@pytest.mark.parametrize("form", ["unrolled", "step", "scan"])
def test_every_form_agrees_with_torch(net: Network, images: np.ndarray, form: Any) -> None:
    trace = onnxruntime.run(net, images, onnxruntime.Options(record="raster", form=form, threads=1))
    assert trace.rasters is not None
    assert trace.readouts.dtype == np.float32
    for name, rate in trace.firing_rates().items():
        assert 0.01 < rate < 0.9, name
    assert_agree(net, observe(net, images), trace.readouts, trace.rasters)


@pytest.mark.parametrize("model", ["convnet", pytest.param("resnet20", marks=pytest.mark.slow)])
def test_the_graph_that_torch_traces_agrees(model: str, images: np.ndarray) -> None:
    net = made(model)
    batch = torch.export.Dim("batch", min=1, max=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer
        program = torch.onnx.export(
            Watched(net, membranes=False),
            (torch.from_numpy(images[:3]),),
            dynamo=True,
            dynamic_shapes=({0: batch},),
            verbose=False,
        )
    assert program is not None
    runner = ort.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    logits, *spikes = runner.run(None, {runner.get_inputs()[0].name: images})
    traced = {neuron.name: raster > 0 for neuron, raster in zip(net.neurons, spikes, strict=True)}
    torchs = observe(net, images)
    assert_agree(net, torchs, logits, traced)
    ours = onnxruntime.run(net, images, onnxruntime.Options(record="raster", threads=1))
    assert ours.rasters is not None
    apart = [(ours.rasters[name] != traced[name]).any(axis=tuple({*range(traced[name].ndim)} - {1})) for name in traced]
    same = ~np.any(apart, axis=0)
    assert same.mean() >= 0.99
    assert np.abs(ours.readouts - logits)[same].max() < CLOSE


@pytest.mark.parametrize("synapses", ["float32", "int8"])
@pytest.mark.parametrize("form", ["unrolled", "step", "scan"])
def test_every_form_of_the_integer_network_equals_the_reference(
    net: Network, images: np.ndarray, form: Any, synapses: Any
) -> None:
    integer = quantize(apply(net, [fold_batchnorm, materialise_shortcuts, fold_pooling]))
    expected = reference.run(integer, images, reference.Options(record="raster"))
    options = onnxruntime.Options(record="raster", form=form, synapses=synapses, threads=1)
    agreement = compare(integer, expected, onnxruntime.run(integer, images, options))
    assert agreement.identical, agreement
    assert all(rate > 0.01 for rate in expected.firing_rates().values())


@pytest.mark.parametrize("form", ["unrolled", "step", "scan"])
@pytest.mark.parametrize("decay", [0, 1365, 2048, 4096])
@pytest.mark.parametrize("theta", [1e-9, 0.01, 0.3, 1.0, 1.0 - 2**-24, 77.7])
def test_a_neuron_fires_one_float_above_its_threshold(form: Any, decay: int, theta: float) -> None:
    """Membranes at the threshold and at the floats beside it, alone and after what a reset or a decay left of them."""
    at = np.float32(theta)
    up, down = np.nextafter(at, np.float32(np.inf)), np.nextafter(at, np.float32(-np.inf))
    currents = np.array([[at, up, down, 0, -at, 4 * at, at / 2, -1e6, 1e6]], np.float32)
    samples = currents.size
    net = Network(
        nodes=(
            Input(name="x", shape=(samples,), encoding="direct", bits=0),
            Affine(name="one", inputs=(Edge("x"),), weight=currents),  # each sample chooses its own
            LIF(
                name="lif",
                inputs=(Edge("one"),),
                v_threshold=at.reshape(()),
                voltage_decay=np.array(decay, np.int32),
                current_decay=np.array(4096, np.int32),
            ),
            Affine(name="out", inputs=(Edge("lif"),), weight=np.ones((1, 1), np.float32)),
            Readout(name="readout", inputs=(Edge("out"),)),
        ),
        timesteps=4,
    )
    kept, v, fired = np.float32((4096 - decay) / 4096), np.zeros((samples, 1), np.float32), []
    for _ in range(4):
        v = v * kept + currents.T
        fired.append(v > at)
        v = np.where(fired[-1], np.float32(0), v)
    trace = onnxruntime.run(net, np.eye(samples, dtype=np.float32), onnxruntime.Options(record="raster", form=form))
    np.testing.assert_array_equal(trace.rasters["lif"], np.stack(fired))  # bool outputs, traced beside
    np.testing.assert_array_equal(trace.readouts, np.sum(fired, axis=0))  # what the next layer was sent
    if form == "unrolled":  # in numpy, by ONNX's own evaluator
        model = exporter.build(net, exporter.Options())
        (answers,) = ReferenceEvaluator(model).run(None, {"input": np.eye(samples, dtype=np.float32)})
        np.testing.assert_array_equal(answers, trace.readouts)
