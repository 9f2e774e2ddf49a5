"""A dictionary of tensors in several files under a size limit, for machines that move small files only.

The pieces ``NAME-a-00001-of-00003.safetensors`` ... belong to the file ``NAME.safetensors``, which lists them with
their SHA-256. New pieces take the letter that is not in use, so that the old ones stay whole until that list is
replaced, in one move: no interruption mixes two states.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save as encode_tensors
from torch import Tensor

from snnkit.errors import RunFolderError
from snnkit.files import write_atomically

MIB = 2**20
RESERVED = 4096  # bytes of a piece for its own header, and ENTRY more for each tensor
ENTRY = 160


def write(path: Path, tensors: Mapping[str, Tensor], mib: int, in_use: Mapping[str, str]) -> dict[str, str]:
    """Writes pieces of less than ``mib`` MiB beside ``path``; returns their names and SHA-256 in order.

    ``in_use`` are the names in the present list; they are not touched.
    """
    letter = "b" if any(name.startswith(f"{path.stem}-a-") for name in in_use) else "a"
    packed = list(_packed(tensors, mib * MIB - RESERVED))
    written = {}
    for number, piece in enumerate(packed, 1):
        name = f"{path.stem}-{letter}-{number:05d}-of-{len(packed):05d}.safetensors"
        content = encode_tensors(piece)
        write_atomically(path.with_name(name), content)
        written[name] = hashlib.sha256(content).hexdigest()
    return written


def read(path: Path, names: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors of the pieces; a missing or another one is a :class:`RunFolderError`."""
    parts: dict[str, list[Tensor]] = {}
    for name, digest in names.items():
        piece = path.with_name(name)
        if not piece.is_file() or hashlib.sha256(piece.read_bytes()).hexdigest() != digest:
            fault = "belongs to another checkpoint" if piece.is_file() else "is missing"
            raise RunFolderError(f"the piece '{piece}' of '{path}' {fault}", "copy all pieces together, with the list")
        with safe_open(piece, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                parts.setdefault(key, []).append(file.get_tensor(key))
    return {key: torch.cat(flat) if len(flat) > 1 else flat[0] for key, flat in parts.items()}


def remove(path: Path, keep: Mapping[str, str]) -> None:
    """Deletes the pieces of ``path`` that are not in ``keep``."""
    for piece in path.parent.glob(f"{path.stem}-[ab]-*-of-*.safetensors"):
        if piece.name not in keep:
            piece.unlink(missing_ok=True)


def _packed(tensors: Mapping[str, Tensor], limit: int) -> Iterator[dict[str, Tensor]]:
    """Fills one piece after the other with flat tensors; one that does not fit goes on in the next piece."""
    piece: dict[str, Tensor] = {}
    room = limit
    for name, tensor in tensors.items():
        rest = tensor.flatten()
        while True:
            fits = max(0, room - ENTRY - len(name)) // rest.element_size()
            if fits or not rest.numel():
                piece[name], rest = rest[:fits].clone(), rest[fits:]
                room -= ENTRY + len(name) + piece[name].nbytes
            if not rest.numel():
                break
            yield piece
            piece, room = {}, limit
    yield piece
