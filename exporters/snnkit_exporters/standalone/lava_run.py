# /// script
# requires-python = ">=3.10,<3.11"
# dependencies = ["lava-nc==0.10.0", "numpy<2"]
# ///
"""Runs the network that lies beside this file on Lava's fixed-point model of Loihi: ``python run.py input.npy``.

Needs Python 3.10 and lava-nc 0.10, nothing else. ``graph.json`` says what is connected to what, ``arrays.npz`` holds
weights and biases as integers, in torch's order. The input is float [B, C, H, W] (or [B, N]) in 0..1, or integer
events [T, B, C, H, W] (or [T, B, N]); the answer is one line a sample: its number, the class, the readout.

Every synapse delivers one step late, so a layer at depth D works on timestep t at step t + 1 + D. All samples run back
to back; a layer is reset when a sample's first input reaches it. Relays repeat spikes one step later, so that paths of
different length meet in time.
"""

import argparse
import contextlib
import ctypes
import importlib.util
import json
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

if sys.version_info[:2] != (3, 10):  # pragma: no cover
    sys.exit(f"error: Lava needs Python 3.10, and this is {sys.version.split()[0]}")
if importlib.util.find_spec("lava") is None:  # pragma: no cover
    sys.exit("error: lava-nc is missing: pip install lava-nc==0.10.0 'numpy<2'")

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort, PyRefPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort, RefPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.resources import CPU
from lava.magma.core.run_conditions import RunSteps
from lava.magma.core.run_configs import Loihi2SimCfg
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
from lava.magma.runtime.message_infrastructure.multiprocessing import SystemProcess
from lava.proc.conv import utils as conv_utils
from lava.proc.conv.process import Conv
from lava.proc.dense.process import Dense
from lava.proc.lif.process import LIF, LIFReset
from lava.proc.sparse.process import Sparse
from lava.utils.weightutils import SignMode
from scipy.sparse import identity

NEVER = 2**17  # a threshold mantissa that no voltage exceeds: the readout's neurons only integrate
LIMIT = 2**23  # u and v are signed 24-bit numbers with 6 fractional bits


# --- what the host does: it sends inputs, silences relays, and records ------------------------------------------------


class Player(AbstractProcess):
    """Sends the frames of a file, one a step, sample after sample, and zeros before, between and after.

    The frame of timestep t - ``delay`` is sent at step t + ``depth``, where its target's depth is ``depth``; the file
    holds [T or 1, B, C, H, W] or [T or 1, B, N]. ``progress`` names a file for the number of steps done.
    """

    def __init__(self, *, path, timesteps, depth, shape, delay=0, progress=None) -> None:
        super().__init__(path=path, timesteps=timesteps, depth=depth, delay=delay, progress=progress)
        self.s_out = OutPort(shape=shape)


@implements(proc=Player, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyPlayer(PyLoihiProcessModel):
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32)

    def __init__(self, proc_params) -> None:
        super().__init__(proc_params)
        self.frames = np.load(proc_params["path"], mmap_mode="r")
        self.timesteps, self.depth = proc_params["timesteps"], proc_params["depth"]
        self.delay, self.progress = proc_params["delay"], proc_params["progress"]
        self.reported = 0.0

    def run_spk(self) -> None:
        sample, t = divmod(self.time_step - self.depth, self.timesteps)
        if 0 <= sample < self.frames.shape[1] and t >= self.delay:
            frame = self.frames[(t - self.delay) % len(self.frames), sample]
            self.s_out.send(frame.T.astype(np.int32))  # Lava's order is (W, H, C)
        else:
            self.s_out.send(np.zeros(self.s_out.shape, np.int32))
        if self.progress and (time.monotonic() > self.reported + 0.1 or sample >= self.frames.shape[1]):
            self.reported = time.monotonic()
            Path(self.progress).write_text(str(self.time_step))


class Gate(AbstractProcess):
    """Sends -1 to the first relay of a delayed path in a sample's last ``delay`` timesteps, which end with it."""

    def __init__(self, *, timesteps, depth, delay, shape) -> None:
        super().__init__(timesteps=timesteps, depth=depth, delay=delay)
        self.a_out = OutPort(shape=shape)


@implements(proc=Gate, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyGate(PyLoihiProcessModel):
    a_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32)

    def run_spk(self) -> None:
        timesteps = self.proc_params["timesteps"]
        t = (self.time_step - 1 - self.proc_params["depth"]) % timesteps
        self.a_out.send(np.full(self.a_out.shape, -int(t >= timesteps - self.proc_params["delay"]), np.int32))


class Recorder(AbstractProcess):
    """Writes the spikes of every step to a file, as packed bits in (C, H, W) order.

    io.sink.RingBuffer would keep an int32 a neuron and step, and hand them over one by one.
    """

    def __init__(self, *, path, steps, shape) -> None:
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


class Voltmeter(AbstractProcess):
    """Writes the voltages of the readout's neurons to a file, int64 [B, classes], at the end of each sample."""

    def __init__(self, *, path, samples, timesteps, depth, variable) -> None:
        super().__init__(path=path, samples=samples, timesteps=timesteps, depth=depth)
        self.v = RefPort(variable.shape)
        self.v.connect_var(variable)


@implements(proc=Voltmeter, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyVoltmeter(PyLoihiProcessModel):
    v: PyRefPort = LavaPyType(PyRefPort.VEC_DENSE, np.int32)
    rows = None

    def ended(self) -> int:
        """Samples that have ended by this step, if one ends with it, else 0."""
        samples, rest = divmod(self.time_step - self.proc_params["depth"], self.proc_params["timesteps"])
        return 0 if rest else max(0, samples)

    def post_guard(self) -> bool:
        return self.ended() > 0

    def run_post_mgmt(self) -> None:
        values = self.v.read()
        if self.rows is None:
            shape = (self.proc_params["samples"], *values.shape)
            self.rows = np.lib.format.open_memmap(self.proc_params["path"], "w+", np.int64, shape)
        self.rows[self.ended() - 1] = values


# --- an exact convolution as a matrix product -------------------------------------------------------------------------

stock_conv = conv_utils.conv
_prepared: dict = {}  # by the identity of a layer's weight, which lives as long as its process


def gemm(input_, weight, kernel_size, stride, padding, dilation, groups):
    """Same as ``lava.proc.conv.utils.conv``, as a matrix product: exact, as all sums are below 2**24 or 2**53.

    ``input_`` (W, H, C), ``weight`` (O, kw, kh, C / groups); a convolution, so the kernel is flipped.
    """
    if id(weight) not in _prepared:
        sums = np.abs(weight.astype(np.int64)).reshape(len(weight), -1).sum(axis=1)
        flipped = weight[:, ::-1, ::-1].transpose(1, 2, 3, 0)  # (kw, kh, C / groups, O)
        _prepared[id(weight)] = weight, int(sums.max()), flipped.astype(np.float32), flipped.astype(np.float64)
    _, largest, single, double = _prepared[id(weight)]
    size = [
        (input_.shape[i] + 2 * int(padding[i]) - int(dilation[i]) * (int(kernel_size[i]) - 1) - 1) // int(stride[i]) + 1
        for i in (0, 1)
    ]
    if not input_.any():
        return np.zeros((*size, len(weight)), weight.dtype)
    kernel = single if largest * int(np.abs(input_).max()) < 2**24 else double
    padded = np.pad(input_.astype(kernel.dtype), ((padding[0],) * 2, (padding[1],) * 2, (0, 0)))
    columns = np.empty((*size, *kernel.shape[:2], input_.shape[2]), kernel.dtype)
    for i, j in np.ndindex(kernel.shape[:2]):
        x, y = i * int(dilation[0]), j * int(dilation[1])
        columns[:, :, i, j] = padded[x :: stride[0], y :: stride[1]][: size[0], : size[1]]
    if weight.shape[3] == 1 and len(weight) == groups:  # depthwise
        result = np.einsum("xyijc,ijc->xyc", columns, kernel[:, :, 0])
    else:
        outputs, channels = len(weight) // groups, weight.shape[3]
        result = np.empty((*size, len(weight)), kernel.dtype)
        for g in range(groups):
            part = columns[..., g * channels : (g + 1) * channels].reshape(math.prod(size), -1)
            of_group = slice(g * outputs, (g + 1) * outputs)
            result[..., of_group] = (part @ kernel[..., of_group].reshape(-1, outputs)).reshape(*size, outputs)
    return result.astype(weight.dtype)


def checked_gemm(checks):
    """:func:`gemm`, compared with Lava's own for each layer's first ``checks`` inputs that are not all zero.

    Of a layer with many kernels a sample of the output channels is compared.
    """
    left = {}

    def conv(input_, weight, kernel_size, stride, padding, dilation, groups):
        result = gemm(input_, weight, kernel_size, stride, padding, dilation, groups)
        if left.setdefault(id(weight), checks) and input_.any():
            left[id(weight)] -= 1
            budget = max(1, 20_000_000 // (weight[0].size * result[..., 0].size + 20_000 * weight.shape[3]))
            if groups > 1 or len(weight) <= budget:
                chosen = np.arange(len(weight))
            else:
                chosen = np.unique(np.linspace(0, len(weight) - 1, budget).astype(int))
            expected = stock_conv(input_, weight[chosen], kernel_size, stride, padding, dilation, groups)
            if (expected != result[..., chosen]).any():
                raise ArithmeticError("the matrix product differs from Lava's own convolution")
        return result

    return conv


def use(convolution, checks):
    """Chooses how convolutions are computed: ``stock`` is Lava's own, ``gemm`` the matrix product, checked."""
    conv_utils.conv = stock_conv if convolution == "stock" else checked_gemm(checks)


# --- the network ------------------------------------------------------------------------------------------------------


class Machine:
    """Lava processes ready to run: ``neurons`` maps names to (out port, depth); ``head`` is (v, depth) or None."""

    def __init__(self, timesteps) -> None:
        self.timesteps = timesteps
        self.neurons = {}
        self.head = None

    def run(self, folder, samples, record):
        """Runs all samples in one go and returns seconds and steps; ``readouts.npy`` in ``folder`` holds the head's v.

        ``record`` maps names of neurons to files, uint8 [steps, bytes], a row a step.
        """
        depths = [depth for _, depth in self.neurons.values()] + ([self.head[1]] if self.head else [])
        steps = samples * self.timesteps + max(depths)
        anchor = None
        for name, file in record.items():
            port, _ = self.neurons[name]
            anchor = Recorder(path=str(folder / file), steps=steps, shape=port.shape)
            port.connect(anchor.a_in)
        if self.head:
            variable, depth = self.head
            options = {"samples": samples, "timesteps": self.timesteps, "depth": depth, "variable": variable}
            anchor = Voltmeter(path=str(folder / "readouts.npy"), **options)
        configuration = Loihi2SimCfg(select_tag="fixed_pt")
        anchor.create_runtime(run_cfg=configuration)
        started = time.perf_counter()
        anchor.run(condition=RunSteps(num_steps=steps), run_cfg=configuration)
        seconds = time.perf_counter() - started
        anchor.stop()
        return seconds, steps


def load(folder):
    """The graph and its arrays."""
    graph = json.loads((folder / "graph.json").read_text())
    with np.load(folder / "arrays.npz", allow_pickle=False) as file:
        return graph, {name: file[name] for name in file.files}


def build(graph, arrays, files, progress=None):
    """Makes the processes; ``files`` maps what the host sends ('input', or the stem's neurons) to its frames."""
    timesteps = graph["timesteps"]
    machine = Machine(timesteps)
    ports, inlets = {}, {}
    for layer in graph["neurons"]:
        shape, depth = tuple(layer["shape"][::-1]), layer["depth"]
        head = layer["v_threshold"] is None
        neurons = LIFReset(
            shape=shape,
            vth=NEVER if head else layer["v_threshold"],
            du=layer["current_decay"] - 1,  # the model adds 1
            dv=layer["voltage_decay"],
            bias_mant=np.broadcast_to(arrays[layer["bias"]], shape).copy() if layer["bias"] else 0,
            bias_exp=6,
            reset_interval=timesteps,
            reset_offset=1 + depth,
        )
        ports[layer["name"]], inlets[layer["name"]] = neurons.s_out, neurons.a_in
        if head:
            machine.head = neurons.v, depth
        else:
            machine.neurons[layer["name"]] = neurons.s_out, depth
    for player in graph["players"]:
        shape = tuple(player["shape"][::-1])
        options = {"timesteps": timesteps, "depth": player["depth"], "delay": player["delay"], "progress": progress}
        ports[player["name"]] = Player(path=str(files[player["source"]]), shape=shape, **options).s_out
        progress = None  # one of them is enough
    for relay in graph["relays"]:
        source = ports[relay["source"]]
        size = math.prod(source.shape)
        # one bit of payload takes the product with the sparse matrix; binary spikes would index it, which is slow
        wires = Sparse(weights=identity(size, dtype=np.int32, format="csr"), num_message_bits=1)
        neurons = LIF(shape=source.shape, vth=0, du=4095, dv=4096)
        source.flatten().connect(wires.s_in)
        wires.a_out.reshape(source.shape).connect(neurons.a_in)
        if relay["delay"]:
            options = {"timesteps": timesteps, "depth": relay["depth"], "delay": relay["delay"]}
            Gate(shape=source.shape, **options).a_out.connect(neurons.a_in)
        ports[relay["name"]] = neurons.s_out
    for synapse in graph["synapses"]:
        connect(synapse, arrays[synapse["weight"]], ports[synapse["source"]], inlets[synapse["target"]])
    return machine


def connect(synapse, weight, source, target):
    """Connects two ports through a convolution or a matrix."""
    weight = weight.astype(np.int32) << synapse["weight_exponent"]
    bits = 0 if synapse["message_bits"] == 1 else synapse["message_bits"]
    if synapse["type"] == "conv":
        pairs = {name: tuple(synapse[name][::-1]) for name in ("stride", "padding", "dilation")}
        kernel = weight[:, :, ::-1, ::-1].transpose(0, 3, 2, 1)  # (O, kw, kh, I); Lava convolves, torch correlates
        conv = Conv(weight=kernel, input_shape=source.shape, groups=synapse["groups"], num_message_bits=bits, **pairs)
        source.connect(conv.s_in)
        conv.a_out.connect(target)
        return
    if len(source.shape) == 3:  # the columns in Lava's order (W, H, C)
        weight = weight.reshape(len(weight), *source.shape[::-1]).transpose(0, 3, 2, 1).reshape(len(weight), -1)
        source = source.flatten()
    odd = int((weight % 2).any())  # weights of mixed sign have no lowest bit: 2 w, and the sum is halved
    mode = {"sign_mode": SignMode.MIXED, "num_weight_bits": 8, "weight_exp": -odd}
    dense = Dense(weights=weight << odd, num_message_bits=bits, **mode)
    source.connect(dense.s_in)
    dense.a_out.reshape(target.shape).connect(target)


# --- what the host computes -------------------------------------------------------------------------------------------


def encode(graph, x):
    """Raw inputs as the integers that enter the network, int16 [T or 1, B, *shape]; exits where they do not fit."""
    entry = graph["input"]
    leading = 2 if entry["encoding"] == "events" else 1
    if list(x.shape[leading:]) != entry["shape"] or 0 in x.shape:
        kind = "integer events [T, B" if leading == 2 else "floats [B"
        sys.exit(f"error: the input has shape {x.shape}; give {kind}, {str(entry['shape'])[1:-1]}]")
    if leading == 2:
        if x.dtype.kind not in "biu" or len(x) != graph["timesteps"]:
            sys.exit(f"error: give integer events in {graph['timesteps']} timesteps, not {x.dtype} in {len(x)}")
        levels = x
    else:
        if x.dtype.kind != "f" or not (x.min() >= 0 and x.max() <= 1):
            sys.exit("error: give floats in 0..1")
        levels = np.rint(x.astype(np.float64) / entry["scale"]) + entry["zero_point"]
        levels = np.clip(levels, 0, 2 ** entry["bits"] - 1)[None]
    if levels.min() < 0 or levels.max() >= 2 ** entry["bits"]:
        sys.exit(f"error: the events do not fit into {entry['bits']} bits")
    return levels.astype(np.int16)


def stem(layer, arrays, frames, timesteps):
    """The spikes, bool [T, B, *shape], of neurons that the host computes from the input, in the same arithmetic."""
    samples = frames.shape[1]
    u = v = np.zeros((samples, *layer["shape"]), np.int64)
    spikes = np.zeros((timesteps, *u.shape), bool)
    bias = 0
    if layer["bias"]:
        bias = arrays[layer["bias"]].astype(np.int64).reshape(-1, *[1] * (len(layer["shape"]) - 1))
    for t in range(timesteps):
        if t == 0 or len(frames) > 1:
            total = sum(_sums(synapse, arrays, frames, t, u.shape) for synapse in layer["synapses"])
        u = _decay(u, layer["current_decay"]) + (total << 6)
        u = np.where(u > LIMIT, u - 2 * LIMIT, u)
        u = np.where(u <= -LIMIT, u + 2 * LIMIT, u)
        v = np.clip(_decay(v, layer["voltage_decay"]) + u + (bias << 6), 1 - LIMIT, LIMIT - 1)
        spikes[t] = v > layer["v_threshold"] << 6
        v = np.where(spikes[t], 0, v)
    return spikes


def _sums(synapse, arrays, frames, t, shape):
    result = np.zeros(shape, np.int64)
    if t < synapse["delay"]:
        return result
    weight = arrays[synapse["weight"]].astype(np.int64) << synapse["weight_exponent"]
    batch = frames[(t - synapse["delay"]) % len(frames)]
    if synapse["type"] == "dense":
        return batch.reshape(len(batch), -1).astype(np.int64) @ weight.T
    kernel = weight[:, :, ::-1, ::-1].transpose(0, 3, 2, 1)
    stride, padding, dilation = (synapse[name][::-1] for name in ("stride", "padding", "dilation"))
    for index, frame in enumerate(batch):
        result[index] = gemm(frame.T, kernel, kernel.shape[1:3], stride, padding, dilation, synapse["groups"]).T
    _prepared.clear()
    return (result + LIMIT) % (2 * LIMIT) - LIMIT


def _decay(x, factor):
    return np.sign(x) * ((np.abs(x) * (4096 - factor)) >> 12)


def prepare(graph, arrays, folder):
    """Computes what the host sends from the input in ``frames.npy``, into ``folder``; returns the paths by source."""
    files = {"input": folder / "frames.npy"}
    frames = np.load(files["input"], mmap_mode="r")
    for index, layer in enumerate(graph["host"]):
        files[layer["name"]] = folder / f"stem-{index}.npy"
        np.save(files[layer["name"]], stem(layer, arrays, frames, graph["timesteps"]))
    return files


def raster(path, shape, depth, samples, timesteps):
    """The spikes bool [T, B, *shape] of a layer at ``depth`` from the file of its recorder."""
    rows = np.load(path)[depth : depth + samples * timesteps]
    bits = np.unpackbits(rows, axis=1, count=math.prod(shape)).view(bool)
    return bits.reshape(samples, timesteps, *shape).swapaxes(0, 1)


def answers(graph, folder, samples):
    """The readouts, int64 [B, classes]: the head's voltage without its fraction, or spikes counted."""
    if not graph["readout"]["counts"]:
        return np.load(folder / "readouts.npy") >> 6
    total = 0
    for index, (name, delay) in enumerate(graph["readout"]["counts"]):
        layer = next(layer for layer in graph["neurons"] if layer["name"] == name)
        spikes = raster(folder / f"count-{index}.npy", layer["shape"], layer["depth"], samples, graph["timesteps"])
        total = total + spikes[: max(0, graph["timesteps"] - delay)].sum(axis=0, dtype=np.int64)
    return total


# --- no failure may hang ----------------------------------------------------------------------------------------------


def fail_loudly() -> None:
    """An exception in one of Lava's processes, or its death, ends this process; ``run`` would wait for ever."""

    def target(self) -> None:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no process outlives this one
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
    multiprocessing.process._cleanup = lambda: None  # starting another process would take a dead one away unseen
    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs the network beside this file on Lava's model of Loihi.")
    parser.add_argument("input", help="raw samples, saved with numpy.save")
    parser.add_argument("--convolution", choices=["gemm", "stock"], default="gemm", help="gemm: exact, and faster")
    parser.add_argument("--save", metavar="FILE.npz", help="write predictions and readouts")
    options = parser.parse_args()
    graph, arrays = load(Path(__file__).resolve().parent)
    if options.save and not Path(options.save).absolute().parent.is_dir():
        sys.exit(f"error: there is no folder to write '{options.save}' to")
    try:
        frames = encode(graph, np.load(options.input, allow_pickle=False))
    except (OSError, ValueError) as error:
        sys.exit(f"error: cannot read '{options.input}': {error}")
    samples = frames.shape[1]
    use(options.convolution, graph["timesteps"])
    fail_loudly()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            np.save(folder / "frames.npy", frames)
            machine = build(graph, arrays, prepare(graph, arrays, folder))
            record = {name: f"count-{index}.npy" for index, (name, _) in enumerate(graph["readout"]["counts"])}
            seconds, steps = machine.run(folder, samples, record)
        except BaseException:
            traceback.print_exc()
            os._exit(1)  # leaving in order, or calling stop, would wait for ever
        readouts = answers(graph, folder, samples)
    predictions = readouts.argmax(axis=1)
    for index, (prediction, readout) in enumerate(zip(predictions, readouts, strict=True)):
        print(index, prediction, *readout)
    print(f"{samples} samples in {steps} steps, {seconds:.2f} s, convolution: {options.convolution}", file=sys.stderr)
    if options.save:
        np.savez(options.save, predictions=predictions, readouts=readouts)


if __name__ == "__main__":
    main()
