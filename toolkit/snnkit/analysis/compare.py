"""Two traces of the same network and inputs, spike by spike."""

from dataclasses import dataclass

import numpy as np

from snnkit.errors import UsageError
from snnkit.network import Network, Trace


@dataclass(frozen=True)
class Divergence:
    """The first spike that differs: the lowest timestep, then layer, then sample, then (flat) neuron."""

    timestep: int
    node: str
    sample: int
    neuron: int


@dataclass(frozen=True)
class Agreement:
    """How far two traces agree: neuron-steps with different spikes per node, and samples with other readouts."""

    first: str
    second: str
    spike_mismatches: dict[str, int]
    readout_mismatches: int
    divergence: Divergence | None

    @property
    def identical(self) -> bool:
        return not self.readout_mismatches and not any(self.spike_mismatches.values())


def compare(net: Network, a: Trace, b: Trace) -> Agreement:
    """Compares two traces that recorded rasters, tolerance 0; raises :class:`UsageError` where they did not."""
    if a.rasters is None or b.rasters is None:
        raise UsageError("traces without rasters cannot be compared spike by spike", "run with record='raster'")
    mismatches = {}
    divergence: Divergence | None = None
    for neuron in net.neurons:
        differs = a.rasters[neuron.name] != b.rasters[neuron.name]
        mismatches[neuron.name] = int(np.count_nonzero(differs))
        if mismatches[neuron.name]:
            flat = differs.reshape(*differs.shape[:2], -1)
            t, sample, index = (int(i) for i in np.argwhere(flat)[0])
            if divergence is None or t < divergence.timestep:
                divergence = Divergence(t, neuron.name, sample, index)
    readouts = np.count_nonzero((a.readouts != b.readouts).any(axis=1))
    return Agreement(a.target, b.target, mismatches, int(readouts), divergence)
