"""From NIR's graph to the Network.

A graph that this project has written, and that nobody has changed since, comes back exactly. Any other one is
read node by node: into a float network, whose decays are put on the 12-bit grid as ``lower`` does. What NIR leaves
open (how neurons reset, the timestep, how many of them) has to be said.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from snnkit.interchange import nir_file
from snnkit.interchange.nir_choices import Choices as Choices
from snnkit.interchange.nir_choices import Encoding as Encoding
from snnkit.interchange.nir_choices import Reset as Reset
from snnkit.interchange.nir_file import Graph
from snnkit.interchange.nir_import import Imported as Imported
from snnkit.interchange.nir_import import Importer
from snnkit.interchange.nir_restore import restored
from snnkit.interchange.nir_write import KEY
from snnkit.network import verify


def read(path: str | os.PathLike[str], choices: Choices | None = None) -> Imported:
    """The network in a .nir file.

    Raises :class:`NetworkError` for a damaged file, :class:`UnsupportedError` with every node that cannot be taken,
    :class:`UsageError` where a choice is missing.
    """
    with np.errstate(all="ignore"):  # what overflows or is not a number is found out by its value
        return from_graph(nir_file.read(path), choices or Choices(), Path(path))


def from_graph(graph: Graph, choices: Choices, path: Path) -> Imported:
    """The network of a graph; ``path`` is named in errors."""
    notes = []
    if KEY in graph.metadata:
        net = restored(graph, path)
        if net is not None:
            if choices.timesteps is not None:
                net = replace(net, timesteps=choices.timesteps)
                verify(net)
            given = [name for name in ("reset", "dt", "encoding", "dialect") if getattr(choices, name) is not None]
            given += ["at_threshold"] if choices.at_threshold == "fire" else []
            ignored = [f"the file says everything itself; {', '.join(given)} not used"] if given else []
            return Imported(net, exact=True, notes=tuple(ignored))
        notes.append("the graph was changed after snnkit wrote it, so it is read as any other")
    return Importer(graph, choices, path, notes).imported()
