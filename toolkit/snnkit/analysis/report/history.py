"""What a run directory tells about its past: training, environment, configuration, saliency."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import ValidationError

from snnkit.analysis.accuracy import Accuracy as Counted
from snnkit.analysis.report import content, png
from snnkit.errors import RunFolderError
from snnkit.network import Network
from snnkit.runs import Run

Found = TypeVar("Found")


def _reading(path: Path, parse: Callable[[], Found]) -> Found:
    """The value of ``parse``; what it stumbles over becomes an error that names the file."""
    try:
        return parse()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ValidationError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunFolderError(
            f"'{path}' is not as snnkit writes it: {reason}", "remove the file, or make the run again"
        ) from None


def tests(run: Run) -> dict[str, Counted]:
    """Accuracy on the test split after training, of the ``teacher`` and the ``student`` of the last epoch."""

    def parse() -> dict[str, Counted]:
        records = [record for record in run.read_metrics() if record["phase"] == "test"]
        if not records:
            return {}
        found = {who: records[-1].get(who) for who in ("teacher", "student")}
        return {who: Counted(int(one["correct"]), int(one["samples"])) for who, one in found.items() if one}

    return _reading(run.metrics, parse)


def curves(run: Run) -> tuple[content.Curve, ...]:
    """Accuracies and losses over the epochs of each phase; values that are not finite are left out."""

    def parse() -> tuple[content.Curve, ...]:
        series: dict[tuple[str, str], list[tuple[int, float]]] = {}
        for record in run.read_metrics():
            if record["phase"] == "test":
                continue
            for name, value in record.items():
                if name in ("phase", "epoch", "seconds") or not isinstance(value, int | float):
                    continue
                if math.isfinite(value):
                    series.setdefault((str(record["phase"]), name), []).append((int(record["epoch"]), float(value)))
        return tuple(content.Curve(phase=p, name=n, values=tuple(values)) for (p, n), values in series.items())

    return _reading(run.metrics, parse)


def saliency(run: Run) -> content.Saliency | None:
    """The measures and the picture that 'snnkit saliency' left; None where it was not run."""
    if not run.saliency.is_file():
        return None

    def parse() -> content.Saliency:
        found = json.loads(run.saliency.read_text("utf-8"))
        rows = [
            content.SaliencyRow(
                network=row["network"],
                width=row["width"],
                measures={
                    name: content.Estimate.model_validate(value)
                    for name, value in row.items()
                    if isinstance(value, dict)
                },
            )
            for row in found["rows"]
        ]
        picture = run.saliency.with_suffix(".png")
        embedded = png.embed(picture) if picture.is_file() else None
        return content.Saliency(samples=found["samples"], rows=tuple(rows), picture=embedded)

    return _reading(run.saliency, parse)


def quantization(run: Run, net: Network) -> content.Quantization | None:
    """quantization.json; None where it is missing, or tells of other thresholds than those of ``net``."""
    if not run.quantization.is_file():
        return None

    def ends(value: Any) -> tuple[Any, Any]:
        values = value if isinstance(value, list) else [value]
        return min(values), max(values)

    def parse() -> content.Quantization | None:
        found = json.loads(run.quantization.read_text("utf-8"))
        told = {node["name"]: node for node in found["nodes"]}
        if told.keys() != {neuron.name for neuron in net.neurons}:
            return None
        if not all(np.array_equal(told[neuron.name]["v_threshold"], neuron.v_threshold) for neuron in net.neurons):
            return None
        fields = content.QuantizedNode.model_fields
        nodes = [{key: value for key, value in node.items() if key in fields} for node in found["nodes"]]
        for node in nodes:
            node["scale"], node["v_threshold"] = ends(node["scale"]), ends(node["v_threshold"])
        paired = found["paired"]
        if paired is not None:
            paired = {key: value for key, value in paired.items() if key in content.Paired.model_fields}
        return content.Quantization.model_validate(
            {
                **{name: found[name] for name in ("weight_bits", "input_bits", "per_channel", "stem", "notes")},
                "calibration_samples": found["calibration"]["samples"],
                "test": found["test"].get("integer network"),
                "paired": paired,
                "nodes": nodes,
            }
        )

    return _reading(run.quantization, parse)


def environment(run: Run) -> dict[str, Any]:
    """environment.json; empty where it is missing."""
    if not run.environment.is_file():
        return {}

    def parse() -> dict[str, Any]:
        found = json.loads(run.environment.read_text("utf-8"))
        return {
            "python": str(found["python"]),
            "platform": str(found["platform"]),
            "processors": found["processors"],
            "threads": found.get("threads"),
            "versions": dict(found["versions"]),
        }

    return _reading(run.environment, parse)
