"""Independent oracles: NeuroBench and SpikingJelly count the rebuilt torch module, and must find what we find."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from snnkit.analysis.counts import count
from snnkit.network import (
    LIF,
    Affine,
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    Edge,
    Flatten,
    Input,
    Network,
    Readout,
    fold_batchnorm,
    materialise_shortcuts,
    quantize,
)
from snnkit.training.rebuild import Neuron, to_torch
from snnkit_targets import reference

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what these packages import is theirs
    from neurobench.benchmarks import Benchmark
    from neurobench.metrics.static import ConnectionSparsity, Footprint, ParameterCount
    from neurobench.metrics.workload import ActivationSparsity, SynapticOperations
    from neurobench.models import TorchModel
    from spikingjelly.activation_based.op_counter import DispatchCounterMode, SynOpCounter


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors this small are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def digits(samples):
    """Real 8x8 images, float32 [B, 1, 8, 8] in 0..1."""
    return (load_digits().images[:samples, None] / 16.0).astype(np.float32)


def events(samples, timesteps):
    """The images as binary events: a pixel at t where it is brighter than a threshold that rises with t."""
    levels = (np.arange(timesteps) + 0.5) / timesteps
    return (digits(samples)[None] > levels[:, None, None, None, None]).astype(np.uint8)


def make_net(*, encoding="direct", decay=1365, reset="zero", zeros=True, current_decay=4096, bias=True):
    """A strided stem, a grouped convolution beside an identity shortcut, and a dense head, at T=3."""
    rng = np.random.default_rng(7)

    def weight(*shape):
        dropped = rng.random(shape) < (0.25 if zeros else 0.0)
        gain = 2.0 / np.sqrt(np.prod(shape[1:]))
        return (rng.normal(0.15, 1.0, shape) * gain * ~dropped).astype(np.float32)

    def biases(size):
        return rng.normal(0, 0.1, size).astype(np.float32) if bias else None

    def lif(name, *sources):
        inputs = tuple(Edge(source) for source in sources)
        return LIF(
            name=name,
            inputs=inputs,
            v_threshold=np.array(np.nextafter(np.float32(1), np.float32(0))),
            voltage_decay=np.array(decay, np.int32),
            current_decay=np.array(current_decay, np.int32),
            reset=reset,
        )

    nodes = (
        Input(name="in", shape=(1, 8, 8), encoding=encoding),
        Conv2d(
            name="stem.conv", inputs=(Edge("in"),), weight=weight(8, 1, 3, 3), bias=biases(8), stride=(2, 2),
            padding=(1, 1),
        ),
        lif("n1", "stem.conv"),
        Conv2d(name="c2", inputs=(Edge("n1"),), weight=weight(8, 4, 3, 3), bias=biases(8), padding=(1, 1), groups=2),
        lif("n2", "c2", "n1"),
        Conv2d(
            name="c3", inputs=(Edge("n2"),), weight=weight(6, 8, 2, 2), bias=biases(6), stride=(1, 2), dilation=(2, 1)
        ),
        lif("n3", "c3"),
        Flatten(name="flat", inputs=(Edge("n3"),)),
        Affine(name="head", inputs=(Edge("flat"),), weight=weight(10, 24), bias=biases(10)),
        Readout(name="out", inputs=(Edge("head"),)),
    )  # fmt: skip
    return materialise_shortcuts(Network(nodes=nodes, timesteps=3))


def integer(net):
    return quantize(net, weight_bits=8, input_bits=4)


NETS = {
    "float": make_net,
    "float events, IF": lambda: make_net(encoding="events", decay=0, reset="subtract"),
    "integer": lambda: integer(make_net()),
    "integer events": lambda: integer(make_net(encoding="events")),
}


def inputs_of(net, samples):
    return digits(samples) if net.input.encoding == "direct" else events(samples, net.timesteps)


class BatchFirst(torch.nn.Module):
    """NeuroBench's data has the batch in front, events here the time."""

    def __init__(self, module, encoding):
        super().__init__()
        self.module, self.encoding = module, encoding

    def forward(self, x):
        return self.module(x if self.encoding == "direct" else x.transpose(0, 1))


def neurobench(net, inputs, batch, capsys):
    """NeuroBench's figures; a metric that failed is printed and given as 0.0, so its output is read."""
    model = TorchModel(BatchFirst(to_torch(net), net.input.encoding))
    model.add_activation_module(Neuron)
    data = torch.from_numpy(inputs if net.input.encoding == "direct" else inputs.swapaxes(0, 1).copy())
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(data, torch.zeros(len(data), dtype=torch.long)), batch_size=batch
    )
    metrics = [[ConnectionSparsity, Footprint, ParameterCount], [SynapticOperations, ActivationSparsity]]
    results = Benchmark(model, loader, [], [], metrics).run()
    assert "Error running" not in capsys.readouterr().out
    return results


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("name", NETS)
def test_equals_neurobench(name, batch, capsys):
    net = NETS[name]()
    samples = 64 if batch == 64 else 2
    inputs = inputs_of(net, samples)
    counts = count(net, inputs, reference.run(net, inputs, reference.Options()))
    found = neurobench(net, inputs, batch, capsys)
    operations = found["SynapticOperations"]
    assert operations["Effective_ACs"] == counts.mean("effective_acs") > 0
    assert operations["Effective_MACs"] == counts.mean("effective_macs")
    assert (counts.mean("effective_macs") > 0) == (net.input.encoding == "direct")
    assert operations["Dense"] == counts.mean("dense") == counts.ann_macs * net.timesteps
    assert found["ActivationSparsity"] == pytest.approx(counts.activation_sparsity)
    assert 0.05 < counts.firing_rate < 0.9
    assert found["ConnectionSparsity"] == pytest.approx(counts.connection_sparsity, abs=1e-4)
    assert found["ParameterCount"] == counts.parameters
    if counts.kind == "float":  # NeuroBench sees float64 where our integers take 8 bits
        assert found["Footprint"] == counts.footprint_bytes


def test_a_failing_metric_is_noticed(capsys):
    class Broken(SynapticOperations):
        def __call__(self, model, preds, data):
            raise RuntimeError("broken")

    net, inputs = make_net(), digits(1)
    loader = [(torch.from_numpy(inputs), torch.zeros(1))]
    manager = Benchmark(TorchModel(to_torch(net)), None, [], [], [[], [Broken]]).workload_metric_manager
    assert manager.run_metrics(None, None, loader[0], 1, 1)["Broken"] == 0.0
    assert "Error running workload metric" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["float events, IF", "integer events"])
def test_equals_spikingjelly_without_zero_weights(name):
    net = make_net(encoding="events", zeros=False, decay=0)
    if name.startswith("integer"):
        net = integer(net)
        nodes = [
            dataclasses.replace(n, weight=np.where(n.weight == 0, 1, n.weight).astype(np.int8))
            if isinstance(n, Conv2d | Affine) and "shortcut" not in n.name
            else n
            for n in net.nodes
        ]
        net = dataclasses.replace(net, nodes=tuple(nodes))
    inputs = events(8, net.timesteps)
    counter = SynOpCounter()
    with torch.no_grad(), DispatchCounterMode([counter]):
        to_torch(net)(torch.from_numpy(inputs))
    counts = count(net, inputs, reference.run(net, inputs, reference.Options()))
    assert counter.get_total() == counts.total("effective_acs") > 0


def rasters_of(module, x):
    """The spikes [T, B, *shape] of every neuron of a rebuilt module, and its readouts."""
    found = {}
    for key, layer in module.layers.items():
        if isinstance(layer, Neuron):
            layer.register_forward_hook(lambda _m, _i, out, key=key: found.setdefault(key, []).append(out))
    readouts = module(torch.from_numpy(x))
    return {key: torch.stack(steps).numpy() for key, steps in found.items()}, readouts.numpy()


def assert_equals_reference(net, inputs):
    trace = reference.run(net, inputs, reference.Options(record="raster"))
    rasters, readouts = rasters_of(to_torch(net), inputs)
    assert set(rasters) == set(trace.rasters)
    for name, raster in rasters.items():
        assert 0 < raster.mean() < 1
        assert np.array_equal(raster.astype(bool), trace.rasters[name]), name
    if np.issubdtype(trace.readouts.dtype, np.integer):
        assert np.array_equal(readouts, trace.readouts)
    else:
        assert readouts == pytest.approx(trace.readouts, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_rebuilt_module_spikes_as_the_reference(name):
    net = NETS[name]()
    assert_equals_reference(net, inputs_of(net, 16))


def test_rebuilt_float_network_filters_its_current():
    assert_equals_reference(make_net(current_decay=1500, reset="subtract"), digits(16))


@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_rebuilt_integers_filter_delay_and_recur(reset):
    net = integer(make_net(encoding="events", reset=reset, bias=True))
    nodes = []
    for node in net.nodes:
        if node.name == "n2":  # a loop through its own convolution, and a filtered current past which a bias goes
            loop = dataclasses.replace(net["c2"], name="loop", inputs=(Edge("n2", 1),))
            nodes.append(loop)
            node = dataclasses.replace(
                node, inputs=(*node.inputs, Edge("loop")), current_decay=np.array(1500, np.int32)
            )
        if node.name == "c3":
            node = dataclasses.replace(node, inputs=(Edge("n2", 1),))
        if node.name == "n3":
            node = dataclasses.replace(node, voltage_decay=np.full(6, 819, np.int32))
        nodes.append(node)
    net = dataclasses.replace(net, nodes=tuple(nodes), timesteps=5)
    assert net.recurrent
    inputs = events(16, 5)
    assert_equals_reference(net, inputs)
    trace = reference.run(net, inputs, reference.Options(record="raster"))
    counts = {node.name: node for node in count(net, inputs, trace).nodes}
    assert counts["loop"].effective_acs > 0


def test_wrapping_and_saturating_states_are_rebuilt():
    net = integer(make_net(encoding="events"))
    extreme = np.empty((8, 4, 3, 3), np.int8)
    extreme[::2], extreme[1::2] = 127, -127
    nodes = [dataclasses.replace(n, weight=extreme, weight_exponent=7) if n.name == "c2" else n for n in net.nodes]
    net = dataclasses.replace(net, nodes=tuple(nodes))
    inputs = events(16, net.timesteps)
    assert sum(reference.run(net, inputs, reference.Options()).overflows.values()) > 0
    assert_equals_reference(net, inputs)


def test_normalisation_and_pooling_are_rebuilt_and_counted(capsys):
    rng = np.random.default_rng(3)
    ones = np.ones(4, np.float32)
    nodes = (
        Input(name="in", shape=(1, 8, 8)),
        Conv2d(name="c", inputs=(Edge("in"),), weight=rng.normal(0, 1, (4, 1, 3, 3)).astype(np.float32)),
        BatchNorm2d(
            name="bn", inputs=(Edge("c"),), weight=2 * ones, bias=ones / 4, running_mean=ones / 8, running_var=3 * ones
        ),
        LIF(name="n", inputs=(Edge("bn"),), v_threshold=np.array(1, np.float32), voltage_decay=np.array(0, np.int32)),
        AvgPool2d(name="pool", inputs=(Edge("n"),), kernel_size=(3, 3), stride=(3, 3)),
        Flatten(name="flat", inputs=(Edge("pool"),)),
        Affine(name="head", inputs=(Edge("flat"),), weight=rng.normal(0, 1, (10, 16)).astype(np.float32)),
        Readout(name="out", inputs=(Edge("head"),)),
    )  # fmt: skip
    net = Network(nodes=nodes, timesteps=2)
    inputs = digits(8)
    assert_equals_reference(net, inputs)
    trace = reference.run(net, inputs, reference.Options(record="raster"))
    found = neurobench(net, inputs, 8, capsys)["SynapticOperations"]
    counts = count(net, inputs, trace)
    assert found["Effective_MACs"] == counts.mean("effective_macs")
    assert found["Effective_ACs"] == counts.mean("effective_acs") == 0
    assert count(fold_batchnorm(net), inputs, trace).total("effective_macs") == counts.total("effective_macs")
