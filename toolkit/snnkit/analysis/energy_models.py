"""Energy models as data: what one operation costs, in which unit, between which limits, and who says so.

A model is a YAML file; those in the folder ``energy`` beside this module are found by name, a user's by its path. A
number without a unit or a source, that is negative, zero or absurd, or outside its own range is refused by its name.
"""

import os
import re
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from snnkit.analysis.definitions import load_definition, shipped

_YEAR = re.compile(r"(?<!\d)(19|20)\d\d(?!\d)")


def _named(source: str) -> str:
    if not _YEAR.search(source):
        raise ValueError("a source names who published it and in which year")
    return source


Source = Annotated[str, AfterValidator(_named)]
Positive = Annotated[float, Field(gt=0, strict=True)]
Bits = Annotated[int, Field(ge=1, le=1024, strict=True)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Quantity(_Strict):
    """Abstract: ``value`` between ``low`` and ``high`` (by default the value itself), in ``unit``.

    ``bound`` stands where the source gives no more than a limit. ``PLAUSIBLE`` is in the unit whose factor is 1.
    """

    UNITS: ClassVar[dict[str, float]]
    PLAUSIBLE: ClassVar[tuple[float, float]]

    value: Positive
    unit: str
    source: Source
    low: Positive | None = None
    high: Positive | None = None
    bound: Literal["at least", "at most"] | None = None
    caveat: str | None = None

    @field_validator("unit")
    @classmethod
    def _known(cls, unit: str) -> str:
        if unit not in cls.UNITS:
            raise ValueError(f"'{unit}' is none of {', '.join(cls.UNITS)}")
        return unit

    @model_validator(mode="after")
    def _plausible(self) -> "Quantity":
        if not self.lower <= self.nominal <= self.upper:
            raise ValueError(f"value {self.value:g} is outside its range {self.low} to {self.high}")
        least, most = self.PLAUSIBLE
        for number in (self.lower, self.nominal, self.upper):
            if not least <= number <= most:
                absurd = number / self.UNITS[self.unit]
                raise ValueError(f"{absurd:g} {self.unit} is absurd for one {type(self).__name__.lower()}")
        return self

    @property
    def nominal(self) -> float:
        return self.value * self.UNITS[self.unit]

    @property
    def lower(self) -> float:
        return (self.value if self.low is None else self.low) * self.UNITS[self.unit]

    @property
    def upper(self) -> float:
        return (self.value if self.high is None else self.high) * self.UNITS[self.unit]

    def text(self) -> str:
        """``at least 23.6 pJ``, ``2.5 to 26 pJ``."""
        if self.low is None and self.high is None:
            return f"{self.bound or ''} {self.value:.4g} {self.unit}".strip()
        low, high = (self.value if end is None else end for end in (self.low, self.high))
        return f"{low:.4g} to {high:.4g} {self.unit}"


class Price(Quantity):
    """Energy of one operation: 1 aJ to 100 nJ, far around everything that has been published."""

    UNITS = {"fJ": 1e-15, "pJ": 1e-12, "nJ": 1e-9}
    PLAUSIBLE = (1e-18, 1e-7)

    @property
    def joules(self) -> float:
        return self.nominal


class Power(Quantity):
    """Static power of the whole chip."""

    UNITS = {"nW": 1e-9, "uW": 1e-6, "mW": 1e-3, "W": 1.0}
    PLAUSIBLE = (1e-9, 1e3)


class Duration(Quantity):
    """How long the chip takes for one timestep."""

    UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3}
    PLAUSIBLE = (1e-9, 1.0)


class Memory(_Strict):
    """A memory that holds up to ``bytes`` (None: anything); ``access`` is the price of one access."""

    name: str = Field(min_length=1)
    bytes: Annotated[int, Field(gt=0, strict=True)] | None = None
    access: Price


class Prices(_Strict):
    """Prices at one precision. Of the three ways to price a neuron's update, a model takes one at most.

    ``update_*`` prices an update that spikes and one that does not; ``state_*`` its arithmetic; ``neuron_*`` every
    neuron at every timestep, those among them that hold or receive something, and its spikes. ``spike_message`` is a
    packet that leaves for a core; ``spike_tile`` and ``spike_hop`` its way, which only a mapping knows.
    """

    synaptic_event: Price
    synaptic_event_conv: Price | None = None
    graded_mac: Price | None = None
    update_active: Price | None = None
    update_inactive: Price | None = None
    state_addition: Price | None = None
    state_multiplication: Price | None = None
    neuron_access: Price | None = None
    neuron_update: Price | None = None
    neuron_spike: Price | None = None
    spike_message: Price | None = None
    spike_tile: Price | None = None
    spike_hop: Price | None = None
    weight_bits: Bits | None = None
    state_bits: Bits | None = None

    @model_validator(mode="after")
    def _one_way(self) -> "Prices":
        ways = {
            "update": ("update_active", "update_inactive"),
            "state": ("state_addition", "state_multiplication"),
            "neuron": ("neuron_access", "neuron_update", "neuron_spike"),
        }
        given = {way: [getattr(self, name) is not None for name in names] for way, names in ways.items()}
        if len(taken := [f"{way}_*" for way, flags in given.items() if any(flags)]) > 1:
            raise ValueError(f"neuron updates are priced twice: by {' and by '.join(taken)}")
        for way, flags in given.items():
            if any(flags) != all(flags):
                raise ValueError(f"{', '.join(ways[way])} belong together")
        return self


class EnergyModel(_Strict):
    """One energy model file; ``precisions`` are alternatives, such as fp32 and int8.

    ``memory``, from the smallest to one that holds anything, adds the fetches of ``weight_bits`` and ``state_bits``: an
    access is one of ``access_bits``, so that b bits cost b / access_bits of it. ``static_power`` and ``timestep`` stand
    where they are published for the whole chip; otherwise they are unknown.
    """

    name: str = Field(min_length=1)
    title: str = Field(min_length=1)
    technology: str = Field(min_length=1)
    source: Source
    label: Literal["modelled"] = "modelled"
    precisions: dict[str, Prices] = Field(min_length=1)
    memory: tuple[Memory, ...] = ()
    access_bits: Bits = 64
    static_power: Power | None = None
    timestep: Duration | None = None
    leaves_out: tuple[str, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _memories(self) -> "EnergyModel":
        if not self.memory:
            return self
        sizes = [level.bytes for level in self.memory]
        bounded = [size for size in sizes[:-1] if size is not None]
        if sizes[-1] is not None or len(bounded) != len(sizes) - 1 or bounded != sorted(set(bounded)):
            raise ValueError("memory goes from the smallest to one without bytes, which holds anything")
        for name, prices in self.precisions.items():
            if prices.weight_bits is None or prices.state_bits is None:
                raise ValueError(f"memory needs weight_bits and state_bits at {name}")
        return self

    def level(self, size: float) -> Memory:
        """The smallest memory that holds ``size`` bytes."""
        return next(level for level in self.memory if level.bytes is None or size <= level.bytes)


def list_models() -> list[str]:
    """The names of the energy models that come with snnkit."""
    return shipped("energy")


def load_model(name_or_path: str | os.PathLike[str]) -> EnergyModel:
    """The energy model of that name, or in the YAML file at that path; see :func:`load_definition`."""
    return load_definition(EnergyModel, "energy", "energy model", name_or_path)
