"""The verdict: does a network run, agree, fit, and stay within limits? Every question is a gate, with its number."""

import dataclasses
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snnkit import plugins
from snnkit.analysis.accuracy import Accuracy
from snnkit.analysis.compare import Agreement
from snnkit.analysis.energy import Energy, format_energy, format_range
from snnkit.analysis.mapping import Mapping
from snnkit.errors import UsageError
from snnkit.files import write_atomically
from snnkit.network import Network
from snnkit.pipeline import (
    Evaluation,
    PathLike,
    Samples,
    carrier,
    check,
    energy,
    evaluate,
    load,
    load_samples,
    reasons_against,
    sample_count,
)
from snnkit.runs import Run

MODELS = ("loihi1-davies2018", "loihi1-sanafe")  # the chip that most is published about, by both of its sources
_JOULES = {"fJ": 1e-15, "pJ": 1e-12, "nJ": 1e-9, "uJ": 1e-6, "µJ": 1e-6, "μJ": 1e-6, "mJ": 1e-3, "J": 1.0}
_UNPRINTABLE = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ENERGY = re.compile(r"\s*(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*([a-zµμ]?J)\s*")


@dataclass(frozen=True)
class Limits:
    """What is demanded, if anything: accuracy in percent, ``max_drop`` in points, ``max_energy`` in joules."""

    min_accuracy: float | None = None
    max_drop: float | None = None
    max_energy: float | None = None

    def __post_init__(self) -> None:
        for name, most in (("min_accuracy", 100.0), ("max_drop", 100.0), ("max_energy", math.inf)):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and 0 <= value <= most):
                option = f"--{name.replace('_', '-')}"
                raise UsageError(f"{option} {value:g} is no limit", "give a number of 0 or more, percentages up to 100")


@dataclass(frozen=True)
class Gate:
    """One question: ``value`` and ``limit`` as numbers where they are some, ``found`` and ``wanted`` in words."""

    name: str
    passed: bool
    found: str
    wanted: str
    value: float | None = None
    limit: float | None = None
    details: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Validation:
    """The gates in the order of their questions, and what they were decided from."""

    network: str
    data: str
    samples: int
    gates: tuple[Gate, ...]
    evaluations: tuple[Evaluation, ...] = ()
    agreements: tuple[Agreement, ...] = ()
    mappings: tuple[Mapping, ...] = ()
    energies: tuple[Energy, ...] = ()

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)

    def to_json(self) -> dict[str, Any]:
        return {
            "network": self.network,
            "data": self.data,
            "samples": self.samples,
            "passed": self.passed,
            "gates": [dataclasses.asdict(gate) for gate in self.gates],
            "targets": [evaluation.to_json() for evaluation in self.evaluations],
            "compared": [agreement.to_json() for agreement in self.agreements],
            "chips": {mapping.chip.name: mapping.to_json() for mapping in self.mappings},
            "models": [estimate.to_json() for estimate in self.energies],
        }

    def junit(self) -> str:
        """The gates as JUnit's XML, which every CI reads: a test case a gate."""
        failed = str(sum(not gate.passed for gate in self.gates))
        counts = {"tests": str(len(self.gates)), "failures": failed, "errors": "0"}
        suite = ET.Element("testsuite", {"name": "snnkit validate", **counts, "skipped": "0"})
        for gate in self.gates:
            case = ET.SubElement(
                suite, "testcase", {"classname": _printable(self.network), "name": _printable(gate.name)}
            )
            text = "\n".join((f"{gate.found}; wanted: {gate.wanted}", *gate.details))
            if gate.passed:
                ET.SubElement(case, "system-out").text = _printable(text)
            else:
                message = _printable(f"{gate.found}; wanted: {gate.wanted}")
                ET.SubElement(case, "failure", {"message": message, "type": "gate"}).text = _printable(text)
        root = ET.Element("testsuites", counts)
        root.append(suite)
        ET.indent(root)
        return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"

    def write_junit(self, path: PathLike) -> Path:
        return write_atomically(path, self.junit())


def parse_energy(text: str) -> float:
    """``parse_energy("1uJ")`` is 1e-6. Raises :class:`UsageError` for anything without a number and a unit."""
    found = _ENERGY.fullmatch(text)
    if found is None or found[2] not in _JOULES:
        raise UsageError(f"'{text}' is no energy", "give a number and a unit: 250nJ, 1.5uJ, 2mJ")
    return float(found[1]) * _JOULES[found[2]]


def validate(
    path: PathLike,
    targets: Sequence[str] = ("reference",),
    *,
    limits: Limits | None = None,
    chips: Sequence[str] = (),
    chip_count: int = 1,
    models: Sequence[str] = (),
    data: str | None = None,
    samples: int | None = None,
    against: PathLike | None = None,
    assignments: Sequence[str] = (),
) -> Validation:
    """Asks everything about NET: do the targets take it and agree, does it fit the chips, is it within the limits?

    Several targets, and a recorded trace (``against``), must agree spike by spike. The drop is in points below the
    float student, on the same samples where it is there (a run directory), else as the network's file records it. Of
    an energy model the upper end counts. Raises :class:`UsageError` for a limit that cannot be judged and
    ``UnavailableError`` for a target that is not installed here: there is no answer then.
    """
    limits = limits or Limits()
    net = load(path)
    chosen = load_samples(net, data, count=samples)
    if chosen.y is None and (limits.min_accuracy is not None or limits.max_drop is not None):
        raise UsageError("accuracy cannot be judged without labels", "give them: --data x.npy,y.npy")
    student = None if limits.max_drop is None else _student(path, net, chosen)
    reasons = reasons_against(net, plugins.options_of("targets", targets, assignments))
    gates = [_runs(name, found) for name, found in reasons.items()]
    mappings = tuple(check(net, chips, chosen, count=chip_count)) if chips else ()
    gates += [_fits(mapping) for mapping in mappings]
    able = [name for name, found in reasons.items() if not found]
    evaluations: list[Evaluation] = []
    agreements: list[Agreement] = []
    if able:
        evaluations, agreements = evaluate(net, chosen, able, assignments, against=against)
    gates += [_agrees(agreement) for agreement in agreements]
    gates += _accurate(evaluations, limits, student)
    energies: list[Energy] = []
    if limits.max_energy is not None or models:
        _, energies = energy(net, chosen, models or MODELS, mapping=carrier(mappings))
        gates += [_cheap(estimate, limits.max_energy) for estimate in energies if limits.max_energy is not None]
    return Validation(
        network=str(path),
        data=chosen.name,
        samples=sample_count(net, chosen),
        gates=tuple(gates),
        evaluations=tuple(evaluations),
        agreements=tuple(agreements),
        mappings=mappings,
        energies=tuple(energies),
    )


def _runs(name: str, reasons: Sequence[str]) -> Gate:
    found = "runs" if not reasons else f"{len(reasons)} {'reason' if len(reasons) == 1 else 'reasons'} why not"
    return Gate(f"runs on {name}", not reasons, found, "no reason why not", len(reasons), 0, tuple(reasons))


def _fits(mapping: Mapping) -> Gate:
    available = mapping.chip.cores.value * mapping.chips_allowed
    details = tuple(
        f"{violation.layer}: {violation.what} {violation.value:g}, limit {violation.limit:g}; {violation.remedy}"
        for violation in mapping.violations
    )
    broken = f", {len(details)} {'violation' if len(details) == 1 else 'violations'}" if details else ""
    found = f"{len(mapping.cores)} cores{broken}"
    wanted = f"no violation, {available} cores"
    return Gate(f"fits {mapping.chip.name}", mapping.fits, found, wanted, len(details), 0, details)


def _agrees(agreement: Agreement) -> Gate:
    wrong = sum(agreement.spike_mismatches.values())
    found = "identical" if agreement.identical else f"{wrong:,} spikes, {agreement.readout_mismatches} readouts differ"
    details: tuple[str, ...] = ()
    if where := agreement.divergence:
        place = f"first: timestep {where.timestep}, {where.node}, sample {where.sample}, neuron {where.neuron}"
        details = (place, *(agreement.diagnosis.lines() if agreement.diagnosis else ()))
    if agreement.not_compared:
        details = (*details, f"not recorded: {', '.join(agreement.not_compared)}")
    name = f"{agreement.first} and {agreement.second} agree"
    return Gate(name, agreement.identical, found, "every spike, every readout", wrong, 0, details)


def _accurate(evaluations: Sequence[Evaluation], limits: Limits, student: "_Student | None") -> Iterator[Gate]:
    for evaluation in evaluations:
        accuracy = evaluation.accuracy
        if accuracy is None:  # a recording without readouts
            continue
        name, low, high = evaluation.trace.target, *accuracy.interval
        counted = f"{accuracy.correct} of {accuracy.samples}, 95 % interval {low:.1f} to {high:.1f} %"
        if (least := limits.min_accuracy) is not None:
            passed = accuracy.percent >= least
            found, wanted = f"{accuracy.percent:.2f} %", f"at least {least:g} %"
            yield Gate(f"accuracy on {name}", passed, found, wanted, accuracy.percent, least, (counted,))
        if (most := limits.max_drop) is not None and student is not None:
            drop = student.accuracy - accuracy.percent
            passed = drop <= most + 1e-9  # 97.78 - 97.28 is 0.5, whatever floats make of it
            found, wanted = f"{drop:.2f} points", f"at most {most:g} points"
            yield Gate(f"drop on {name}", passed, found, wanted, drop, most, (student.text, counted))


def _cheap(estimate: Energy, most: float) -> Gate:
    found = f"{estimate.bound or ''} {format_range(estimate.low, estimate.high)}".strip()
    details = [f"{estimate.label}, not measured: {estimate.source}"]
    if estimate.bound == "at least":
        details.append("the model gives a lower bound only")
    details += [f"unknown, not counted: {name}" for name, _ in estimate.unknown]
    details += [f"spikes between cores: as on {estimate.routed_on}"] if estimate.routed_on else []
    name = f"energy by {estimate.model}, {estimate.precision}"
    wanted = f"at most {format_energy(most)}"
    return Gate(name, estimate.high <= most, found, wanted, estimate.high, most, tuple(details))


@dataclass(frozen=True)
class _Student:
    """The float student's accuracy in percent, and on what."""

    accuracy: float
    text: str


def _student(path: PathLike, net: Network, samples: Samples) -> _Student:
    if Path(path).is_dir() and (run := Run.open(path)).last.is_file():
        import torch

        from snnkit.training.evaluation import classify
        from snnkit.training.trainer import load_student

        assert samples.y is not None
        x = torch.from_numpy(samples.x.astype("float32"))
        answers = classify(load_student(run), x, 0 if net.input.encoding == "direct" else 1)
        measured = Accuracy.of(answers.numpy(), samples.y)
        return _Student(measured.percent, f"float student: {measured.percent:.2f} % of the same samples")
    match net.metadata.get("accuracy"):
        case {"student": {"correct": int(correct), "samples": int(total)}} if 0 <= correct <= total > 0:
            percent = Accuracy(correct, total).percent
        case _:
            message = "there is no float student to measure the drop from"
            raise UsageError(message, "give the run directory that the network comes from")
    text = f"float student: {percent:.2f} % of {total} test samples, as the network's file records it"
    return _Student(percent, text)


def _printable(text: str) -> str:
    """Without the characters that XML cannot hold, such as half ones in the name of a file."""
    return _UNPRINTABLE.sub("", text)
