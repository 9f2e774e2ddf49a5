"""Options of exporters and targets, as a command line or a caller gives them."""

from types import SimpleNamespace
from typing import Annotated, Any, Literal, cast

import pydantic
import pytest

import snnkit
from snnkit import plugins
from snnkit.cli.main import run as snnkit_command
from snnkit.errors import UsageError
from snnkit.network import Network, quantize, save
from tests.networks import raw_inputs
from tests.test_network import float_network


class Options(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    form: Literal["unrolled", "step"] = "unrolled"
    trace: bool = False
    limit: Annotated[float, pydantic.Field(gt=0)] | None = None


@pytest.fixture
def net() -> Network:
    return quantize(float_network())


def test_an_assignment_goes_to_all_targets_or_to_the_named_one() -> None:
    found = plugins.options_of(
        "targets", ["reference", "onnxruntime"], ["chunk=3", "reference.chunk=5"], record="raster"
    )
    assert [(name, o.chunk, o.record) for name, o in cast(dict[str, Any], found).items()] == [
        ("reference", 5, "raster"),
        ("onnxruntime", 3, "raster"),
    ]


@pytest.mark.parametrize(
    ("targets", "assignment", "message", "hint"),
    [
        (["onnxruntime"], "chunk", "'chunk' has no value", "KEY=VALUE"),
        (["onnxruntime"], "chnk=3", "'onnxruntime' has no option 'chnk'", "did you mean 'chunk'"),
        (["onnxruntime"], "chunk=0", "option 'chunk' of 'onnxruntime': input should be greater", "'0'"),
        (["onnxruntime", "reference"], "device=cpu", "'onnxruntime' has no option 'device'", "known are"),
        (["onnxruntime"], "reference.chunk=1", "which is not among the targets", "onnxruntime"),
        (["onnxruntime"], "=3", "has no value", "KEY=VALUE"),
        (["nothing"], "chunk=3", "there is no target 'nothing'", "reference"),
    ],
)
def test_options_that_do_not_fit_are_named(targets: list[str], assignment: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        plugins.options_of("targets", targets, [assignment])
    assert hint in error.value.hint


def test_a_value_may_hold_an_equals_sign() -> None:
    with pytest.raises(UsageError) as error:
        plugins.options_of("targets", ["reference"], ["record=r=1/dt"])
    assert error.value.hint == "it was 'r=1/dt'"


def test_options_are_described_in_one_line() -> None:
    plugin = cast(plugins.Exporter, SimpleNamespace(Options=Options))
    assert plugins.describe_options(plugin) == "form=unrolled|step, trace=true|false, limit=FLOAT"


def test_options_reach_check_and_run(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(plugins.target("reference"), "check", lambda net, options: seen.append(options.chunk) or [])
    snnkit.run(net, raw_inputs(net, 2), "reference", chunk=7)
    assert seen == [7]


def test_the_command_line_takes_options(net: Network, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(save(net, tmp_path / "net.safetensors"))
    assert snnkit_command(["export", path, "-t", "onnx", "-t", "lava", "-O", "onnx.trace=true"]) == 0
    assert b"lif.spikes" in (tmp_path / "net.onnx").read_bytes()
    (tmp_path / "net.onnx").unlink()
    (tmp_path / "net.net").unlink()
    assert snnkit_command(["export", path, "-t", "onnx", "-t", "lava", "--option", "trace=true"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: 'lava' has no option 'trace'",
        "hint: known are: form",
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["net.safetensors"]
    assert snnkit_command(["list", "exporters"]) == 0
    assert "trace=true|false" in capsys.readouterr().out
