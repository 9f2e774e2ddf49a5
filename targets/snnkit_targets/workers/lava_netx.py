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
"""One run of Lava's fixed-point Loihi model: ``PYTHONPATH=STANDALONE python lava_netx.py FOLDER``, on Python 3.10.

FOLDER holds ``job.json``, ``frames.npy`` (int16 [T or 1, B, *shape]) and the network: ``network.net``, which netx
loads, or the directory ``network.lava``, which ``lava_run.py`` of STANDALONE builds. Written into it are
``readouts.npy`` (int64 [B, classes], the head's v), for each neuron node K the bits of every step that was executed,
packed in (C, H, W) order, as ``raster-K.npy`` (uint8 [steps, bytes]), of a stem on the host ``stem-K.npy`` (bool
[T, B, *shape]), and ``report.json``. ``progress`` is the number of the step that is executed.
"""

import importlib.util
import json
import multiprocessing
import os
import secrets
import sys
import traceback
import types
from importlib.metadata import version
from multiprocessing import shared_memory
from pathlib import Path

import lava_run


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


def netx():
    """The module of netx that reads HDF5."""
    stand_in()
    from lava.lib.dl.netx import hdf5

    return hdf5


def load(folder: Path, job: dict) -> lava_run.Machine:
    """What netx makes of ``network.net``, and what feeds it; layer K lags K + 1 steps behind the input."""
    timesteps = job["timesteps"]
    net = netx().Network(
        net_config=str(folder / "network.net"),
        input_message_bits=job["message_bits"],
        reset_interval=timesteps,
        reset_offset=1,
    )
    options = {"timesteps": timesteps, "depth": 1, "shape": net.inp.shape, "progress": str(folder / "progress")}
    lava_run.Player(path=str(folder / "frames.npy"), **options).s_out.connect(net.inp)
    machine = lava_run.Machine(timesteps)
    machine.neurons = {
        name: (layer.out, k) for k, (name, layer) in enumerate(zip(job["neurons"], net.layers[:-1], strict=True), 1)
    }
    machine.head = net.layers[-1].neuron.v, len(net)
    return machine


def build(folder: Path) -> lava_run.Machine:
    """The processes for the directory ``network.lava``."""
    graph, arrays = lava_run.load(folder / "network.lava")
    return lava_run.build(graph, arrays, lava_run.prepare(graph, arrays, folder), str(folder / "progress"))


def name_shared_memory(prefix: str) -> None:
    """Every segment and semaphore carries ``prefix``, so that whoever survives this process can unlink them."""
    shared_memory._make_filename = lambda: f"/{prefix}-{secrets.token_hex(8)}"
    multiprocessing.current_process()._config["semprefix"] = f"/{prefix}"


def main() -> None:
    folder = Path(sys.argv[1])
    name_shared_memory(folder.name)
    job = json.loads((folder / "job.json").read_text())
    lava_run.use(job["convolution"], job["timesteps"])
    lava_run.fail_loudly()
    try:
        machine = load(folder, job) if job["form"] == "net" else build(folder)
        record = {name: f"raster-{k}.npy" for k, name in enumerate(job["neurons"]) if name in machine.neurons}
        seconds, steps = machine.run(folder, job["samples"], record)
        report = {"seconds": seconds, "steps": steps, "version": version("lava-nc")}
        (folder / "report.json").write_text(json.dumps(report))
    except BaseException as error:
        if "Exception(s) occurred" not in str(error):  # Lava's echo of what one of its processes has printed
            traceback.print_exc()
        os._exit(1)  # leaving in order, or calling stop, would wait for ever; the supervisor ends what is left


if __name__ == "__main__":
    main()
