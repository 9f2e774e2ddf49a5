"""Damages valid files, a seed a file, and says what reading them came to.

Run as a program, in a process of its own, because a C library that crashes takes its process along:
``python -m tests.damage FILE FIRST LAST`` prints a line of JSON a seed.
"""

import io
import json
import random
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx

from snnkit.errors import SnnkitError
from snnkit.interchange import nir_read
from snnkit.pipeline import describe_file

MAGIC = {".onnx": 2, ".net": 8, ".nir": 8, ".safetensors": 9}  # bytes by which a reader knows its format
ABSURD = [-1, 0, 1, 2, 2**15, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, -(2**63)]
WRONG = [None, True, "", "x", "../../etc/passwd", "\ud800", [], {}, [[]], [1], 0.5, float("nan"), float("inf"), *ABSURD]


def flipped(data: bytearray, rng: random.Random, first: int) -> bytearray:
    """Bytes changed, cut, repeated, moved, or replaced by absurd numbers, from the position ``first`` on."""
    position = rng.randrange(first, len(data)) if len(data) > first else 0
    match rng.randrange(7):
        case 0:
            del data[position:]
        case 1:
            for _ in range(rng.choice([1, 1, 2, 8, 64])):
                data[rng.randrange(first, len(data))] ^= 1 << rng.randrange(8)
        case 2:
            size = rng.choice([1, 4, 16, 256])
            data[position : position + size] = rng.choice([b"\0", b"\xff", b"\x7f"]) * size
        case 3:
            number = struct.pack(rng.choice(["<q", ">q"]), rng.choice(ABSURD))[: rng.choice([2, 4, 8])]
            data[position : position + len(number)] = number
        case 4:
            del data[position : position + rng.choice([1, 2, 7, 100])]
        case 5:
            data[position:position] = bytes(rng.randrange(256) for _ in range(rng.choice([1, 2, 7, 100])))
        case 6:
            size, other = rng.choice([1, 8, 64]), rng.randrange(first, len(data))
            data[position : position + size] = data[other : other + size]
    return data


def in_json(value: Any, rng: random.Random) -> Any:
    """JSON with something in it replaced, removed or repeated."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        changed = dict(value)
        match rng.randrange(8):
            case 0:
                del changed[key]
            case 1:
                changed[rng.choice(["x", "name", "inputs", key + "x"])] = changed.pop(key)
            case _:
                changed[key] = in_json(value[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.9:
        index, changed_list = rng.randrange(len(value)), list(value)
        match rng.randrange(6):
            case 0:
                del changed_list[index]
            case 1:
                changed_list.insert(index, rng.choice(value))
            case 2:
                rng.shuffle(changed_list)
            case _:
                changed_list[index] = in_json(value[index], rng)
        return changed_list
    return rng.choice(WRONG)


def safetensors(data: bytes, rng: random.Random) -> bytes:
    """The graph or the table of arrays changed in a header that is otherwise right."""
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    if rng.random() < 0.7:
        graph = json.loads(header["__metadata__"]["snnkit.network"])
        header["__metadata__"]["snnkit.network"] = json.dumps(in_json(graph, rng))
    else:
        header = in_json(header, rng)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def protobuf(data: bytes, rng: random.Random) -> bytes:
    """A field somewhere in the model cleared, repeated or set to something absurd."""
    model = onnx.load_from_string(data)
    for _ in range(rng.choice([1, 1, 1, 3])):
        message: Any = model
        while True:
            fields = [field for field, _ in message.ListFields()]
            if not fields:
                break
            field = rng.choice(fields)
            value = getattr(message, field.name)
            repeated = hasattr(value, "append") or hasattr(value, "add")
            if field.message_type and rng.random() < 0.85:
                message = rng.choice(list(value)) if repeated else value
                continue
            _set(message, field, value, repeated, rng)
            break
    return bytes(model.SerializeToString())


def _set(message: Any, field: Any, value: Any, repeated: bool, rng: random.Random) -> None:
    wrong: list[Any] = (
        [b"", b"\xff" * 9] if field.type == field.TYPE_BYTES else [*ABSURD, "", "x", "input", 0.5, float("nan")]
    )
    if rng.random() < 0.3 or (field.message_type and not repeated):
        message.ClearField(field.name)
    elif repeated:
        index = rng.randrange(len(value))
        if field.message_type:
            value.add().CopyFrom(value[index]) if rng.random() < 0.5 else value.pop(index)
        else:
            _try(lambda: value.append(rng.choice(wrong)), lambda: value.pop(index))
    else:
        _try(*(lambda choice=choice: setattr(message, field.name, choice) for choice in rng.sample(wrong, len(wrong))))


def _try(*changes: Callable[[], Any]) -> None:
    """The first change that the type of a field allows."""
    for change in changes:
        try:
            change()
        except (TypeError, ValueError):
            continue
        return


def hdf5(data: bytes, rng: random.Random) -> bytes:
    """A dataset or attribute removed, renamed, or replaced by another type, size or kind of storage."""
    buffer = io.BytesIO(data)
    with h5py.File(buffer, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = rng.choice(names)
        match rng.randrange(8):
            case 0:
                del file[name]
            case 1:
                file.move(name, rng.choice(["x", "layer/99", name + "x"]))
            case 2 if file.attrs:
                file.attrs[rng.choice(sorted(file.attrs))] = rng.choice([-1, 2**62, 0.5, float("nan"), "x", [1, 2]])
            case 3:
                del file[name]
                file[name] = rng.choice(
                    [h5py.SoftLink("/"), h5py.ExternalLink("/etc/passwd", "/"), h5py.SoftLink("/x")]
                )
            case 4:
                del file[name]
                shape = rng.choice([(2**40,), (2**20, 2**20), (0,), (1, 0), (2**31,)])
                file.create_dataset(name, shape, rng.choice(["f4", "i8", "S10"]), chunks=True)
            case 5:
                del file[name]
                file[name] = file["/"]
            case 6:
                del file[name]
                file.create_dataset(name, (2**26,), "u1", compression="gzip", fillvalue=7)
            case _:
                del file[name]
                values = [
                    "x",
                    -1,
                    2**40,
                    float("nan"),
                    np.zeros((3, 0)),
                    np.full((2, 2), np.inf),
                    np.void(b"x"),
                    [["a", "b"]],
                ]
                file[name] = rng.choice(values)
    return buffer.getvalue()


INSIDE = {".onnx": protobuf, ".net": hdf5, ".nir": hdf5, ".safetensors": safetensors}


def damage(valid: bytes, suffix: str, seed: int) -> bytes:
    """The file as ``seed`` damages it: half of the time in its structure, else in its bytes."""
    rng = random.Random(f"{suffix} {seed}")
    if rng.random() < 0.5:
        return INSIDE[suffix](valid, rng)
    return bytes(flipped(bytearray(valid), rng, 0 if rng.random() < 0.2 else MAGIC[suffix]))


def read(path: Path) -> str:
    """``valid``, or the error that a user sees; any other exception passes."""
    try:
        json.dumps(describe_file(path), allow_nan=False)
        if path.suffix == ".nir":
            nir_read.read(path, nir_read.Choices(reset="zero", dt=1e-4, timesteps=2))
    except SnnkitError as error:
        assert str(error) and error.hint
        str(error).encode()
        return f"error: {error}"
    return "valid"


def peak_bytes() -> int:
    """The most memory that this process has held, by the kernel's account."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def main() -> None:
    source, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    valid = source.read_bytes()
    for seed in range(first, last):
        print(json.dumps({"begins": seed}), flush=True)
        content = damage(valid, source.suffix, seed)
        folder = Path(tempfile.mkdtemp())
        path = folder / f"damaged{source.suffix}"
        path.write_bytes(content)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        start = time.process_time()
        try:
            answer = read(path)
        except Exception as error:
            answer = f"untyped {type(error).__name__}: {error}"
        seconds = time.process_time() - start
        written = [file.name for file in folder.iterdir() if file != path] + (
            [] if path.read_bytes() == content else ["changed"]
        )
        shutil.rmtree(folder)
        magic = MAGIC[source.suffix]
        record = {
            "seed": seed,
            "answer": answer,
            "seconds": seconds,
            "peak_bytes": peak_bytes(),
            "written": written,
            "past_magic": content[:magic] == valid[:magic] and content != valid,
        }
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
