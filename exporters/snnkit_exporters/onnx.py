"""ONNX: the float or integer network as a graph that needs nothing of this project at run time.

Three forms: ``unrolled`` runs all timesteps in one call; ``step`` runs one timestep, its states being inputs
(zeros at first) and outputs; ``scan`` loops over any number of timesteps (ONNX Runtime before 1.23 aborts on a
convolution whose only reader is a loop's body). The integer arithmetic is the fixed point that
``snnkit_targets.reference`` defines, exactly. The input is what ``Input.encode`` gives, float32.
"""

import json
from pathlib import Path
from typing import Literal

import onnx
import pydantic
from onnx import TensorProto, helper

from snnkit import __version__
from snnkit.errors import UnsupportedError
from snnkit.files import replacing, write_atomically
from snnkit.network import Network
from snnkit_exporters._onnx.forms import FORMS
from snnkit_exporters._onnx.plan import Plan, obstacles

SUFFIX = ".onnx"
OPSET = 18
IR_VERSION = 8
ONE_FILE = 1_500_000_000  # bytes of constants beyond which the weights go into a file beside; protobuf ends at 2**31


class Options(pydantic.BaseModel):
    """``trace`` adds each neuron node's spikes as outputs; ``synapses`` int8 computes with 8-bit weights, exactly."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    form: Literal["unrolled", "step", "scan"] = "unrolled"
    synapses: Literal["float32", "int8"] = "float32"
    trace: bool = False


def check(net: Network, options: Options) -> list[str]:
    """Every reason why ``net`` cannot be written as ONNX; none for a network that can."""
    return obstacles(net, options.synapses)


def export(net: Network, path: Path, options: Options) -> list[Path]:
    """Writes ``path``, and its weights into ``path``.data where they take more than 1.5 GB.

    Raises :class:`UnsupportedError` with all reasons if the network cannot be written.
    """
    model = _build(net, options)
    if _size(model) <= ONE_FILE:
        onnx.checker.check_model(model, full_check=True)
        return [write_atomically(path, model.SerializeToString(deterministic=True))]
    data = path.with_name(f"{path.name}.data")
    with replacing(data) as temporary, temporary.open("wb") as file:
        for tensor in model.graph.initializer:
            if not tensor.name.endswith(".weight"):
                continue
            place = {"location": data.name, "offset": str(file.tell()), "length": str(len(tensor.raw_data))}
            file.write(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in place.items():
                tensor.external_data.add(key=key, value=value)
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(temporary, full_check=True)
    return [path, data]


def build(net: Network, options: Options) -> onnx.ModelProto:
    """The checked model, without writing it."""
    model = _build(net, options)
    onnx.checker.check_model(model, full_check=True)
    return model


def _build(net: Network, options: Options) -> onnx.ModelProto:
    if reasons := check(net, options):
        raise UnsupportedError("the network cannot be exported to ONNX", reasons, "'snnkit inspect' shows the network")
    plan = Plan(net, options.synapses, net.timesteps if options.form == "unrolled" else None)
    graph = FORMS[options.form](plan, trace=options.trace)
    for value in graph.input:
        value.doc_string = _explained(value.name, plan, options)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    model.producer_name, model.producer_version = "snnkit", __version__
    helper.set_model_props(model, _properties(plan, options))
    return model


def _following(plan: Plan, options: Options) -> dict[str, str]:
    """The state inputs of the step form, and the outputs that they take their next values from."""
    if options.form != "step":
        return {}
    return {state.name: state.following for state in plan.states()} | {"readout.sum": "readout"}


def _explained(name: str, plan: Plan, options: Options) -> str:
    """What an input takes."""
    net, entry = plan.net, plan.net.input
    if name == "timesteps":
        return f"[T], how many timesteps to run; the network is made for {net.timesteps}"
    if name != "input":
        return f"zeros at first, then '{_following(plan, options)[name]}' of the timestep before"
    if entry.encoding == "events":
        return "the events of one timestep" if options.form == "step" else "the events of all timesteps"
    if entry.bits == 0:
        return "the samples as they are"
    return f"clip(rint(sample / {entry.scale:.6g}) + {entry.zero_point}, 0, {2**entry.bits - 1})"


def _properties(plan: Plan, options: Options) -> dict[str, str]:
    net, entry = plan.net, plan.net.input
    return {
        "snnkit_version": __version__,
        "form": options.form,
        "arithmetic": "integer" if plan.integer else "float",
        "synapses": options.synapses,
        "timesteps": str(net.timesteps),
        "states": json.dumps(_following(plan, options)),
        "input_encoding": entry.encoding,
        "input_bits": str(entry.bits),
        "input_scale": repr(entry.scale),
        "input_zero_point": str(entry.zero_point),
        "classes": json.dumps(net.metadata.get("classes", [])),
        "dataset": str(net.metadata.get("dataset", "")),
    }


def _size(model: onnx.ModelProto) -> int:
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)
