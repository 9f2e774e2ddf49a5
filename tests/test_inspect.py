"""``snnkit inspect`` of exported files: what it shows, and what it refuses to follow."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from snnkit.cli.main import run as snnkit_command
from snnkit.errors import NetworkError
from snnkit.interchange import nir_file
from snnkit.network import quantize
from snnkit.pipeline import describe_file
from snnkit_exporters import lava, nir
from snnkit_exporters import onnx as exporter
from tests.test_network import float_network


def test_every_exported_file_says_what_it_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = quantize(float_network())
    exporter.export(net, tmp_path / "net.onnx", exporter.Options(form="step"))
    lava.export(net, tmp_path / "net.net", lava.Options())
    nir.export(net, tmp_path / "net.nir", nir.Options())
    found = {}
    for suffix in ("onnx", "net", "nir"):
        assert snnkit_command(["inspect", str(tmp_path / f"net.{suffix}"), "--json"]) == 0
        found[suffix] = json.loads(capsys.readouterr().out)
    assert found["onnx"]["kind"] == "step ONNX"
    assert found["onnx"]["metadata"]["input_bits"] == str(net.input.bits)
    rows = {row["node"]: row for row in found["onnx"]["nodes"]}
    assert rows["lif.v"]["output"] == "batchx3x4x4 float"
    assert rows["conv.weight"]["parameters"] == "float"
    assert rows["Conv"]["parameters"] == "1 of them"
    assert [row["kind"] for row in found["net"]["nodes"]] == ["input", "conv", "flatten", "dense"]
    assert "vThMant" in found["net"]["nodes"][1]["parameters"]
    assert found["net"]["timesteps"] == 4
    assert {"Conv2d", "LIF", "Input", "Output"} <= {row["kind"] for row in found["nir"]["nodes"]}
    rows = {row["node"]: row["parameters"] for row in found["nir"]["nodes"]}
    assert rows["input"] == "shape 1x4x4"
    assert "stride 1x1" in rows["conv"]
    assert "r 3x4x4 of 1, " in rows["lif"]
    said = found["nir"]["metadata"]
    assert (found["nir"]["timesteps"], said["dt"], said["reset"], said["encoding"]) == (4, 1e-4, "zero", "direct")
    assert all(len(str(value)) <= 200 for value in said.values())
    assert snnkit_command(["inspect", str(tmp_path / "net.onnx")]) == 0
    assert "step ONNX network, 4 timesteps" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["unrolled", "step", "scan"])
def test_every_input_of_an_onnx_file_says_what_it_takes(form: Any, tmp_path: Path) -> None:
    net = quantize(float_network(), input_bits=4)
    exporter.export(net, tmp_path / "net.onnx", exporter.Options(form=form))
    said = {row["node"]: row["parameters"] for row in describe_file(tmp_path / "net.onnx")["nodes"]}
    assert said["input"] == "clip(rint(sample / 0.0666667) + 0, 0, 15)"
    if form == "scan":
        assert said["timesteps"] == "[T], how many timesteps to run; the network is made for 4"
    if form == "step":
        assert said["lif.v"] == "zeros at first, then 'lif.v.next' of the timestep before"
        assert said["readout.sum"] == "zeros at first, then 'readout' of the timestep before"


def test_what_a_foreign_file_says_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "w\x1b[31m\x9b2J\u202e[bold]é"
    foreign = model(numpy_helper.from_array(np.zeros((1, 4), np.float32), "w"))
    foreign.graph.initializer[0].name = foreign.graph.node[0].input[1] = name
    foreign.producer_name = name
    (tmp_path / "foreign.onnx").write_bytes(foreign.SerializeToString())
    graph = nir_file.Graph(
        {"input": {"type": "Input", "shape": np.array([1])}, name: {"type": name}}, [("input", name)]
    )
    nir_file.write(graph, tmp_path / "foreign.nir")
    shown = "w\\x1b[31m\\x9b2J\\u202e[bold]é"
    assert snnkit_command(["inspect", str(tmp_path / "foreign.onnx")]) == 0
    assert capsys.readouterr().out.count(shown) == 2
    assert snnkit_command(["import", str(tmp_path / "foreign.nir"), "-o", str(tmp_path / "no")]) == 2
    assert f"node '{shown}' ({shown}) is of an unknown kind" in capsys.readouterr().err


def test_metadata_that_are_not_text_are_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A protobuf message gives them as bytes, which --json could not print."""
    foreign = model(numpy_helper.from_array(np.zeros((1, 4), np.float32), "w"))
    foreign.metadata_props.add(key="known", value="said")
    for text in (b"known", b"said"):
        damaged = foreign.SerializeToString().replace(text, b"\xff" * len(text))
        (tmp_path / "foreign.onnx").write_bytes(damaged)
        assert snnkit_command(["inspect", str(tmp_path / "foreign.onnx"), "--json"]) == 2
        assert "a text in it is not UTF-8" in capsys.readouterr().err


def model(tensor: TensorProto) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [tensor],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def external(**place: object) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (external(location="../secret"), "outside the folder"),
        (external(location="/etc/passwd"), "outside the folder"),
        (external(location="link"), "outside the folder"),
        (external(), "outside the folder"),
        (external(location="absent"), "which is missing"),
        (external(location="weights", length=1600), "does not fit into 'weights'"),
        (external(location="weights", offset=8), "does not fit into 'weights'"),
        (external(location="weights", offset=-4), "does not fit into 'weights'"),
        (TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2**31, 2**31], raw_data=b"1234"), "holds 4 bytes"),
        (TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[-4], raw_data=b"1234"), "negative size"),
    ],
)
def test_weights_are_looked_for_inside_the_folder_only(tmp_path: Path, tensor: TensorProto, message: str) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(16))
    (folder / "weights").write_bytes(bytes(16))
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "net.onnx").write_bytes(model(tensor).SerializeToString())
    with pytest.raises(NetworkError, match=message):
        describe_file(folder / "net.onnx")


def test_foreign_models_and_weights_beside_are_shown(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(16))
    (tmp_path / "beside.onnx").write_bytes(model(external(location="weights")).SerializeToString())
    assert describe_file(tmp_path / "beside.onnx")["kind"] == "foreign ONNX"
    inside = model(numpy_helper.from_array(np.zeros(4, np.float32), "w"))
    (tmp_path / "inside.onnx").write_bytes(inside.SerializeToString())
    assert [row["node"] for row in describe_file(tmp_path / "inside.onnx")["nodes"]] == ["x", "Add", "y"]


@pytest.mark.parametrize("suffix", ["onnx", "net", "nir", "safetensors"])
def test_a_missing_or_foreign_file_is_an_error_in_two_lines(
    tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"net.{suffix}"
    for content in (None, b"", b"GIF89a" * 100):
        if content is not None:
            path.write_bytes(content)
        assert snnkit_command(["inspect", str(path)]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert [line.split(":")[0] for line in lines] == ["error", "hint"]
