"""NIR: what the exporter writes is what it should be, and comes back as it was."""

import dataclasses
import json
import re
import tempfile
from pathlib import Path

import nir
import numpy as np
import pytest
from hypothesis import assume, given, settings

from snnkit.analysis.counts import count
from snnkit.cli.main import run
from snnkit.errors import UnsupportedError
from snnkit.fidelity import nir_mismatch
from snnkit.interchange import nir_file, nir_read
from snnkit.interchange.nir_read import Choices
from snnkit.interchange.nir_write import nir_names, promises
from snnkit.network import (
    LIF,
    Affine,
    AvgPool2d,
    Edge,
    Input,
    Network,
    Node,
    Readout,
    load,
    quantize,
    same,
    save,
)
from snnkit.quantization import quantize as quantize_measured
from snnkit_exporters import nir as exporter
from snnkit_targets import onnxruntime, reference
from tests import oracle
from tests.networks import integer_networks, networks_with_memory, raw_inputs, recurrent_networks, threshold
from tests.nir_reader import simulate
from tests.test_network import float_network, replace

DIALECTS = ("r=1", "r=1/dt")


def written(net: Network, **options: object) -> Path:
    path = Path(tempfile.mkdtemp()) / "net.nir"
    assert exporter.export(net, path, exporter.Options(**options)) == [path]
    return path


def as_foreign(path: Path, **choices: object) -> Network:
    """The file read as if somebody else had written it."""
    graph = nir_file.read(path)
    del graph.metadata["snnkit"]
    imported = nir_read.from_graph(graph, Choices(**choices), path)
    assert not imported.exact
    return imported.network


def spikes(net: Network, inputs: np.ndarray) -> dict[str, np.ndarray]:
    rasters = reference.run(net, inputs, reference.Options(record="raster")).rasters
    assert rasters is not None
    return rasters


@settings(max_examples=30)
@given(integer_networks() | integer_networks(extreme=True) | networks_with_memory() | recurrent_networks())
def test_an_exported_network_comes_back_exactly(net: Network) -> None:
    assume(not exporter.check(net, exporter.Options()))
    for dialect in DIALECTS:
        for groups in ("expand", "keep"):
            path = written(net, dialect=dialect, groups=groups)
            assert path.read_bytes() == written(net, dialect=dialect, groups=groups).read_bytes()
            imported = nir_read.read(path)
            assert imported.exact
            assert not imported.notes
            assert same(imported.network, net)


@settings(max_examples=25)
@given(integer_networks() | networks_with_memory() | recurrent_networks())
def test_every_spike_of_the_graph_is_the_chip_s_where_promised(net: Network) -> None:
    assume(not exporter.check(net, exporter.Options()) and not promises(net))
    inputs = raw_inputs(net, samples=2)
    expected = reference.run(net, inputs, reference.Options(record="raster"))
    encoded = net.input.encode(inputs)
    names = nir_names(net)
    for dialect in DIALECTS:
        graph = nir.read(written(net, dialect=dialect))
        for sample in range(2):
            one = encoded[sample] if net.input.encoding == "direct" else encoded[:, sample]
            subtract = any(node.reset == "subtract" for node in net.neurons)
            rasters, output = simulate(graph, one, net.timesteps, subtract=subtract)
            for name, raster in expected.rasters.items():
                np.testing.assert_array_equal(rasters[names[name]], raster[:, sample])
            np.testing.assert_array_equal(output, expected.readouts[sample])


def test_the_metadata_says_what_a_reader_needs(tmp_path: Path) -> None:
    net = quantize(float_network())
    graph = nir.read(written(net, dt=1e-3, dialect="r=1/dt"))
    assert set(graph.nodes) == {"input", "conv", "lif", "flat", "fc", "output"}
    said = graph.metadata
    assert (float(said["dt"]), int(said["timesteps"]), said["reset"], said["dialect"]) == (1e-3, 4, "zero", "r=1/dt")
    assert (said["arithmetic"], said["encoding"], int(said["input_bits"])) == ("integer", "direct", net.input.bits)
    assert float(said["input_scale"]) == net.input.scale
    assert json.loads(said["scales"]) == net.metadata["quantization"]["scales"]
    lif = graph.nodes["lif"]
    for name in ("tau", "r", "v_leak", "v_threshold", "v_reset"):
        assert getattr(lif, name).shape == (3, 4, 4)
    assert (lif.v_threshold == int(net["lif"].v_threshold) + 1 / 128).all()


def test_a_file_that_another_tool_has_copied_comes_back_exactly(tmp_path: Path) -> None:
    net = quantize(float_network())
    nir.write(tmp_path / "copy.nir", nir.read(written(net)))
    assert same(nir_read.read(tmp_path / "copy.nir").network, net)


def test_a_changed_graph_is_read_as_it_is(tmp_path: Path) -> None:
    graph = nir.read(written(quantize(float_network())))
    graph.nodes["fc"].weight[0, 0] += 1
    nir.write(tmp_path / "changed.nir", graph)
    imported = nir_read.read(tmp_path / "changed.nir")
    assert not imported.exact
    assert "changed after snnkit wrote it" in imported.notes[0]
    assert imported.network["fc"].weight[0, 0] == graph.nodes["fc"].weight[0, 0]


def test_float_networks_come_back_exactly() -> None:
    net = float_network()
    pooled = replace(net, "flat", inputs=(Edge("pool"),))
    pool = AvgPool2d(name="pool", inputs=(Edge("lif"),), kernel_size=(2, 2), stride=(2, 2))
    pooled = replace(pooled, "fc", weight=net["fc"].weight[:, :12])
    nodes = [*pooled.nodes[:3], pool, *pooled.nodes[3:]]
    for network in (net, replace(net, "lif", reset="subtract"), dataclasses.replace(pooled, nodes=tuple(nodes))):
        for dialect in DIALECTS:
            path = written(network, dialect=dialect)
            assert nir.read(path)
            assert same(nir_read.read(path).network, network)
            foreign = as_foreign(path, timesteps=4)
            inputs = raw_inputs(network, samples=8)
            for name, raster in spikes(network, inputs).items():
                np.testing.assert_array_equal(spikes(foreign, inputs)[name], raster)


def test_what_nir_cannot_hold_is_refused_and_nothing_written(tmp_path: Path) -> None:
    net = quantize(float_network())
    filtered = replace(net, "lif", current_decay=np.array(2048, np.int32))
    endless = replace(net, "lif", current_decay=np.array(0, np.int32))
    mixed = replace(net, "lif", voltage_decay=np.array([0, 1, 2], np.int32))
    for refused, reason in (
        (filtered, "filters its current, which the bias of 'conv' bypasses here but not in NIR"),
        (endless, "a current that never decays"),
        (mixed, "a voltage_decay for some channels only"),
    ):
        with pytest.raises(UnsupportedError, match=reason):
            exporter.export(refused, tmp_path / "net.nir", exporter.Options())
    assert not list(tmp_path.iterdir())


def test_names_that_other_tools_cannot_have(tmp_path: Path) -> None:
    net = quantize(float_network())
    names = {"conv": "input", "lif": "a/b.c", "flat": "a_b_c"}

    def renamed(node: Node) -> Node:
        edges = tuple(Edge(names.get(edge.source, edge.source)) for edge in node.inputs)
        return dataclasses.replace(node, name=names.get(node.name, node.name), inputs=edges)

    odd = dataclasses.replace(net, nodes=tuple(renamed(node) for node in net))
    path = written(odd)
    assert set(nir.read(path).nodes) == {"input", "input_2", "a_b_c", "a_b_c_2", "fc", "output"}
    assert same(nir_read.read(path).network, odd)


def test_import_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = quantize(float_network())
    path, output = written(net), tmp_path / "net.safetensors"
    assert run(["import", str(path), "-o", str(output)]) == 0
    assert "integer network of 6 nodes, 1 of them neurons, 4 timesteps, exactly" in capsys.readouterr().out
    assert same(load(output), net)
    assert run(["import", str(path), "-o", str(output), "--timesteps", "2", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["schema"], answer["exact"], answer["timesteps"]) == (1, True, 2)
    for arguments, message in (
        ([str(path), "-o", str(tmp_path)], "is a folder"),
        ([str(tmp_path / "no.nir"), "-o", "x"], "there is no file"),
        ([str(path), "-o", "x", "--reset", "hard"], "--reset 'hard' is unknown"),
        ([str(path), "-o", "x", "--weights", "w.pt"], "belong to module:function"),
        ([str(path), "-o", "x", "--timesteps", "0"], "timesteps is 0"),
        ([str(output), "-o", "x"], "is no NIR file"),
        (["a:b", "-o", "x"], "says neither its input nor its timesteps"),
        (["a:b", "-o", "x", "--dt", "1", "--timesteps", "4"], "--dt belongs to .nir files"),
        (["a:b", "-o", "x", "--input-shape", "1,2", "--timesteps", "4"], "'1,2' is not a shape"),
    ):
        assert run(["import", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not Path("x").exists()
    assert run(["import", str(path), "-o", str(output), "--at-threshold", "fire"]) == 0
    assert capsys.readouterr().err == "note: the file says everything itself; at_threshold not used\n"
    (tmp_path / "net.onnx").write_bytes(b"")
    for command in (["run"], ["export", "-t", "onnx"], ["quantize"]):
        assert run([*command, str(path)]) == 2
        assert "is a NIR file\nhint: make a network of it: snnkit import" in capsys.readouterr().err
        assert run([*command, str(tmp_path / "net.onnx")]) == 2
        assert "is an exported file\nhint: give the network or the run" in capsys.readouterr().err


@settings(max_examples=25)
@given(integer_networks() | networks_with_memory() | recurrent_networks())
def test_the_measured_mismatch(net: Network) -> None:
    """What is promised is measured as 0; elsewhere the figure is that of an independent reader of the file."""
    assume(not exporter.check(net, exporter.Options()))
    inputs = raw_inputs(net, samples=2)
    found = nir_mismatch(net, inputs)
    if not promises(net):
        assert found.spikes == 0
    graph, encoded, names = nir.read(written(net)), net.input.encode(inputs), nir_names(net)
    ours, different = spikes(net, inputs), 0
    for sample in range(2):
        one = encoded[sample] if net.input.encoding == "direct" else encoded[:, sample]
        rasters, _ = simulate(graph, one, net.timesteps, subtract=net.neurons[0].reset == "subtract")
        different += sum(int((raster[:, sample] != rasters[names[name]]).sum()) for name, raster in ours.items())
    assert (found.spikes, found.updates) == (different, sum(raster.size for raster in ours.values()))


def test_the_export_says_where_spikes_may_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = quantize(float_network())
    save(net, tmp_path / "net.safetensors")
    save(replace(net, "lif", voltage_decay=np.array(1365, np.int32)), tmp_path / "leaky.safetensors")
    assert run(["export", str(tmp_path / "net.safetensors"), "-t", "nir"]) == 0
    assert capsys.readouterr().err == ""
    assert run(["export", str(tmp_path / "leaky.safetensors"), "-t", "nir", "--json"]) == 0
    reasons, measured = json.loads(capsys.readouterr().out)["notes"]
    assert "node 'lif' decays by fractions that the chip rounds off" in reasons
    assert re.fullmatch(r"measured on 64 random inputs: \d+ of 12,288 updates differ \(\d+\.\d per 100,000\)", measured)


def test_an_imported_network_goes_the_whole_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "made").mkdir()
    nir_path = written(float_network())
    graph = nir.read(nir_path)
    graph.metadata = {}  # as somebody else's
    nir.write(tmp_path / "theirs.nir", graph)
    x = np.random.default_rng(0).random((40, 1, 4, 4), dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    net, integer = tmp_path / "net.safetensors", tmp_path / "net-integer.safetensors"
    choices = ["--reset", "zero", "--dt", "1e-4", "--timesteps", "4"]
    assert run(["import", str(tmp_path / "theirs.nir"), "-o", str(net), *choices]) == 0
    assert f"next: snnkit quantize {net} --data x.npy" in capsys.readouterr().out
    assert run(["quantize", str(tmp_path / "theirs.nir"), "--data", "x.npy"]) == 2
    assert "is a NIR file" in capsys.readouterr().err
    assert run(["quantize", str(net)]) == 2
    assert "brings no calibration samples" in capsys.readouterr().err
    assert run(["quantize", str(net), "--data", str(tmp_path / "x.npy")]) == 0
    expected = quantize_measured(load(net), x).network
    assert same(load(integer), expected)
    assert run(["run", str(integer), "--data", str(tmp_path / "x.npy"), "-t", "reference", "-t", "onnxruntime"]) == 0
    assert run(["export", str(integer), "-t", "onnx", "-t", "nir", "-o", str(tmp_path / "made")]) == 0
    assert sorted(path.suffix for path in (tmp_path / "made").iterdir()) == [".nir", ".onnx"]
    capsys.readouterr()
    assert run(["quantize", str(tmp_path), "--data", "x.npy"]) == 2
    assert "belong to a network file" in capsys.readouterr().err


@settings(max_examples=25)
@given(recurrent_networks())
def test_recurrent_networks_step_as_written_out(net: Network) -> None:
    """The reference, ONNX's step and Scan forms and an oracle without this project's code see the same spikes."""
    inputs = raw_inputs(net, samples=2)
    ours = reference.run(net, inputs, reference.Options(record="raster"))
    encoded = net.input.encode(inputs)
    assert ours.rasters
    for sample in range(2):
        rasters, readout = oracle.simulate(net, encoded[sample] if encoded.ndim == 2 else encoded[:, sample])
        np.testing.assert_array_equal(ours.readouts[sample], readout)
        for name, raster in rasters.items():
            np.testing.assert_array_equal(ours.rasters[name][:, sample], raster)
    for form in ("step", "scan"):
        trace = onnxruntime.run(net, inputs, onnxruntime.Options(record="raster", form=form, threads=1))
        np.testing.assert_array_equal(trace.readouts, ours.readouts)
        for name, raster in ours.rasters.items():
            np.testing.assert_array_equal(trace.rasters[name], raster)
    counts = count(net, inputs, ours)
    assert counts.total("spikes") == sum(int(raster.sum()) for raster in ours.rasters.values())


def test_a_recurrent_network_is_quantised(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(0, 0.4, shape).astype(np.float32) for name, shape in (("in", (6, 5)), ("rec", (6, 6)))}
    net = Network(
        timesteps=6,
        nodes=(
            Input(name="x", shape=(5,), encoding="events"),
            Affine(name="in", inputs=(Edge("x"),), weight=weights["in"]),
            Affine(name="rec", inputs=(Edge("lif", 1),), weight=weights["rec"]),
            LIF(
                name="lif",
                inputs=(Edge("in"), Edge("rec")),
                v_threshold=threshold(0.3),
                voltage_decay=np.array(2048, np.int32),
            ),
            Affine(name="fc", inputs=(Edge("lif"),), weight=rng.normal(size=(3, 6)).astype(np.float32)),
            Readout(name="out", inputs=(Edge("fc"),)),
        ),
    )
    x = rng.integers(0, 2, (6, 50, 5)).astype(np.uint8)
    result = quantize_measured(net, x)
    assert result.network.recurrent
    (node,) = result.nodes
    assert abs(node.rate_float - node.rate_integer) < 0.02
    assert same(nir_read.read(written(result.network)).network, result.network)
