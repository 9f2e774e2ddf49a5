"""``snnkit energy``: every term on its own line, what is unknown, latency and power, and the ANN beside."""

import math

from snnkit.analysis.energy import Energy, Term, format_quantity, format_range
from snnkit.cli.output import number, print_json, print_table, say
from snnkit.cli.summary import print_counts


def energy_command(
    net: str,
    model: list[str] | None,
    *,
    timesteps: bool,
    chip: str | None,
    rate: float | None,
    data: str | None,
    samples: int | None,
    cross_check: str | None,
    json: bool,
) -> None:
    """Counts and estimates of a network, printed; see :func:`snnkit.pipeline.energy`."""
    from snnkit.analysis.energy import list_models
    from snnkit.errors import UsageError
    from snnkit.pipeline import check, energy, load, load_samples, write_energy

    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise UsageError(f"{rate:g} inferences a second is no rate", "give a number above 0")
    if cross_check not in (None, "sanafe"):
        raise UsageError(f"there is no cross-check by '{cross_check}'", "it is: sanafe")
    network = load(net)
    chosen, models = load_samples(network, data, count=samples), model or list_models()
    if timesteps:
        from snnkit.cli.timesteps import show

        if rate is not None or chip is not None or cross_check is not None:
            message = "--timesteps prints neither power nor routing nor a cross-check"
            raise UsageError(message, "leave out --rate, --chip and --cross-check")
        show(net, network, chosen, models, json=json)
        return
    mapping = None if chip is None else check(network, [chip])[0]
    checked = None
    if cross_check is not None:
        from snnkit.crosscheck import cross_check as beside

        checked = beside(network, chosen)
    counts, estimates = energy(network, chosen, models, mapping=mapping)
    content = write_energy(net, counts, estimates, rate, checked)
    if json:
        print_json(content)
        return
    print_counts(counts)
    for estimated in estimates:
        print_energy(estimated, rate)
    print_overview(estimates)
    if checked is not None:
        from snnkit.cli.crosscheck import print_cross_check

        print_cross_check(checked)


def print_energy(energy: Energy, rate: float | None = None) -> None:
    """Every term on its own line, the ANN beside, what is unknown and what is left out."""
    rows = [_row(term) for term in energy.terms]
    rows += [[name, "" if count is None else number(count), "unknown", "unknown", ""] for name, count in energy.unknown]
    rows.append(["total", "", "", bounded(energy), ""])
    for baseline in energy.baselines:
        rows.append([*_row(baseline)[:4], energy.break_even(baseline)])
    columns = ["term", "operations", "each", "energy", "source"]
    title = f"{energy.title}, {energy.precision}: {energy.label}, per inference; operations simulated"
    print_table(title, columns, rows, text=(0, 4))
    for line in _timing(energy, rate):
        say(line)
    say(f"technology: {energy.technology}")
    for term in energy.terms:
        if term.price.caveat:
            say(f"{term.name}: {term.price.caveat}")
    say("left out: " + "; ".join(energy.leaves_out))


def print_overview(estimates: list[Energy]) -> None:
    """The models side by side: a band, not a number."""
    if len(estimates) < 2:
        return
    rows = [
        [f"{energy.model}, {energy.precision}", bounded(energy), *_delays(energy), str(len(energy.unknown))]
        for energy in estimates
    ]
    columns = ["model", "energy per inference", "next answer after", "energy x delay", "unknown"]
    print_table("all models: modelled, none is measured", columns, rows)


def bounded(energy: Energy) -> str:
    """The total with its range, or with ``at least`` where it is only a bound."""
    return f"{energy.bound or ''} {format_range(energy.low, energy.high)}".strip()


def _row(term: Term) -> list[str]:
    count = f"{'at least ' if term.at_least else ''}{number(term.count)}"
    return [term.name, count, term.price.text(), format_range(term.low, term.high), term.price.source]


def _delays(energy: Energy) -> tuple[str, str]:
    latency = energy.latency
    if latency is None:
        return "", ""
    seconds = latency.seconds(latency.next)
    known = "" if seconds is None else f"{_step_bound(energy)}{format_range(seconds[0], seconds[2], 's')}"
    return known or f"{latency.next} timesteps", _product(energy)


def _product(energy: Energy) -> str:
    product = energy.energy_delay()
    if product is None:
        return "unknown"
    return f"{energy.energy_delay_bound or ''} {format_range(product[0], product[2], 'J s')}".strip()


def _timing(energy: Energy, rate: float | None) -> list[str]:
    lines = []
    if latency := energy.latency:
        parts = []
        for what, steps in (("first answer", latency.first), ("next answer", latency.next)):
            seconds = latency.seconds(steps)
            after = "" if seconds is None else f" ({_step_bound(energy)}{format_range(seconds[0], seconds[2], 's')})"
            parts.append(f"{what} after {steps} timesteps{after}")
        lines.append("latency: " + ", ".join(parts))
        if latency.timestep is None:
            lines.append("time of a timestep: unknown")
        else:
            lines.append(f"a timestep takes {latency.timestep.text()}: {latency.timestep.source}")
        lines.append(f"energy-delay product, to the first answer: {_product(energy)}")
    if energy.routed_on:
        lines.append(f"spikes between cores: as on {energy.routed_on}, at this model's prices")
    if rate is not None:
        low, _, high = energy.power(rate)
        static = "with" if energy.static_watts else "without the unknown"
        lines.append(f"power at {rate:g} inferences a second: {format_range(low, high, 'W')}, {static} static power")
        if energy.latency and energy.latency.rate is not None and rate > energy.latency.rate:
            lines.append(f"that rate is out of reach: {format_quantity(energy.latency.rate, 'Hz')} is the most")
    return lines


def _step_bound(energy: Energy) -> str:
    step = energy.latency.timestep if energy.latency else None
    return f"{step.bound} " if step is not None and step.bound else ""
