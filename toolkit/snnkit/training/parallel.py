"""Several processes, one GPU or share of the cores each, as ``torchrun`` starts them; without it, one process.

Rank and size come from torchrun's environment variables. The first process prints and writes; all of them compute
the same epochs on their share of every batch, so that all take the same decisions.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from snnkit.training.models.parts import UncentredNorm2d


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return rank() == 0


def device_name(device: str) -> str:
    """``cuda`` becomes this process's own GPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if size() > 1 and device == "cuda" else device


@contextmanager
def group(device: torch.device) -> Iterator[None]:
    """The processes know each other within this block: NCCL between GPUs, Gloo between CPUs."""
    if size() == 1 or distributed.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def barrier() -> None:
    """Waits until all processes are here."""
    if size() > 1:
        distributed.barrier()


def share(batch: Tensor) -> Tensor:
    """The part of a global batch for this process: every ``size``-th sample."""
    return batch[rank() :: size()]


def total(values: Tensor) -> Tensor:
    """The sum of ``values`` over all processes."""
    if size() > 1:
        distributed.all_reduce(values)
    return values


def agreed(decision: bool, device: torch.device) -> bool:
    """What the first process decides: clocks differ, and all must stop together."""
    if size() == 1:
        return decision
    value = torch.tensor(int(decision), device=device)
    distributed.broadcast(value, 0)
    return bool(value)


def wrap(objective: nn.Module, device: torch.device) -> nn.Module:
    """The module to train: its gradients are averaged over the processes, its batch norms see the whole batch on GPUs.

    Batch norms on CPUs, and those without an offset, see their own share (PyTorch has no other); the first process's
    statistics are kept.
    """
    if size() == 1:
        return objective
    if device.type == "cuda" and not any(isinstance(module, UncentredNorm2d) for module in objective.modules()):
        synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(objective)  # type: ignore[no-untyped-call]
        return DistributedDataParallel(synchronised, device_ids=[device.index])
    return DistributedDataParallel(objective)
