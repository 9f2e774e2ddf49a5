# /// script
# requires-python = ">=3.10,<3.11"
# dependencies = ["lava-nc==0.10.0", "lava-dl==0.6.0", "h5py>=3.7,<4", "numpy<2"]
# [tool.uv]
# override-dependencies = [
#   "torch; python_version < '3'",
#   "torchvision; python_version < '3'",
#   "opencv-python-headless; python_version < '3'",
#   "matplotlib; python_version < '3'",
#   "pytest; python_version < '3'",
#   "unittest2; python_version < '3'",
#   "ninja; python_version < '3'",
#   "pillow; python_version < '3'",
# ]
# ///
"""Runs a netx description on Lava's fixed-point Loihi model: ``python -I lava_netx.py FOLDER``, on Python 3.10.

FOLDER holds ``network.net``, ``frames.npy`` (int16 [T or 1, B, *shape]) and ``job.json``; written into it are
``readouts.npy`` (int64 [B, classes], the head's v), ``raster-K.npy`` (uint8 [steps, bytes], the packed bits of layer K
in (C, H, W) order, one row for each step that was executed) and ``report.json``. All samples run back to back: layer K
is reset when a sample's first frame reaches it, 1 + K steps after it was sent.
"""

import contextlib
import importlib.util
import json
import multiprocessing
import os
import secrets
import sys
import threading
import time
import traceback
import types
from importlib.metadata import version
from multiprocessing import shared_memory
from pathlib import Path

if sys.version_info[:2] != (3, 10):  # pragma: no cover
    sys.exit(f"error: Lava needs Python 3.10, and this is {sys.version.split()[0]}")


def stand_in() -> None:
    """Registers empty modules for what netx's hdf5.py imports and a CUBA network never calls.

    They would pull in torch (5 GB), which must not be loaded into a Lava process: its threads make it hang.
    """

    def neuron_params(*arguments, **keywords):
        raise NotImplementedError("resonate-and-fire neurons need lava-dl's slayer")

    netx = importlib.util.find_spec("lava.lib.dl").submodule_search_locations[0] + "/netx"
    for name in ("slayer", "slayer.neuron", "slayer.neuron.rf", "netx", "netx.sequential_modules"):
        module = types.ModuleType(f"lava.lib.dl.{name}")
        if name == "netx.sequential_modules":  # Lava's compiler looks for the files beside hdf5.py
            module.__file__ = f"{netx}/sequential_modules.py"
        else:
            module.__path__ = [netx] if name == "netx" else []
        if name == "slayer.neuron.rf":
            module.neuron_params = neuron_params
        sys.modules[module.__name__] = module


stand_in()

import numpy as np  # noqa: E402
from lava.lib.dl.netx import hdf5  # noqa: E402
from lava.magma.core.decorator import implements, requires, tag  # noqa: E402
from lava.magma.core.model.py.model import PyLoihiProcessModel  # noqa: E402
from lava.magma.core.model.py.ports import PyInPort, PyOutPort  # noqa: E402
from lava.magma.core.model.py.type import LavaPyType  # noqa: E402
from lava.magma.core.process.ports.ports import InPort, OutPort  # noqa: E402
from lava.magma.core.process.process import AbstractProcess  # noqa: E402
from lava.magma.core.resources import CPU  # noqa: E402
from lava.magma.core.run_conditions import RunSteps  # noqa: E402
from lava.magma.core.run_configs import Loihi2SimCfg  # noqa: E402
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol  # noqa: E402
from lava.magma.runtime.message_infrastructure.multiprocessing import SystemProcess  # noqa: E402
from lava.proc import io  # noqa: E402
from lava.proc.conv import utils as conv_utils  # noqa: E402


class Player(AbstractProcess):
    """Sends the frames of a file, one a step, sample after sample, and then zeros.

    Like io.source.RingBuffer, but without T copies of a constant frame in memory.
    """

    def __init__(self, *, path: str, timesteps: int, shape: tuple) -> None:
        super().__init__(path=path, timesteps=timesteps)
        self.s_out = OutPort(shape=shape)


@implements(proc=Player, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyPlayer(PyLoihiProcessModel):
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32)

    def __init__(self, proc_params) -> None:
        super().__init__(proc_params)
        self.frames = np.load(proc_params["path"], mmap_mode="r")
        self.timesteps = proc_params["timesteps"]

    def run_spk(self) -> None:
        sample, t = divmod(self.time_step - 1, self.timesteps)
        if sample < self.frames.shape[1]:
            frame = self.frames[t % len(self.frames), sample]
            self.s_out.send(frame.T.astype(np.int32))  # Lava's order is (W, H, C)
        else:
            self.s_out.send(np.zeros(self.s_out.shape, np.int32))


class Recorder(AbstractProcess):
    """Writes the spikes of every step to a file, as packed bits.

    io.sink.RingBuffer would keep an int32 a neuron and step, and hand them over one by one.
    """

    def __init__(self, *, path: str, steps: int, shape: tuple) -> None:
        super().__init__(path=path, steps=steps)
        self.a_in = InPort(shape=shape)


@implements(proc=Recorder, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyRecorder(PyLoihiProcessModel):
    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    rows = None

    def run_spk(self) -> None:
        row = np.packbits(self.a_in.recv().T != 0)
        if self.rows is None:
            shape = (self.proc_params["steps"], row.size)
            self.rows = np.lib.format.open_memmap(self.proc_params["path"], "w+", np.uint8, shape)
        self.rows[self.time_step - 1] = row


def gemm(input_, weight, kernel_size, stride, padding, dilation, groups):
    """Same as ``lava.proc.conv.utils.conv``, as a matrix product: float64 is exact below 2**53.

    ``input_`` (W, H, C), ``weight`` (O, kw, kh, C / groups); a convolution, so the kernel is flipped.
    """
    padded = np.pad(input_, ((padding[0],) * 2, (padding[1],) * 2, (0, 0)))
    span = [int(dilation[i]) * (int(kernel_size[i]) - 1) + 1 for i in (0, 1)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, span, axis=(0, 1))
    windows = windows[:: stride[0], :: stride[1], :, :: dilation[0], :: dilation[1]]  # (X, Y, C, kw, kh)
    outputs, channels = len(weight) // groups, weight.shape[-1]
    result = np.empty((*windows.shape[:2], len(weight)), weight.dtype)
    for g in range(groups):
        columns = windows[:, :, g * channels : (g + 1) * channels].reshape(-1, channels * weight[0, ..., 0].size)
        kernel = weight[g * outputs : (g + 1) * outputs, ::-1, ::-1].transpose(3, 1, 2, 0).reshape(-1, outputs)
        product = columns.astype(np.float64) @ kernel.astype(np.float64)
        result[..., g * outputs : (g + 1) * outputs] = product.reshape(*windows.shape[:2], outputs)
    return result


def name_shared_memory(prefix: str) -> None:
    """Every segment and semaphore carries ``prefix``, so that whoever survives this process can unlink them."""
    shared_memory._make_filename = lambda: f"/{prefix}-{secrets.token_hex(8)}"
    multiprocessing.current_process()._config["semprefix"] = f"/{prefix}"


def fail_loudly() -> None:
    """An exception in one of Lava's processes, or its death, ends this process; ``run`` would wait for ever."""

    def target(self) -> None:
        # Lava's own keeps the traceback in a pipe that nobody reads, and leaving in order waits for its threads
        try:
            multiprocessing.Process.run(self)
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def watch() -> None:  # a thread: a signal need not wake the main one, which waits for a semaphore
        while True:
            time.sleep(0.1)
            with contextlib.suppress(ChildProcessError):  # there is none yet
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended is not None and ended.si_status != 0:
                    if ended.si_code != os.CLD_EXITED:
                        print(f"error: one of Lava's processes was killed by signal {ended.si_status}", file=sys.stderr)
                    sys.stderr.flush()
                    os._exit(1)

    SystemProcess.run = target
    threading.Thread(target=watch, daemon=True).start()


def run(folder: Path, job: dict) -> dict:
    """One Lava run of all samples; returns the report."""
    timesteps = job["timesteps"]
    net = hdf5.Network(
        net_config=str(folder / "network.net"),
        input_message_bits=job["message_bits"],
        reset_interval=timesteps,
        reset_offset=1,
    )
    latency = len(net)
    steps = job["samples"] * timesteps + latency
    source = Player(path=str(folder / "frames.npy"), timesteps=timesteps, shape=net.inp.shape)
    source.s_out.connect(net.inp)
    for index, layer in enumerate(net.layers[:-1]):
        sink = Recorder(path=str(folder / f"raster-{index}.npy"), steps=steps, shape=layer.out.shape)
        layer.out.connect(sink.a_in)
    early = 1 + (latency - 1) // timesteps  # reads before the first sample has come through
    offset = (latency - 1) % timesteps
    reader = io.sink.Read(buffer=early + job["samples"], interval=timesteps, offset=offset)
    reader.connect_var(net.layers[-1].neuron.v)
    configuration = Loihi2SimCfg(select_tag="fixed_pt")
    net.create_runtime(run_cfg=configuration)
    started = time.perf_counter()
    net.run(condition=RunSteps(num_steps=steps), run_cfg=configuration)
    seconds = time.perf_counter() - started
    readouts = reader.data.get()[:, early:].T
    net.stop()
    np.save(folder / "readouts.npy", readouts.astype(np.int64))
    versions = {name: version(name) for name in ("lava-nc", "lava-dl")}
    return {"seconds": seconds, "steps": steps, "latency": latency, "versions": versions}


def main() -> None:
    folder = Path(sys.argv[1])
    name_shared_memory(folder.name)
    job = json.loads((folder / "job.json").read_text())
    if job["convolution"] == "gemm":
        conv_utils.conv = gemm
    fail_loudly()
    try:
        report = run(folder, job)
        (folder / "report.json").write_text(json.dumps(report))
    except BaseException as error:
        if "Exception(s) occurred" not in str(error):  # Lava's echo of what one of its processes has printed
            traceback.print_exc()
        os._exit(1)  # leaving in order, or calling stop, would wait for ever; the supervisor ends what is left


if __name__ == "__main__":
    main()
