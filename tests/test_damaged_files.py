"""Files that nobody vouches for: damaged in thousands of ways, each gives a typed error or something valid."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from snnkit.network import quantize, save
from snnkit_exporters import lava, nir, onnx
from tests.test_network import float_network

ROOT = Path(__file__).parent.parent
SECONDS, BYTES = 2.0, 500e6
SUFFIXES = (".onnx", ".net", ".nir", ".safetensors")


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("valid")
    net = quantize(float_network())
    onnx.export(net, folder / "net.onnx", onnx.Options(form="scan"))
    lava.export(net, folder / "net.net", lava.Options())
    nir.export(net, folder / "net.nir", nir.Options())
    save(net, folder / "net.safetensors")
    return {path.suffix: path for path in folder.iterdir()}


def outcomes(path: Path, first: int, last: int) -> list[dict[str, Any]]:
    """What became of the seeds in a process of its own; a process that dies is named with the seed that killed it."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.damage", path, str(first), str(last)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60 + 5 * (last - first),
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"{lines[-1:]} ended with {done.returncode}: {done.stderr[-2000:]}"
    return [line for line in lines if "seed" in line]


def examine(path: Path, first: int, last: int) -> None:
    records = outcomes(path, first, last)
    assert len(records) == last - first
    bad = [
        record
        for record in records
        if not (record["answer"] == "valid" or record["answer"].startswith("error: "))
        or record["written"]
        or record["seconds"] > SECONDS
        or record["peak_bytes"] > BYTES
    ]
    assert not bad, bad[:5]
    assert sum(record["past_magic"] for record in records) >= 0.3 * len(records)
    assert sum(record["answer"] != "valid" for record in records) >= 0.2 * len(records)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_files(valid: dict[str, Path], suffix: str) -> None:
    examine(valid[suffix], 0, 100)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(100, 2500, 600))
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_ten_thousand_damaged_files(valid: dict[str, Path], suffix: str, first: int) -> None:
    examine(valid[suffix], first, first + 600)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_undamaged_files_are_valid(valid: dict[str, Path], suffix: str) -> None:
    from tests.damage import read

    assert read(valid[suffix]) == "valid"
