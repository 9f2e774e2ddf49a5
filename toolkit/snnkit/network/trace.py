"""What a run left behind: readouts and spikes, the same for every target."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from snnkit.errors import UsageError
from snnkit.network.ir import Array


@dataclass(frozen=True, eq=False, kw_only=True)
class Trace:
    """The result of running B samples for T timesteps; index t is the network's timestep, without pipeline latency.

    ``readouts`` [B, classes], int64 for an integer network and float32 for a float one. Per neuron node:
    ``spikes_per_step`` int32 [T, B], ``spikes_per_neuron`` int32 [B, *shape] and, if recorded, ``rasters``
    bool [T, B, *shape]. ``readouts_per_step`` [T, B, classes] is, if recorded, the readout as it stood after each
    timestep. ``overflows`` counts, per neuron node, the updates whose u wrapped or v saturated. Of a trace that
    :meth:`total` made, ``spikes_per_neuron`` are sums over the samples, int64 [1, *shape].
    ``steps`` is what the target executed, B * T plus its pipeline latency where it has one.
    """

    target: str
    readouts: Array
    spikes_per_step: dict[str, Array]
    spikes_per_neuron: dict[str, Array]
    rasters: dict[str, Array] | None = None
    readouts_per_step: Array | None = None
    overflows: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    steps: int = 0
    notes: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        return int(self.readouts.shape[0])

    @property
    def spikes_per_inference(self) -> float:
        """Spikes of all neurons and timesteps, mean over the samples."""
        return sum(int(counts.sum()) for counts in self.spikes_per_neuron.values()) / self.samples

    def firing_rates(self) -> dict[str, float]:
        """Spikes per neuron and timestep of every neuron node, 0..1."""
        rates = {}
        for name, per_neuron in self.spikes_per_neuron.items():
            possible = math.prod(per_neuron.shape[1:]) * self.spikes_per_step[name].size
            rates[name] = float(per_neuron.sum(dtype=np.int64) / max(1, possible))
        return rates

    def until(self, timesteps: int) -> "Trace":
        """The same run, stopped after so many timesteps; ``overflows``, ``seconds`` and ``steps`` are not known.

        Raises :class:`UsageError` where the target did not record rasters and the readouts of every step.
        """
        if self.rasters is None or self.readouts_per_step is None:
            raise UsageError(
                f"the trace of '{self.target}' does not say what happened at each timestep",
                "run the reference with record='raster'",
            )
        if not 1 <= timesteps <= len(self.readouts_per_step):
            raise UsageError(
                f"a run of {len(self.readouts_per_step)} timesteps cannot be cut to {timesteps}", "give one of those"
            )
        rasters = {name: raster[:timesteps] for name, raster in self.rasters.items()}
        return dataclasses.replace(
            self,
            readouts=self.readouts_per_step[timesteps - 1],
            spikes_per_step={name: counts[:timesteps] for name, counts in self.spikes_per_step.items()},
            spikes_per_neuron={name: raster.sum(axis=0, dtype=np.int32) for name, raster in rasters.items()},
            rasters=rasters,
            readouts_per_step=self.readouts_per_step[:timesteps],
            overflows={},
            seconds=0.0,
            steps=0,
        )

    @classmethod
    def join(cls, parts: Sequence["Trace"]) -> "Trace":
        """The traces of consecutive chunks of samples as one."""
        first = parts[0]
        names = list(first.spikes_per_step)
        rasters = [part.rasters for part in parts if part.rasters is not None]
        answers = [part.readouts_per_step for part in parts if part.readouts_per_step is not None]
        return dataclasses.replace(
            first,
            readouts=np.concatenate([part.readouts for part in parts]),
            spikes_per_step={name: np.concatenate([p.spikes_per_step[name] for p in parts], axis=1) for name in names},
            spikes_per_neuron={
                name: np.concatenate([p.spikes_per_neuron[name] for p in parts]) for name in first.spikes_per_neuron
            },
            rasters={name: np.concatenate([r[name] for r in rasters], axis=1) for name in names} if rasters else None,
            readouts_per_step=np.concatenate(answers, axis=1) if answers else None,
            overflows={name: sum(part.overflows[name] for part in parts) for name in first.overflows},
            seconds=sum(part.seconds for part in parts),
            steps=sum(part.steps for part in parts),
        )

    @classmethod
    def total(cls, parts: Iterable["Trace"]) -> "Trace":
        """The same without rasters and with the spikes of each neuron summed, so that neurons times samples fit."""
        kept: list[Trace] = []
        sums: dict[str, Array] = {}
        for part in parts:
            for name, counts in part.spikes_per_neuron.items():
                sums[name] = sums.get(name, 0) + counts.sum(axis=0, keepdims=True, dtype=np.int64)
            kept.append(dataclasses.replace(part, spikes_per_neuron={}, rasters=None))
        return dataclasses.replace(cls.join(kept), spikes_per_neuron=sums)

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
