"""What fewer timesteps cost and save: the same network, stopped after each of them."""

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
