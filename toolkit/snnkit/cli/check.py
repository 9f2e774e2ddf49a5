"""What ``snnkit check`` prints: a table of layers, the totals, latency, and everything that does not fit."""

from typing import TYPE_CHECKING

from snnkit.cli.output import number, percent, print_table, say

if TYPE_CHECKING:
    from snnkit.analysis.limits import Violation
    from snnkit.analysis.mapping import LayerMapping, Mapping
    from snnkit.analysis.routing import Routed

USES = {"neurons": "neurons", "axons_in": "axons in", "axons_out": "axons out", "memory": "memory"}


def print_mapping(net: str, mapping: "Mapping") -> None:
    """One chip: layers, totals, latency, spikes, violations."""
    columns = ["layer", "cores", "core holds", "neurons", "axons in", "axons out", "memory, words", "fullest"]
    title = f"{net} on {mapping.chip.title}: {'fits' if mapping.fits else 'does NOT fit'}"
    print_table(title, columns, [_row(layer) for layer in mapping.layers], text=(0, 2, 7))
    say("figures of a core are those of the layer's fullest one; fullest: its most used resource")
    say(
        f"{len(mapping.cores)} of {mapping.chip.cores.value * mapping.chips_allowed} cores, "
        f"{mapping.total('neurons'):,} neurons{_relays(mapping)}, {mapping.total('synapse_words'):,} words of weights"
    )
    say(f"an answer {_latency(mapping)}")
    if mapping.routed is not None:
        say(f"an inference, mean: {_routed(mapping.routed)}")
    if mapping.unchecked:
        say(f"not published for this chip, so not checked: {', '.join(mapping.unchecked)}")
    for warning in mapping.warnings:
        say(f"could happen: {warning}")
    if mapping.violations:
        columns = ["layer", "what", "is", "limit", "what to change", "source of the limit"]
        print_table("what does not fit", columns, [_reason(v) for v in mapping.violations], text=(0, 1, 4, 5))


def _row(layer: "LayerMapping") -> list[str]:
    name, share = max(layer.utilisation.items(), key=lambda item: item[1])
    figures = (layer.neurons_per_core, layer.axons_in, layer.axons_out, layer.memory_words)
    return [
        layer.name,
        number(layer.cores),
        " x ".join(map(str, layer.cut)) if len(layer.shape) == 3 else str(layer.cut[0]),
        *map(number, figures),
        f"{USES[name]}, {percent(100 * share)}",
    ]


def _relays(mapping: "Mapping") -> str:
    relays = sum(layer.neurons for layer in mapping.layers if layer.kind == "relay")
    return f" ({relays:,} of them relays)" if relays else ""


def _latency(mapping: "Mapping") -> str:
    first, following = mapping.latency_first, mapping.latency_next
    if first.seconds is None or following.seconds is None or mapping.throughput is None:
        return f"after {first.steps} steps, the next ones every {following.steps} steps"
    return (
        f"after {first.steps} steps (at least {1e6 * first.seconds:.3g} µs), "
        f"the next ones every {following.steps} steps (at most {mapping.throughput:,.0f} a second)"
    )


def _routed(routed: "Routed") -> str:
    parts = [
        f"{number(routed.between_cores)} spikes between cores",
        f"{number(routed.hops_east_west)} hops east or west, {number(routed.hops_north_south)} north or south",
    ]
    if routed.between_chips:
        parts.append(f"{number(routed.between_chips)} from chip to chip")
    if routed.from_host:
        parts.append(f"{number(routed.from_host)} from the host")
    return ", ".join(parts)


def _reason(violation: "Violation") -> list[str]:
    figures = (f"{violation.value:,}", f"{violation.limit:,}")
    return [violation.layer, violation.what, *figures, violation.remedy, violation.source]
