"""``snnkit report``: gathers what a run directory holds, computes what is missing, writes the page and its data."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from snnkit import __version__, pipeline, records
from snnkit.analysis.accuracy import Accuracy
from snnkit.analysis.chips import list_chips
from snnkit.analysis.counts import fan_out
from snnkit.analysis.energy import list_models
from snnkit.analysis.report import content, history, parts
from snnkit.analysis.report.page import render
from snnkit.analysis.report.verdict import conclude
from snnkit.config import DistillConfig, load_config
from snnkit.files import write_atomically
from snnkit.network import Network, infer_shapes, verify
from snnkit.pipeline import PathLike, Samples
from snnkit.records import Record
from snnkit.runs import Run
from snnkit.runs import environment as this_environment

BUDGET = 2e11  # dense operations of the default number of samples: about a minute of a CPU
LEAST = 100  # samples that are run in any case
ROUTED = 100  # samples whose spikes are sent between cores
SHOWN, DRAWN = 3, 240  # samples whose spikes are drawn, and neurons of a layer


@dataclass(frozen=True, eq=False)
class Written:
    """The report and its two files."""

    report: content.Report
    page: Path
    data: Path


def report(
    path: PathLike,
    *,
    samples: int | None = None,
    models: Sequence[str] | None = None,
    chips: Sequence[str] | None = None,
) -> Written:
    """Writes report.html and report.json into the run directory ``path``.

    The reference target runs the first ``samples`` test samples, by default all of them or as many as about a minute
    allows, for operations, energies by ``models``, fewer timesteps and spike rasters; an integer network is mapped on
    ``chips`` (models and chips: by name or file, default all). Everything else is read; what is not there is left
    out, with the command that adds it.
    """
    run = Run.open(path)
    net = pipeline.load(run.path)
    chosen = pipeline.load_samples(net, count=samples)
    if samples is None:
        chosen = pipeline.first_samples(net, chosen, _affordable(net))
    made = _gather(run, net, chosen, models or list_models(), list_chips() if chips is None else chips)
    page = render(made).encode("utf-8", "replace")
    return Written(made, write_atomically(run.report, page), run.write_json(run.report_data, made.to_json()))


def _affordable(net: Network) -> int:
    shapes = infer_shapes(net)
    dense = sum(int(fan_out(node, shapes[node.inputs[0].source], dense=True).sum()) for node in net.synapses)
    return max(LEAST, int(BUDGET / (dense * net.timesteps)))


def _gather(run: Run, net: Network, chosen: Samples, models: Sequence[str], chips: Sequence[str]) -> content.Report:
    config, record, quantization = load_config(run.config), records.read(run), history.quantization(run, net)
    routed = pipeline.first_samples(net, chosen, ROUTED)
    mappings = pipeline.check(net, chips, routed) if verify(net) == "integer" else []
    rows = pipeline.over_timesteps(net, chosen, models, mapping=pipeline.carrier(mappings))
    facts = parts.facts(net, rows[-1])
    steps = tuple(map(parts.step, rows))
    few = pipeline.first_samples(net, chosen, SHOWN)
    trace = pipeline.run(net, few.x, "reference", record="raster")
    results = _results(run, config, record, quantization, rows[-1].accuracy)
    agreements = () if record is None else record.agreements
    mapped = tuple(parts.chip(mapping, min(ROUTED, facts.samples)) for mapping in mappings)
    saliency, curves = history.saliency(run), history.curves(run)
    return content.Report(
        name=config.name,
        run=str(run.path),
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        snnkit=__version__,
        facts=facts,
        verdict=conclude(facts, results, agreements, steps, quantization, mapped),
        results=results,
        agreements=agreements,
        timesteps=steps,
        layers=parts.layers(net, rows),
        energies=tuple(parts.energy(energy) for energy in rows[-1].energies),
        samples=parts.samples(net, few.x, few.y, trace, range(trace.samples), DRAWN),
        curves=curves,
        quantization=quantization,
        chips=mapped,
        saliency=saliency,
        missing=_missing(run, facts, agreements, quantization, saliency, curves),
        reproduce=_reproduce(run, net, config, record),
    )


def _results(
    run: Run,
    config: DistillConfig,
    record: Record | None,
    quantization: content.Quantization | None,
    own: Accuracy | None,
) -> tuple[content.Result, ...]:
    """Teacher and float students as their runs tested them, then the network on every target that ran it.

    Of several runs of the reference, the one over the most samples counts.
    """
    tests = history.tests(run)
    distilled = "student, distilled" if config.losses.distilled else "student"
    plain = run.path / "undistilled"
    found: list[tuple[content.Role, str, Accuracy | None]] = [("teacher", "teacher (ANN)", tests.get("teacher"))]
    if (plain / "config.yaml").is_file():
        found.append(("plain", "student without distillation", history.tests(Run(plain)).get("student")))
    found.append(("student", distilled, tests.get("student")))
    results = [
        content.Result(role=role, network=name, runs_on="torch, float", accuracy=content.Accuracy.of(accuracy))
        for role, name, accuracy in found
        if accuracy is not None
    ]
    targets = {one.target: one.accuracy for one in record.targets} if record else {}
    known = [targets.get("reference"), quantization and quantization.test, own and content.Accuracy.of(own)]
    targets["reference"] = max((one for one in known if one), key=lambda one: one.samples, default=None)
    for target in sorted(targets, key=lambda name: name != "reference"):
        network = f"{distilled}, integer"
        results.append(content.Result(role="network", network=network, runs_on=target, accuracy=targets[target]))
    for target, why in (record.not_run if record else {}).items():
        results.append(
            content.Result(role="network", network=f"{distilled}, integer", runs_on=target, accuracy=None, note=why)
        )
    return tuple(results)


def _missing(
    run: Run,
    facts: content.Facts,
    agreements: Sequence[content.Agreement],
    quantization: content.Quantization | None,
    saliency: content.Saliency | None,
    curves: Sequence[content.Curve],
) -> tuple[content.Missing, ...]:
    folder = shlex.quote(str(run.path))
    absent = [
        (
            "accuracy",
            bool(agreements),
            "Only one target ran the network; compare several:",
            f"snnkit run {folder} --target reference --target onnxruntime",
        ),
        (
            "quantisation",
            quantization is not None,
            "Ranges and saturation of this network were not recorded; quantising again adds them:",
            f"snnkit quantize {folder}",
        ),
        (
            "chip",
            facts.kind == "integer",
            "A float network has no place on a chip; quantise it:",
            f"snnkit quantize {folder}",
        ),
        (
            "saliency",
            saliency is not None,
            "No saliency maps were computed; this adds them:",
            f"snnkit saliency {folder}",
        ),
        ("training", bool(curves), "The run has no metrics of its training.", ""),
    ]
    return tuple(
        content.Missing(section=section, why=why, command=command)
        for section, there, why, command in absent
        if not there
    )


def _reproduce(run: Run, net: Network, config: DistillConfig, record: Record | None) -> content.Reproduce:
    """The commands that make such a run anew, beside it."""
    then = history.environment(run)
    known = {**this_environment(), **then}
    source, new = shlex.quote(str(run.config)), shlex.quote(f"{run.path}-again")
    bits = net.metadata.get("quantization", {})
    flags = "".join(
        f" --{name.replace('_', '-')} {bits[name]}"
        for name, usual in (("weight_bits", 8), ("input_bits", 6))
        if net.input.encoding == "direct" and isinstance(bits.get(name), int) and bits[name] != usual
    )
    exports = sorted(path.suffix for path in run.exports.glob("*")) if run.exports.is_dir() else []
    formats = [name for name, suffix in (("onnx", ".onnx"), ("lava", ".net"), ("nir", ".nir")) if suffix in exports]
    targets = [one.target for one in record.targets] if record else ["reference"]
    commands = [
        f"snnkit distill {source} -o {new}",
        f"snnkit quantize {new}{flags}",
        *([f"snnkit export {new} {' '.join(f'--target {name}' for name in formats)}"] if formats else []),
        f"snnkit run {new} {' '.join(f'--target {shlex.quote(name)}' for name in targets)}",
        f"snnkit energy {new}",
        f"snnkit report {new}",
    ]
    return content.Reproduce(
        commands=tuple(commands),
        seed=config.train.seed,
        threads=known.get("threads"),
        python=known["python"],
        platform=known["platform"],
        processors=known["processors"],
        versions=known["versions"],
        config=config.to_yaml(),
    )
