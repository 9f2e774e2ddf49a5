"""Where two targets part: the share of equal spikes per layer, both membranes at the first difference, the cause."""

from snnkit.analysis.compare import Agreement, Diagnosis, Side
from snnkit.cli.output import number, print_table, say

FRACTION = 64.0  # u and v have six fractional bits below the unit of weights and thresholds


def print_details(agreement: Agreement) -> None:
    """A row a layer, then the diagnosis."""
    rows = [
        [name, _percent(agreement.share(name)), number(agreement.spike_mismatches[name]), number(count)]
        for name, count in agreement.compared.items()
    ]
    columns = ["neurons", "same spikes", "different", "of neuron-steps"]
    print_table(f"{agreement.first} and {agreement.second}, spike by spike", columns, rows)
    if agreement.diagnosis is not None:
        for line in describe(agreement.diagnosis):
            say(line)


def describe(diagnosis: Diagnosis) -> list[str]:
    """The sides, then what is the likely cause, and why."""
    limit = diagnosis.threshold
    lines = [_side(side, limit) for side in diagnosis.sides]
    who = f"{diagnosis.faulty} " if diagnosis.cause != "unknown" else ""
    lines.append(f"likely cause: {diagnosis.cause}: {who}{diagnosis.explanation}")
    if diagnosis.evidence:
        lines.append(f"  that {diagnosis.evidence}" if diagnosis.cause != "unknown" else f"  {diagnosis.evidence}")
    lines += [f"  fits as well: {other}" for other in diagnosis.also]
    return lines


def _side(side: Side, threshold: float | None) -> str:
    if side.spike is None:
        return f"  {side.target}: answers {side.v:g}"
    what = "spikes" if side.spike else "does not spike"
    if side.v is None:
        return f"  {side.target}: {what}"
    u = "" if side.u is None else f"u {side.u / FRACTION:.10g}, "
    above = "" if threshold is None else f", threshold {threshold / FRACTION:.10g}"
    return f"  {side.target}: {what}; {u}v {side.v / FRACTION:.10g}{above} ({side.source})"


def _percent(share: float) -> str:
    """Never rounded up to 100 %."""
    return "100 %" if share == 1 else f"{min(99.9999, 100 * share):.4f} %"
