"""The answer in one sentence, with the numbers that it rests on."""

from collections.abc import Sequence

from snnkit.analysis.energy import format_energy
from snnkit.analysis.report import content


def conclude(
    facts: content.Facts,
    results: Sequence[content.Result],
    agreements: Sequence[content.Agreement],
    steps: Sequence[content.Step],
    chip: content.Chip | None,
) -> content.Verdict:
    """The verdict on the network on its targets; the drop is known where both accuracies are over as many samples."""
    own = [r.accuracy for r in results if r.role == "network" and r.accuracy]
    accuracy = max(own, key=lambda a: a.samples, default=None)
    student = next((r.accuracy for r in results if r.role == "student"), None)
    comparable = accuracy and student and accuracy.samples == student.samples
    drop = student.accuracy - accuracy.accuracy if comparable and student and accuracy else None
    totals = compared(facts, steps[-1].energies)
    ends = (min(totals, key=lambda t: t.low), max(totals, key=lambda t: t.high))
    identical = all(agreement.identical for agreement in agreements) if agreements else None
    targets = tuple(dict.fromkeys(r.runs_on for r in results if r.role == "network" and r.accuracy))
    clauses = [
        _accuracy(facts, accuracy, drop),
        _identity(identical, targets),
        _fit(chip),
        f"an inference takes {steps[-1].spikes:,.0f} spikes and a modelled {_range(ends)}",
    ]
    return content.Verdict(
        sentence="; ".join(clauses) + ".",
        accuracy=accuracy,
        float_accuracy=student,
        drop_points=drop,
        spikes=steps[-1].spikes,
        energies=ends,
        identical=identical,
        targets=targets,
        fits=None if chip is None else not chip.violations,
        chip=None if chip is None else chip.title,
    )


def compared(facts: content.Facts, totals: Sequence[content.Total]) -> Sequence[content.Total]:
    """The totals that price the network as it is: an integer one not by floating point, if others are there."""
    own = [one for one in totals if facts.kind == "float" or not one.precision.startswith("fp")]
    return own or totals


def _accuracy(facts: content.Facts, accuracy: content.Accuracy | None, drop: float | None) -> str:
    who = f"The {facts.kind} student"
    if accuracy is None:
        return f"{who} ran on {facts.samples:,} samples without labels"
    said = f"{who} answers {accuracy.accuracy:.2f} % of {accuracy.samples:,} test samples correctly"
    if drop is None:
        return said
    if round(drop, 2) == 0:
        return f"{said}, as many as the float student"
    return f"{said}, {abs(drop):.2f} points {'below' if drop > 0 else 'above'} the float student"


def _identity(identical: bool | None, targets: Sequence[str]) -> str:
    named = " and ".join([", ".join(targets[:-1]), targets[-1]] if len(targets) > 1 else targets)
    if identical is None:
        return f"it ran on {named or 'no target'} alone"
    return f"{named} {'agree on every spike' if identical else 'do not agree'}"


def _fit(chip: content.Chip | None) -> str:
    if chip is None:
        return "whether it fits a chip has not been checked"
    if not chip.violations:
        return f"it fits {chip.title}"
    return f"it does not fit {chip.title} ({len(chip.violations)} reason{'s' * (len(chip.violations) > 1)})"


def _range(ends: tuple[content.Total, content.Total]) -> str:
    low, high = format_energy(ends[0].low), format_energy(ends[1].high)
    return low if low == high else f"{low} to {'at least ' if ends[1].bound == 'at least' else ''}{high}"
