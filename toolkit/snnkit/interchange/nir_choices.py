"""What a NIR file may leave open."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from snnkit.interchange.nir_write import Dialect

Reset: TypeAlias = Literal["zero", "subtract"]
Encoding: TypeAlias = Literal["direct", "events"]


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the file may leave open. ``dt`` in seconds; ``at_threshold``: whether v equal to the threshold fires.

    NIR says v > v_threshold; SpikingJelly fires at v >= v_threshold. ``dialect`` None recognises r = 1 and r = 1/dt.
    """

    reset: Reset | None = None
    dt: float | None = None
    timesteps: int | None = None
    encoding: Encoding | None = None
    dialect: Dialect | None = None
    at_threshold: Literal["silent", "fire"] = "silent"
