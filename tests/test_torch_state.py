"""What a caller has switched in torch changes neither what networks compute nor what is trained, and stays switched."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import snnkit
from snnkit.config import load_config
from snnkit.quantization import quantize_run
from snnkit.runs import Run
from snnkit.training.finetune import Finetuning
from snnkit.training.trainer import load_student
from tests.golden import GOLDEN
from tests.networks import raw_inputs

BACKENDS: Any = torch.backends
SMALL = ["teacher.channels=[4, 8]", "student.channels=[4, 6]", "teacher.epochs=1", "train.epochs=2"]
SMALL += ["train.precision=bf16", "train.ema=0.9"]


def switches() -> list[Any]:
    """All that is switched here, as it is now."""
    return [
        *(torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()),
        *(torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), BACKENDS.fp32_precision),
        *(BACKENDS.cuda.matmul.fp32_precision, BACKENDS.cudnn.conv.fp32_precision),
        *(BACKENDS.mkldnn.matmul.fp32_precision, BACKENDS.mkldnn.conv.fp32_precision),
        *(BACKENDS.cudnn.benchmark, BACKENDS.cudnn.deterministic),
    ]


@contextmanager
def put_back(restore: Any, before: Any) -> Iterator[None]:
    try:
        yield
    finally:
        restore(before)


def default_dtype() -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    return put_back(torch.set_default_dtype, before)


def medium_precision() -> Any:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    return put_back(torch.set_float32_matmul_precision, before)


def precision_of(owner: Any, precision: str) -> Any:
    before = owner.fp32_precision
    owner.fp32_precision = precision
    return put_back(lambda value: setattr(owner, "fp32_precision", value), before)


CALLERS = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "another device": lambda: torch.device("meta"),
    "float64": default_dtype,
    "without gradients": torch.no_grad,
    "inference mode": torch.inference_mode,
}
PRECISIONS = {
    "medium": medium_precision,
    "matmul in tf32": lambda: precision_of(BACKENDS.cuda.matmul, "tf32"),
    "convolutions in float32": lambda: precision_of(BACKENDS.cudnn.conv, "ieee"),
    "all in tf32": lambda: precision_of(BACKENDS, "tf32"),
    "bfloat16 on the processor": lambda: precision_of(BACKENDS.mkldnn.conv, "bf16"),
}


@pytest.mark.parametrize("caller", CALLERS | PRECISIONS)
def test_the_reference_computes_the_same(caller: str) -> None:
    for name, net in GOLDEN.items():
        inputs = raw_inputs(net, samples=3)
        plain = snnkit.run(net, inputs, "reference", record="raster")
        with (CALLERS | PRECISIONS)[caller]():
            before = switches()
            trace = snnkit.run(net, inputs, "reference", record="raster")
            assert switches() == before
        np.testing.assert_array_equal(trace.readouts, plain.readouts, name)
        assert all((trace.rasters[node] == plain.rasters[node]).all() for node in plain.rasters), name


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("plain"))


def trained(folder: Path) -> Path:
    snnkit.distill(load_config(None, SMALL), Run(folder))
    quantize_run(folder, finetuning=Finetuning(1, samples=256))
    return folder


@pytest.mark.parametrize("caller", CALLERS)
def test_a_run_trains_and_quantises_the_same(caller: str, plain: Path, tmp_path: Path) -> None:
    with CALLERS[caller]():
        before = switches()
        trained(tmp_path)
        student = load_student(Run(tmp_path))
        assert switches() == before
    for name in ("teacher", "best", "last", "network"):
        assert (tmp_path / f"{name}.safetensors").read_bytes() == (plain / f"{name}.safetensors").read_bytes(), name
    assert {(tensor.dtype, tensor.device.type) for tensor in student.parameters()} == {(torch.float32, "cpu")}
