"""The exported network in ONNX Runtime, on the CPU, in any of the exporter's forms, with the spikes of every layer."""

import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort
import pydantic

from snnkit.network import Network, Trace
from snnkit.network.inputs import encode_inputs
from snnkit.network.ir import Array
from snnkit.progress import advancing
from snnkit_exporters import onnx as exporter

DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(uint8)": np.uint8}


class Options(pydantic.BaseModel):
    """``record`` keeps counts or whole rasters; ``chunk`` is how many samples are computed at once.

    ``form`` and ``synapses`` are the exporter's; the states of ``step`` are kept here. ``threads`` 0 is all cores.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    record: Literal["counts", "raster"] = "counts"
    form: Literal["unrolled", "step", "scan"] = "unrolled"
    synapses: Literal["float32", "int8"] = "float32"
    chunk: int = pydantic.Field(default=64, ge=1)
    threads: int = pydantic.Field(default=0, ge=0)


def available() -> str | None:
    """None: ONNX Runtime is a dependency of snnkit."""
    return None


def check(net: Network, options: Options) -> list[str]:
    """The reasons of the ONNX exporter."""
    return exporter.check(net, _exported(options))


def run(net: Network, inputs: Array, options: Options) -> Trace:
    """Runs raw inputs, direct [B, *shape] in 0..1 or events [T, B, *shape], for the network's timesteps."""
    encoded = encode_inputs(net, inputs)
    batch_axis = 0 if net.input.encoding == "direct" else 1
    runner = Runner(net, options)
    samples = encoded.shape[batch_axis]
    start = time.perf_counter()
    parts = []
    for first in advancing(range(0, max(samples, 1), options.chunk), "onnxruntime"):
        piece = encoded.take(range(first, min(first + options.chunk, samples)), axis=batch_axis)
        readouts, rasters = runner.run(np.ascontiguousarray(piece))
        parts.append(
            Trace.from_rasters(
                target="onnxruntime",
                readouts=readouts,
                rasters=rasters,
                keep_rasters=options.record == "raster",
                seconds=0.0,
                steps=piece.shape[batch_axis] * net.timesteps,
                notes=(f"ONNX Runtime {ort.__version__}, CPU, {options.form}, {options.synapses} synapses",),
            )
        )
    joined = Trace.join(parts)
    return dataclasses.replace(joined, seconds=time.perf_counter() - start)


class Runner:
    """The exported network in a session; keeps nothing from one call to the next."""

    def __init__(self, net: Network, options: Options) -> None:
        self.net = net
        with tempfile.TemporaryDirectory() as folder:
            model, *_ = exporter.export(net, Path(folder) / "network.onnx", _exported(options))
            settings = ort.SessionOptions()
            settings.intra_op_num_threads = options.threads
            settings.log_severity_level = 3
            self.session = ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]
        self.states: dict[str, str] = json.loads(self.session.get_modelmeta().custom_metadata_map["states"])
        known = {entry.name: entry for entry in self.session.get_inputs()}
        self.takes_timesteps = "timesteps" in known
        self.zeros = {name: (known[name].shape[1:], DTYPES[known[name].type]) for name in self.states}

    def run(self, encoded: Array) -> tuple[Array, dict[str, Array]]:
        """Encoded direct [B, *shape] or events [T, B, *shape]; gives readouts [B, classes], rasters [T, B, *shape]."""
        if self.states:
            return self._run_steps(encoded)
        feeds = {"input": encoded}
        if self.takes_timesteps:
            feeds["timesteps"] = np.array([self.net.timesteps])
        results = self._call(feeds)
        return results["readout"], {node.name: results[f"{node.name}.spikes"] for node in self.net.neurons}

    def _run_steps(self, encoded: Array) -> tuple[Array, dict[str, Array]]:
        """One call a timestep, from states of zeros."""
        direct = self.net.input.encoding == "direct"
        samples = encoded.shape[0 if direct else 1]
        state = {name: np.zeros((samples, *shape), dtype) for name, (shape, dtype) in self.zeros.items()}
        spikes: dict[str, list[Array]] = {node.name: [] for node in self.net.neurons}
        for t in range(self.net.timesteps):
            results = self._call({"input": encoded if direct else encoded[t], **state})
            state = {name: results[following] for name, following in self.states.items()}
            for name, steps in spikes.items():
                steps.append(results[f"{name}.spikes"])
        return results["readout"], {name: np.stack(steps) for name, steps in spikes.items()}

    def _call(self, feeds: dict[str, Array]) -> dict[str, Array]:
        return dict(zip(self.outputs, self.session.run(self.outputs, feeds), strict=True))


def _exported(options: Options) -> exporter.Options:
    return exporter.Options(form=options.form, synapses=options.synapses, trace=True)
