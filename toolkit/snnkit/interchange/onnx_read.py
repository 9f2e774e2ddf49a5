"""What an ONNX file holds, whoever wrote it: checked in full, but never run."""

import math
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper

from snnkit.errors import NetworkError

MAX_BYTES = 2**31 - 1  # what protobuf can hold
MAX_NODES = 100_000
MAX_SHOWN = 200  # characters of what an input says of itself


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Inputs, outputs, weights, operators and metadata; raises :class:`NetworkError` for a file that is not valid."""
    path = Path(path)
    if not path.is_file():
        raise NetworkError(f"there is no file '{path}'", "check the path")
    if path.stat().st_size > MAX_BYTES:
        raise _damaged(path, "it is larger than 2 GiB, more than ONNX can hold")
    try:
        model = onnx.load(path, load_external_data=False)
        _check(path, model)
        return _describe(model)
    except NetworkError:
        raise
    except MemoryError:
        raise _damaged(path, "it asks for more memory than there is") from None
    except Exception as error:  # protobuf's and the checker's errors share no type
        raise _damaged(path, " ".join(str(error).split())[:300] or type(error).__name__) from None


def _damaged(path: Path, reason: str) -> NetworkError:
    return NetworkError(f"'{path}' is not a valid ONNX model: {reason}", "write the file again")


def _check(path: Path, model: ModelProto) -> None:
    if not model.HasField("graph"):
        raise _damaged(path, "it holds no graph")
    graphs = list(_graphs(model.graph, 0))
    if sum(len(graph.node) for graph in graphs) > MAX_NODES:
        raise _damaged(path, f"it holds more than {MAX_NODES} nodes")
    for tensor in _tensors(graphs):
        if reason := _wrong(path.parent, tensor):
            raise _damaged(path, f"tensor '{tensor.name}' {reason}")
    # the path where weights lie in files beside, whose places have been checked
    external = any(tensor.data_location == TensorProto.EXTERNAL for tensor in _tensors(graphs))
    onnx.checker.check_model(path if external else model, full_check=True)


def _graphs(graph: GraphProto, depth: int) -> Iterator[GraphProto]:
    if depth > 8:
        raise ValueError("its loops are nested more than 8 deep")
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(body, depth + 1)


def _tensors(graphs: list[GraphProto]) -> Iterator[TensorProto]:
    for graph in graphs:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                yield from (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors)


def _wrong(folder: Path, tensor: TensorProto) -> str | None:
    """Why the data of a tensor cannot be what its shape says."""
    if any(size < 0 for size in tensor.dims):
        return "has a negative size"
    items = math.prod(tensor.dims)
    if tensor.data_type == TensorProto.STRING:
        return None if len(tensor.string_data) == items else "does not hold one text an element"
    size = items * _bits(tensor.data_type) // 8
    if tensor.data_location != TensorProto.EXTERNAL:
        return (
            f"holds {len(tensor.raw_data)} bytes, not {size}"
            if tensor.raw_data and len(tensor.raw_data) != size
            else None
        )
    place = {entry.key: entry.value for entry in tensor.external_data}
    location = place.get("location", "")
    file = (folder / location).resolve()
    if not location or Path(location).is_absolute() or not file.is_relative_to(folder.resolve()):
        return f"keeps its data outside the folder, in '{location}'"
    if not file.is_file():
        return f"keeps its data in '{location}', which is missing"
    offset, length = int(place.get("offset", 0)), int(place.get("length", size))
    if offset < 0 or length != size or offset + length > file.stat().st_size:
        return f"does not fit into '{location}'"
    return None


def _bits(data_type: int) -> int:
    small = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
    name = TensorProto.DataType.Name(data_type)
    return small.get(name) or 8 * int(helper.tensor_dtype_to_np_dtype(data_type).itemsize)


def _describe(model: ModelProto) -> dict[str, Any]:
    properties = {_text(entry.key): _text(entry.value) for entry in model.metadata_props}
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    rows = [
        _row(value.name, "input", _dims(value), " ".join(_text(value.doc_string).split())[:MAX_SHOWN])
        for value in graph.input
        if value.name not in constants
    ]
    for tensor in graph.initializer:
        if len(tensor.dims) > 1:
            shape = "x".join(map(str, tensor.dims))
            rows.append(_row(tensor.name, "weights", shape, TensorProto.DataType.Name(tensor.data_type).lower()))
    operators = Counter(node.op_type for body in _graphs(graph, 0) for node in body.node)
    rows += [_row(operator, "operator", "", f"{count} of them") for operator, count in sorted(operators.items())]
    rows += [_row(value.name, "output", _dims(value)) for value in graph.output]
    return {
        "kind": f"{properties.get('form', 'foreign')} ONNX",
        "timesteps": properties.get("timesteps", "unknown"),
        "nodes": rows,
        "metadata": {
            "opset": max((entry.version for entry in model.opset_import), default=0),
            "producer": f"{_text(model.producer_name)} {_text(model.producer_version)}".strip(),
            **properties,
        },
    }


def _text(value: Any) -> str:
    """A text of a protobuf message, which gives bytes where it is damaged."""
    if not isinstance(value, str):
        raise ValueError("a text in it is not UTF-8")  # noqa: TRY004 - of the file, not of a caller
    return value


def _row(node: str, kind: str, output: str, parameters: str = "") -> dict[str, str]:
    return {"node": _text(node), "kind": kind, "reads": "", "output": output, "parameters": parameters}


def _dims(value: ValueInfoProto) -> str:
    kind = value.type.tensor_type
    sizes = [dim.dim_param or (str(dim.dim_value) if dim.HasField("dim_value") else "?") for dim in kind.shape.dim]
    return f"{'x'.join(sizes)} {TensorProto.DataType.Name(kind.elem_type).lower()}"
