"""The answer in one sentence, with the numbers that it rests on."""

from collections.abc import Sequence

from snnkit.analysis.energy import format_energy
from snnkit.analysis.report import content

SAME = 0.05  # points: of a student whose float sums round otherwise in batches of another size


def conclude(
    facts: content.Facts,
    results: Sequence[content.Result],
    agreements: Sequence[content.Agreement],
    steps: Sequence[content.Step],
    quantization: content.Quantization | None,
    chips: Sequence[content.Chip],
) -> content.Verdict:
    """The verdict on the network on its targets; the drop is known where both accuracies are over as many samples."""
    own = [r.accuracy for r in results if r.role == "network" and r.accuracy]
    accuracy = max(own, key=lambda a: a.samples, default=None)
    student = next((r.accuracy for r in results if r.role == "student"), None)
    comparable = accuracy and student and accuracy.samples == student.samples
    drop = student.accuracy - accuracy.accuracy if comparable and student and accuracy else None
    paired = quantization.paired if quantization else None
    totals = compared(facts, steps[-1].energies)
    ends = (min(totals, key=lambda t: t.low), max(totals, key=lambda t: t.high))
    identical = all(agreement.identical for agreement in agreements) if agreements else None
    targets = tuple(dict.fromkeys(r.runs_on for r in results if r.role == "network" and r.accuracy))
    clauses = [
        _accuracy(facts, accuracy, drop),
        _identity(identical, targets),
        _fit(chips),
        f"an inference takes {steps[-1].spikes:,.0f} spikes and a modelled {_range(ends)}",
    ]
    return content.Verdict(
        sentence="; ".join(clauses) + ".",
        accuracy=accuracy,
        float_accuracy=student,
        drop_points=drop,
        drop_interval=paired.interval_95 if paired and drop is not None and abs(paired.drop - drop) < SAME else None,
        spikes=steps[-1].spikes,
        energies=ends,
        identical=identical,
        targets=targets,
        chips=tuple(
            content.Fit(
                chip=chip.name,
                title=chip.title,
                fits=chip.fits,
                reasons=len(chip.violations),
                cores=len(chip.cores),
            )
            for chip in chips
        ),
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
    if identical is None:
        return f"it ran on {_listed(targets) or 'no target'} alone"
    return f"{_listed(targets)} {'agree on every spike' if identical else 'do not agree'}"


def _fit(chips: Sequence[content.Chip]) -> str:
    if not chips:
        return "whether it fits a chip has not been checked"
    fitting, other = [c.name for c in chips if c.fits], [c.name for c in chips if not c.fits]
    if not other:
        return f"it fits {_listed(fitting)}"
    reasons = sum(len(chip.violations) for chip in chips)
    why = f"{_listed(other)} ({reasons} reason{'s' * (reasons > 1)})"
    return f"it fits {_listed(fitting)} but not {why}" if fitting else f"it does not fit {why}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _range(ends: tuple[content.Total, content.Total]) -> str:
    low, high = format_energy(ends[0].low), format_energy(ends[1].high)
    return low if low == high else f"{low} to {'at least ' if ends[1].bound == 'at least' else ''}{high}"
