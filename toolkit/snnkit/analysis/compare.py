"""Two traces of the same network and inputs, spike by spike."""

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from snnkit.errors import UsageError
from snnkit.network import Network, Trace
from snnkit.network.ranges import FRACTION_BITS

FRACTION = 2.0**FRACTION_BITS


@dataclass(frozen=True)
class Divergence:
    """The first spike that differs: the lowest timestep, then layer, then sample, then (flat) neuron.

    Where only the readouts differ, ``node`` is the readout, ``neuron`` the class and ``timestep`` the last one.
    """

    timestep: int
    node: str
    sample: int
    neuron: int


@dataclass(frozen=True)
class Side:
    """What one target did at the divergence: u and v as compared with the threshold, and where they come from.

    At a readout there is no ``spike``, and ``v`` is the answer.
    """

    target: str
    spike: bool | None
    u: float | None
    v: float | None
    source: str

    def line(self, threshold: float | None) -> str:
        """In the unit of weights and thresholds, below which u and v have six fractional bits."""
        if self.spike is None:
            return f"  {self.target}: answers {self.v:g}"
        what = "spikes" if self.spike else "does not spike"
        if self.v is None:
            return f"  {self.target}: {what}"
        u = "" if self.u is None else f"u {self.u / FRACTION:.10g}, "
        above = "" if threshold is None else f", threshold {threshold / FRACTION:.10g}"
        return f"  {self.target}: {what}; {u}v {self.v / FRACTION:.10g}{above} ({self.source})"


@dataclass(frozen=True)
class Diagnosis:
    """Why two targets part: the rule that, applied to the spikes that reached the layer, gives what ``faulty`` did.

    ``cause`` is saturation, wrap, rounding, threshold, reset, delay, input, decay, bias, or unknown. ``also`` lists
    other rules that fit as well; ``threshold`` is None at a readout.
    """

    cause: str
    explanation: str
    evidence: str
    faulty: str
    threshold: float | None
    sides: tuple[Side, Side]
    also: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The sides, then what is the likely cause, and why."""
        known = self.cause != "unknown"
        lines = [side.line(self.threshold) for side in self.sides]
        lines.append(f"likely cause: {self.cause}: {f'{self.faulty} ' if known else ''}{self.explanation}")
        if self.evidence:
            lines.append(f"  {'that ' if known else ''}{self.evidence}")
        return lines + [f"  fits as well: {other}" for other in self.also]


@dataclass(frozen=True)
class Agreement:
    """How far two traces agree: neuron-steps with different spikes per node, and samples with other readouts.

    ``compared`` counts the neuron-steps of each node that both recorded; ``not_compared`` names what one of them did
    not. ``diagnosis`` stands where the cause of a divergence was looked for.
    """

    first: str
    second: str
    spike_mismatches: dict[str, int]
    readout_mismatches: int
    divergence: Divergence | None
    compared: dict[str, int] = field(default_factory=dict)
    not_compared: tuple[str, ...] = ()
    diagnosis: Diagnosis | None = None

    @property
    def identical(self) -> bool:
        """Whether everything that was compared is the same."""
        return not self.readout_mismatches and not any(self.spike_mismatches.values())

    def joined(self, later: "Agreement", samples: int) -> "Agreement":
        """Both as one, where ``later`` is of the samples that follow the first ``samples``."""
        places = {name: place for place, name in enumerate(self.spike_mismatches)}  # a readout comes last

        def order(agreement: Agreement) -> tuple[float, int]:
            where = agreement.divergence
            return (where.timestep, places.get(where.node, len(places))) if where else (math.inf, 0)

        divergence, diagnosis = self.divergence, self.diagnosis
        if later.divergence and order(later) < order(self):
            divergence = replace(later.divergence, sample=later.divergence.sample + samples)
            diagnosis = later.diagnosis
        return replace(
            self,
            spike_mismatches={name: n + later.spike_mismatches[name] for name, n in self.spike_mismatches.items()},
            readout_mismatches=self.readout_mismatches + later.readout_mismatches,
            divergence=divergence,
            compared={name: n + later.compared[name] for name, n in self.compared.items()},
            diagnosis=diagnosis,
        )

    def share(self, node: str) -> float:
        """Neuron-steps of a node with the same spikes, 0..1."""
        return 1.0 - self.spike_mismatches[node] / max(1, self.compared[node])

    def to_json(self) -> dict[str, Any]:
        """All of it, with ``identical`` and the share of each node."""
        shares = {node: self.share(node) for node in self.compared}
        return {**asdict(self), "identical": self.identical, "agreement": shares}


def compare(net: Network, a: Trace, b: Trace) -> Agreement:
    """Compares two traces that recorded rasters, tolerance 0; raises :class:`UsageError` where they did not.

    Nodes, or readouts, that only one of them holds are not compared, and named.
    """
    if a.rasters is None or b.rasters is None:
        raise UsageError("traces without rasters cannot be compared spike by spike", "run with record='raster'")
    mismatches: dict[str, int] = {}
    compared: dict[str, int] = {}
    missing = []
    divergence: Divergence | None = None
    for neuron in net.neurons:
        if neuron.name not in a.rasters or neuron.name not in b.rasters:
            missing.append(neuron.name)
            continue
        differs = a.rasters[neuron.name] != b.rasters[neuron.name]
        compared[neuron.name] = differs.size
        mismatches[neuron.name] = int(np.count_nonzero(differs))
        if mismatches[neuron.name]:
            flat = differs.reshape(*differs.shape[:2], -1)
            t, sample, index = (int(i) for i in np.argwhere(flat)[0])
            if divergence is None or t < divergence.timestep:
                divergence = Divergence(t, neuron.name, sample, index)
    readouts = 0
    if a.readouts.shape == b.readouts.shape and a.readouts.shape[1]:
        answers: Any = a.readouts != b.readouts
        readouts = int(np.count_nonzero(answers.any(axis=1)))
        if readouts and divergence is None:
            sample, index = (int(i) for i in np.argwhere(answers)[0])
            divergence = Divergence(net.timesteps - 1, net.readout.name, sample, index)
    else:
        missing.append(net.readout.name)
    return Agreement(a.target, b.target, mismatches, readouts, divergence, compared, tuple(missing))
