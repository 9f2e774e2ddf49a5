"""One file for a network: safetensors, with the graph as JSON in the header. Never pickle.

Encoding and decoding are derived from ``dataclasses.fields``, so that a new field cannot be forgotten.
"""

import dataclasses
import json
import os
import typing
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as encode_tensors

from snnkit.errors import NetworkError
from snnkit.files import write_atomically
from snnkit.network import ir

HEADER = "snnkit.network"
_KINDS: dict[str, type[ir.Node]] = {
    kind.__name__: kind
    for kind in (ir.Input, ir.Conv2d, ir.Affine, ir.BatchNorm2d, ir.AvgPool2d, ir.Flatten, ir.LIF, ir.Readout)
}


def save(net: ir.Network, path: str | os.PathLike[str]) -> Path:
    """Verifies the network and writes it to ``path``, in one move; returns the path."""
    header, arrays = encode(net)
    return write_atomically(path, encode_tensors(arrays, metadata={HEADER: header}))


def encode(net: ir.Network) -> tuple[str, dict[str, ir.Array]]:
    """The verified network as JSON and its arrays, named ``node.field``."""
    ir.verify(net)
    arrays: dict[str, ir.Array] = {}
    nodes = []
    for node in net.nodes:
        record: dict[str, Any] = {"kind": type(node).__name__}
        for spec in dataclasses.fields(node):
            value = getattr(node, spec.name)
            if isinstance(value, np.ndarray):
                arrays[f"{node.name}.{spec.name}"] = value
            elif spec.name == "inputs":
                record["inputs"] = [[edge.source, edge.delay] for edge in value]
            else:
                record[spec.name] = value
        nodes.append(record)
    graph = {
        "format_version": net.format_version,
        "timesteps": net.timesteps,
        "stem": net.stem,
        "metadata": net.metadata,
        "nodes": nodes,
    }
    return json.dumps(graph, sort_keys=True, allow_nan=False), arrays


def load(path: str | os.PathLike[str]) -> ir.Network:
    """Reads and verifies a network file; raises :class:`NetworkError` on a damaged, foreign or newer one."""
    path = Path(path)
    if not path.is_file():
        raise NetworkError(f"there is no network file '{path}'", "check the path; 'snnkit quantize RUN' writes one")
    try:
        with safe_open(path, framework="numpy") as file:
            header = (file.metadata() or {}).get(HEADER)
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise NetworkError(
            f"'{path}' is not a readable network file ({error})", "it may be truncated; write it again"
        ) from None
    if header is None:
        raise NetworkError(
            f"'{path}' is a safetensors file, but holds no snnkit network", "give a file written by 'snnkit quantize'"
        )
    return decode(header, arrays, path)


def decode(header: str, arrays: dict[str, ir.Array], path: Path) -> ir.Network:
    """The verified network that :func:`encode` took apart; ``path`` is named in errors."""
    try:
        graph = json.loads(header)
        # escapes can spell half characters, which nothing can print; nor is NaN, which Python reads, JSON
        json.dumps(graph, ensure_ascii=False, allow_nan=False).encode()
        net = _decode(graph, dict(arrays), path)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise NetworkError(f"'{path}' has a damaged header ({error})", "write the file again") from None
    ir.verify(net)
    return net


def _decode(graph: dict[str, Any], arrays: dict[str, ir.Array], path: Path) -> ir.Network:
    version = graph["format_version"]
    if not isinstance(version, int):
        raise TypeError("format_version is not a number")
    if version > ir.FORMAT_VERSION:
        raise NetworkError(
            f"'{path}' has format version {version}; this snnkit reads up to {ir.FORMAT_VERSION}",
            "update snnkit, or write the file with this version",
        )
    nodes = tuple(_decode_node(dict(record), arrays) for record in graph["nodes"])
    if arrays:
        raise ValueError(f"it holds the unknown array '{next(iter(arrays))}'")
    return ir.Network(
        nodes=nodes,
        timesteps=_checked(graph["timesteps"], int, "timesteps"),
        stem=_checked(graph["stem"], str, "stem"),
        format_version=version,
        metadata=_checked(graph["metadata"], dict, "metadata"),
    )


def _decode_node(record: dict[str, Any], arrays: dict[str, ir.Array]) -> ir.Node:
    kind = _KINDS.get(record.pop("kind"))
    if kind is None:
        raise ValueError("a node is of an unknown kind")
    name = _checked(record["name"], str, "name")
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for spec in dataclasses.fields(kind):
        if (key := f"{name}.{spec.name}") in arrays:
            values[spec.name] = arrays.pop(key)
        elif spec.name == "inputs":
            values["inputs"] = tuple(
                ir.Edge(_checked(source, str, "source"), _checked(delay, int, "delay"))
                for source, delay in record.pop("inputs")
            )
        elif spec.name in record:
            values[spec.name] = _typed(record.pop(spec.name), hints[spec.name], key)
        elif spec.default is dataclasses.MISSING:
            raise ValueError(f"'{key}' is missing")
    if record:
        raise ValueError(f"node '{name}' has the unknown field '{next(iter(record))}'")
    return kind(**values)


def _checked(value: Any, kind: type, name: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{name} is not {kind.__name__}")
    return value


def _typed(value: Any, hint: Any, name: str) -> Any:
    """Checks a JSON value against a field's annotation: int, float, str, Literal, tuple of int, or optional array."""
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list) or not value:
            raise TypeError(f"{name} is not a list of numbers")
        arguments = typing.get_args(hint)
        if Ellipsis not in arguments and len(arguments) != len(value):
            raise ValueError(f"{name} has {len(value)} entries")
        return tuple(_checked(item, int, name) for item in value)
    if typing.get_origin(hint) is typing.Literal:
        if value not in typing.get_args(hint):
            raise ValueError(f"{name} is {value!r}")
        return value
    if hint is float:
        return float(value if isinstance(value, float) else _checked(value, int, name))
    if hint in (int, str):
        return _checked(value, hint, name)
    if value is None and type(None) in typing.get_args(hint):
        return None
    raise TypeError(f"{name} is not of the expected type")
