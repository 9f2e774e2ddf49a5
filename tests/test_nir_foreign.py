"""NIR graphs that somebody else has made: read as their equations say, or refused with every reason."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest

from snnkit.errors import NetworkError, UnsupportedError, UsageError
from snnkit.interchange import nir_read
from snnkit.interchange.nir_read import Choices, Imported
from snnkit.network import LIF, AvgPool2d, Conv2d, Network, Readout
from snnkit_targets import reference
from tests.nir_reader import simulate

DT = 1e-4
RNG = np.random.default_rng(0)


def dyadic(*shape: int) -> np.ndarray:
    """Weights of which sums are exact in float32, so that no rounding hides an error."""
    return (RNG.integers(-32, 64, shape) / 32).astype(np.float32)


def neurons(kind: str, shape: tuple[int, ...], *, tau: float = 2.0, r: float | None = None) -> nir.NIRNode:
    """``tau`` in timesteps; ``r`` None makes one timestep add its whole input."""
    ones = np.ones(shape)
    firing = {"v_threshold": 0.75 * ones, "v_reset": 0 * ones}
    match kind:
        case "IF":
            return nir.IF(r=(1.0 if r is None else r) * ones, **firing)
        case "LIF":
            return nir.LIF(tau=tau * DT * ones, r=(tau if r is None else r) * ones, v_leak=0 * ones, **firing)
        case "LI":
            return nir.LI(tau=tau * DT * ones, r=(tau if r is None else r) * ones, v_leak=0 * ones)
        case "I":
            return nir.I(r=ones)
    filtered = {"tau_mem": tau * DT * ones, "tau_syn": 4 * DT * ones, "w_in": 2.0 * ones}
    return nir.CubaLIF(r=(tau if r is None else r) * ones, v_leak=0 * ones, **filtered, **firing)


def conv(inputs: int, outputs: int, **changes: Any) -> nir.Conv2d:
    settings: dict[str, Any] = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1, "input_shape": (4, 4)} | changes
    weight = dyadic(outputs, inputs // settings["groups"], 3, 3)
    return nir.Conv2d(weight=weight, bias=dyadic(outputs), **settings)


def affine(inputs: int, outputs: int) -> nir.Affine:
    return nir.Affine(weight=dyadic(outputs, inputs), bias=dyadic(outputs))


def chain(*nodes: nir.NIRNode, shape: tuple[int, ...] = (2, 4, 4), extra: Any = ()) -> nir.NIRGraph:
    """input, n0, n1, ..., output, and further edges."""
    names = ["input", *(f"n{index}" for index in range(len(nodes))), "output"]
    named = dict(zip(names[1:-1], nodes, strict=True))
    graph = {"input": nir.Input(np.array(shape)), **named, "output": nir.Output(np.array([3]))}
    edges = [*pairwise(names), *extra]
    return nir.NIRGraph(graph, edges, type_check=False)


def flat(*shape: int) -> nir.Flatten:
    return nir.Flatten(np.array(shape), start_dim=0, end_dim=-1)


def imported(graph: nir.NIRGraph, folder: Path, **choices: Any) -> Imported:
    path = folder / "graph.nir"
    nir.write(path, graph)
    settings: dict[str, Any] = {"reset": "zero", "dt": DT, "timesteps": 5, "encoding": "events"} | choices
    return nir_read.read(path, Choices(**settings))


def assert_equal_spikes(graph: nir.NIRGraph, folder: Path, **choices: Any) -> Network:
    """The network fires as the graph's equations do, at every neuron and timestep, and sums up the same output."""
    net = imported(graph, folder, **choices).network
    inputs = RNG.integers(0, 2, (net.timesteps, 3, *net.input.shape)).astype(np.uint8)
    trace = reference.run(net, inputs, reference.Options(record="raster"))
    assert trace.rasters
    (entry,) = graph.inputs.values()
    fired = 0
    for sample in range(3):
        frames = inputs[:, sample].reshape(net.timesteps, *entry.input_type["input"])
        subtract = choices.get("reset") == "subtract"
        rasters, output = simulate(graph, frames, net.timesteps, subtract=subtract)
        for name, raster in rasters.items():
            np.testing.assert_array_equal(trace.rasters[name][:, sample].reshape(raster.shape), raster, err_msg=name)
            fired += raster.sum()
        np.testing.assert_allclose(trace.readouts[sample], output, rtol=1e-5, atol=1e-5)
    assert fired
    return net


@pytest.mark.parametrize("reset", ["zero", "subtract"])
@pytest.mark.parametrize("kind", ["IF", "LIF", "CubaLIF"])
def test_neurons(kind: str, reset: str, tmp_path: Path) -> None:
    graph = chain(conv(2, 3), neurons(kind, (3, 4, 4)), flat(3, 4, 4), affine(48, 3))
    net = assert_equal_spikes(graph, tmp_path, reset=reset)
    assert net.readout.mode == "membrane"
    assert {node.reset for node in net.neurons} == {reset}


@pytest.mark.parametrize("r", [1.0, 2.0])
def test_a_resistance_goes_into_the_threshold(r: float, tmp_path: Path) -> None:
    graph = chain(conv(2, 3), neurons("LIF", (3, 4, 4), tau=4.0, r=r), flat(3, 4, 4), affine(48, 3))
    (lif,) = assert_equal_spikes(graph, tmp_path).neurons
    assert float(lif.v_threshold) == 0.75 * 4 / r


@pytest.mark.parametrize("r", [1.0, 1 / DT])
def test_both_dialects_of_an_if(r: float, tmp_path: Path) -> None:
    graph = chain(conv(2, 3), neurons("IF", (3, 4, 4), r=r), flat(3, 4, 4), affine(48, 3))
    assert_equal_spikes(graph, tmp_path)
    if r != 1:
        with pytest.raises(UsageError, match="how long a timestep is"):
            imported(graph, tmp_path, dt=None)
        with pytest.raises(UnsupportedError, match=r"neither 1 nor 1/dt = 1000; say which"):
            imported(graph, tmp_path, dt=1e-3)
    else:
        assert imported(graph, tmp_path, dt=None).network.neurons[0].v_threshold == 0.75
    seconds = imported(graph, tmp_path, dialect="r=1/dt").network.neurons[0]
    assert float(seconds.v_threshold) == pytest.approx(0.75 / (r * DT), rel=1e-6)


def test_spikes_at_the_threshold(tmp_path: Path) -> None:
    one = nir.Affine(weight=np.eye(3, dtype=np.float32), bias=np.zeros(3, np.float32))
    graph = chain(one, nir.IF(r=np.ones(3), v_threshold=np.ones(3)), shape=(3,))
    inputs = np.ones((1, 1, 3), np.uint8)
    for at_threshold, fires in (("silent", 0), ("fire", 3)):
        net = imported(graph, tmp_path, timesteps=1, at_threshold=at_threshold).network
        assert reference.run(net, inputs, reference.Options()).readouts.sum() == fires


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions(groups: int, tmp_path: Path) -> None:
    wide = conv(4, 6, groups=groups, stride=(2, 1), padding=(1, 0), dilation=(1, 2), input_shape=(7, 8))
    if groups > 1:
        wide.input_type, wide.output_type = {"input": None}, {"output": None}
    graph = chain(wide, neurons("IF", (6, 4, 4)), flat(6, 4, 4), affine(96, 3), shape=(4, 7, 8))
    path = tmp_path / "graph.nir"
    nir.write(path, graph)
    net = nir_read.read(path, Choices(reset="zero", timesteps=5, encoding="events")).network
    (node,) = [node for node in net if isinstance(node, Conv2d)]
    assert (node.stride, node.padding, node.dilation, node.groups) == ((2, 1), (1, 0), (1, 2), groups)
    assert_equal_spikes(graph, tmp_path)


def test_padding_by_name(tmp_path: Path) -> None:
    for padding, size in (("same", 4), ("valid", 2)):
        shape = (3, size, size)
        graph = chain(conv(2, 3, padding=padding), neurons("IF", shape), flat(*shape), affine(3 * size * size, 3))
        (node,) = [node for node in imported(graph, tmp_path).network if isinstance(node, Conv2d)]
        assert node.padding == ((1, 1) if padding == "same" else (0, 0))


def test_one_dimension(tmp_path: Path) -> None:
    line = nir.Conv1d(8, dyadic(3, 2, 3), stride=2, padding=1, dilation=1, groups=1, bias=dyadic(3))
    graph = chain(line, neurons("LIF", (3, 4)), flat(3, 4), affine(12, 3), shape=(2, 8))
    assert assert_equal_spikes(graph, tmp_path).input.shape == (2, 1, 8)


def test_pooling(tmp_path: Path) -> None:
    size, step = np.array([2, 2]), np.array([2, 2])
    pools = {
        "sum": nir.SumPool2d(size, step, np.array([0, 0])),
        "average": nir.AvgPool2d(size, step, np.array([0, 0])),
        "padded": nir.AvgPool2d(size, step, np.array([1, 1])),
    }
    for name, pool in pools.items():
        side = 3 if name == "padded" else 2
        first = [conv(2, 2), neurons("IF", (2, 4, 4)), pool, conv(2, 3, input_shape=(side, side))]
        graph = chain(*first, neurons("IF", (3, side, side)), flat(3, side, side), affine(3 * side * side, 3))
        net = assert_equal_spikes(graph, tmp_path)
        assert any(isinstance(node, AvgPool2d) for node in net) == (name == "average")


def test_scales_go_into_the_weights_before_them(tmp_path: Path) -> None:
    factor = np.broadcast_to(np.array([0.5, 2.0, 4.0]).reshape(3, 1, 1), (3, 4, 4)).copy()
    after = chain(conv(2, 3), nir.Scale(factor), neurons("IF", (3, 4, 4)), flat(3, 4, 4), affine(48, 3))
    assert len(assert_equal_spikes(after, tmp_path).synapses) == 2
    before = chain(nir.Scale(factor[:2]), conv(2, 3), neurons("IF", (3, 4, 4)), flat(3, 4, 4), affine(48, 3))
    assert len(assert_equal_spikes(before, tmp_path).synapses) == 3
    flatly = chain(affine(4, 3), neurons("IF", (3,)), nir.Scale(np.array([1.0, 2.0, 0.5])), affine(3, 3), shape=(4,))
    assert_equal_spikes(flatly, tmp_path)


def test_threshold_and_delays(tmp_path: Path) -> None:
    step = nir.Threshold(np.full((3, 4, 4), 0.5))
    graph = chain(conv(2, 3), step, nir.Delay(np.full((3, 4, 4), 2 * DT)), flat(3, 4, 4), affine(48, 3))
    net = assert_equal_spikes(graph, tmp_path)
    assert isinstance(net["n1"], LIF)
    assert [edge.delay for edge in net["n3"].inputs] == [2]
    # a delay behind weights is one before them
    late = chain(nir.Linear(dyadic(5, 4)), nir.Delay(np.full(5, DT)), neurons("IF", (5,)), affine(5, 3), shape=(4,))
    assert [edge.delay for node in assert_equal_spikes(late, tmp_path).synapses for edge in node.inputs] == [1, 0]
    biased = chain(affine(4, 5), nir.Delay(np.full(5, DT)), neurons("IF", (5,)), affine(5, 3), shape=(4,))
    with pytest.raises(UnsupportedError, match="whose bias would start late"):
        imported(biased, tmp_path)


def test_residual_edges(tmp_path: Path) -> None:
    middle = [neurons("IF", (3, 4, 4)), conv(3, 3), neurons("LIF", (3, 4, 4))]
    graph = chain(conv(2, 3), *middle, flat(3, 4, 4), affine(48, 3), extra=[("n1", "n3")])
    net = assert_equal_spikes(graph, tmp_path)
    assert {edge.source for edge in net["n3"].inputs} == {"n1", "n2"}


def test_recurrent_edges_are_one_timestep_late(tmp_path: Path) -> None:
    layers = [affine(4, 5), neurons("LIF", (5,)), affine(5, 6), neurons("IF", (6,)), affine(6, 3)]
    graph = chain(*layers, shape=(4,))
    graph.nodes |= {"own": nir.Linear(dyadic(5, 5)), "back": nir.Linear(dyadic(5, 6))}
    graph.edges += [("n1", "own"), ("own", "n1"), ("n3", "back"), ("back", "n1")]
    net = assert_equal_spikes(graph, tmp_path)
    assert net.recurrent
    assert {(node.name, edge.delay) for node in net for edge in node.inputs if edge.delay} == {("own", 1), ("back", 1)}
    itself = chain(affine(4, 5), neurons("IF", (5,)), affine(5, 3), shape=(4,), extra=[("n1", "n1")])
    assert assert_equal_spikes(itself, tmp_path)["n1"].inputs[1].delay == 1


def test_a_recurrent_convolution(tmp_path: Path) -> None:
    graph = chain(conv(2, 3), neurons("LIF", (3, 4, 4)), flat(3, 4, 4), affine(48, 3))
    graph.nodes["own"] = conv(3, 3)
    graph.edges += [("n1", "own"), ("own", "n1")]
    assert assert_equal_spikes(graph, tmp_path).recurrent


@pytest.mark.parametrize("kind", ["IF", "Threshold"])
@pytest.mark.parametrize("shape", [(5,), (3, 4), (3, 4, 4)])
def test_a_recurrent_edge_through_a_delay(kind: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    """Its shape is that of the neuron that it comes from, whose spikes are not computed yet."""
    line = nir.Conv1d(4, dyadic(3, 2, 3), stride=1, padding=1, dilation=1, groups=1, bias=dyadic(3))
    first = {1: affine(4, 5), 2: line, 3: conv(2, 3)}[len(shape)]
    firing = neurons("IF", shape) if kind == "IF" else nir.Threshold(np.full(shape, 0.5))
    size = int(np.prod(shape))
    entry = {1: (4,), 2: (2, 4), 3: (2, 4, 4)}[len(shape)]
    graph = chain(first, firing, *([flat(*shape)] if len(shape) > 1 else []), affine(size, 3), shape=entry)
    graph.nodes["wait"] = nir.Delay(np.full(shape, 2 * DT))
    graph.edges += [("n1", "wait"), ("wait", "n1")]
    assert [edge.delay for edge in assert_equal_spikes(graph, tmp_path)["n1"].inputs] == [0, 2]


def test_a_recurrent_convolution_of_a_sequence(tmp_path: Path) -> None:
    first, own = (nir.Conv1d(4, dyadic(3, c, 3), 1, 1, 1, 1, dyadic(3)) for c in (2, 3))
    graph = chain(first, neurons("LIF", (3, 4)), flat(3, 4), affine(12, 3), shape=(2, 4))
    graph.nodes["own"] = own
    graph.edges += [("n1", "own"), ("own", "n1")]
    assert assert_equal_spikes(graph, tmp_path).recurrent


def test_a_recurrent_edge_of_unknown_shape_is_refused(tmp_path: Path) -> None:
    graph = chain(affine(4, 5), nir.IF(r=np.ones((1, 1, 1, 5)), v_threshold=np.ones((1, 1, 1, 5))), shape=(4,))
    graph.nodes["wait"] = nir.Flatten({"input": np.array([5])}, start_dim=0)
    graph.edges += [("n1", "wait"), ("wait", "n1")]
    with pytest.raises(UnsupportedError, match=r"'wait' \(Flatten\) reads only spikes that come back, of neurons"):
        imported(graph, tmp_path)


@pytest.mark.parametrize("kind", ["LI", "I"])
def test_a_leaky_readout(kind: str, tmp_path: Path) -> None:
    graph = chain(affine(4, 5), neurons("IF", (5,)), affine(5, 3), neurons(kind, (3,), r=1.0), shape=(4,))
    net = assert_equal_spikes(graph, tmp_path)
    assert isinstance(net.readout, Readout)
    assert len(net.readout.inputs) == net.timesteps


def test_a_filter_before_a_neuron(tmp_path: Path) -> None:
    graph = chain(affine(4, 5), neurons("LI", (5,), tau=4.0), neurons("IF", (5,)), affine(5, 3), shape=(4,))
    (node,) = assert_equal_spikes(graph, tmp_path).neurons
    assert (int(node.current_decay), int(node.voltage_decay)) == (1024, 0)


def test_a_decay_off_the_grid_is_noted(tmp_path: Path) -> None:
    graph = chain(affine(4, 5), neurons("LIF", (5,), tau=10.0), affine(5, 3), shape=(4,))
    (note,) = imported(graph, tmp_path).notes
    assert "0.1 is 410/4096 here" in note


def test_what_the_file_leaves_open_is_asked_for(tmp_path: Path) -> None:
    graph = chain(affine(4, 5), neurons("LIF", (5,)), affine(5, 3), shape=(4,))
    for missing, words in (("reset", "reset"), ("dt", "timestep is"), ("timesteps", "how many timesteps")):
        with pytest.raises(UsageError, match=words):
            imported(graph, tmp_path, **{missing: None})
    graph.metadata = {"dt": DT, "timesteps": 7, "reset": "subtract", "encoding": "direct"}
    said = imported(graph, tmp_path, reset=None, dt=None, timesteps=None, encoding=None)
    assert (said.network.timesteps, said.network.neurons[0].reset) == (7, "subtract")
    assert said.network.input.encoding == "direct"
    (note,) = imported(graph, tmp_path, encoding=None, timesteps=None).notes
    assert note == "the file says reset subtract; zero was asked for and is used"


def test_every_node_that_cannot_be_taken_is_listed(tmp_path: Path) -> None:
    inner = chain(affine(4, 5), shape=(4,))
    cuba = nir.CubaLI(*[np.ones(5)] * 4)
    graph = chain(affine(4, 5), inner, cuba, affine(5, 3), shape=(4,))
    graph.nodes["lonely"] = affine(5, 5)
    with pytest.raises(UnsupportedError) as error:
        imported(graph, tmp_path)
    assert len(error.value.reasons) == 3
    assert "'lonely' (Affine) is not reached by the input" in str(error.value)
    assert "'n1' (NIRGraph) is a graph of its own" in str(error.value)
    assert "'n2' (CubaLI) is of an unknown kind" in str(error.value)
    parameters = chain(conv(2, 3), neurons("IF", (3, 4, 4)), flat(3, 4, 4), neurons("LIF", (48,)), affine(48, 3))
    parameters.nodes["n1"].v_threshold[0, 1, 1] = 2.0
    parameters.nodes["n3"].v_reset[:] = 0.5
    with pytest.raises(UnsupportedError, match=r"'n1' \(IF\) has a v_threshold that differs within a channel"):
        imported(parameters, tmp_path)


def test_a_cycle_without_a_neuron_is_refused(tmp_path: Path) -> None:
    graph = chain(affine(4, 5), affine(5, 5), neurons("IF", (5,)), affine(5, 3), shape=(4,), extra=[("n1", "n0")])
    with pytest.raises(NetworkError, match="cycle without a neuron"):
        imported(graph, tmp_path)
