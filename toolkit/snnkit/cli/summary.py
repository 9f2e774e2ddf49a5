"""The tables of results."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from snnkit.cli.output import number, percent, print_sections, print_table, say

if TYPE_CHECKING:
    from snnkit.analysis.accuracy import Accuracy
    from snnkit.analysis.compare import Agreement
    from snnkit.analysis.counts import OpCounts
    from snnkit.network import Network
    from snnkit.pipeline import Evaluation
    from snnkit.quickstart import Quickstart
    from snnkit.training.saliency import Saliency
    from snnkit.training.saliency_measures import Estimate


def accuracy_cells(accuracy: "Accuracy") -> list[str]:
    """Accuracy, its 95 % interval, and the count behind it."""
    low, high = accuracy.interval
    return [percent(accuracy.percent), f"{low:.1f} to {high:.1f} %", f"{accuracy.correct} of {accuracy.samples}"]


def print_evaluations(data: str, results: "Sequence[Evaluation]", net: "Network") -> None:
    """A row a target, then a row a layer."""
    rows = []
    for result in results:
        cells = accuracy_cells(result.accuracy) if result.accuracy else ["no labels", "", f"{result.trace.samples} run"]
        rows.append(
            [result.trace.target, *cells, number(result.trace.spikes_per_inference), f"{result.trace.seconds:.2f}"]
        )
    columns = ["target", "accuracy", "95 % interval", "correct", "spikes per inference", "seconds"]
    print_table(f"{data}: {net.timesteps} timesteps, simulated", columns, rows)
    for result in results:
        if result.trace.notes:
            say(f"{result.trace.target}: {', '.join(result.trace.notes)}")
    first = results[0]
    rates = first.trace.firing_rates()
    print_table(
        "firing rate per neuron and timestep",
        ["neurons", "rate", "overflows"],
        [[name, percent(100 * rate), number(first.trace.overflows.get(name, 0))] for name, rate in rates.items()],
    )
    if first.accuracy is None:
        from snnkit.network import predictions

        classes = net.metadata.get("classes") or []
        named = [str(classes[i]) if i < len(classes) else str(i) for i in predictions(first.trace)[:20]]
        say(f"predictions: {' '.join(named)}{' ...' if first.trace.samples > 20 else ''}")


def print_agreement(agreement: "Agreement") -> None:
    """Whether two targets agree spike by spike, or where they part."""
    pair = f"{agreement.first} and {agreement.second}"
    missing = f"; not recorded: {', '.join(agreement.not_compared)}" if agreement.not_compared else ""
    if agreement.identical and missing:
        say(f"{pair}: identical in {', '.join(agreement.compared)}, every spike at every timestep{missing}")
        return
    if agreement.identical:
        say(f"{pair}: identical, every spike of every layer at every timestep, and every readout")
        return
    differing = {name: count for name, count in agreement.spike_mismatches.items() if count}
    spikes = f"DIFFERENT spikes {differing}, " if differing else "the same spikes, but "
    say(f"{pair}: {spikes}{agreement.readout_mismatches} samples with other readouts{missing}")
    if agreement.divergence is not None:
        where = agreement.divergence
        say(f"  first: timestep {where.timestep}, {where.node}, sample {where.sample}, neuron {where.neuron}")
    if agreement.compared:
        from snnkit.cli.agreement import print_details

        print_details(agreement)


def print_counts(counts: "OpCounts") -> None:
    """Operations per inference, a row a node."""
    rows = [
        [
            node.name,
            number(node.effective_acs / counts.samples),
            number(node.effective_macs / counts.samples),
            number(node.dense / counts.samples),
            number((node.updates_active + node.updates_inactive) / counts.samples),
            number(node.spikes / counts.samples),
        ]
        for node in counts.nodes
    ]
    fields = ("effective_acs", "effective_macs", "dense")
    updates = counts.mean("updates_active") + counts.mean("updates_inactive")
    rows.append(
        ["total", *(number(counts.mean(name)) for name in fields), number(updates), number(counts.mean("spikes"))]
    )
    columns = ["node", "effective ACs", "effective MACs", "dense", "neuron updates", "spikes"]
    print_table(f"operations per inference, mean of {counts.samples} samples, simulated", columns, rows)
    once = counts.mean("macs_once")
    if once != counts.mean("effective_macs"):
        say(f"with the stem computed once instead of at every timestep: {number(once)} MACs")
    rate = percent(100 * counts.firing_rate)
    say(f"{counts.parameters:,} parameters, {counts.footprint_bytes / 1024:.1f} KiB; firing rate {rate}")


def print_quickstart(result: "Quickstart") -> None:
    """The one table that quickstart ends with, the files, and what to try next."""
    from snnkit.analysis.energy import format_energy
    from snnkit.cli.energy import bounded

    accuracies = []
    for row in result.rows:
        if row.accuracy is None:
            accuracies.append([row.name, "not run", f"{row.note}"])
        else:
            share, interval, correct = accuracy_cells(row.accuracy)
            accuracies.append([row.name, share, f"{correct}, 95 % interval {interval}"])
    counts = result.counts
    updates = counts.mean("updates_active") + counts.mean("updates_inactive")
    operations = [
        ["spikes", number(counts.mean("spikes")), f"simulated, {percent(100 * counts.firing_rate)} of neuron-steps"],
        ["synaptic operations", number(counts.mean("effective_acs")), "accumulates, exact count"],
        ["input layer", number(counts.mean("effective_macs")), "multiply-accumulates, at every timestep"],
        ["neuron updates", number(updates), "every neuron at every timestep"],
        ["the same ANN", number(counts.ann_macs), "multiply-accumulates, dense, one pass"],
    ]
    energies = [
        [energy.model, bounded(energy), energy.summary]
        for energy in result.energies
        if energy.precision == "int8"  # the student's own; 'snnkit energy' shows all, and every source
    ]
    energies += [
        [baseline.name, format_energy(baseline.joules), "modelled, dense, without memory accesses"]
        for baseline in result.energies[0].baselines
    ]
    print_sections(
        "snnkit quickstart: handwritten digits, test split",
        ["", "result", "how to read it"],
        {"accuracy": accuracies, "per inference, integer student": operations, "energy per inference": energies},
    )
    for agreement in result.agreements:
        print_agreement(agreement)
    say(f"{result.seconds:.0f} s; files:")
    for path in result.files:
        say(f"  {path}")
    say("next:")
    for line in result.next_commands:
        say(f"  {line}")


def print_saliency(result: "Saliency") -> None:
    """A row a network and surrogate width: how faithful its maps are, then how well they agree with the teacher's."""

    def width(factor: float) -> str:
        return f"x {factor:g}"

    used = [
        [
            row.network,
            "" if row.network == "teacher" else width(row.width),
            _interval(row.faithfulness),
            _interval(row.kept, 0),
            _interval(row.faithfulness_black),
            _interval(row.kept_black, 0),
        ]
        for row in result.rows
    ]
    columns = ["network", "surrogate", "blurred: ins - del", "kept, %", "black: ins - del", "kept, %"]
    title = f"{result.run}: are the salient pixels used? {result.samples} test images, 95 % intervals"
    print_table(title, columns, used, text=(0, 1))
    agreeing = [
        [row.network, width(row.width), *map(_interval, (row.correlation, row.gradient_correlation, row.overlap))]
        for row in result.rows
        if row.correlation
    ]
    student = result.row("student")
    random = (
        student.reinitialised_correlation,
        student.reinitialised_gradient_correlation,
        student.reinitialised_overlap,
    )
    agreeing.append(["random weights", width(1.0), *map(_interval, random)])
    columns = ["network", "surrogate", "rank correlation", "without the factor x", "overlap of the top 10 %"]
    print_table("are they those of the teacher?", columns, agreeing, text=(0, 1))
    for name, surrogate in result.surrogates.items():
        say(f"{name}'s surrogate: {surrogate}")
    say("only what exceeds random weights is learned; insertion and deletion are minus a random order's")
    say(f"picture: {result.picture or result.note}")


def _interval(estimate: "Estimate | None", decimals: int = 2) -> str:
    if estimate is None:
        return ""
    mean, low, high = (f"{value:.{decimals}f}" for value in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} ({low} to {high})"
