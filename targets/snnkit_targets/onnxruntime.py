"""The exported integer network in ONNX Runtime, on the CPU, with the spikes of every layer."""

import dataclasses
import time
from typing import Literal

import numpy as np
import onnxruntime as ort
import pydantic

from snnkit.network import Network, Trace
from snnkit.network.inputs import encode_inputs
from snnkit.network.ir import Array
from snnkit_exporters import onnx as exporter


class Options(pydantic.BaseModel):
    """``record`` keeps counts or whole rasters; ``chunk`` is how many samples are computed at once."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    record: Literal["counts", "raster"] = "counts"
    chunk: int = pydantic.Field(default=64, ge=1)
    threads: int = pydantic.Field(default=0, ge=0)


def available() -> str | None:
    """None: ONNX Runtime is a dependency of snnkit."""
    return None


def check(net: Network, options: Options) -> list[str]:  # noqa: ARG001 - the contract of every target
    """The reasons of the ONNX exporter."""
    return exporter.check(net, exporter.Options())


def run(net: Network, inputs: Array, options: Options) -> Trace:
    """Runs raw inputs, direct [B, *shape] in 0..1 or events [T, B, *shape], for the network's timesteps."""
    model = exporter.build(net, exporter.Options(trace=True))
    encoded = encode_inputs(net, inputs)
    batch_axis = 0 if net.input.encoding == "direct" else 1
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    samples = encoded.shape[batch_axis]
    start = time.perf_counter()
    parts = []
    for first in range(0, max(samples, 1), options.chunk):
        piece = encoded.take(range(first, min(first + options.chunk, samples)), axis=batch_axis)
        results = dict(zip(names, session.run(names, {"input": np.ascontiguousarray(piece)}), strict=True))
        parts.append(
            Trace.from_rasters(
                target="onnxruntime",
                readouts=results["readout"],
                rasters={neuron.name: results[f"{neuron.name}.spikes"] for neuron in net.neurons},
                keep_rasters=options.record == "raster",
                seconds=0.0,
                steps=piece.shape[batch_axis] * net.timesteps,
                notes=(f"ONNX Runtime {ort.__version__}, CPU",),
            )
        )
    joined = Trace.join(parts)
    return dataclasses.replace(joined, seconds=time.perf_counter() - start)
