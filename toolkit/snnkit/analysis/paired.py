"""Two networks on the same samples: what changed from the first to the second, with its uncertainty."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from snnkit.analysis.accuracy import Z_95
from snnkit.network.ir import Array


@dataclass(frozen=True)
class Paired:
    """Of ``samples``: on how many the answer ``changed``, and how many right ones were ``lost`` and ``gained``."""

    samples: int
    changed: int
    lost: int
    gained: int

    @classmethod
    def of(cls, before: Array, after: Array, labels: Array) -> "Paired":
        """Compares two sets of predictions and the labels, all [B]."""
        was, now = before == labels, after == labels
        counts = (before != after, was & ~now, now & ~was)
        return cls(len(labels), *(int(np.count_nonzero(count)) for count in counts))

    @property
    def drop(self) -> float:
        """Points of accuracy lost, in percent of all samples; negative for a gain."""
        return 100 * (self.lost - self.gained) / self.samples

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the drop (adjusted Wald: Bonett and Price, J. Educ. Behav. Stat. 37(4), 2012)."""
        lost, gained = ((count + 1) / (self.samples + 2) for count in (self.lost, self.gained))
        half = Z_95 * math.sqrt((lost + gained - (lost - gained) ** 2) / (self.samples + 2))
        return 100 * (lost - gained - half), 100 * (lost - gained + half)

    @property
    def p_value(self) -> float:
        """McNemar's exact test, two-sided: how likely so uneven changes are if neither network is better."""
        discordant, fewer = self.lost + self.gained, min(self.lost, self.gained)
        tail = sum(math.comb(discordant, k) for k in range(fewer + 1))
        return min(1.0, float(2 * tail / 2**discordant))

    def to_json(self) -> dict[str, Any]:
        """Counts, the drop in points with its interval, and the share of changed answers in percent."""
        return {
            "samples": self.samples,
            "drop": self.drop,
            "interval_95": list(self.interval),
            "p_value": self.p_value,
            "lost": self.lost,
            "gained": self.gained,
            "changed": self.changed,
            "changed_percent": 100 * self.changed / self.samples,
        }
