"""Lava against a numpy oracle of its fixed-point model, spike by spike; and Lava killed, broken and hanging."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

import snnkit
from snnkit.errors import DataError, UnavailableError, UnsupportedError, WorkerError, WorkerTimeoutError
from snnkit.network import LIF, Affine, Conv2d, Edge, Flatten, Input, Network, Node, Readout, save
from snnkit_exporters import _lava_directory as directory
from snnkit_exporters import _lava_netx as netx
from snnkit_exporters import lava as exporter
from snnkit_targets import lava
from tests.oracle import simulate

RASTER = lava.Options(record="raster")
MARGIN = 5.0  # seconds that an ending may take
LIMIT = 1 << 23


def i32(value) -> np.ndarray:
    return np.array(value, np.int32)


def chain(entry: Input, *layers: Node, timesteps: int) -> Network:
    """A network of nodes one after the other, called 1, 2, ... and closed by a readout."""
    nodes: list[Node] = [entry]
    for layer in (*layers, Readout(name="_")):
        nodes.append(dataclasses.replace(layer, name=str(len(nodes)), inputs=(Edge(nodes[-1].name),)))
    return Network(nodes=tuple(nodes), timesteps=timesteps)


def drawn(rng: np.random.Generator, *shape: int, bias: int = 0) -> dict:
    """Weights and, up to ``bias``, biases of a synapse."""
    values: dict = {"name": "_", "weight": rng.integers(-100, 128, shape).astype(np.int8), "weight_exponent": 1}
    return values | ({"bias": i32(rng.integers(-bias, bias, shape[0]))} if bias else {})


def neurons(v_threshold: int, voltage_decay: int = 0, current_decay: int = 4096) -> LIF:
    return LIF(
        name="_", v_threshold=i32(v_threshold), voltage_decay=i32(voltage_decay), current_decay=i32(current_decay)
    )


def images() -> Network:
    """Graded 4-bit images, IF; padding, stride, groups and dilation that differ in y and x; T = 4."""
    rng = np.random.default_rng(0)
    return chain(
        Input(name="in", shape=(2, 7, 6), bits=4, scale=1 / 15),
        Conv2d(**drawn(rng, 4, 2, 3, 3, bias=900)),
        neurons(3001),
        Conv2d(**drawn(rng, 6, 2, 3, 2), stride=(2, 1), padding=(1, 2), groups=2, dilation=(1, 2)),
        neurons(199),
        Flatten(name="_"),
        Affine(**drawn(rng, 5, 108, bias=90)),
        timesteps=4,
    )


def events() -> Network:
    """Binary events, leaky voltages and filtered currents, a pipeline longer than T = 2, a zero bias."""
    rng = np.random.default_rng(1)
    return chain(
        Input(name="in", shape=(2, 6, 5), encoding="events", bits=1),
        Conv2d(**drawn(rng, 3, 2, 3, 3, bias=90), padding=(1, 1), stride=(2, 2)),
        neurons(201, 300, 2100),
        Flatten(name="_"),
        Affine(**drawn(rng, 20, 27, bias=90)),
        neurons(251, 4096),
        Affine(**drawn(rng, 15, 20) | {"bias": i32(np.zeros(15))}),
        neurons(399, 0, 1000),
        Affine(**drawn(rng, 12, 15)),
        neurons(99, 2048, 4096),
        Affine(**drawn(rng, 4, 12, bias=2000)),
        timesteps=2,
    )


def flat() -> Network:
    """Flattened images of 8 bits, so large that u wraps; T = 1."""
    rng = np.random.default_rng(2)
    return chain(
        Input(name="in", shape=(1, 6, 6), bits=8, scale=1 / 255),
        Flatten(name="_"),
        Affine(**drawn(rng, 30, 36)),
        neurons(60001),
        Affine(**drawn(rng, 3, 30)),
        timesteps=1,
    )


def linear() -> Network:
    """No neurons at all."""
    rng = np.random.default_rng(3)
    return chain(Input(name="in", shape=(6,), bits=3, scale=1 / 7), Affine(**drawn(rng, 3, 6, bias=90)), timesteps=5)


def data(net: Network, samples: int) -> np.ndarray:
    rng = np.random.default_rng(4)
    if net.input.encoding == "events":
        return rng.integers(0, 2, (net.timesteps, samples, *net.input.shape))
    return rng.random((samples, *net.input.shape), np.float32)


def oracle(net: Network, inputs: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Readouts and rasters of all samples, each from a zero state."""
    encoded = net.input.encode(inputs)
    samples = np.moveaxis(encoded, 1, 0) if net.input.encoding == "events" else encoded
    results = [simulate(net, sample) for sample in samples]
    rasters = {neuron.name: np.stack([r[neuron.name] for r, _ in results], axis=1) for neuron in net.neurons}
    return np.stack([readout for _, readout in results]), rasters


def mismatches(net: Network, trace, inputs: np.ndarray) -> int:
    """Spikes and readouts that differ from the oracle's."""
    readouts, rasters = oracle(net, inputs)
    assert trace.rasters.keys() == rasters.keys()
    wrong = int((trace.readouts != readouts).sum())
    return wrong + sum(int((trace.rasters[name] != raster).sum()) for name, raster in rasters.items())


@pytest.mark.parametrize("make", [images, events, flat, linear])
def test_lava_equals_the_oracle(lava_environment, make) -> None:
    net = make()
    inputs = data(net, 6)
    trace = lava.run(net, inputs, RASTER)
    assert mismatches(net, trace, inputs) == 0
    assert all(0.02 < rate < 0.98 for rate in trace.firing_rates().values())
    assert trace.readouts.dtype == np.int64
    assert trace.steps == 6 * net.timesteps + len(net.synapses)
    assert trace.seconds > 0
    assert trace.notes[0] == "Lava 0.10.0 fixed_pt, netx 0.6.0"
    # one weight that is off by one is seen
    node = net.synapses[-1]
    weight = node.weight.copy()
    weight[0] += 1
    changed = dataclasses.replace(
        net, nodes=tuple(dataclasses.replace(n, weight=weight) if n is node else n for n in net.nodes)
    )
    assert mismatches(changed, trace, inputs) > 0


def test_lavas_own_convolution_and_the_matrix_product_give_the_same(lava_environment) -> None:
    net = images()
    inputs = data(net, 3)
    for convolution, note in (("stock", "Lava's own convolution"), ("gemm", "exact matrix products, compared with")):
        trace = lava.run(net, inputs, lava.Options(record="raster", convolution=convolution))
        assert mismatches(net, trace, inputs) == 0
        assert note in trace.notes[1]


WRONG = """
import sys
import lava_run
right = lava_run.gemm
def wrong(input_, *arguments):
    return right(input_, *arguments) + input_.any()
lava_run.gemm = wrong
import lava_netx
lava_netx.main()
"""


def test_a_matrix_product_that_differs_is_an_error(lava_environment, tmp_path: Path, monkeypatch) -> None:
    worker = tmp_path / "wrong.py"
    worker.write_text(f"import sys; sys.path.insert(0, {str(lava.WORKER.parent)!r})\n{WRONG}")
    monkeypatch.setattr(lava, "prepare", lambda: lava_environment)
    monkeypatch.setattr(lava, "WORKER", worker)
    net = images()
    with pytest.raises(WorkerError, match="ArithmeticError: the matrix product differs from Lava's own convolution"):
        lava.run(net, data(net, 1), lava.Options())


def test_samples_shared_by_workers_come_back_in_order(lava_environment) -> None:
    net = images()
    inputs = data(net, 5)
    trace = lava.run(net, inputs, lava.Options(record="raster", workers=2))
    assert mismatches(net, trace, inputs) == 0
    assert trace.steps == 5 * net.timesteps + 2 * len(net.synapses)
    assert "2 workers" in trace.notes


def test_a_sequential_network_runs_as_a_directory_too(lava_environment) -> None:
    net = events()
    inputs = data(net, 3)
    trace = lava.run(net, inputs, lava.Options(record="raster", form="directory"))
    assert mismatches(net, trace, inputs) == 0
    assert trace.notes == ("Lava 0.10.0 fixed_pt, built from lava.proc", lava.CONVOLUTIONS["gemm"])


def test_a_readout_that_leaves_24_bits_is_noted(lava_environment) -> None:
    node = Affine(name="_", weight=np.full((2, 600), 127, np.int8), weight_exponent=1)
    net = chain(Input(name="in", shape=(600,), bits=8, scale=1 / 255), node, timesteps=1)
    trace = lava.run(net, np.stack([np.ones(600), np.eye(600)[0]]).astype(np.float32), lava.Options())
    assert trace.readouts[1].tolist() == [254 * 255] * 2
    assert "the readout of 1 of 2 samples left the 24 bits of Lava's neurons" in trace.notes
    assert trace.rasters is None


NETX = """
import json, sys
sys.path[:0] = sys.argv[1].split(":")
import lava_netx, numpy as np
hdf5 = lava_netx.netx()
from lava.lib.dl.netx.utils import optimize_weight_bits
from lava.utils.weightutils import clip_weights, determine_sign_mode, truncate_weights
net = hdf5.Network(sys.argv[2])
print(json.dumps([[layer.block, list(map(int, layer.shape))] for layer in net.layers]))
for weight in json.load(open(sys.argv[3])):
    try:
        w, bits, exponent, _ = optimize_weight_bits(np.array([weight]))
        mode = determine_sign_mode(w)
        w = truncate_weights(clip_weights(w, mode, num_bits=8), mode, bits)
        exact = exponent <= 0 and (w == np.array([weight]) << -exponent).all()
    except (OverflowError, ValueError):
        exact = False
    print(json.dumps(bool(exact)))
"""


def test_plain_netx_loads_the_file_and_packs_weights_as_the_exporter_says(lava_environment, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    matrices = [[0, 0], [-8, -1], [-8, 0], [-128, 0], [-256, 254], [255, 1], [255, -1], [-300, 2], [1, 600], [-3, -5]]
    for low, high in ((-128, 128), (-8, 8), (0, 128), (-128, 0), (-256, 1), (-130, 256), (0, 300)):
        matrices += rng.integers(low, high, (40, 4)).tolist()
        matrices += (2 * rng.integers(low // 2, high // 2 + 1, (40, 4))).tolist()
    exporter.export(images(), tmp_path / "a.net", exporter.Options())
    (tmp_path / "matrices.json").write_text(json.dumps(matrices))
    folders = f"{lava.WORKER.parent}:{directory.STANDALONE}"
    answer = subprocess.run(
        [lava_environment.python, "-I", "-W", "ignore", "-c", NETX, folders, "a.net", "matrices.json"],
        cwd=tmp_path,
        env=lava.worker_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    layers, *exact = [json.loads(line) for line in answer.stdout.splitlines() if not line.startswith(("[W", " "))]
    assert layers == [["Conv", [4, 5, 4]], ["Conv", [6, 3, 6]], ["Dense", [5]]]  # (W, H, C)
    assert len(exact) == len(matrices)
    for matrix, expected in zip(matrices, exact, strict=True):
        loaded = netx.loaded_weight(np.array([matrix]))
        assert (loaded is not None and loaded.tolist() == [matrix]) == expected, matrix


def test_what_the_exporter_refuses_is_refused() -> None:
    net = images()
    net = dataclasses.replace(
        net, nodes=tuple(dataclasses.replace(n, reset="subtract") if isinstance(n, LIF) else n for n in net.nodes)
    )
    assert lava.check(net, lava.Options()) == exporter.check(net, exporter.Options()) != []
    with pytest.raises(UnsupportedError):
        lava.run(net, data(net, 1), lava.Options())


@pytest.mark.parametrize(
    ("net", "inputs"),
    [
        (images(), np.zeros((1, 2, 6, 7), np.float32)),
        (images(), np.zeros((0, 2, 7, 6), np.float32)),
        (images(), np.full((1, 2, 7, 6), np.nan, np.float32)),
        (events(), np.zeros((3, 1, 2, 6, 5), np.int64)),
        (events(), np.zeros((2, 1, 2, 6, 5), np.float32)),
        (events(), np.full((2, 1, 2, 6, 5), 2)),
    ],
)
def test_input_that_does_not_fit(net: Network, inputs: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"the (input|events)"):
        lava.run(net, inputs, lava.Options())


def segments(pid: int | None = None) -> list[str]:
    """Shared memory of a process's workplaces, this one's without ``pid``."""
    return [entry.name for entry in Path("/dev/shm").iterdir() if f"snnkit-{pid or os.getpid()}-" in entry.name]


def workers(pid: int) -> list[psutil.Process]:
    """The processes below ``pid`` that run the worker, its main process first."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if str(lava.WORKER) in process.cmdline():
                found.append(process)
    return found


def wait_for(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("victim", ["main", "child"])
def test_lava_killed_while_it_runs(lava_environment, victim: str) -> None:
    seen: list[psutil.Process] = []
    named: list[str] = []

    def kill() -> None:
        wait_for(lambda: len(workers(os.getpid())) > 5)  # Lava's processes are up
        seen.extend(workers(os.getpid()))
        named.extend(segments())
        time.sleep(0.3)
        (seen[0] if victim == "main" else seen[-1]).kill()

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(WorkerError, match=r"the Lava worker (was killed by SIGKILL|failed: error: one of Lava's)"):
        lava.run(images(), np.zeros((100_000, 2, 7, 6), np.float32), lava.Options())
    thread.join()
    assert len(named) > 5
    assert segments() == []
    assert not any(process.is_running() for process in seen)


def test_an_exception_inside_a_model_of_lavas(lava_environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netx, "GROUPS_MAX", 1000)
    rng = np.random.default_rng(6)
    net = chain(
        Input(name="in", shape=(130, 1, 1), bits=4, scale=1 / 15),
        Conv2d(**drawn(rng, 130, 1, 1, 1), groups=130),  # -126 in Lava
        neurons(99),
        Flatten(name="_"),
        Affine(**drawn(rng, 2, 130)),
        timesteps=1,
    )
    with pytest.raises(
        WorkerError, match="the Lava worker failed: Exception: Expected number of in_channels"
    ) as caught:
        lava.run(net, data(net, 1), lava.Options(convolution="stock"))
    assert "Traceback" in caught.value.__notes__[0]
    assert segments() == []


def test_the_time_limit_of_a_sample(lava_environment) -> None:
    def stop() -> None:
        wait_for(lambda: len(workers(os.getpid())) > 5)
        time.sleep(1)
        workers(os.getpid())[-1].suspend()

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(WorkerTimeoutError, match=r"the Lava worker did not finish sample \d+ of 100000 within 2 s"):
        lava.run(images(), np.zeros((100_000, 2, 7, 6), np.float32), lava.Options(time_limit=2, workers=1))
    thread.join()
    assert segments() == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_snnkit_signalled_while_lava_runs(lava_environment, tmp_path: Path, number: int, code: int) -> None:
    net = save(images(), tmp_path / "net.safetensors")
    np.save(tmp_path / "x.npy", np.zeros((100_000, 2, 7, 6), np.float32))
    command = [Path(sys.executable).with_name("snnkit"), "run", net, "--data", tmp_path / "x.npy", "--target", "lava"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: len(workers(process.pid)) > 5)
        below = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        _, errors = process.communicate(timeout=MARGIN)
    assert process.returncode == code
    assert "Traceback" not in errors
    wait_for(lambda: not any(child.is_running() for child in below), MARGIN)
    assert segments(process.pid) == []


def test_a_result_that_is_not_one_is_refused(lava_environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = tmp_path / "lava_netx.py"
    worker.write_text("import sys, pathlib; pathlib.Path(sys.argv[1], 'report.json').write_text('[]')")
    monkeypatch.setattr(lava, "prepare", lambda: lava_environment)
    monkeypatch.setattr(lava, "WORKER", worker)
    with pytest.raises(WorkerError, match="damaged result"):
        lava.run(images(), data(images(), 1), lava.Options())


def test_a_python_that_is_named_must_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNNKIT_LAVA_PYTHON", sys.executable)
    assert "is not a Python 3.10" in (lava.available() or "")
    with pytest.raises(UnavailableError, match=r"is not a Python 3.10"):
        lava.find_python()


def test_without_python_310_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SNNKIT_LAVA_PYTHON", raising=False)
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_PYTHON_INSTALL_DIR", str(tmp_path / "pythons"))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert lava.find_python() is None
    assert "SNNKIT_LAVA_PYTHON" in (lava.available() or "")
    with pytest.raises(UnavailableError, match=r"there is no Python 3.10, which Lava needs") as caught:
        lava.prepare(seconds=60)
    assert "SNNKIT_LAVA_PYTHON" in caught.value.hint


def test_a_temporary_folder_that_sockets_cannot_be_in_is_named(
    tmp_path: Path, lava_environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(tempfile.gettempdir())
    longest, longer = (root / ("x" * (count - len(str(root)) - 1)) for count in (lava.TEMPORARY, lava.TEMPORARY + 1))
    net = images()
    for folder in (longest, longer):
        folder.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        monkeypatch.setenv("TMPDIR", str(folder))
        try:
            if folder is longest:
                assert snnkit.run(net, data(net, 1), "lava").readouts.shape[0] == 1
            else:
                with pytest.raises(UnavailableError, match="take no path as long as") as caught:
                    snnkit.run(net, data(net, 1), "lava")
                assert "set TMPDIR to a shorter one" in caught.value.hint
        finally:
            shutil.rmtree(folder)


def test_only_an_environment_in_uvs_cache_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(prefix: Path):
        return lambda command: str(tmp_path / "cache") if "cache" in command else str(prefix / "bin" / "python")

    inside, outside = tmp_path / "cache" / "environments-v2" / "lava-netx-1", tmp_path / "venvs" / "lava-netx-1"
    for prefix in (inside, outside):
        prefix.mkdir(parents=True)
        (prefix / "pyvenv.cfg").touch()
    monkeypatch.setattr(lava, "_ask", answer(outside))
    assert lava.remove_environment() is None
    assert outside.exists()
    monkeypatch.setattr(lava, "_ask", answer(inside))
    assert lava.remove_environment() == inside
    assert not inside.exists()


def test_the_worker_does_not_inherit_another_python(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UV_PYTHON", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, "/nowhere")
    kept = lava.worker_environment()
    assert not {"UV_PYTHON", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"} & kept.keys()
    assert kept["OMP_NUM_THREADS"] == "1"


def test_asking_whether_it_is_available_loads_neither_torch_nor_h5py() -> None:
    program = (
        "import sys; from snnkit_targets import lava; lava.available(); print({'torch', 'h5py'} & set(sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout == "set()\n"
