"""The charts and cells of a report, drawn from its content."""

import math

from markupsafe import Markup

from snnkit.analysis.energy import format_energy
from snnkit.analysis.report import charts, content, svg
from snnkit.analysis.report.verdict import compared

MOST_LINES = svg.COLOURS
GROUPS = (  # terms drawn in one colour, by how their operations begin; the last takes the rest
    ("synaptic events", 0, ("synaptic",)),
    ("multiply-accumulates of graded input", 1, ("graded",)),
    ("neuron state and updates", 3, ("state", "update", "neuron")),
    ("memory accesses", 4, ("memory",)),
    ("spike routing", 5, ("spike",)),
    ("static power", 7, ("static",)),
    ("other", 2, ("",)),
)
MOST_CHIPS = 4  # that are drawn


class Figures:
    """Everything that is drawn, by the name under which the page asks for it; None or empty where there is no data."""

    def __init__(self, report: content.Report) -> None:
        self.report = report
        ends = [end for r in report.results if r.accuracy for end in (*r.accuracy.interval_95, r.accuracy.accuracy)]
        self.accuracy_scale = svg.Scale(_below(min(ends)), 100.0) if ends else svg.Scale(0.0, 100.0)
        joules = [end for e in report.energies for end in (e.low, e.high) if end > 0]
        self.baselines = tuple({b.name: b for e in report.energies for b in e.baselines}.values())
        joules += [end for b in self.baselines for end in (b.low, b.high) if end > 0]
        self.energy_scale = svg.Scale.over(joules or [1e-9], log=True)
        self.compared = tuple(compared(report.facts, report.timesteps[-1].energies))
        self.most_operations = max((layer.effective_acs + layer.effective_macs for layer in report.layers), default=0)

    # cells

    def accuracy_axis(self) -> Markup:
        scale = self.accuracy_scale
        return svg.axis(scale, [(scale.low, f"{scale.low:g} %"), (100.0, "100 %")])

    def accuracy(self, result: content.Result) -> Markup:
        assert result.accuracy is not None
        low, high = result.accuracy.interval_95
        colour = {"teacher": 2, "plain": 1, "student": 1, "network": 0}[result.role]
        return svg.whisker(low, result.accuracy.accuracy, high, self.accuracy_scale, colour)

    def rate(self, layer: content.Layer) -> Markup:
        return svg.bar(layer.rate or 0.0)

    def rates(self, layer: content.Layer) -> Markup:
        return svg.columns(layer.rates, max(max(one.rates, default=0.0) for one in self.report.layers))

    def steps(self, layer: content.Layer) -> Markup:
        """The operations at each timestep, beside the most that a layer does at one."""
        each = [[a + b for a, b in zip(one.acs, one.macs, strict=True)] for one in (layer, *self.report.layers)]
        return svg.columns(each[0], max(max(values, default=0.0) for values in each))

    def operations(self, layer: content.Layer) -> Markup:
        most = self.most_operations or 1.0
        rest = 1.0 - (layer.effective_acs + layer.effective_macs) / most
        return svg.stack([(layer.effective_acs / most, 0), (layer.effective_macs / most, 1), (rest, None)])

    def energy_axis(self) -> Markup:
        return svg.axis(self.energy_scale, [(value, format_energy(value)) for value in self.energy_scale.ticks(3)])

    def energy(self, energy: content.Total) -> Markup:
        return svg.reach(energy.low, energy.high, self.energy_scale, bound=energy.bound)

    def baseline(self, baseline: content.Baseline) -> Markup:
        return svg.reach(baseline.low, baseline.high, self.energy_scale, 2)

    def terms(self, energy: content.Energy) -> Markup:
        whole = energy.joules or 1.0
        parts = sorted((self.colour(term), term.joules / whole) for term in energy.terms)
        return svg.stack([(share, colour) for colour, share in parts])

    @staticmethod
    def colour(term: content.Term) -> int:
        """That of the group that the term's operation belongs to."""
        return next(colour for _, colour, known in GROUPS if term.operation.startswith(known))

    def groups(self) -> list[tuple[str, int]]:
        """The groups of which some model has a term, with their colours."""
        found = {self.colour(term) for energy in self.report.energies for term in energy.terms}
        return [(name, colour) for name, colour, _ in GROUPS if colour in found]

    # charts

    def accuracy_over_timesteps(self) -> Markup | None:
        known = [(step.timesteps, step.accuracy) for step in self.report.timesteps if step.accuracy]
        if not known:
            return None
        line = charts.Series(
            "accuracy",
            [(t, accuracy.accuracy) for t, accuracy in known],
            band=[accuracy.interval_95 for _, accuracy in known],
            marked=True,
        )
        said = ", ".join(f"T = {t}: {accuracy.accuracy:.2f} %" for t, accuracy in known)
        title = f"Accuracy against timesteps: {said}"
        return charts.lines(title, [line], x_label="timesteps T", write=lambda y: f"{y:g} %", whole=True)

    def at(self, step: content.Step, total: content.Total) -> content.Total:
        """The total of the same model at the same precision after other timesteps."""
        same = (total.model, total.precision)
        return next(one for one in step.energies if (one.model, one.precision) == same)

    def energy_lines(self) -> list[charts.Series]:
        """A line a model, at the precision of the network."""
        series: list[charts.Series] = []
        for total in self.compared[:MOST_LINES]:
            joules = [(float(step.timesteps), self.at(step, total).joules) for step in self.report.timesteps]
            points = [point for point in joules if point[1] > 0]
            if points:
                name = f"{total.model}, {total.precision}"
                series.append(charts.Series(name, points, colour=len(series), marked=True))
        return series

    def energy_over_timesteps(self) -> Markup | None:
        series = self.energy_lines()
        if not series:
            return None
        said = "; ".join(f"{one.name} {format_energy(one.points[-1][1])} at the last" for one in series)
        title = f"Modelled energy an inference against timesteps: {said}"
        return charts.lines(title, series, x_label="timesteps T", write=format_energy, whole=True, log=True)

    def curves(self) -> list[tuple[str, list[charts.Series], Markup]]:
        """Accuracy of all phases in one chart, then the losses of each phase in its own."""
        wanted = [("accuracy", [c for c in self.report.curves if c.name == "validation_accuracy"], "phase")]
        wanted[0][1].extend(c for c in self.report.curves if c.name == "train_accuracy" and not wanted[0][1])
        for phase in dict.fromkeys(curve.phase for curve in self.report.curves):
            losses = [c for c in self.report.curves if c.phase == phase and not c.name.endswith("accuracy")]
            wanted.append((f"{phase}: loss", losses, "name"))
        drawn = []
        for caption, curves, by in wanted:
            series = [
                charts.Series(str(getattr(curve, by)), curve.values, colour=index)
                for index, curve in enumerate(curves[:MOST_LINES])
            ]
            if not series:
                continue
            accuracy = by == "phase"
            head = (
                "Accuracy on the validation split, %"
                if accuracy
                else f"Loss of the {caption.split(':')[0]} and its terms"
            )
            said = ", ".join(f"{one.name} ends at {one.points[-1][1]:.3g}" for one in series)
            picture = charts.lines(
                f"{head}: {said}", series, x_label="epoch", write=(lambda y: f"{y:g} %") if accuracy else _plain
            )
            drawn.append((head, series, picture))
        return drawn

    def meshes(self, chip: content.Chip) -> list[Markup]:
        """The first chips that the network takes, core by core."""
        drawn = []
        for number in range(min(chip.chips, MOST_CHIPS)):
            squares = [
                charts.Square(
                    row=core.row,
                    column=core.column,
                    place=core.core % chip.per_tile,
                    text=str(core.layer + 1),
                    use=core.use,
                    tooltip=f"core {core.core}: {chip.layers[core.layer].name}, {100 * core.use:.1f} % used",
                )
                for core in chip.cores
                if core.chip == number
            ]
            which = f"chip {number + 1} of {chip.chips}, " if chip.chips > 1 else ""
            title = f"Cores of {chip.title}: {which}{len(squares)} of {chip.rows * chip.columns * chip.per_tile} used"
            drawn.append(charts.mesh(title, chip.rows, chip.columns, chip.per_tile, squares))
        return drawn

    def use(self, layer: content.ChipLayer) -> Markup:
        return svg.bar(layer.use, 6 if layer.use > 1 else 0)

    def extent(self, extent: content.Extent) -> Markup:
        """In bits, so that a step of the scale is a doubling: what was observed, on what could be."""
        limit = math.log2(1 + extent.limit)
        worst, observed = (
            math.log2(1 + max(map(abs, pair or (0,)))) / limit for pair in (extent.worst, extent.observed)
        )
        return svg.stack([(observed, 0), (max(0.0, worst - observed), 2), (max(0.0, 1 - max(worst, observed)), None)])

    @staticmethod
    def share(extent: content.Extent, pair: tuple[int, int] | None) -> str:
        """The largest magnitude as a share of the limit."""
        return "unknown" if pair is None else f"{100 * max(map(abs, pair)) / extent.limit:.2f} %"

    def raster(self, sample: content.Sample) -> Markup:
        strips = [
            charts.Strip(
                f"{_short(one.node)}: {one.spikes:,} spikes of {one.neurons:,} neurons"
                + (f" (1/{one.stride})" if one.stride > 1 else ""),
                math.ceil(one.neurons / one.stride),
                one.fired,
            )
            for one in sample.rasters
        ]
        said = ", ".join(f"{one.node} {one.spikes}" for one in sample.rasters)
        return charts.raster(f"Spikes of each layer for test sample {sample.index}: {said}", strips)

    def readouts(self, sample: content.Sample) -> list[tuple[str, float, bool, Markup]]:
        """The classes with the largest readouts: name, value, whether it is the answer, and a bar."""
        names = self.report.facts.classes
        order = sorted(range(len(sample.readouts)), key=lambda i: (-sample.readouts[i], i))[:5]
        low = min(sample.readouts)
        reach = (max(sample.readouts) - low) or 1.0
        return [
            (names[i], sample.readouts[i], rank == 0, svg.bar((sample.readouts[i] - low) / reach))
            for rank, i in enumerate(order)
        ]


def _short(name: str) -> str:
    """At most 26 characters, those of its ends."""
    return name if len(name) <= 26 else f"{name[:12]}…{name[-13:]}"


def _plain(value: float) -> str:
    return f"{value:g}"


def _below(percent: float) -> float:
    """A round percentage at or below, with at least a fifth of the way to 100 left to see."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100) if (100 - percent) / step <= 5)
    return max(0.0, math.floor(percent / step) * step)
