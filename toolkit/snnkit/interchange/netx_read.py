"""What a .net file of lava-dl's netx holds: its layers, as ``snnkit_exporters.lava`` and lava-dl write them."""

import os
from typing import Any

import h5py
import numpy as np

from snnkit.interchange.hdf5 import Reader

ATTRIBUTES = ("timesteps", "reset_interval", "reset_offset", "input_message_bits")
GEOMETRY = ("stride", "padding", "dilation", "groups")
NEURON = ("type", "vThMant", "vDecay", "iDecay")


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The layers and the attributes that say how to run them; raises ``NetworkError`` for a file that is not valid."""
    reader = _Reader(path, "netx file")
    return reader.read(reader.network)


class _Reader(Reader):
    """Takes the layers from an open file."""

    def network(self, file: Any) -> dict[str, Any]:
        group = self.child(file, "layer")
        layers = self.group(group, depth=1)
        if sorted(layers) != sorted(map(str, range(len(layers)))) or not layers:
            raise self.damaged("its layers are not numbered from 0")
        attributes = {name: self._attribute(file, name) for name in ATTRIBUTES if name in file.attrs}
        return {
            "kind": "netx",
            "timesteps": attributes.get("timesteps", "unknown"),
            "nodes": [self._layer(str(index), layers[str(index)]) for index in range(len(layers))],
            "metadata": attributes,
        }

    def _attribute(self, file: Any, name: str) -> int:
        attribute = h5py.h5a.open(file.id, name.encode())
        if attribute.shape != () or attribute.dtype.kind not in "iu":
            raise self.damaged(f"its attribute '{name}' is not a number")
        return int(file.attrs[name])

    def _layer(self, index: str, layer: Any) -> dict[str, str]:
        kind = self._text(index, layer, "type")
        shape = self._numbers(index, layer, "shape") if "shape" in layer else ""
        parameters = []
        for name in ("weight", "bias", "delay"):
            if isinstance(array := layer.get(name), np.ndarray):
                parameters.append(f"{name} {'x'.join(map(str, array.shape))} {array.dtype}")
        parameters += [f"{name} {self._numbers(index, layer, name)}" for name in GEOMETRY if name in layer]
        neuron = layer.get("neuron")
        if isinstance(neuron, dict):
            parameters.append(self._text(index, neuron, "type"))
            parameters += [f"{name} {self._numbers(index, neuron, name)}" for name in NEURON[1:] if name in neuron]
        before = str(int(index) - 1) if int(index) else ""
        return {"node": index, "kind": kind, "reads": before, "output": shape, "parameters": ", ".join(parameters)}

    def _text(self, index: str, record: Any, name: str) -> str:
        value = record.get(name) if isinstance(record, dict) else None
        text = value[0] if isinstance(value, list) and len(value) == 1 else value
        if not isinstance(text, str):
            raise self.damaged(f"layer {index} has no {name}")
        return text

    def _numbers(self, index: str, record: dict[str, Any], name: str) -> str:
        values = record[name]
        if not isinstance(values, np.ndarray) or values.size > 4:
            raise self.damaged(f"layer {index} has no plain {name}")
        return "x".join(str(value) for value in values.flat)
