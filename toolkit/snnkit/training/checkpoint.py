"""Checkpoints: safetensors files, JSON in their headers, never pickle.

``last.safetensors`` holds all that an exact continuation needs, so that no interruption can part it: weights and
buffers (``model.*``, ``projectors.*``), the moving average (``ema.*``), the optimiser's state
(``optimizer.INDEX.NAME``) and, in the header, the position; all randomness follows from the seed and the position.
``teacher.safetensors`` and ``best.safetensors`` hold the weights of one model.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as encode_tensors
from torch import Tensor, nn

from snnkit.errors import ConfigError, RunFolderError, UsageError
from snnkit.files import write_atomically
from snnkit.training import pieces

HEADER = "snnkit.checkpoint"
FORMAT_VERSION = 2  # 1 kept random states instead of deriving them
SCALE = ".scale"  # after the name of a tensor of 8-bit integers


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: tensors by name, and the header's JSON."""

    tensors: dict[str, Tensor]
    header: dict[str, Any]

    def state(self, prefix: str) -> dict[str, Tensor]:
        """The tensors called ``prefix.NAME``, by NAME."""
        return {
            name.removeprefix(f"{prefix}."): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(f"{prefix}.")
        }


@dataclass(frozen=True)
class Storage:
    """How a run's checkpoints are stored.

    ``shard_mb``: in pieces of less than so many MiB. ``every``: after so many epochs, and wherever a run stops.
    ``compact``: weights and moving averages in float16, momentum in 8 bits, other state of the optimiser in bfloat16,
    so that a resumed run comes close to the uninterrupted one, but does not equal it. With SGD that is 3 bytes for
    each parameter, and 2 for its moving average, instead of 8 and 4.
    """

    shard_mb: int | None = None
    compact: bool = False
    every: int = 1

    def __post_init__(self) -> None:
        if self.shard_mb is not None and self.shard_mb < 1:
            raise UsageError(f"pieces of {self.shard_mb} MiB cannot be written", "give 1 or more")
        if self.every < 1:
            raise UsageError(f"checkpoints cannot be written every {self.every} epochs", "give 1 or more")


def write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any], shard_mb: int | None = None) -> None:
    """Writes the tensors and the header; whatever interrupts it, ``path`` is the old checkpoint or the new one."""
    copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    content = {"format_version": FORMAT_VERSION, **header}
    listed: dict[str, str] = {}
    if shard_mb:
        listed = pieces.write(path, copies, shard_mb, read_header(path).get("pieces", {}) if path.is_file() else {})
        content |= {"pieces": listed, "shapes": {name: list(tensor.shape) for name, tensor in copies.items()}}
        copies = {}
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    write_atomically(path, encode_tensors(copies, metadata={HEADER: text}))
    pieces.remove(path, listed)


def read_header(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "null"))
    except (SafetensorError, OSError, ValueError) as error:
        raise RunFolderError(f"'{path}' is not a readable checkpoint ({error})", "start over with --force") from None
    if not isinstance(header, dict):
        raise RunFolderError(f"'{path}' was not written by a run of snnkit", "give a run directory")
    if header["format_version"] > FORMAT_VERSION:
        raise RunFolderError(f"'{path}' was written by a newer snnkit", "update snnkit")
    return header


def read(path: Path) -> Checkpoint:
    """Reads a checkpoint; raises :class:`RunFolderError` on a missing, damaged, foreign or newer one."""
    if not path.is_file():
        raise RunFolderError(f"there is no checkpoint '{path}'", "train first: 'snnkit distill'")
    header = read_header(path)
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if listed := header.pop("pieces", None):
        shapes = header.pop("shapes")
        tensors = {name: flat.view(shapes[name]) for name, flat in pieces.read(path, listed).items()}
    return Checkpoint(tensors, header)


def write_training_state(
    path: Path,
    objective: nn.Module,
    average: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    header: dict[str, Any],
    storage: Storage,
) -> None:
    """Everything that training goes on from. ``header`` says where it stands."""
    tensors = dict(objective.state_dict())
    if average is not None:
        tensors |= {f"ema.{name}": tensor for name, tensor in average.state_dict().items()}
    if storage.compact:
        tensors = {name: _halved(tensor) for name, tensor in tensors.items()}
    for index, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors |= _stored(f"optimizer.{index}.{name}", value, storage)
    write(path, tensors, {**header, "exact": not storage.compact}, storage.shard_mb)


def write_weights(path: Path, model: nn.Module, header: Mapping[str, Any], storage: Storage) -> None:
    """The weights of one model."""
    state = model.state_dict()
    tensors = {name: _halved(tensor) for name, tensor in state.items()} if storage.compact else state
    write(path, tensors, header, storage.shard_mb)


def _halved(tensor: Tensor) -> Tensor:
    """In float16 where that gains something, or in bfloat16 where its range does not suffice."""
    if not tensor.is_floating_point() or tensor.dim() < 2:
        return tensor
    half = tensor.half()
    return half if half.isfinite().all() else tensor.bfloat16()


def _stored(name: str, value: Tensor, storage: Storage) -> dict[str, Tensor]:
    """An optimiser's tensor as it is written. Momentum is forgotten in some ten steps: 8 bits and a scale a row do."""
    if not storage.compact or not value.is_floating_point() or value.dim() < 2:
        return {name: value}
    if not name.endswith("momentum_buffer"):
        return {name: value.bfloat16()}
    scale = (value.flatten(1).abs().amax(1).float() / 127).clamp(min=torch.finfo(torch.float32).tiny)
    integers = (value / scale.view(-1, *[1] * (value.dim() - 1))).round().to(torch.int8)
    return {name: integers, name + SCALE: scale}


def _restored(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """What :func:`_stored` made of it, as floats."""
    value, scale = tensors[name], tensors.get(name + SCALE)
    return value if scale is None else value.float() * scale.view(-1, *[1] * (value.dim() - 1))


def restore_training_state(
    checkpoint: Checkpoint, objective: nn.Module, average: nn.Module | None, optimizer: torch.optim.Optimizer
) -> None:
    """Puts the modules and the optimiser where :func:`write_training_state` found them."""
    if checkpoint.header["format_version"] < FORMAT_VERSION:
        raise RunFolderError("the run was started with an older snnkit", "start over with --force")
    own = {name: value for name, value in checkpoint.tensors.items() if not name.startswith(("optimizer.", "ema."))}
    _load(objective, own, "the checkpoint")
    if average is not None:
        _load(average, checkpoint.state("ema"), "the checkpoint")
    state: dict[int, dict[str, Any]] = {}
    stored = checkpoint.state("optimizer")
    for key in stored:
        if not key.endswith(SCALE):
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = _restored(key, stored)
    groups = optimizer.state_dict()["param_groups"]  # they follow from the configuration and the position
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for parameter, entries in optimizer.state.items():
        for name, value in entries.items():
            if value.shape == parameter.shape:  # in the memory layout of the weights, as it was
                entries[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Loads a state dict from a user's file, as :func:`read_weights` does."""
    _load(model, read_weights(path), f"'{path}'")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """A state dict: safetensors, or a torch file that holds tensors only (no pickled code)."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"there is no weight file '{path}'", "check the path")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                ours = HEADER in (file.metadata() or {})
                state: Any = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            if ours:  # it may be in pieces
                state = read(path).tensors
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the file provokes
        first_line = str(error).strip().split("\n")[0]
        raise ConfigError(
            f"'{path}' cannot be read as weights: {first_line}",
            "give a safetensors file, or torch.save(model.state_dict(), path)",
        ) from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigError(f"'{path}' holds no state dict", "write it with torch.save(model.state_dict(), path)")
    return state


def _load(model: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        details = " ".join(str(error).split(":\n\t", 1)[-1].split())
        raise ConfigError(
            f"{what} does not fit the model: {details}", "set the model's size in the configuration as it was trained"
        ) from None
