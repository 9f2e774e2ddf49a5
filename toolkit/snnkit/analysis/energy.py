"""Energy per inference, modelled: operation counts times published energies per operation, each term on its own line.

An energy model is a YAML file; those in the folder ``energy`` beside this module are found by name, a user's by its
path. Estimated, never measured: every number carries its source, and a model says what it leaves out.
"""

import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from snnkit.analysis.counts import OpCounts
from snnkit.errors import ConfigError, UsageError, did_you_mean

ANN_MODEL = "horowitz2014-45nm"  # an ANN does not run on a spiking chip, so its baselines are always priced here
JOULES = {"fJ": 1e-15, "pJ": 1e-12, "nJ": 1e-9}
PREFIXES = {-18: "a", -15: "f", -12: "p", -9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M"}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Price(_Strict):
    """What one operation costs, and who says so; ``bound`` where the source gives no more than a limit."""

    value: float = Field(ge=0)
    unit: Literal["fJ", "pJ", "nJ"]
    source: str = Field(min_length=1)
    bound: Literal["at least", "at most"] | None = None
    caveat: str | None = None

    @property
    def joules(self) -> float:
        return self.value * JOULES[self.unit]


class Prices(_Strict):
    """Prices at one precision. Neuron updates are priced as a whole, or by the arithmetic on their state."""

    synaptic_event: Price
    graded_mac: Price | None = None
    update_active: Price | None = None
    update_inactive: Price | None = None
    state_addition: Price | None = None
    state_multiplication: Price | None = None

    @model_validator(mode="after")
    def _one_way(self) -> "Prices":
        updates, state = (
            [price is not None for price in pair]
            for pair in (
                (self.update_active, self.update_inactive),
                (self.state_addition, self.state_multiplication),
            )
        )
        if any(updates) and any(state):
            raise ValueError("neuron updates are priced twice: give update_* or state_*, not both")
        if any(updates) != all(updates) or any(state) != all(state):
            raise ValueError("update_active and update_inactive belong together, and so do the two of state_*")
        return self


class EnergyModel(_Strict):
    """One energy model file; ``precisions`` are alternatives, such as fp32 and int8."""

    name: str = Field(min_length=1)
    title: str = Field(min_length=1)
    technology: str = Field(min_length=1)
    source: str = Field(min_length=1)
    label: Literal["modelled"] = "modelled"
    precisions: dict[str, Prices] = Field(min_length=1)
    leaves_out: tuple[str, ...] = Field(min_length=1)


@dataclass(frozen=True, kw_only=True)
class Term:
    """``count`` operations per inference, on average, at ``price`` each."""

    name: str
    operation: str
    count: float
    price: Price

    @property
    def joules(self) -> float:
        return self.count * self.price.joules

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "operation": self.operation,
            "count": self.count,
            "joules": self.joules,
            "price": self.price.model_dump(),
        }


@dataclass(frozen=True, kw_only=True)
class Energy:
    """The energy of one inference, in joules; ``baselines`` are one pass of the same topology as an ANN."""

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

    @property
    def joules(self) -> float:
        return sum(term.joules for term in self.terms)

    @property
    def bound(self) -> str | None:
        """``at least`` or ``at most`` where some term is only that; both together leave an estimate."""
        bounds = {term.price.bound for term in self.terms if term.joules} - {None}
        return bounds.pop() if len(bounds) == 1 else None

    @property
    def summary(self) -> str:
        """How the total must be read, for the table that prints it; names the first of what is left out."""
        return f"{self.label}, {self.title}, {self.precision}, without {self.leaves_out[0].split(' (')[0]}"

    def break_even_rate(self, baseline: Term) -> float | None:
        """The firing rate, up to 1, at which the network costs as much as ``baseline``.

        Synaptic events, those of an event input too, and active updates grow with the rate; all else is fixed.
        None where what is fixed already costs more, or where no neuron fired, so that nothing can be scaled.
        """
        joules = {term.operation: 0.0 for term in self.terms}
        for term in self.terms:
            joules[term.operation] += term.joules
        growing = joules["synaptic_event"]
        prices = {term.operation: term.price.joules for term in self.terms}
        if "update_active" in prices:  # an update that spikes is one that does not rest
            active = sum(term.count for term in self.terms if term.operation == "update_active")
            growing += active * (prices["update_active"] - prices["update_inactive"])
        fixed = self.joules - growing
        if baseline.joules <= fixed or self.firing_rate == 0 or growing <= 0:
            return None
        return min(1.0, self.firing_rate * (baseline.joules - fixed) / growing)

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "title": self.title,
            "technology": self.technology,
            "source": self.source,
            "label": self.label,
            "precision": self.precision,
            "joules": self.joules,
            "bound": self.bound,
            "summary": self.summary,
            "firing_rate": self.firing_rate,
            "terms": [term.to_json() for term in self.terms],
            "baselines": [term.to_json() | {"break_even_rate": self.break_even_rate(term)} for term in self.baselines],
            "leaves_out": list(self.leaves_out),
        }


def list_models() -> list[str]:
    """The names of the energy models that come with snnkit."""
    folder = resources.files("snnkit.analysis") / "energy"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_model(name_or_path: str | os.PathLike[str]) -> EnergyModel:
    """The energy model of that name, or in the YAML file at that path.

    Raises :class:`UsageError` for an unknown name or a missing file, :class:`ConfigError` for a file that is no
    energy model, naming every key that is wrong.
    """
    name = os.fspath(name_or_path)
    if name in list_models():
        return _parse((resources.files("snnkit.analysis") / "energy" / f"{name}.yaml").read_text("utf-8"), name)
    path = Path(name)
    if path.suffix not in (".yaml", ".yml") and not path.is_file():
        raise UsageError(f"there is no energy model '{name}'", did_you_mean(name, list_models()))
    try:
        return _parse(path.read_text("utf-8"), name)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the energy model '{name}' cannot be read ({error})", "check the path") from None


def _parse(text: str, name: str) -> EnergyModel:
    try:
        return EnergyModel.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ConfigError(f"energy model '{name}' is not YAML: {error}", "correct the file") from None
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in error.errors()]
        raise ConfigError(
            f"energy model '{name}' is not valid: " + "; ".join(problems),
            "correct these keys; the models that come with snnkit show the form",
        ) from None


def estimate(counts: OpCounts, model: EnergyModel, *, precision: str | None = None) -> Energy:
    """The energy per inference of the network that ``counts`` come from.

    ``precision`` is by default the model's only one, else fp32 for a float network and int8 for an integer one.
    A stem on the host is computed once where its input is direct; its neurons are left out. Operations without a
    price are named in ``leaves_out``. Raises :class:`UsageError` for a precision that the model does not have.
    """
    if precision is None:
        usual = "fp32" if counts.kind == "float" else "int8"
        precision = next(iter(model.precisions)) if len(model.precisions) == 1 else usual
    if precision not in model.precisions:
        raise UsageError(
            f"energy model '{model.name}' has no precision '{precision}'", f"it has {', '.join(model.precisions)}"
        )
    prices = model.precisions[precision]
    terms, unpriced = [], []
    for name, operation, amount in _operations(counts, prices):
        price: Price | None = getattr(prices, operation)
        if price is not None:
            terms.append(Term(name=name, operation=operation, count=amount, price=price))
        elif amount:
            unpriced.append(f"{name} ({amount:g} an inference), which this model does not price")
    if counts.total("updates_inactive", "host") or counts.total("updates_active", "host"):
        unpriced.append("the neurons of the first layer, which the host computes")
    return Energy(
        model=model.name,
        title=model.title,
        technology=model.technology,
        source=model.source,
        label=model.label,
        precision=precision,
        firing_rate=counts.firing_rate,
        terms=tuple(terms),
        baselines=ann_baselines(counts),
        leaves_out=(*model.leaves_out, *unpriced),
    )


def ann_baselines(counts: OpCounts) -> tuple[Term, ...]:
    """One pass of the same topology as an ANN, dense, at fp32 and int8 by Horowitz's constants, without memory."""
    baselines = []
    for precision, prices in load_model(ANN_MODEL).precisions.items():
        assert prices.graded_mac is not None
        name = f"the same ANN, {precision}, by {ANN_MODEL}"
        baselines.append(Term(name=name, operation="graded_mac", count=counts.ann_macs, price=prices.graded_mac))
    return tuple(baselines)


def _operations(counts: OpCounts, prices: Prices) -> list[tuple[str, str, float]]:
    """Every term that the energy is made of: its name, the operation that prices it, operations per inference."""
    chip = [node for node in counts.nodes if node.place == "chip"]
    stem = sum(node.effective_macs for node in chip if node.reads_input) / counts.samples
    other = counts.mean("effective_macs", "chip") - stem
    rows = [("synaptic events", "synaptic_event", counts.mean("effective_acs", "chip"))]
    if stem:
        rows.append(("input layer, at every timestep", "graded_mac", stem))
    if other:
        rows.append(("graded synapses", "graded_mac", other))
    if counts.total("dense", "host"):
        once = counts.mean("macs_once", "host") + counts.mean("acs_once", "host")
        rows.append(("input layer, on the host", "graded_mac", once))
    if prices.state_addition is not None:
        rows.append(("neuron state, additions", "state_addition", counts.mean("state_additions", "chip")))
        rows.append(("neuron state, decays", "state_multiplication", counts.mean("state_multiplications", "chip")))
    else:
        rows.append(("neuron updates, active", "update_active", counts.mean("updates_active", "chip")))
        rows.append(("neuron updates, inactive", "update_inactive", counts.mean("updates_inactive", "chip")))
    return rows


def format_energy(joules: float) -> str:
    """Three significant digits with a prefix: ``format_energy(1.23e-7)`` is ``'123 nJ'``."""
    if joules == 0:
        return "0 J"
    digits, exponent = f"{joules:.2e}".split("e")
    power = min(max(3 * (int(exponent) // 3), min(PREFIXES)), max(PREFIXES))
    return f"{float(digits) * 10.0 ** (int(exponent) - power):.3g} {PREFIXES[power]}J"
