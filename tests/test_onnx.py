"""The ONNX exporter and the ONNX Runtime target, against the reference, against torch, and without snnkit."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import assume, given, settings

from snnkit.analysis.compare import compare
from snnkit.errors import UnsupportedError
from snnkit.network import LIF, Affine, Conv2d, Edge, Flatten, Input, Network, Readout, quantize
from snnkit_exporters import onnx as exporter
from snnkit_targets import onnxruntime, reference
from tests.networks import integer_networks, networks_with_memory, raw_inputs
from tests.test_network import float_network, replace

FORMS = ("unrolled", "step", "scan")
SYNAPSES = ("float32", "int8")
all_forms = pytest.mark.parametrize(("form", "synapses"), [(f, s) for f in FORMS for s in SYNAPSES])


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_without_snnkit(
    runner: ort.InferenceSession, net: Network, encoded: np.ndarray, timesteps: int | None = None
) -> np.ndarray:
    """What a user of the file writes, from its metadata alone."""
    how = runner.get_modelmeta().custom_metadata_map
    if how["form"] != "step":
        dynamic = "timesteps" in {i.name for i in runner.get_inputs()}
        extra = {"timesteps": np.array([timesteps or int(how["timesteps"])])} if dynamic else {}
        return runner.run(["readout"], {"input": encoded, **extra})[0]
    events = how["input_encoding"] == "events"
    numpy_type = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(uint8)": np.uint8}
    following = json.loads(how["states"])
    batch = encoded.shape[1 if events else 0]
    state = {
        i.name: np.zeros((batch, *i.shape[1:]), numpy_type[i.type]) for i in runner.get_inputs() if i.name in following
    }
    for t in range(timesteps or int(how["timesteps"])):
        found = runner.run(None, {"input": encoded[t] if events else encoded, **state})
        outputs = {o.name: value for o, value in zip(runner.get_outputs(), found, strict=True)}
        state = {name: outputs[next_] for name, next_ in following.items()}
    return outputs["readout"]


@all_forms
@settings(max_examples=25)
@given(net=integer_networks() | integer_networks(extreme=True) | networks_with_memory())
def test_every_spike_equals_the_reference(net: Network, form: Any, synapses: Any) -> None:
    options = onnxruntime.Options(record="raster", chunk=3, threads=1, form=form, synapses=synapses)
    assume(not onnxruntime.check(net, options))
    inputs = raw_inputs(net, samples=5)
    expected = reference.run(net, inputs, reference.Options(record="raster"))
    trace = onnxruntime.run(net, inputs, options)
    assert trace.readouts.dtype == expected.readouts.dtype == np.int64
    assert compare(net, expected, trace).identical
    for name, per_step in expected.spikes_per_step.items():
        np.testing.assert_array_equal(trace.spikes_per_step[name], per_step)
        np.testing.assert_array_equal(trace.spikes_per_neuron[name], expected.spikes_per_neuron[name])


@all_forms
@settings(max_examples=10)
@given(net=integer_networks() | networks_with_memory())
def test_the_file_runs_without_snnkit_at_any_batch(net: Network, form: Any, synapses: Any) -> None:
    options = exporter.Options(form=form, synapses=synapses)
    model = exporter.build(net, options)
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    runner = session(model)
    expected = {b: reference.run(net, raw_inputs(net, b), reference.Options()).readouts for b in (1, 3, 64)}
    for batch in (1, 3, 64, 1):  # the same session, so that nothing may be kept from call to call
        encoded = net.input.encode(raw_inputs(net, batch))
        np.testing.assert_array_equal(run_without_snnkit(runner, net, encoded), expected[batch])
    # nothing that was run changes what is written
    assert exporter.build(net, options).SerializeToString(deterministic=True) == model.SerializeToString(
        deterministic=True
    )


@all_forms
@given(net=networks_with_memory())
@settings(max_examples=5)
def test_no_dimension_of_the_batch_is_frozen(net: Network, form: Any, synapses: Any) -> None:
    model = exporter.build(net, exporter.Options(form=form, synapses=synapses, trace=True))
    time_first = {"readout": 0} | {f"{n.name}.spikes": 0 if form == "step" else 1 for n in net.neurons}
    time_first["input"] = 1 if net.input.encoding == "events" and form != "step" else 0
    for value in (*model.graph.input, *model.graph.output):
        if value.name != "timesteps":
            dims = value.type.tensor_type.shape.dim
            assert dims[time_first.get(value.name, 0)].dim_param == "batch", value.name
    rasters = {n.name: session(model).get_outputs() for n in net.neurons}
    assert rasters
    if form == "scan":
        steps = [v for v in model.graph.output if v.name.endswith(".spikes")]
        assert all(v.type.tensor_type.shape.dim[0].dim_param == "timesteps" for v in steps)


@pytest.mark.parametrize("form", ["step", "scan"])
@settings(max_examples=15)
@given(net=integer_networks() | networks_with_memory())
def test_more_timesteps_than_the_network_was_trained_for(net: Network, form: Any) -> None:
    longer = dataclasses.replace(net, timesteps=net.timesteps + 20)
    inputs = raw_inputs(longer, samples=2)
    expected = reference.run(longer, inputs, reference.Options()).readouts
    runner = session(exporter.build(net, exporter.Options(form=form)))
    steps = longer.timesteps if net.input.encoding == "direct" or form == "step" else None
    np.testing.assert_array_equal(run_without_snnkit(runner, net, net.input.encode(inputs), steps), expected)


def test_metadata_says_how_to_use_the_file(tmp_path: Path) -> None:
    net = quantize(float_network())
    options = exporter.Options(form="step", synapses="int8")
    (path,) = exporter.export(net, tmp_path / "net.onnx", options)
    model = onnx.load(path)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert float(properties.pop("input_scale")) == net.input.scale
    assert json.loads(properties.pop("states")) == {
        "readout.sum": "readout",
        "lif.v": "lif.v.next",
    }
    assert properties.pop("snnkit_version") == model.producer_version
    assert properties == {
        "form": "step",
        "arithmetic": "integer",
        "synapses": "int8",
        "timesteps": "4",
        "input_encoding": "direct",
        "input_bits": str(net.input.bits),
        "input_zero_point": "0",
        "classes": '["a", "b"]',
        "dataset": "digits",
    }
    assert model.opset_import[0].version >= 17
    weights = {t.name: t.data_type for t in model.graph.initializer if t.name.endswith(".weight")}
    assert set(weights.values()) == {onnx.TensorProto.UINT8}


def test_a_network_that_cannot_be_written_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="8-bit synapses need the integer network"):
        exporter.export(float_network(), tmp_path / "net.onnx", exporter.Options(synapses="int8"))
    wide = Network(
        timesteps=1,
        nodes=(
            Input(name="x", shape=(1000,), bits=8),
            Affine(name="fc", inputs=(Edge("x"),), weight=np.full((2, 1000), 127, np.int8)),
            LIF(
                name="lif", inputs=(Edge("fc"),), v_threshold=np.array(1, np.int32), voltage_decay=np.array(0, np.int32)
            ),
            Affine(name="fc2", inputs=(Edge("lif"),), weight=np.ones((2, 2), np.int8)),
            Readout(name="out", inputs=(Edge("fc2"),)),
        ),
    )
    (reason,) = exporter.check(wide, exporter.Options())
    assert "'fc' can reach a sum of 32385000" in reason
    with pytest.raises(UnsupportedError, match="32385000"):
        exporter.export(wide, tmp_path / "net.onnx", exporter.Options())
    assert not list(tmp_path.iterdir())
    # 8-bit synapses sum in 32 bits, where it fits
    options = onnxruntime.Options(record="raster", synapses="int8")
    inputs = np.random.default_rng(0).random((9, 1000), dtype=np.float32)
    assert compare(
        wide, reference.run(wide, inputs, reference.Options(record="raster")), onnxruntime.run(wide, inputs, options)
    ).identical
    summed = replace(wide, "fc2", inputs=(Edge("lif"), Edge("lif")))
    assert not exporter.check(summed, exporter.Options(synapses="int8"))
    twice = replace(wide, "fc", inputs=(Edge("x"), Edge("x")))
    (reason,) = exporter.check(twice, exporter.Options(synapses="int8"))
    assert "'fc' reads sums of up to 510, beyond 8 bits" in reason


def test_weights_above_the_limit_go_into_a_file_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = quantize(float_network())
    inputs = raw_inputs(net, samples=7)
    monkeypatch.setattr(exporter, "ONE_FILE", 100)
    paths = exporter.export(net, tmp_path / "net.onnx", exporter.Options())
    assert [path.name for path in paths] == ["net.onnx", "net.onnx.data"]
    assert sorted(tmp_path.iterdir()) == paths
    stored = onnx.load(paths[0], load_external_data=False).graph.initializer
    assert {t.name for t in stored if not t.raw_data} == {"conv.weight", "fc.weight"}
    (readout,) = ort.InferenceSession(paths[0]).run(None, {"input": net.input.encode(inputs)})
    expected = reference.run(net, inputs, reference.Options()).readouts
    np.testing.assert_array_equal(readout, expected)
    np.testing.assert_array_equal(onnxruntime.run(net, inputs, onnxruntime.Options()).readouts, expected)


@all_forms
@pytest.mark.parametrize("classes", [1, 10])
def test_per_channel_thresholds_and_decays(classes: int, form: Any, synapses: Any) -> None:
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
    options = onnxruntime.Options(record="raster", form=form, synapses=synapses)
    assert compare(net, expected, onnxruntime.run(net, inputs, options)).identical
    assert expected.spikes_per_neuron["lif"].sum() > 0


@pytest.mark.parametrize("decay", [0, 1, 1365, 2048, 3072, 3151, 4095])
@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_decays_round_towards_zero_over_the_whole_range(decay: int, reset: Any) -> None:
    """Membranes driven up and down to the ends of 24 bits, where a product of 36 bits is needed."""
    rng = np.random.default_rng(decay)
    net = Network(
        timesteps=40,
        nodes=(
            Input(name="x", shape=(30,), encoding="events", bits=8),
            Affine(name="fc", inputs=(Edge("x"),), weight=rng.integers(-9, 10, (200, 30)).astype(np.int8)),
            LIF(
                name="lif",
                inputs=(Edge("fc"),),
                v_threshold=np.array(2**16, np.int32),
                voltage_decay=np.array(decay, np.int32),
                reset=reset,
            ),
            Readout(name="out", mode="count", inputs=(Edge("lif"),)),
        ),
    )
    inputs = rng.integers(0, 256, (40, 8, 30)).astype(np.uint8)
    expected = reference.run(net, inputs, reference.Options(record="raster"))
    for form in FORMS:
        trace = onnxruntime.run(net, inputs, onnxruntime.Options(record="raster", form=form))
        assert compare(net, expected, trace).identical
    operators = {node.op_type for node in exporter.build(net, exporter.Options(form="step")).graph.node}
    assert "Div" not in operators, "the range allows float32"
