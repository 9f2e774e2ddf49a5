"""Random networks of every kind on real Lava against the reference, spike by spike; and a directory run alone."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from snnkit.analysis.compare import compare
from snnkit.network import Network
from snnkit.network.depth import latency, relays
from snnkit_exporters import lava as exporter
from snnkit_targets import lava, reference
from tests.chip_networks import chip_network, traits


def inputs(net: Network, samples: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if net.input.encoding == "direct":
        return rng.random((samples, *net.input.shape), np.float32)
    return rng.integers(0, 2**net.input.bits, (net.timesteps, samples, *net.input.shape)).astype(np.uint8)


def check(seed: int) -> None:
    net = chip_network(seed)
    x = inputs(net, 3, seed)
    expected = reference.run(net, x, reference.Options(record="raster"))
    trace = lava.run(net, x, lava.Options(record="raster", workers=1))
    agreement = compare(net, expected, trace)
    assert agreement.identical, agreement
    assert trace.steps == 3 * net.timesteps + latency(net)
    assert (f"{sum(relays(net).values())} relay neurons added" in trace.notes) == bool(relays(net))
    assert any(0 < rate < 1 for rate in trace.firing_rates().values())


SEEDS = [0, 1, 4, 5, 14, 18, 21, 25, 30, 42]
MANY = range(100, 200)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_networks_equal_the_reference(lava_environment, seed: int) -> None:
    check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", MANY)
def test_many_random_networks_equal_the_reference(lava_environment, seed: int) -> None:
    check(seed)


KINDS = {
    *("convolution", "stride", "different strides", "groups", "dilation", "padding", "dense", "bias"),
    *("identity shortcut", "1x1 shortcut", "relays", "delay", "loop"),
    *("IF", "LIF", "CUBA"),
    *(f"{bits} weight bits" for bits in range(2, 9)),
    *("graded input", "binary input", "direct", "events"),
    *("a stem on the chip", "a stem on the host", "a membrane readout", "a count readout"),
}


def test_these_networks_hold_every_kind() -> None:
    assert {trait for seed in SEEDS for trait in traits(chip_network(seed))} >= KINDS
    many = Counter(trait for seed in MANY for trait in traits(chip_network(seed)))
    assert {kind: many[kind] for kind in KINDS if many[kind] < 10} == {}
    for seeds in (SEEDS, MANY):
        forms = Counter(exporter.suffix(chip_network(seed), exporter.Options()) for seed in seeds)
        assert min(forms[".net"], forms[".lava"]) > 1


PLAIN = """
import runpy, sys
sys.argv = sys.argv[1:]
sys.modules["snnkit"] = None
sys.modules["lava.lib"] = None
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("seed", [0, 30])  # a counting readout; a stem on the host and a membrane readout; loops
def test_a_directory_runs_alone(lava_environment, tmp_path: Path, seed: int) -> None:
    """With lava-nc, without snnkit and lava-dl, from another folder."""
    net = chip_network(seed)
    exporter.export(net, tmp_path / "net.lava", exporter.Options())
    x = inputs(net, 5, seed)
    np.save(tmp_path / "x.npy", x)
    command = [lava_environment.python, "-I", "-W", "ignore", "-c", PLAIN, "net.lava/run.py", "x.npy"]
    answer = subprocess.run(
        [*command, "--save", "out.npz"],
        cwd=tmp_path,
        env=lava.worker_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    expected = reference.run(net, x, reference.Options()).readouts
    printed = [line.split() for line in answer.stdout.splitlines() if line[0].isdigit()]
    assert [list(map(int, row)) for row in printed] == [
        [index, int(readout.argmax()), *readout] for index, readout in enumerate(expected)
    ]
    with np.load(tmp_path / "out.npz") as saved:
        assert (saved["readouts"] == expected).all()
        assert (saved["predictions"] == expected.argmax(axis=1)).all()
    assert f"5 samples in {5 * net.timesteps + latency(net)} steps" in answer.stderr


def test_a_directory_says_what_is_wrong(lava_environment, tmp_path: Path) -> None:
    net = chip_network(6)
    exporter.export(net, tmp_path / "net.lava", exporter.Options())
    np.save(tmp_path / "x.npy", np.zeros((2, 1, 1, 1), np.float32))
    python = [lava_environment.python, "-I", "-W", "ignore"]
    for interpreter, arguments, message in (
        (python, ["x.npy"], "error: the input has shape (2, 1, 1, 1); give"),
        (python, ["y.npy"], "error: cannot read 'y.npy'"),
        (python, ["x.npy", "--save", "no/y.npz"], "error: there is no folder to write 'no/y.npz' to"),
        ([*python, "-S"], ["x.npy"], "error: lava-nc is missing: pip install lava-nc==0.10.0"),  # without packages
        ([sys.executable], ["x.npy"], "error: Lava needs Python 3.10, and this is 3."),
    ):
        answer = subprocess.run(
            [*interpreter, tmp_path / "net.lava" / "run.py", *arguments],
            cwd=tmp_path,
            env=lava.worker_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert answer.returncode == 1
        assert message in answer.stderr
        assert "Traceback" not in answer.stderr
