"""What fewer timesteps cost and save: the same network, stopped after each of them."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from snnkit.analysis.accuracy import Accuracy
from snnkit.analysis.counts import OpCounts
from snnkit.analysis.energy import Energy


@dataclass(frozen=True, eq=False, kw_only=True)
class AtTimesteps:
    """Accuracy (None without labels), operations and modelled energies of a network that runs for ``timesteps``."""

    timesteps: int
    accuracy: Accuracy | None
    counts: OpCounts
    energies: tuple[Energy, ...]

    def to_json(self) -> dict[str, Any]:
        """Per inference, means over the samples: what is plotted against the timesteps."""
        names = ("spikes", "effective_acs", "effective_macs", "acs_once", "macs_once", "dense")
        return {
            "timesteps": self.timesteps,
            "samples": self.counts.samples,
            **(self.accuracy.to_json() if self.accuracy else {}),
            **{name: self.counts.mean(name) for name in names},
            "updates": self.counts.mean("updates_active") + self.counts.mean("updates_inactive"),
            "firing_rate": self.counts.firing_rate,
            "energies": [
                {
                    "model": energy.model,
                    "title": energy.title,
                    "precision": energy.precision,
                    "label": energy.label,
                    "joules": energy.joules,
                    "low": energy.low,
                    "high": energy.high,
                    "bound": energy.bound,
                }
                for energy in self.energies
            ],
        }


COUNTED = ("spikes", "effective_acs", "effective_macs", "updates_active", "updates_inactive")


@dataclass(frozen=True)
class LayerSteps:
    """What a node did at each timestep, means over the samples: ``counts[name][t]``, by the names of NodeCounts."""

    name: str
    kind: str
    counts: dict[str, tuple[float, ...]]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "kind": self.kind, **{name: list(values) for name, values in self.counts.items()}}


def at_each_timestep(rows: Sequence[AtTimesteps]) -> tuple[LayerSteps, ...]:
    """Every node of the rows for 1, 2, ... timesteps: what one timestep more has added."""
    samples = rows[-1].counts.samples
    found = []
    for nodes in zip(*(row.counts.nodes for row in rows), strict=True):
        totals = {name: [0, *(getattr(node, name) for node in nodes)] for name in COUNTED}
        counts = {name: tuple((b - a) / samples for a, b in itertools.pairwise(sums)) for name, sums in totals.items()}
        found.append(LayerSteps(nodes[0].name, nodes[0].kind, counts))
    return tuple(found)
