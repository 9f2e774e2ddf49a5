"""Accuracy with its uncertainty."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from snnkit.network.ir import Array

Z_95 = 1.959963984540054  # the normal quantile of a 95 % interval


@dataclass(frozen=True)
class Accuracy:
    """So many correct of so many samples."""

    correct: int
    samples: int

    @classmethod
    def of(cls, predicted: Array, labels: Array) -> "Accuracy":
        """Compares predictions with labels, both [B]."""
        return cls(int(np.count_nonzero(predicted == labels)), len(labels))

    @property
    def percent(self) -> float:
        return 100.0 * self.correct / self.samples if self.samples else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % score interval in percent (Wilson, JASA 22, 1927)."""
        if not self.samples:
            return 0.0, 100.0
        n, p = self.samples, self.correct / self.samples
        centre = (p + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
        half = Z_95 / (1 + Z_95**2 / n) * math.sqrt(p * (1 - p) / n + Z_95**2 / (4 * n * n))
        return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)

    def to_json(self) -> dict[str, Any]:
        """Percent, the count behind it, and the interval."""
        counts = {"correct": self.correct, "samples": self.samples}
        return {"accuracy": self.percent, **counts, "interval_95": list(self.interval)}
