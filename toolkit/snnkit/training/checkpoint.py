"""Checkpoints: one safetensors file each, JSON in its header, never pickle.

``last.safetensors`` holds all that an exact continuation needs, so that no interruption can part it: weights and
buffers (``model.*``, ``projectors.*``), optimiser state (``optimizer.INDEX.NAME``), random states (``rng.*``) and, in
the header, the position. ``teacher.safetensors`` and ``best.safetensors`` hold the weights of one model.
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

from snnkit.errors import ConfigError, RunFolderError
from snnkit.files import write_atomically

HEADER = "snnkit.checkpoint"
FORMAT_VERSION = 1


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


def write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Writes copies of the tensors and the header, in one move."""
    copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({"format_version": FORMAT_VERSION, **header}, sort_keys=True, allow_nan=False)
    write_atomically(path, encode_tensors(copies, metadata={HEADER: text}))


def read(path: Path) -> Checkpoint:
    """Reads a checkpoint; raises :class:`RunFolderError` on a missing, damaged, foreign or newer one."""
    if not path.is_file():
        raise RunFolderError(f"there is no checkpoint '{path}'", "train first: 'snnkit distill'")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise RunFolderError(f"'{path}' is not a readable checkpoint ({error})", "start over with --force") from None
    if not isinstance(header, dict):
        raise RunFolderError(f"'{path}' was not written by a run of snnkit", "give a run directory")
    if header["format_version"] > FORMAT_VERSION:
        raise RunFolderError(f"'{path}' was written by a newer snnkit", "update snnkit")
    return Checkpoint(tensors, header)


def write_training_state(
    path: Path, modules: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator, header: dict[str, Any]
) -> None:
    """Everything that training goes on from. ``header`` says where it stands."""
    tensors = dict(modules.state_dict())
    state = optimizer.state_dict()
    values: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                values.setdefault(str(index), {})[name] = value
    tensors["rng.order"] = generator.get_state()
    tensors["rng.torch"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    optimizer_header = {"param_groups": state["param_groups"], "values": values}
    write(path, tensors, {**header, "optimizer": optimizer_header})


def restore_training_state(
    checkpoint: Checkpoint, modules: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> None:
    """Puts the modules, the optimiser and all random states where :func:`write_training_state` found them."""
    own = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith(("optimizer.", "rng."))}
    _load(modules, own, "the checkpoint")
    saved = checkpoint.header["optimizer"]
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in saved["values"].items()}
    for key, tensor in checkpoint.state("optimizer").items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})
    generator.set_state(checkpoint.tensors["rng.order"])
    torch.set_rng_state(checkpoint.tensors["rng.torch"])
    if torch.cuda.is_available() and "rng.cuda" in checkpoint.tensors:
        torch.cuda.set_rng_state(checkpoint.tensors["rng.cuda"])


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Loads a state dict from a user's file: safetensors, or a torch file that holds tensors only (no pickled code)."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"there is no weight file '{path}'", "check the path")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                state: Any = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
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
    _load(model, state, f"'{path}'")


def _load(model: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        details = " ".join(str(error).split(":\n\t", 1)[-1].split())
        raise ConfigError(
            f"{what} does not fit the model: {details}", "set the model's size in the configuration as it was trained"
        ) from None
