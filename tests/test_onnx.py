"""The ONNX exporter and the ONNX Runtime target, against the reference and without snnkit."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import assume, given

from snnkit.errors import UnsupportedError
from snnkit.network import LIF, Affine, Conv2d, Edge, Flatten, Input, Network, Readout, quantize
from snnkit_exporters import onnx as exporter
from snnkit_targets import onnxruntime, reference
from tests.networks import integer_networks, raw_inputs
from tests.test_network import float_network, replace


@given(integer_networks() | integer_networks(extreme=True))
def test_every_spike_equals_the_reference(net: Network) -> None:
    assume(not exporter.check(net, exporter.Options()))
    inputs = raw_inputs(net, samples=5)
    expected = reference.run(net, inputs, reference.Options(record="raster"))
    trace = onnxruntime.run(net, inputs, onnxruntime.Options(record="raster", chunk=3, threads=1))
    np.testing.assert_array_equal(trace.readouts, expected.readouts)
    assert trace.readouts.dtype == expected.readouts.dtype == np.int64
    for name, raster in expected.rasters.items():
        np.testing.assert_array_equal(trace.rasters[name], raster)
        np.testing.assert_array_equal(trace.spikes_per_step[name], expected.spikes_per_step[name])
        np.testing.assert_array_equal(trace.spikes_per_neuron[name], expected.spikes_per_neuron[name])


@given(integer_networks())
def test_the_file_runs_without_snnkit_at_any_batch(net: Network) -> None:
    content = exporter.build(net, exporter.Options()).SerializeToString(deterministic=True)
    assert content == exporter.build(net, exporter.Options()).SerializeToString(deterministic=True)
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    shape = model.graph.input[0].type.tensor_type.shape
    assert shape.dim[0 if net.input.encoding == "direct" else 1].dim_param == "batch"
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        inputs = raw_inputs(net, samples=batch)
        (readout,) = session.run(None, {"input": net.input.encode(inputs)})
        np.testing.assert_array_equal(readout, reference.run(net, inputs, reference.Options()).readouts)


def test_metadata_says_how_to_encode_the_input(tmp_path: Path) -> None:
    net = quantize(float_network())
    (path,) = exporter.export(net, tmp_path / "net.onnx", exporter.Options())
    properties = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert properties["timesteps"] == "4"
    assert float(properties["input_scale"]) == net.input.scale
    assert properties["input_bits"] == "4"
    assert properties["classes"] == '["a", "b"]'


def test_a_network_that_cannot_be_written_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="the network is float"):
        exporter.export(float_network(), tmp_path / "net.onnx", exporter.Options())
    wide = Network(
        timesteps=1,
        nodes=(
            Input(name="x", shape=(1000,), bits=8),
            Affine(name="fc", inputs=(Edge("x"),), weight=np.full((2, 1000), 127, np.int8)),
            LIF(
                name="lif", inputs=(Edge("fc"),), v_threshold=np.array(1, np.int32), voltage_decay=np.array(0, np.int32)
            ),
            Affine(name="fc2", inputs=(Edge("lif", 1),), weight=np.ones((2, 2), np.int8)),
            Readout(name="out", inputs=(Edge("fc2"),)),
        ),
    )
    assert ["timesteps late" in reason for reason in exporter.check(wide, exporter.Options())] == [True]
    undelayed = replace(wide, "fc2", inputs=(Edge("lif"),))
    (reason,) = exporter.check(undelayed, exporter.Options())
    assert "'fc' can reach a sum of 32385000" in reason
    with pytest.raises(UnsupportedError, match="32385000"):
        exporter.export(undelayed, tmp_path / "net.onnx", exporter.Options())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("classes", [1, 10])
def test_per_channel_thresholds_and_decays(classes: int) -> None:
    rng = np.random.default_rng(classes)
    net = Network(
        timesteps=6,
        nodes=(
            Input(name="x", shape=(1, 5, 5), bits=4, scale=1 / 15),
            Conv2d(name="conv", inputs=(Edge("x"),), weight=rng.integers(-99, 99, (3, 1, 3, 3)).astype(np.int8)),
            LIF(
                name="lif",
                inputs=(Edge("conv"),),
                v_threshold=np.array([10, 500, 2000], np.int32),
                voltage_decay=np.array([0, 1365, 4096], np.int32),
                current_decay=np.array([4096, 100, 2048], np.int32),
            ),
            Flatten(name="flat", inputs=(Edge("lif"),)),
            Affine(name="fc", inputs=(Edge("flat"),), weight=rng.integers(-99, 99, (classes, 27)).astype(np.int8)),
            Readout(name="out", inputs=(Edge("fc"),)),
        ),
    )
    inputs = raw_inputs(net, samples=4)
    expected = reference.run(net, inputs, reference.Options(record="raster"))
    trace = onnxruntime.run(net, inputs, onnxruntime.Options(record="raster"))
    np.testing.assert_array_equal(trace.rasters["lif"], expected.rasters["lif"])
    np.testing.assert_array_equal(trace.readouts, expected.readouts)
    assert expected.spikes_per_neuron["lif"].sum() > 0
