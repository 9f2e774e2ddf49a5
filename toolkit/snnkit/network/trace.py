"""What a run left behind: readouts and spikes, the same for every target."""

from dataclasses import dataclass, field

import numpy as np

from snnkit.network.ir import Array


@dataclass(frozen=True, eq=False, kw_only=True)
class Trace:
    """The result of running B samples for T timesteps; index t is the network's timestep, without pipeline latency.

    ``readouts`` [B, classes], int64 for an integer network and float32 for a float one. Per neuron node:
    ``spikes_per_step`` int32 [T, B], ``spikes_per_neuron`` int32 [B, *shape] and, if recorded, ``rasters``
    bool [T, B, *shape]. ``overflows`` counts, per neuron node, the updates whose u wrapped or v saturated.
    ``steps`` is what the target executed, B * T plus its pipeline latency where it has one.
    """

    target: str
    readouts: Array
    spikes_per_step: dict[str, Array]
    spikes_per_neuron: dict[str, Array]
    rasters: dict[str, Array] | None = None
    overflows: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    steps: int = 0
    notes: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        return int(self.readouts.shape[0])

    def firing_rates(self) -> dict[str, float]:
        """Spikes per neuron and timestep of every neuron node, 0..1."""
        rates = {}
        for name, per_neuron in self.spikes_per_neuron.items():
            timesteps = self.spikes_per_step[name].shape[0]
            rates[name] = float(per_neuron.sum(dtype=np.int64) / max(1, per_neuron.size * timesteps))
        return rates

    @classmethod
    def from_rasters(
        cls,
        *,
        target: str,
        readouts: Array,
        rasters: dict[str, Array],
        keep_rasters: bool,
        seconds: float,
        steps: int,
        notes: tuple[str, ...] = (),
    ) -> "Trace":
        """Builds a trace from bool rasters [T, B, *shape]."""
        return cls(
            target=target,
            readouts=readouts,
            spikes_per_step={
                name: raster.reshape(*raster.shape[:2], -1).sum(axis=2, dtype=np.int32)
                for name, raster in rasters.items()
            },
            spikes_per_neuron={name: raster.sum(axis=0, dtype=np.int32) for name, raster in rasters.items()},
            rasters=rasters if keep_rasters else None,
            seconds=seconds,
            steps=steps,
            notes=notes,
        )


def predictions(trace: Trace) -> Array:
    """The class with the largest readout, int64 [B]; ties go to the lowest class."""
    classes: Array = np.argmax(trace.readouts, axis=1).astype(np.int64)
    return classes
