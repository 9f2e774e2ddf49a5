"""``snnkit energy NET --timesteps``: a row for every number of timesteps that the network could stop after."""

from collections.abc import Sequence

from snnkit.analysis.timesteps import at_each_timestep
from snnkit.cli.energy import bounded
from snnkit.cli.output import number, print_json, print_table
from snnkit.cli.summary import accuracy_cells
from snnkit.network import Network
from snnkit.pipeline import PathLike, Samples, over_timesteps, write_timesteps

WHAT = {"spikes": "spikes", "effective_acs": "ACs", "effective_macs": "MACs"}


def show(path: PathLike, net: Network, samples: Samples, models: Sequence[str], *, json: bool) -> None:
    """Runs the sweep, writes it into a run directory, and prints it."""
    rows = over_timesteps(net, samples, models)
    content = write_timesteps(path, rows)
    if json:
        print_json(content)
        return
    cells = []
    for row in rows:
        accuracy = accuracy_cells(row.accuracy) if row.accuracy else ["no labels", "", f"{row.counts.samples} run"]
        counts = (row.counts.mean(name) for name in ("spikes", "effective_acs", "effective_macs"))
        cells.append([str(row.timesteps), *accuracy, *map(number, counts)])
    columns = ["T", "accuracy", "95 % interval", "correct", "spikes", "effective ACs", "effective MACs"]
    print_table(f"{samples.name}: the same network stopped after T timesteps, simulated", columns, cells, text=())
    steps = [
        [layer.name, what, *map(number, layer.counts[name])]
        for layer in at_each_timestep(rows)
        for name, what in WHAT.items()
        if any(layer.counts[name])
    ]
    columns = ["node", "", *(f"t={row.timesteps}" for row in rows)]
    print_table("at each timestep, per inference, simulated", columns, steps, text=(0, 1))
    by_model = [
        [f"{energies[0].model}, {energies[0].precision}", *map(bounded, energies)]
        for energies in zip(*(row.energies for row in rows), strict=True)
    ]
    labels = sorted({energy.label for energy in rows[0].energies})
    print_table(
        f"energy per inference, {' and '.join(labels)}", ["", *(f"T={row.timesteps}" for row in rows)], by_model
    )
