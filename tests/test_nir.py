"""NIR: what the exporter writes is what it should be, and comes back as it was."""

import dataclasses
import json
import tempfile
from pathlib import Path

import nir
import numpy as np
import pytest
from hypothesis import assume, given, settings

from snnkit.cli.main import run
from snnkit.errors import UnsupportedError
from snnkit.interchange import nir_file, nir_read
from snnkit.interchange.nir_read import Choices
from snnkit.interchange.nir_write import nir_names, promises
from snnkit.network import AvgPool2d, Edge, Network, Node, load, quantize, same
from snnkit_exporters import nir as exporter
from snnkit_targets import reference
from tests.networks import integer_networks, networks_with_memory, raw_inputs, recurrent_networks
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
    assert (said["arithmetic"], said["encoding"], int(said["input_bits"])) == ("integer", "direct", 4)
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
        (["a:b", "-o", "x"], "says neither its input nor its timesteps"),
        (["a:b", "-o", "x", "--dt", "1", "--timesteps", "4"], "--dt belongs to .nir files"),
        (["a:b", "-o", "x", "--input-shape", "1,2", "--timesteps", "4"], "'1,2' is not a shape"),
    ):
        assert run(["import", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not Path("x").exists()
