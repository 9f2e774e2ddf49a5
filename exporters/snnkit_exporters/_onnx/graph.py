"""A graph under construction: nodes, constants, and values with their element types.

Names are unique because the last part of each is a fixed word (and the timestep): ``NODE.sums.2``.
"""

from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

FLOAT, DOUBLE, BOOL = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.BOOL
UINT8, INT32, INT64 = TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64
Dims = list[int | str]


class Graph:
    """Emits nodes; ``outer`` is the graph around the body of a loop, whose values and constants it may use."""

    def __init__(self, outer: "Graph | None" = None) -> None:
        self.outer = outer
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {} if outer is None else outer.constants
        self.types: dict[str, int] = {} if outer is None else dict(outer.types)

    def emit(self, operator: str, inputs: list[str], name: str, type_: int | None = None, **attributes: Any) -> str:
        """A node with one output called ``name``, of ``type_`` or the type of its first input; once for a name."""
        if name not in self.types:
            self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
            self.types[name] = self.types[inputs[0]] if type_ is None else type_
        return name

    def constant(self, name: str, values: Any, type_: int) -> str:
        """A constant called ``name``; the same name stands for the same values."""
        if name not in self.constants:
            array = np.ascontiguousarray(values, helper.tensor_dtype_to_np_dtype(type_))
            self.constants[name] = numpy_helper.from_array(array.reshape(np.shape(values)), name)
        self.types[name] = type_
        return name

    def cast(self, value: str, type_: int) -> str:
        """The value in another type; floating point becomes an integer by rounding towards zero."""
        if self.types[value] == type_:
            return value
        word = TensorProto.DataType.Name(type_).lower()
        return self.emit("Cast", [value], f"{value}:{word}", type_, to=type_)

    def add(self, values: list[str], name: str) -> str:
        """The sum of values of one type, from left to right."""
        total = values[0]
        for index, value in enumerate(values[1:]):
            total = self.emit("Add", [total, value], name if index == len(values) - 2 else f"{name}:{index}")
        return total

    def zeros(self, shape: str, name: str, type_: int) -> str:
        """A tensor of zeros of a computed shape."""
        value = helper.make_tensor(name, type_, [1], [0])
        return self.emit("ConstantOfShape", [shape], name, type_, value=value)

    def scan(self, inputs: list[str], outputs: list[str], body: GraphProto) -> None:
        """A loop over the first axis of the last input; the others are states."""
        node = helper.make_node("Scan", inputs, outputs, name="timesteps.scan", body=body, num_scan_inputs=1)
        self.nodes.append(node)
        self.types.update(
            {name: value.type.tensor_type.elem_type for name, value in zip(outputs, body.output, strict=True)}
        )

    def declare(self, name: str, type_: int, dims: Dims) -> ValueInfoProto:
        """An input or output of the graph."""
        self.types.setdefault(name, type_)
        return helper.make_tensor_value_info(name, type_, dims)

    def finish(self, name: str, inputs: list[ValueInfoProto], outputs: list[ValueInfoProto]) -> GraphProto:
        """The graph of what the outputs need; constants go with the outermost graph."""
        needed = {output.name for output in outputs}
        kept = []
        for node in reversed(self.nodes):
            if needed & set(node.output):
                kept.append(node)
                needed.update(node.input, *(_captured(attribute.g) for attribute in node.attribute))
        constants = [tensor for key, tensor in self.constants.items() if key in needed and self.outer is None]
        return helper.make_graph(kept[::-1], name, inputs, outputs, constants)


def _captured(body: GraphProto) -> set[str]:
    return {value for node in body.node for value in node.input} | {output.name for output in body.output}
