"""``snnkit energy --cross-check``: our figures beside another simulator's."""

from snnkit.analysis.energy import format_range
from snnkit.cli.output import number, print_table, say
from snnkit.crosscheck import CrossCheck, Row


def print_cross_check(found: CrossCheck) -> None:
    """A row a figure, then what differs in the spikes, and what is not the same by nature."""
    rows = [[row.name, *_cells(row)] for row in found.rows]
    title = f"cross-check by SANA-FE's Loihi: {found.samples} samples, from the spikes of '{found.given}' on"
    print_table(title, ["an inference", "ours", "SANA-FE"], rows)
    wrong = {name: count for name, count in found.mismatches.items() if count}
    differ = ", ".join(f"{count:,} in {name}" for name, count in wrong.items())
    say(f"spikes differ: {differ}" if wrong else "spikes: identical, neuron by neuron and timestep by timestep")
    say(f"both: {found.steps} steps for {found.timesteps} timesteps, while the pipeline fills and drains")
    say("ours counts every update of a layer that was reached; SANA-FE leaves out neurons that hold exactly zero")
    say("hops: SANA-FE's include those of the inputs, which stand on cores of their own there")
    say("latency: ours is the synchronisation alone; SANA-FE's adds the work of the busiest core")


def _cells(row: Row) -> tuple[str, str]:
    if not row.unit:
        return f"{row.bound} {number(row.ours)}".strip(), number(row.theirs)
    return f"{row.bound} {format_range(row.ours, row.high, row.unit)}".strip(), format_range(
        row.theirs, row.theirs, row.unit
    )
