"""The parameters of NIR's records, which nobody has checked, as what nodes are made of."""

from typing import Any

import numpy as np

from snnkit.interchange.nir_file import Record
from snnkit.network.ir import Array, Pair, Shape

MAX_VALUES = 2**24  # of one node's output or one weight
CLOSE = 1e-6  # two float32 numbers that are meant to be equal


class NotTakenError(Exception):
    """Why one node cannot be taken."""


def numbers(record: Record, key: str) -> Array:
    """A parameter as finite float64."""
    if key not in record:
        raise NotTakenError(f"has no {key}")
    value = record[key]
    if not isinstance(value, np.ndarray) or not value.size:
        raise NotTakenError(f"has a {key} that is not numbers")
    array: Array = value.astype(np.float64)
    if not np.isfinite(array).all():
        raise NotTakenError(f"has a {key} that is not finite")
    return array


def weights(record: Record) -> Array:
    weight = numbers(record, "weight")
    if weight.ndim < 2 or weight.size > MAX_VALUES or np.abs(weight).max() > np.finfo(np.float32).max:
        raise NotTakenError(f"has weights of shape {weight.shape} that are not possible")
    return weight.astype(np.float32)


def whole_numbers(record: Record, key: str) -> tuple[int, ...]:
    values = numbers(record, key)
    if values.ndim > 1 or values.size > 8 or (values != np.rint(values)).any() or np.abs(values).max() > 2**31:
        raise NotTakenError(f"has a {key} that is not a few whole numbers")
    return tuple(int(value) for value in values.flat)


def pair(record: Record, key: str, *, flat: bool, fill: int) -> Pair:
    """(y, x) of a parameter of one or two numbers; of a Conv1d, the one is x."""
    values = whole_numbers(record, key)
    if len(values) > (1 if flat else 2):
        raise NotTakenError(f"has a {key} of {len(values)} numbers")
    return (fill, values[0]) if flat else (values[0], values[-1])


def padding(record: Record, kernel: Shape, stride: Pair, dilation: Pair, *, flat: bool) -> Pair:
    said = record.get("padding")
    if not isinstance(said, str):
        return pair(record, "padding", flat=flat, fill=0)
    spans = [gap * (size - 1) for gap, size in zip(dilation, kernel, strict=True)]
    if said == "valid":
        return 0, 0
    if said != "same" or stride != (1, 1) or any(span % 2 for span in spans):
        raise NotTakenError(f"has padding '{said}', which pads one side more; give numbers")
    return spans[0] // 2, spans[1] // 2


def as_image(shape: Shape) -> Shape:
    """A sequence (C, L) is an image of one row."""
    return (shape[0], 1, shape[1]) if len(shape) == 2 else shape


def per_channel(record: Record, key: str, shape: Shape) -> Array:
    """A parameter of a node of ``shape`` as float64: a scalar, or one a channel [C] where they differ."""
    array = numbers(record, key)
    if array.size == 1:
        return array.reshape(())
    if array.shape not in (shape, (shape[0], *[1] * (len(shape) - 1)), (shape[0], *shape[2:])):
        raise NotTakenError(f"has a {key} of shape {array.shape} for an input of {shape}")
    rows = array.reshape(shape[0], -1)
    if (rows != rows[:, :1]).any():
        raise NotTakenError(f"has a {key} that differs within a channel")
    return rows[0, 0].reshape(()) if (rows == rows[0, 0]).all() else rows[:, 0]


def given_axes(record: Record) -> int:
    """How many axes a Flatten says that its input has."""
    return len(whole_numbers(record, "input_type")) if isinstance(record.get("input_type"), np.ndarray) else 0


def all_close(values: Any, expected: Any, *, absolute: float = 0.0) -> bool:
    return bool(np.allclose(values, expected, rtol=0 if absolute else CLOSE, atol=absolute))


def one_if_close(gain: Array) -> Array:
    return np.ones(()) if all_close(gain, 1.0) else np.asarray(gain)
