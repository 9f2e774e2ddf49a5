"""A network as a directory that lava-nc runs alone: ``graph.json``, ``arrays.npz`` and ``run.py``.

The graph names what ``standalone/lava_run.py`` builds: neurons with their depth, synapses from a source to neurons,
relays behind neurons, and players, which send the input or what the host computes of it. Shapes are (C, H, W) or (N,),
pairs (y, x), arrays in torch's order; the readout's neurons have no threshold.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from snnkit.errors import UsageError
from snnkit.network.depth import Path as Way
from snnkit.network.depth import chains, depths, held_back, paths, stem_neurons
from snnkit.network.ir import LIF, Array, Conv2d, Input, Network, Readout, Synapse, infer_shapes

STANDALONE = Path(__file__).parent / "standalone"
FILES = ("graph.json", "arrays.npz", "run.py")
GROUPS_MAX = 127  # lava.proc.conv keeps them in int8
FORMAT, VERSION = "snnkit-lava", 1


def write(net: Network, path: Path) -> list[Path]:
    """Writes the directory ``path`` in one move and returns its files; replaces an earlier export only.

    Raises :class:`UsageError` where something else stands there.
    """
    graph, arrays = describe(net)
    if path.is_file() or (path.is_dir() and not {entry.name for entry in path.iterdir()} <= set(FILES)):
        raise UsageError(f"'{path}' is not an earlier export for Lava", "give another path, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
    try:
        made = temporary / "made"
        made.mkdir()
        (made / "graph.json").write_text(json.dumps(graph, indent=1) + "\n")
        np.savez(made / "arrays.npz", **arrays)  # type: ignore[arg-type]  # its own keyword is a bool
        shutil.copyfile(STANDALONE / "lava_run.py", made / "run.py")
        if path.is_dir():
            path.rename(temporary / "old")
        made.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return [path / name for name in FILES]


def describe(net: Network) -> tuple[dict[str, Any], dict[str, Array]]:
    """The graph as JSON and the arrays it names."""
    return _Description(net).result()


class _Description:
    def __init__(self, net: Network) -> None:
        self.net = net
        self.depth, self.shapes, self.hosted = depths(net), infer_shapes(net), stem_neurons(net)
        self.arrays: dict[str, Array] = {}
        self.players: dict[str, dict[str, Any]] = {}
        self.paths = paths(net)

    def result(self) -> tuple[dict[str, Any], dict[str, Array]]:
        net = self.net
        chip = [node for node in net.neurons if node.name not in self.hosted]
        entry = net.input
        counts = [[edge.source, edge.delay] for edge in net.readout.inputs] if net.readout.mode == "count" else []
        head: list[LIF | Readout] = [] if counts else [net.readout]
        graph = {
            "format": FORMAT,
            "version": VERSION,
            "timesteps": net.timesteps,
            "input": {
                "shape": list(entry.shape),
                "encoding": entry.encoding,
                "bits": entry.bits,
                "scale": entry.scale,
                "zero_point": entry.zero_point,
            },
            "neurons": [self._neurons(node) for node in (*chip, *head)],
            "synapses": [self._synapse(way) for way in self.paths if way.steps and way.target not in self.hosted],
            "players": list(self.players.values()),
            "relays": self._relays(),
            "host": [self._host(node) for node in net.neurons if node.name in self.hosted],
            "readout": {"counts": counts, "classes": net.metadata.get("classes", [])},
        }
        return graph, self.arrays

    def _neurons(self, node: LIF | Readout) -> dict[str, Any]:
        limits: dict[str, Any] = {"v_threshold": None, "voltage_decay": 0, "current_decay": 4096}
        if isinstance(node, LIF):
            limits = {name: int(getattr(node, name).flat[0]) for name in limits}
        return {
            "name": node.name,
            "shape": list(self.shapes[node.name]),
            "depth": self.depth[node.name],
            **limits,
            "bias": self._bias(node),
        }

    def _bias(self, node: LIF | Readout) -> str | None:
        """The name of the summed biases of the node's synapses, None if there are none."""
        synapses = [source for edge in node.inputs if isinstance(source := self.net[edge.source], Synapse)]
        biases = [synapse.bias for synapse in synapses if synapse.bias is not None]
        if not biases:
            return None
        name = f"{node.name}.bias"
        self.arrays[name] = np.sum(biases, axis=0).astype(np.int16)
        return name

    def _synapse(self, way: Way) -> dict[str, Any]:
        return {
            "source": self._source(way),
            "target": way.target,
            "message_bits": self.net.input.bits if isinstance(self.net[way.source], Input) else 1,
            **self._weights(way.via),
        }

    def _weights(self, name: str) -> dict[str, Any]:
        node = self.net[name]
        assert isinstance(node, Synapse)
        weight, key = node.weight, f"{name}.weight"
        fields: dict[str, Any] = {"type": "dense"}
        if isinstance(node, Conv2d):
            groups = node.groups
            if groups > GROUPS_MAX:
                weight, groups = _ungrouped(weight, groups), 1
            pairs = {"stride": node.stride, "padding": node.padding, "dilation": node.dilation}
            fields = {"type": "conv", **{k: list(pair) for k, pair in pairs.items()}, "groups": groups}
        self.arrays[key] = weight
        return fields | {"name": name, "weight": key, "weight_exponent": node.weight_exponent}

    def _source(self, way: Way) -> str:
        """The name of what sends a path's values in time: neurons, one of their relays, or a player."""
        held = held_back(self.net, way, self.depth)
        if way.source in self.depth and self._on_chip(way.source):
            return _relay(way.source, way.delay, held) if held else way.source
        depth = self.depth[way.target]
        name = f"{way.source} for depth {depth}, {way.delay} late"
        source = "input" if isinstance(self.net[way.source], Input) else way.source
        self.players[name] = {
            "name": name,
            "source": source,
            "shape": list(self.shapes[way.source]),
            "depth": depth,
            "delay": way.delay,
        }
        return name

    def _on_chip(self, name: str) -> bool:
        return isinstance(self.net[name], LIF) and name not in self.hosted

    def _relays(self) -> list[dict[str, Any]]:
        """Each relay layer; the first of a delayed chain drops the last timesteps of each sample."""
        return [
            {
                "name": _relay(chain.source, chain.delay, step),
                "source": _relay(chain.source, chain.delay, step - 1) if step > 1 else chain.source,
                "depth": self.depth[chain.source] + step,
                "delay": chain.delay if step == 1 else 0,
            }
            for chain in chains(self.net)
            for step in range(1, chain.steps + 1)
        ]

    def _host(self, node: LIF) -> dict[str, Any]:
        ways = [way for way in self.paths if way.target == node.name]
        synapses = [{"delay": way.delay, **self._weights(way.via)} for way in ways]
        return self._neurons(node) | {"synapses": synapses}


def _relay(source: str, delay: int, step: int) -> str:
    return f"{source} repeated {step} later" + (f" for delay {delay}" if delay else "")


def _ungrouped(weight: Array, groups: int) -> Array:
    """The weights [O, I / groups, kh, kw] of a grouped convolution as [O, I, kh, kw], with zeros between groups."""
    outputs, inputs = len(weight) // groups, weight.shape[1]
    full = np.zeros((len(weight), inputs * groups, *weight.shape[2:]), weight.dtype)
    for g in range(groups):
        rows = slice(g * outputs, (g + 1) * outputs)
        full[rows, g * inputs : (g + 1) * inputs] = weight[rows]
    return full
