"""The terms that an energy is made of: simulated counts at modelled prices, each on a line of its own."""

from dataclasses import dataclass
from typing import Any, Protocol

from snnkit.analysis.counts import OpCounts
from snnkit.analysis.energy_models import EnergyModel, Memory, Price, Prices

RELAYS = "relays: "  # how the names of their terms begin


@dataclass(frozen=True, kw_only=True)
class Term:
    """``count`` operations per inference, on average, at ``price`` each.

    ``growing`` is the share of its joules that grows with the firing rate, 0..1; ``at_least`` says that the count is
    a lower bound.
    """

    name: str
    operation: str
    count: float
    price: Price
    growing: float = 0.0
    at_least: bool = False

    @property
    def joules(self) -> float:
        return self.count * self.price.joules

    @property
    def low(self) -> float:
        return self.count * self.price.lower

    @property
    def high(self) -> float:
        return self.count * self.price.upper

    @property
    def routed(self) -> bool:
        """Whether it comes from where a mapping placed the neurons."""
        return self.operation in ("spike_message", "spike_tile", "spike_hop") or self.name.startswith(RELAYS)

    @property
    def bounds(self) -> set[str]:
        """Of which kind of bound the term is: none, one, or both."""
        return {bound for bound in (self.price.bound, "at least" if self.at_least else None) if bound}

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "operation": self.operation,
            "count": self.count,
            "count_label": "simulated",
            "count_bound": "at least" if self.at_least else None,
            "joules": self.joules,
            "low": self.low,
            "high": self.high,
            "label": "modelled",
            "price": self.price.model_dump(),
        }


@dataclass(frozen=True)
class Routing:
    """What a mapping knows of the spikes' way, per inference: packets from core to core, and hops between tiles.

    ``from_host``: packets of a stem that the host computes; those of an event input are not routed, but counted.
    ``relay_updates`` and ``relay_spikes`` are those of the neurons that only hold spikes back, by one weight each.
    ``chip`` names what the network was mapped on.
    """

    messages: float
    hops: float
    from_host: float = 0.0
    relay_updates: float = 0.0
    relay_spikes: float = 0.0
    chip: str = ""


class _Add(Protocol):
    def __call__(
        self, name: str, operation: str, count: float, *, grows: bool = False, at_least: bool = False
    ) -> None: ...


def make_terms(
    counts: OpCounts, model: EnergyModel, precision: str, routing: Routing | None
) -> tuple[list[Term], list[tuple[str, float | None]]]:
    """Every term that the energy is made of, and what happens without having a price, with its count if it has one."""
    prices = model.precisions[precision]
    terms: list[Term] = []
    unknown: list[tuple[str, float | None]] = []

    def add(name: str, operation: str, count: float, *, grows: bool = False, at_least: bool = False) -> None:
        price: Price | None = getattr(prices, operation)
        if price is not None:
            shared: Any = {"operation": operation, "count": count, "price": price, "at_least": at_least}
            terms.append(Term(name=name, growing=float(grows), **shared))
        elif count:
            unknown.append((name, count))

    chip = [node for node in counts.nodes if node.place == "chip"]
    events = counts.mean("effective_acs", "chip")
    convolved = sum(node.effective_acs for node in chip if node.kind == "Conv2d") / counts.samples
    if prices.synaptic_event_conv is None:
        add("synaptic events", "synaptic_event", events, grows=True)
    else:
        add("synaptic events, dense", "synaptic_event", events - convolved, grows=True)
        add("synaptic events, convolution", "synaptic_event_conv", convolved, grows=True)
    stem = sum(node.effective_macs for node in chip if node.reads_input) / counts.samples
    other = counts.mean("effective_macs", "chip") - stem
    once = counts.mean("macs_once", "host") + counts.mean("acs_once", "host")
    if stem:
        add("input layer, at every timestep", "graded_mac", stem)
    if other:
        add("graded synapses", "graded_mac", other, grows=True)
    if counts.total("dense", "host"):
        add("input layer, on the host", "graded_mac", once)
    names = ("updates_active", "updates_inactive", "updates_reached", "state_additions", "state_multiplications")
    _add_neurons(_Updates(*(counts.mean(name, "chip") for name in names)), prices, add, terms)
    if routing is not None and routing.relay_updates and prices.state_addition is None:  # arithmetic has no relays
        passed = "synaptic_event" if prices.synaptic_event_conv is None else "synaptic_event_conv"
        add(f"{RELAYS}synaptic events", passed, routing.relay_spikes, grows=True)
        _add_neurons(_Updates.of_relays(routing), prices, add, terms, RELAYS)
    if model.memory:
        terms += _memory_terms(counts, model, prices, events, {"input layer": stem + once, "graded synapses": other})
    _add_routing(counts, prices, routing, add, unknown)
    if model.static_power and model.timestep:
        terms.append(_static_term(counts.timesteps, model))
    return terms, unknown


@dataclass(frozen=True)
class _Updates:
    """Of neurons, per inference; an active one spikes."""

    active: float
    inactive: float
    reached: float
    additions: float = 0.0
    multiplications: float = 0.0

    @classmethod
    def of_relays(cls, routing: Routing) -> "_Updates":
        resting = routing.relay_updates - routing.relay_spikes
        return cls(routing.relay_spikes, resting, routing.relay_updates)


def _add_neurons(updates: _Updates, prices: Prices, add: _Add, terms: list[Term], who: str = "") -> None:
    if prices.state_addition is not None:
        add(f"{who}neuron state, additions", "state_addition", updates.additions)
        add(f"{who}neuron state, decays", "state_multiplication", updates.multiplications)
    elif prices.neuron_access is not None:
        add(f"{who}neurons visited", "neuron_access", updates.active + updates.inactive)
        add(f"{who}neurons updated", "neuron_update", updates.reached)
        add(f"{who}neurons that spike", "neuron_spike", updates.active, grows=True)
    elif prices.update_active is not None and prices.update_inactive is not None:
        price, name = prices.update_active, f"{who}neuron updates, active"
        dearer = 1 - prices.update_inactive.joules / price.joules  # an update that spikes is one that does not rest
        terms.append(Term(name=name, operation="update_active", count=updates.active, price=price, growing=dearer))
        add(f"{who}neuron updates, inactive", "update_inactive", updates.inactive)
    else:
        add(f"{who}neuron updates", "update_active", updates.active + updates.inactive)


def _memory_terms(
    counts: OpCounts, model: EnergyModel, prices: Prices, events: float, graded: dict[str, float]
) -> list[Term]:
    """Accesses of ``access_bits``: a weight for each operation, and every neuron's state, read and written."""
    assert prices.weight_bits is not None
    assert prices.state_bits is not None
    weights = model.level(counts.parameters * prices.weight_bits / 8)
    words = counts.mean("state_additions", "chip")
    state = model.level(words / counts.timesteps * prices.state_bits / 8)
    per_weight, per_state = prices.weight_bits / model.access_bits, prices.state_bits / model.access_bits
    terms = [_fetches("weight fetches", weights, events * per_weight, grows=True)]
    for name, operations in graded.items():
        if operations:  # a graded value is fetched beside its weight
            fetched = f"weight and value fetches, {name}"
            terms.append(_fetches(fetched, weights, 2 * operations * per_weight, grows=name != "input layer"))
    terms.append(_fetches("neuron state, read and written", state, 2 * words * per_state, grows=False))
    return terms


def _fetches(name: str, level: Memory, accesses: float, *, grows: bool) -> Term:
    shared: Any = {"operation": "memory_access", "count": accesses, "price": level.access}
    return Term(name=f"{name}, {level.name}", growing=float(grows), **shared)


def _add_routing(
    counts: OpCounts, prices: Prices, routing: Routing | None, add: _Add, unknown: list[tuple[str, float | None]]
) -> None:
    if routing is None:
        if prices.spike_message is not None:  # one for each layer that receives it; more where that has several cores
            name = "spike messages, one a receiving layer"
            add(name, "spike_message", counts.mean("messages", "chip"), grows=True, at_least=True)
        if prices.spike_message or prices.spike_tile or prices.spike_hop:
            unknown.append(("spike routing between cores, which needs a mapping", None))
        return
    if prices.spike_message is not None:
        add("spike messages, one a receiving core", "spike_message", routing.messages, grows=True)
        events = sum(node.messages for node in counts.nodes if node.reads_input and node.place == "chip")
        if entering := events / counts.samples + routing.from_host:
            add("spike messages that enter the chip", "spike_message", entering, grows=True, at_least=True)
    if prices.spike_tile is not None:
        add("spike routing, within tiles", "spike_tile", routing.messages, grows=True)
    if prices.spike_hop is not None:
        add("spike routing, hops between tiles", "spike_hop", routing.hops, grows=True)


def _static_term(timesteps: int, model: EnergyModel) -> Term:
    """Static power over the T timesteps that an answer takes of a busy chip."""
    power, step = model.static_power, model.timestep
    assert power is not None
    assert step is not None
    ends = [
        1e9 * watts * seconds
        for watts, seconds in (
            (power.nominal, step.nominal),
            (power.lower, step.lower),
            (power.upper, step.upper),
        )
    ]
    price = Price.model_construct(
        value=ends[0],
        low=ends[1],
        high=ends[2],
        unit="nJ",
        source=f"{power.text()} ({power.source}) times {step.text()} ({step.source})",
        bound=power.bound or step.bound,
        caveat=power.caveat,
    )
    return Term(name="static power, over the timesteps", operation="static_timestep", count=timesteps, price=price)
