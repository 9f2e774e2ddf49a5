"""Where spikes go: from the core of each neuron to every core that holds one of its targets.

Every target core is sent a message of its own. Messages go east or west first, then north or south; chips stand one
east of the other. Counted from the spikes of a trace, as means per inference.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from snnkit.analysis.chips import Chip
from snnkit.analysis.layers import Afferent, Layer
from snnkit.analysis.partition import Cut, Fan, axes, blocks, fan, summed, targets_behind
from snnkit.errors import DataError
from snnkit.network.ir import Array
from snnkit.network.trace import Trace


@dataclass(frozen=True, kw_only=True)
class Routed:
    """Messages of an inference, by how far they go, and the hops from tile to tile that they take together.

    ``within_core`` stay on their core (recurrent edges), ``within_tile`` go to a neighbour behind the same router,
    ``between_tiles`` farther; ``between_chips`` of these leave their chip, once for each boundary. ``from_host``:
    spikes of a stem that the host computes (raw inputs are not counted), ``to_host``: spikes that the host counts.
    ``relayed``: spikes of relays, which hold others back; their messages are among those above.
    """

    within_core: float = 0.0
    within_tile: float = 0.0
    between_tiles: float = 0.0
    between_chips: float = 0.0
    hops_east_west: float = 0.0
    hops_north_south: float = 0.0
    from_host: float = 0.0
    to_host: float = 0.0
    relayed: float = 0.0

    @property
    def between_cores(self) -> float:
        return self.within_tile + self.between_tiles

    def __add__(self, other: "Routed") -> "Routed":
        return Routed(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def to_json(self) -> dict[str, Any]:
        return {"between_cores": self.between_cores, **vars(self)}


@dataclass(frozen=True, eq=False)
class Placement:
    """A cut layer on the cores from ``first`` on."""

    layer: Layer
    cut: Cut
    first: int
    cores: int

    def numbers(self) -> Array:
        """Numbers of the cores, int64 [channel blocks, row tiles, column tiles]."""
        parts = [-(-total // size) for total, size in zip(self.layer.volume, self.cut, strict=True)]
        return self.first + np.arange(self.cores).reshape(parts)


def place(core: Array, chip: Chip) -> tuple[Array, Array, Array]:
    """Chip, row and column of the tile of each core: tiles filled row by row."""
    number, within = np.divmod(core, chip.cores.value)
    row, column = np.divmod(within // chip.mesh.cores_per_tile, chip.mesh.columns)
    return number, row, column


def route(placed: dict[str, Placement], trace: Trace, chip: Chip) -> Routed:
    """All messages of an inference; raises :class:`DataError` where the trace lacks a layer's spikes."""
    total = Routed()
    for reader in placed.values():
        for afferent in reader.layer.afferents:
            reach = fan(reader.layer, afferent, reader.cut, chip)
            source = placed.get(afferent.source)
            if source is not None:
                spikes = _spikes(trace, source.layer.spikes_of).reshape(source.layer.volume)
                messages = _messages(spikes, source, reader, afferent, reach)
                total += _distances(messages, source.numbers(), reader.numbers(), chip)
            elif afferent.source in trace.spikes_per_neuron:
                spikes = _spikes(trace, afferent.source).reshape(afferent.volume)
                total += Routed(from_host=float((spikes * _reached(reach, afferent)).sum()))
        if reader.layer.kind == "relay":
            total += Routed(relayed=float(_spikes(trace, reader.layer.spikes_of).sum()))
        if reader.layer.counted:
            total += Routed(to_host=float(_spikes(trace, reader.layer.spikes_of).sum()))
    return total


def _spikes(trace: Trace, name: str | None) -> Array:
    """Spikes of each neuron in an inference, float64, mean over the samples."""
    if name not in trace.spikes_per_neuron:
        raise DataError(f"the trace holds no spikes of node '{name}'", "give a trace of the same network")
    counts: Array = trace.spikes_per_neuron[name].sum(axis=0, dtype=np.int64) / trace.samples
    return counts


def _reached(reach: Fan, afferent: Afferent) -> Array:
    """To how many cores each neuron's spike goes, int64 [channels, rows, columns]."""
    if reach.each is not None:
        return reach.each
    across: Array = (reach.last - reach.first + 1)[:, None, None]
    return np.broadcast_to(across * (reach.rows[:, None] * reach.columns), afferent.volume)


def _messages(spikes: Array, source: Placement, reader: Placement, afferent: Afferent, reach: Fan) -> Array:
    """Messages from every core to every core, float64 [source blocks, rows, columns, reader blocks, rows, columns]."""
    parts = [blocks(total, size) for total, size in zip(source.layer.volume, source.cut, strict=True)]
    targets = -(-reader.layer.volume[0] // reader.cut[0])
    if afferent.reaches is not None:
        behind = targets_behind(afferent.reaches, blocks(reader.layer.volume[0], reader.cut[0])) > 0
        each = spikes * behind.reshape(-1, *spikes.shape)
        sums = summed(summed(summed(each, parts[0], 1), parts[1], 2), parts[2], 3)
        return np.moveaxis(sums, 0, -1)[..., None, None]
    block = np.arange(targets)
    goes = (block >= reach.first[:, None]) & (block <= reach.last[:, None])  # channels x reader blocks
    if goes.all():
        mixed = summed(spikes, parts[0], 0)[:, None]
    else:
        mixed = summed(np.einsum("chw,cb->cbhw", spikes, goes.astype(np.float64)), parts[0], 0)
    if afferent.convolution:
        seen = [axis.seen.astype(np.float64) for axis in axes(reader.layer.volume, afferent, reader.cut)]
    else:
        seen = [np.ones((1, size)) for size in spikes.shape[1:]]
    rows, columns = (_overlap(part, tiles) for part, tiles in zip(seen, parts[1:], strict=True))
    sums = np.einsum("sbhw,rqh,cpw->srcbqp", mixed, rows, columns, optimize=True)
    return np.broadcast_to(sums, (*sums.shape[:3], targets, *sums.shape[4:]))


def _overlap(seen: Array, parts: Array) -> Array:
    """Which positions lie on a source tile and are seen by a reader's tile, float64 [source, reader, positions]."""
    position = np.arange(seen.shape[1])
    mine = (position >= parts[:, :1]) & (position < parts[:, 1:])
    both: Array = mine[:, None] * seen[None]
    return both


def _distances(messages: Array, sources: Array, readers: Array, chip: Chip) -> Routed:
    here, there = sources[..., None, None, None], readers[None, None, None]
    (chip_a, row_a, column_a), (chip_b, row_b, column_b) = place(here, chip), place(there, chip)
    east = np.abs(chip_a * chip.mesh.columns + column_a - chip_b * chip.mesh.columns - column_b)
    north, across = np.abs(row_a - row_b), np.abs(chip_a - chip_b)
    same_core, same_tile = here == there, (east == 0) & (north == 0)

    def sum_of(weights: Array) -> float:
        return float((messages * weights).sum())

    return Routed(
        within_core=sum_of(same_core),
        within_tile=sum_of(same_tile & ~same_core),
        between_tiles=sum_of(~same_tile),
        between_chips=sum_of(across),
        hops_east_west=sum_of(east),
        hops_north_south=sum_of(north),
    )
