"""What ``snnkit quantize`` prints."""

from typing import TYPE_CHECKING, Any

from snnkit.cli.output import number, percent, print_table, say

if TYPE_CHECKING:
    from snnkit.network.ranges import Range
    from snnkit.quantization import Quantization


def print_quantization(run: str, result: "Quantization") -> None:
    """A row a layer of neurons: scale and rates, then ranges; the accuracies, and what to do next."""
    facts = result.network.metadata["quantization"]
    title = f"{result.path}: {facts['weight_bits']}-bit weights, {facts['input_bits']}-bit input"
    title += ", a scale per channel" if facts["per_channel"] else ""
    title += ", stem on the host" if result.network.stem == "host" else ""
    rows = [
        [
            node.name,
            _span(node.scale),
            _span(node.v_threshold),
            percent(100 * node.rate_float),
            percent(100 * node.rate_integer),
            number(node.overflows),
        ]
        for node in result.nodes
    ]
    columns = ["neurons", "scale", "v_threshold", "firing rate, float", "integer", "saturated updates"]
    print_table(title, columns, rows)
    ranges = []
    for layer in result.layers:
        cells = []
        for what in ("sum", "u", "v"):
            worst = getattr(layer.worst, what)
            cells.append(_share(getattr(layer.observed, what)) if layer.observed else "not known")
            cells.append(_share(worst))
        ranges.append([layer.name, *cells])
    columns = ["neurons and readout", "sum", "worst case", "u", "worst case", "v", "worst case"]
    print_table("largest value as a share of what 24 bits hold, observed and in the worst case", columns, ranges)
    for note in result.notes:
        say(note)
    found = ", ".join(f"{name} {percent(accuracy.percent)}" for name, accuracy in result.accuracies.items())
    say(f"accuracy on {result.calibration_samples} calibration samples: {found}")
    if (paired := result.paired) is not None:
        found = ", ".join(f"{name} {percent(accuracy.percent)}" for name, accuracy in result.test.items())
        say(f"accuracy on {paired.samples} test samples: {found}")
        low, high = paired.interval
        say(
            f"drop: {paired.drop:.2f} points, 95 % interval {low:.2f} to {high:.2f} (paired; {paired.lost} lost, "
            f"{paired.gained} gained); changed predictions: {percent(100 * paired.changed / paired.samples)}"
        )
    lava = "" if facts["per_channel"] or result.network.stem == "host" else " --target lava"
    say(f"next: snnkit export {run} --target onnx{lava}")


def _span(values: Any) -> str:
    """One number, or the least and largest of a list."""
    if not isinstance(values, list):
        return number(values)
    return f"{number(min(values))} to {number(max(values))}"


def _share(values: "Range") -> str:
    return percent(100 * max(-values.low, values.high) / values.limit)
