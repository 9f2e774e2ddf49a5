"""Energy per inference, modelled: operation counts times published energies per operation, each term on its own line.

Counts are simulated and energies modelled; nothing here is measured. Every price carries its source and its range, and
the ranges go through to the totals. What a network does but nobody has priced is named as unknown.
"""

from dataclasses import dataclass
from typing import Any, Literal

from snnkit.analysis.counts import OpCounts
from snnkit.analysis.energy_baselines import ANN_MODEL, ann_baselines
from snnkit.analysis.energy_models import Duration, EnergyModel, list_models, load_model
from snnkit.analysis.energy_terms import Routing, Term, make_terms
from snnkit.errors import UsageError

__all__ = [
    "Energy",
    "Latency",
    "Routing",
    "Term",
    "ann_baselines",
    "estimate",
    "format_energy",
    "format_quantity",
    "format_range",
    "list_models",
    "load_model",
]

PREFIXES = {-18: "a", -15: "f", -12: "p", -9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M"}


@dataclass(frozen=True)
class Latency:
    """Timesteps to the first answer, T plus the layers that the input goes through, and to each next one, T.

    ``timestep`` is what the model says of the time that one takes, None where nothing is published.
    """

    first: int
    next: int
    timestep: Duration | None = None

    def seconds(self, steps: int) -> tuple[float, float, float] | None:
        """Low, nominal and high."""
        step = self.timestep
        return None if step is None else (steps * step.lower, steps * step.nominal, steps * step.upper)

    @property
    def rate(self) -> float | None:
        """Answers a second at most, by the timestep's nominal length."""
        return None if self.timestep is None else 1.0 / (self.next * self.timestep.nominal)

    def to_json(self) -> dict[str, Any]:
        return {
            "first_answer": {"timesteps": self.first, "seconds": self.seconds(self.first)},
            "next_answer": {"timesteps": self.next, "seconds": self.seconds(self.next)},
            "answers_per_second": self.rate,
            "timestep": None if self.timestep is None else self.timestep.model_dump(),
            "label": "modelled",
        }


@dataclass(frozen=True, kw_only=True)
class Energy:
    """The energy of one inference, in joules; ``baselines`` are one pass of the same topology as an ANN.

    ``unknown`` names what happens but has no published price, with its count per inference where it has one.
    ``routed_on`` names the chip on whose cores the network was placed, if it was.
    """

    model: str
    title: str
    technology: str
    source: str
    label: str
    precision: str
    firing_rate: float
    terms: tuple[Term, ...]
    baselines: tuple[Term, ...]
    leaves_out: tuple[str, ...]
    unknown: tuple[tuple[str, float | None], ...] = ()
    latency: Latency | None = None
    static_watts: tuple[float, float, float] | None = None
    routed_on: str | None = None

    @property
    def joules(self) -> float:
        return sum(term.joules for term in self.terms)

    @property
    def low(self) -> float:
        return sum(term.low for term in self.terms)

    @property
    def high(self) -> float:
        return sum(term.high for term in self.terms)

    @property
    def bound(self) -> str | None:
        """``at least`` where some term is only that, and none ``at most``: every model leaves something out."""
        bounds = set().union(*(term.bounds for term in self.terms if term.joules))
        return "at least" if bounds == {"at least"} else None

    @property
    def summary(self) -> str:
        """How the total must be read, for the table that prints it; names the first of what is left out."""
        return f"{self.label}, {self.title}, {self.precision}, without {self.leaves_out[0].split(' (')[0]}"

    def break_even_rate(self, baseline: Term, end: Literal["low", "joules", "high"] = "joules") -> float | None:
        """The firing rate, up to 1, at which the network costs as much as ``baseline``, at one end of both ranges.

        Synaptic events, those of an event input too, their fetches and messages, spikes and active updates grow with
        the rate; all else is fixed. None where what is fixed already costs more, or where no neuron fired, so that
        nothing can be scaled.
        """
        limit: float = getattr(baseline, end)
        growing = sum(term.growing * getattr(term, end) for term in self.terms)
        fixed = float(getattr(self, end)) - growing
        if limit <= fixed or self.firing_rate == 0 or growing <= 0:
            return None
        return min(1.0, float(self.firing_rate * (limit - fixed) / growing))

    def break_even(self, baseline: Term) -> str:
        """In words, over both ranges: ``break-even at a firing rate of 1.11 %``."""
        if self.firing_rate == 0:
            return "no neuron fired, so that there is no rate to compare at"
        least, most = (self.break_even_rate(baseline, end) for end in ("high", "low"))
        if most is None:
            return "costs less than this network without any spike"
        if least == 1:
            return "costs more than this network at any firing rate"
        low, high = (f"{100 * (rate or 0.0):.2f} %" for rate in (least, most))
        return f"break-even at a firing rate of {low if low == high else f'{low} to {high}'}"

    def power(self, rate: float) -> tuple[float, float, float]:
        """Watts at ``rate`` inferences a second, low, nominal and high; with the static power where it is known."""
        static = self.static_watts or (0.0, 0.0, 0.0)
        dynamic = (part - self._static(end) for end, part in enumerate((self.low, self.joules, self.high)))
        low, nominal, high = (rate * joules + watts for joules, watts in zip(dynamic, static, strict=True))
        return low, nominal, high

    def _static(self, end: int) -> float:
        parts = [(t.low, t.joules, t.high)[end] for t in self.terms if t.operation == "static_timestep"]
        return sum(parts)

    def energy_delay(self) -> tuple[float, float, float] | None:
        """Joule-seconds to the first answer, low, nominal and high; None where a timestep's length is unknown."""
        seconds = self.latency and self.latency.seconds(self.latency.first)
        if not seconds:
            return None
        return self.low * seconds[0], self.joules * seconds[1], self.high * seconds[2]

    @property
    def energy_delay_bound(self) -> str | None:
        """``at least`` where the energy or the length of a timestep is only that."""
        step = self.latency.timestep if self.latency else None
        return "at least" if "at least" in (self.bound, step.bound if step else None) else None

    def to_json(self, rate: float | None = None) -> dict[str, Any]:
        """Everything above; with ``rate``, the power at so many inferences a second."""
        result = {
            "model": self.model,
            "title": self.title,
            "technology": self.technology,
            "source": self.source,
            "label": self.label,
            "precision": self.precision,
            "joules": self.joules,
            "low": self.low,
            "high": self.high,
            "bound": self.bound,
            "summary": self.summary,
            "firing_rate": self.firing_rate,
            "routed_on": self.routed_on,
            "terms": [term.to_json() for term in self.terms],
            "baselines": [
                term.to_json()
                | {
                    "break_even": self.break_even(term),
                    "break_even_rate": self.break_even_rate(term),
                    "break_even_rate_low": self.break_even_rate(term, "high"),
                    "break_even_rate_high": self.break_even_rate(term, "low"),
                }
                for term in self.baselines
            ],
            "leaves_out": list(self.leaves_out),
            "unknown": [{"name": name, "count": count} for name, count in self.unknown],
            "latency": None if self.latency is None else self.latency.to_json(),
            "energy_delay": self.energy_delay(),
            "energy_delay_bound": self.energy_delay_bound,
            "power": None,
        }
        if rate is not None:
            low, nominal, high = self.power(rate)
            static = "included" if self.static_watts else "unknown"
            result["power"] = {"rate": rate, "watts": nominal, "low": low, "high": high, "static": static}
        return result


def estimate(
    counts: OpCounts,
    model: EnergyModel,
    *,
    precision: str | None = None,
    depth: int | None = None,
    routing: Routing | None = None,
) -> Energy:
    """The energy per inference of the network that ``counts`` come from.

    ``precision`` is by default the model's only one, else fp32 for a float network and int8 for an integer one.
    ``depth`` is :func:`snnkit.network.depth.latency`; ``routing`` comes from a mapping. A stem on
    the host is computed once where its input is direct; its neurons are left out. Operations without a price are
    named in ``leaves_out`` and ``unknown``. Raises :class:`UsageError` for a precision that the model does not have.
    """
    if precision is None:
        usual = "fp32" if counts.kind == "float" else "int8"
        precision = next(iter(model.precisions)) if len(model.precisions) == 1 else usual
    if precision not in model.precisions:
        raise UsageError(
            f"energy model '{model.name}' has no precision '{precision}'", f"it has {', '.join(model.precisions)}"
        )
    terms, unknown = make_terms(counts, model, precision, routing)
    leaves_out = [
        name if amount is None else f"{name} ({amount:g} an inference), which this model does not price"
        for name, amount in unknown
    ]
    if counts.total("updates_inactive", "host") or counts.total("updates_active", "host"):
        leaves_out.append("the neurons of the first layer, which the host computes")
    latency = None if depth is None else Latency(counts.timesteps + depth, counts.timesteps, model.timestep)
    static = model.static_power
    if static is None:
        unknown.append(("static power", None))
    return Energy(
        model=model.name,
        title=model.title,
        technology=model.technology,
        source=model.source,
        label=model.label,
        precision=precision,
        firing_rate=counts.firing_rate,
        terms=tuple(terms),
        baselines=_baselines(counts, model),
        leaves_out=(*model.leaves_out, *leaves_out),
        unknown=tuple(unknown),
        latency=latency,
        static_watts=(static.lower, static.nominal, static.upper) if static else None,
        routed_on=routing.chip if routing and any(term.routed for term in terms) else None,
    )


def _baselines(counts: OpCounts, model: EnergyModel) -> tuple[Term, ...]:
    """With or without memory as the model itself; both where it does not say what its events contain."""
    if model.memory:
        return ann_baselines(counts, memory=True)
    if model.name == ANN_MODEL:
        return ann_baselines(counts)
    return ann_baselines(counts) + ann_baselines(counts, memory=True)


def format_energy(joules: float) -> str:
    """Three significant digits with a prefix: ``format_energy(1.23e-7)`` is ``'123 nJ'``."""
    return format_quantity(joules, "J")


def format_quantity(value: float, unit: str) -> str:
    """The same in any unit: ``format_quantity(2.2e-5, 's')`` is ``'22 µs'``."""
    if value == 0:
        return f"0 {unit}"
    digits, exponent = f"{value:.2e}".split("e")
    power = min(max(3 * (int(exponent) // 3), min(PREFIXES)), max(PREFIXES))
    return f"{float(digits) * 10.0 ** (int(exponent) - power):.3g} {PREFIXES[power]}{unit}"


def format_range(low: float, high: float, unit: str = "J") -> str:
    """``'2.5 nJ'``, or ``'2.5 to 26 nJ'`` with the unit of each end."""
    ends = [format_quantity(end, unit) for end in (low, high)]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)
