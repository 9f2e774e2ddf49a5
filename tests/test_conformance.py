"""What every exporter and target that is listed must hold: ``check`` gives reasons, or it works, spike by spike.

What a plugin cannot do is a strict xfail with the reason that ``check`` gave: it must then refuse.
"""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings

import snnkit
from snnkit import plugins
from snnkit.analysis.compare import compare
from snnkit.errors import UnsupportedError
from snnkit.interchange import nir_read
from snnkit.network import Network, same, save
from snnkit.pipeline import describe_file, export_all
from snnkit_targets import reference
from tests.golden import GOLDEN
from tests.networks import integer_networks, networks_with_memory, raw_inputs

SAMPLES = 6
TARGETS = [name for name in plugins.names("targets") if name != "reference"]
LAVA_NETWORKS = ("leaky convolutions", "residual, 1x1", "events")  # seconds each; the others are slow tests


def variants(plugin: Any) -> list[dict[str, str]]:
    """Every combination of the options that choose among words."""
    words = {
        name: get_args(field.annotation)
        for name, field in plugin.Options.model_fields.items()
        if get_origin(field.annotation) is Literal and name != "record"
    }
    return [dict(zip(words, chosen, strict=True)) for chosen in itertools.product(*words.values())]


def cases(kind: Literal["exporters", "targets"], names: list[str]) -> list[Any]:
    """Golden networks times plugins times variants; Lava, which takes seconds a run, as it comes and a few only."""
    find = plugins.exporter if kind == "exporters" else plugins.target
    found = []
    for plugin_name, (name, net) in itertools.product(names, GOLDEN.items()):
        lava = kind == "targets" and plugin_name == "lava"
        for options in [{}] if lava else variants(find(plugin_name)):
            plugin = find(plugin_name)
            marks = []
            if reasons := plugin.check(net, plugins.options(plugin, options)):
                marks.append(pytest.mark.xfail(strict=True, raises=UnsupportedError, reason="; ".join(reasons)))
            elif lava and name not in LAVA_NETWORKS:
                marks.append(pytest.mark.slow)
            label = "-".join([plugin_name, *options.values(), name])
            found.append(pytest.param(name, plugin_name, options, id=label, marks=marks))
    return found


@pytest.mark.parametrize(("name", "target", "options"), cases("targets", TARGETS))
def test_targets_equal_the_reference(
    request: pytest.FixtureRequest, name: str, target: str, options: dict[str, str]
) -> None:
    net = GOLDEN[name]
    if target == "lava" and not request.node.get_closest_marker("xfail"):
        request.getfixturevalue("lava_environment")
    inputs = raw_inputs(net, SAMPLES)
    expected = reference.run(net, inputs, reference.Options(record="raster"))
    assert all(0 < rate < 1 for rate in expected.firing_rates().values())
    agreement = compare(net, expected, snnkit.run(net, inputs, target, record="raster", **options))
    assert agreement.identical, agreement


def run_onnx(net: Network, paths: list[Path]) -> None:
    session = ort.InferenceSession(paths[0], providers=["CPUExecutionProvider"])
    how = session.get_modelmeta().custom_metadata_map
    inputs = raw_inputs(net, SAMPLES)
    encoded = net.input.encode(inputs)
    zeros = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(uint8)": np.uint8}
    following = json.loads(how["states"])
    state = {
        i.name: np.zeros((SAMPLES, *i.shape[1:]), zeros[i.type]) for i in session.get_inputs() if i.name in following
    }
    for t in range(net.timesteps if state else 1):
        frame = encoded[t] if state and net.input.encoding == "events" else encoded
        names = ["readout", *following.values()]
        feeds = {"input": frame, **state}
        if "timesteps" in {i.name for i in session.get_inputs()}:
            feeds["timesteps"] = np.array([net.timesteps])
        outputs = dict(zip(names, session.run(names, feeds), strict=True))
        state = {name: outputs[after] for name, after in following.items()}
    np.testing.assert_array_equal(outputs["readout"], reference.run(net, inputs, reference.Options()).readouts)


def read_nir(net: Network, paths: list[Path]) -> None:
    nir = pytest.importorskip("nir")
    graph = nir.read(str(paths[0]))
    assert len(graph.nodes) >= len(net.neurons) + len(net.synapses)
    imported = nir_read.read(paths[0])
    assert imported.exact or net.input.bits == 0  # floats have no integers to restore
    inputs = raw_inputs(net, SAMPLES)
    before, after = (reference.run(n, inputs, reference.Options()) for n in (net, imported.network))
    np.testing.assert_array_equal(before.readouts, after.readouts)
    assert same(net, imported.network) or list(before.spikes_per_neuron) == list(after.spikes_per_neuron)


def describe(net: Network, paths: list[Path]) -> None:
    """Lava loads what is exported whenever its target runs, above; here the file must say what it holds."""
    if paths[0].is_file() and paths[0].suffix == ".net":
        kinds = [layer["kind"] for layer in describe_file(paths[0])["nodes"]]
        assert len(kinds) >= len(net.synapses) + 1
    assert all(path.exists() for path in paths)


OWN_TOOLS: dict[str, Callable[[Network, list[Path]], None]] = {"onnx": run_onnx, "nir": read_nir, "lava": describe}


def test_every_exporter_has_its_own_tool_here() -> None:
    assert set(OWN_TOOLS) == set(plugins.names("exporters"))


@pytest.mark.parametrize(("name", "exporter", "options"), cases("exporters", plugins.names("exporters")))
def test_exports_load_in_their_own_tool(name: str, exporter: str, options: dict[str, str], tmp_path: Path) -> None:
    net = GOLDEN[name]
    source = save(net, tmp_path / "net.safetensors")
    try:
        written = export_all(source, [exporter], tmp_path / "out", [f"{k}={v}" for k, v in options.items()])[exporter]
    except UnsupportedError:
        assert not (tmp_path / "out").exists(), "a refused network leaves nothing"
        raise
    if options.get("groups") != "keep" or all(getattr(node, "groups", 1) == 1 for node in net.nodes):
        OWN_TOOLS[exporter](net, written)


@pytest.mark.parametrize("target", [name for name in TARGETS if name != "lava"])
@settings(max_examples=15)
@given(net=integer_networks() | integer_networks(extreme=True) | networks_with_memory())
def test_targets_on_generated_networks(net: Network, target: str) -> None:
    plugin = plugins.target(target)
    inputs = raw_inputs(net, 3)
    if plugin.check(net, plugin.Options()):
        with pytest.raises(UnsupportedError):
            snnkit.run(net, inputs, target)
        return
    expected = reference.run(net, inputs, reference.Options(record="raster"))
    assert compare(net, expected, snnkit.run(net, inputs, target, record="raster")).identical


@pytest.mark.parametrize("exporter", plugins.names("exporters"))
@settings(max_examples=15)
@given(net=integer_networks() | integer_networks(extreme=True) | networks_with_memory())
def test_exporters_on_generated_networks(net: Network, exporter: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("generated")
    plugin = plugins.exporter(exporter)
    source = save(net, folder / "net.safetensors")
    if plugin.check(net, plugin.Options()):
        with pytest.raises(UnsupportedError):
            export_all(source, [exporter], folder / "out")
        assert not (folder / "out").exists()
        return
    OWN_TOOLS[exporter](net, export_all(source, [exporter], folder / "out")[exporter])
