"""NIR, the Neuromorphic Intermediate Representation (Pedersen et al., Nature Communications 15, 2024)."""

import os
from pathlib import Path
from typing import Literal

import pydantic

from snnkit.errors import UnsupportedError
from snnkit.interchange import nir_file
from snnkit.interchange.nir_write import Dialect, obstacles, to_graph
from snnkit.network import Network

SUFFIX = ".nir"


class Options(pydantic.BaseModel):
    """``dialect``: what an r means (see ``snnkit.interchange.nir_write``); ``dt``: seconds a timestep.

    ``groups``: ``expand`` writes a grouped convolution as one group with zeros, which every reader takes; ``keep``
    writes it as it is, which nir 1.0.8 refuses to read.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    dialect: Dialect = "r=1"
    dt: float = pydantic.Field(default=1e-4, gt=0, lt=1e3)
    groups: Literal["expand", "keep"] = "expand"


def check(net: Network, options: Options) -> list[str]:  # noqa: ARG001 - the contract of every exporter
    """Every reason why ``net`` has no NIR graph; none for a network that has."""
    return obstacles(net)


def export(net: Network, path: str | os.PathLike[str], options: Options) -> list[Path]:
    """Writes ``net`` to ``path``, in one move; the same network gives the same bytes.

    Integers go out as they are, thresholds midway between two steps of the membrane, so that > and >= agree. The
    graph's metadata says dt, timesteps, reset, input and scales, and restores the network exactly. Raises
    :class:`UnsupportedError` with all reasons at once.
    """
    if reasons := check(net, options):
        raise UnsupportedError("the network cannot be written as NIR", reasons, "change these nodes")
    graph = to_graph(net, dialect=options.dialect, dt=options.dt, expand_groups=options.groups == "expand")
    return [nir_file.write(graph, path)]
