"""A NIR graph of any origin as a float network: checked as a whole, then node by node in order."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from snnkit.errors import NetworkError, UnsupportedError, UsageError
from snnkit.interchange.nir_file import Record
from snnkit.interchange.nir_layers import MAX_NODES, MAX_TIMESTEPS, Value
from snnkit.interchange.nir_neurons import Neurons
from snnkit.interchange.nir_order import NEURONS, feedback, ordered
from snnkit.interchange.nir_records import (
    MAX_VALUES,
    NotTakenError,
    all_close,
    as_image,
    weights,
    whole_numbers,
)
from snnkit.network import LIF, Affine, Edge, Network, Node, Readout, verify
from snnkit.network.ir import Shape

KNOWN = (
    *("Input", "Output", "Affine", "Linear", "Conv1d", "Conv2d", "SumPool2d", "AvgPool2d", "Flatten", "Scale"),
    *("Delay", "Threshold", "IF", "LIF", "CubaLIF", "LI", "I"),
)
SHAPED = {"Delay": "delay", "Scale": "scale"}  # one value an element of what they read
HINT = "change these nodes where the graph was made, or leave them out"


@dataclass(frozen=True, eq=False)
class Imported:
    """The network, whether it is exactly the one that was exported, and what a user should know about it."""

    network: Network
    exact: bool
    notes: tuple[str, ...] = ()


class Importer(Neurons):
    """Makes the network of one graph; ``notes`` are what a user should know already."""

    def imported(self) -> Imported:
        self._check_structure()
        self._choose()
        sources = self._sources()
        self.late, back = feedback(self.graph.nodes, self.graph.edges)
        following: dict[str, list[str]] = {name: [] for name in self.graph.nodes}
        for edge in self.graph.edges:
            if edge not in back:
                following[edge[0]].append(edge[1])
        for name in ordered(following):
            self._convert(name, sources[name])
        if self.reasons:
            raise self._unsupported()
        net = Network(
            nodes=tuple(self._needed()),
            timesteps=self.timesteps,
            metadata={"imported": {"format": "nir", "file": self.path.name}},
        )
        verify(net)
        return Imported(net, exact=False, notes=tuple(self.notes))

    def _check_structure(self) -> None:
        """Finds every node that cannot be taken whatever its parameters are."""
        nodes, edges = self.graph.nodes, self.graph.edges
        if len(nodes) > MAX_NODES + 2:
            raise NetworkError(f"'{self.path}' holds {len(nodes)} nodes; {MAX_NODES} are taken", HINT)
        for name, record in nodes.items():
            if record["type"] == "NIRGraph":
                self._reason(name, "is a graph of its own; nested graphs are not taken")
            elif record["type"] not in KNOWN:
                self._reason(name, "is of an unknown kind")
        missing = {name for edge in edges for name in edge if name not in nodes}
        self.reasons += [f"an edge names '{name}', which does not exist" for name in sorted(missing)]
        if len(set(edges)) < len(edges):
            self.reasons.append("two nodes are connected twice")
        for kind in ("Input", "Output"):
            if (count := sum(record["type"] == kind for record in nodes.values())) != 1:
                self.reasons.append(f"it has {count} nodes of kind {kind}; one is taken")
        ends = [[name for name, record in nodes.items() if record["type"] == kind] for kind in ("Input", "Output")]
        if not missing and all(len(names) == 1 for names in ends):
            (entry,), (end,) = ends
            forwards, backwards = _reached(entry, edges), _reached(end, [(b, a) for a, b in edges])
            for name in nodes:
                if name not in forwards:
                    self._reason(name, "is not reached by the input")
                elif name not in backwards:
                    self._reason(name, "does not lead to the output")
            if any(target == entry for _, target in edges) or any(source == end for source, _ in edges):
                self.reasons.append("an edge leads into the input or out of the output")
        if self.reasons:
            raise self._unsupported()

    def _choose(self) -> None:
        """Settles what NIR leaves open, from the choices and from what the file says of itself."""
        kinds = {record["type"] for record in self.graph.nodes.values()}
        self.said = _said(self.graph.metadata, self.path)
        self.reset, self.dt = self._chosen("reset"), self._chosen("dt")
        self.encoding = self._chosen("encoding") or "direct"
        timesteps = self._chosen("timesteps")
        missing = []
        if self.reset is None and kinds & {"IF", "LIF", "CubaLIF"}:
            missing.append("how its neurons reset (--reset zero or subtract)")
        if self.dt is None and (kinds & {"LIF", "CubaLIF", "LI", "Delay"} or self._needs_dt()):
            missing.append("how long a timestep is (--dt, in seconds; most frameworks write 1e-4)")
        if timesteps is None:
            missing.append("how many timesteps there are (--timesteps)")
        if missing:
            raise UsageError(f"'{self.path}' does not say {', or '.join(missing)}", "give these options")
        if not 1 <= timesteps <= MAX_TIMESTEPS:
            raise UsageError(f"{timesteps} timesteps are outside 1..{MAX_TIMESTEPS}", "give --timesteps")
        if self.dt is not None and not (math.isfinite(self.dt) and self.dt > 0):
            raise UsageError(f"a timestep of {self.dt} seconds is not possible", "give --dt above 0")
        self.timesteps = timesteps

    def _chosen(self, name: str) -> Any:
        chosen, said = getattr(self.choices, name), self.said.get(name)
        if chosen is not None and said is not None and chosen != said and name != "timesteps":
            self.notes.append(f"the file says {name} {said}; {chosen} was asked for and is used")
        return said if chosen is None else chosen

    def _needs_dt(self) -> bool:
        """Whether an IF or I counts in seconds: its r is not 1."""
        if self.choices.dialect is not None:
            return self.choices.dialect == "r=1/dt"
        found = (record.get("r") for record in self.graph.nodes.values() if record["type"] in ("IF", "I"))
        return any(isinstance(r, np.ndarray) and not all_close(r, 1.0) for r in found)

    def _sources(self) -> dict[str, list[str]]:
        sources: dict[str, list[str]] = {name: [] for name in self.graph.nodes}
        for source, target in self.graph.edges:
            sources[target].append(source)
        return sources

    def _convert(self, name: str, sources: list[str]) -> None:
        record = self.graph.nodes[name]
        try:
            operand = self._operand(name, sources)
            if operand is not None:
                self.values[name] = getattr(self, f"_{record['type'].lower()}")(name, record, operand)
        except NotTakenError as error:
            self._reason(name, str(error))
        except RecursionError:
            self._reason(name, "stands behind too long a chain of layers without neurons")
        if name not in self.values:
            self.values[name] = Value()

    def _operand(self, name: str, sources: list[str]) -> Value | None:
        """The sum of what a node reads; None where a source is unknown because of an obstacle."""
        edges: list[Edge] = []
        shapes, waiting = set(), []
        for source in sources:
            if (source, name) in self.late:
                edges.append(Edge(source, 1))
            elif source not in self.values:  # a neuron behind a delay that leads back
                edges.append(Edge(source))
            else:
                value = self.values[source]
                if value.shape is None:
                    return None
                edges += value.edges
                shapes.add(value.shape)
                if value.decay is not None:
                    waiting.append(value)
        if len(shapes) > 1:
            raise NotTakenError(f"sums values of different shapes, {sorted(shapes)}")
        if waiting and (len(sources) > 1 or self.graph.nodes[name]["type"] not in (*NEURONS, "Output")):
            raise NotTakenError("reads a leaky integrator; only a neuron alone behind it, or the output, can")
        if waiting:
            return waiting[0]
        return Value(tuple(edges), shapes.pop() if shapes else self._declared(name, sources))

    def _declared(self, name: str, sources: list[str]) -> Shape | None:
        """The shape of what a node reads that reads late spikes only, as it or the neuron says; a neuron may not."""
        record = self.graph.nodes[name]
        if record["type"] in ("Affine", "Linear"):
            return weights(record).shape[1:]
        if record["type"] == "Conv2d" and "input_shape" in record:
            channels = weights(record).shape[1] * math.prod(whole_numbers(record, "groups"))
            return (channels, *whole_numbers(record, "input_shape"))
        own = SHAPED.get(record["type"])
        said = [record.get(own)] if own else [self._theta(source) for source in sources]
        shapes = {as_image(array.shape) for array in said if isinstance(array, np.ndarray)}
        shape = shapes.pop() if len(shapes) == 1 else ()
        if len(shape) in (1, 3):
            return shape
        if sources and record["type"] not in (*NEURONS, "LI", "I"):
            raise NotTakenError("reads only spikes that come back, of neurons that do not say their shape")
        return None

    def _theta(self, name: str) -> Any:
        record = self.graph.nodes[name]
        return record.get("threshold" if record["type"] == "Threshold" else "v_threshold")

    def _output(self, _name: str, _record: Record, operand: Value) -> Value:
        readout = self._free("readout")
        edges = operand.edges if operand.decay is None else self._integrated(operand)
        sources = [self.nodes.get(edge.source) for edge in edges]
        mode: Literal["membrane", "count"]
        if all(isinstance(source, Affine) for source in sources):
            mode = "membrane"
        elif all(isinstance(source, LIF) for source in sources):
            mode = "count"
        else:
            raise NotTakenError("must read Linear or Affine nodes, or spikes")
        if operand.shape is None or len(operand.shape) != 1:
            raise NotTakenError(f"has shape {operand.shape}; the answer is one value a class")
        self._add(Readout(name=readout, inputs=edges, mode=mode))
        return Value((Edge(readout),), operand.shape)

    def _integrated(self, operand: Value) -> tuple[Edge, ...]:
        """The sum over time of a leaky integrator's state, as layers that read ever earlier spikes.

        In T timesteps an input of time t is seen T - t times, weakened by the decay each time: one layer a delay. A
        bias is the same at every timestep, so its whole sum is spread evenly.
        """
        assert operand.decay is not None
        assert operand.gain is not None
        sources = [self.nodes[edge.source] for edge in operand.edges]
        keep, steps = 1.0 - operand.decay, self.timesteps
        if not all(isinstance(source, Affine) for source in sources):
            raise NotTakenError("integrates something else than Linear or Affine nodes")
        if keep.any() and sum(s.weight.size for s in sources if isinstance(s, Affine)) * steps > MAX_VALUES:
            raise NotTakenError(f"integrates with a leak over {steps} timesteps, which is too much to unroll")
        self.notes.append("the readout is the sum over time of the leaky integrator's state")
        edges = []
        for source in sources:
            assert isinstance(source, Affine)
            plain = replace(source, bias=None)
            for step in range(steps if keep.any() else 1):
                factor = np.broadcast_to(operand.gain * keep**step, source.weight.shape[:1])
                bias = None
                if step == 0 and source.bias is not None:
                    whole = sum((steps - k) * keep**k for k in range(steps)) * operand.gain
                    bias = (source.bias * whole / steps).astype(np.float32)
                weight = (source.weight * factor[:, None]).astype(np.float32)
                inputs = tuple(self._delayed(edge, step) for edge in plain.inputs)
                tap = replace(plain, name=self._free(source.name), inputs=inputs, weight=weight, bias=bias)
                edges.append(Edge(self._add(tap)))
        return tuple(edges)

    def _needed(self) -> list[Node]:
        """The nodes that lead to the readout, in an order in which only late edges lead back."""
        needed: dict[str, Node] = {}
        pending = [name for name, node in self.nodes.items() if isinstance(node, Readout)]
        while pending:
            name = pending.pop()
            if name not in needed:
                needed[name] = self.nodes[name]
                pending += [edge.source for edge in needed[name].inputs]
        following: dict[str, list[str]] = {name: [] for name in self.nodes if name in needed}
        for node in needed.values():
            for edge in node.inputs:
                if not edge.delay:
                    following[edge.source].append(node.name)
        return [needed[name] for name in ordered(following)]

    def _reason(self, name: str, reason: str) -> None:
        self.reasons.append(f"node '{name}' ({self.graph.nodes[name]['type']}) {reason}")

    def _unsupported(self) -> UnsupportedError:
        return UnsupportedError(f"'{self.path}' cannot be imported", self.reasons, HINT)


def _said(metadata: dict[str, Any], path: Path) -> dict[str, Any]:
    """What a file says about itself: reset, dt, timesteps, encoding; only what can be understood."""
    said: dict[str, Any] = {}
    for key, known in (("reset", ("zero", "subtract")), ("encoding", ("direct", "events"))):
        value = metadata.get(key)
        if isinstance(value, str) and value in known:
            said[key] = value
    for key in ("dt", "timesteps"):
        value = metadata.get(key)
        if isinstance(value, np.ndarray) and value.size == 1:
            number = float(value.flat[0])
            if not math.isfinite(number) or number <= 0 or (key == "timesteps" and number != int(number)):
                raise NetworkError(f"'{path}' says that {key} is {number}", "write the file again")
            said[key] = number if key == "dt" else int(number)
    return said


def _reached(start: str, edges: list[tuple[str, str]]) -> set[str]:
    following: dict[str, list[str]] = {}
    for source, target in edges:
        following.setdefault(source, []).append(target)
    seen, pending = {start}, [start]
    while pending:
        for target in following.get(pending.pop(), []):
            if target not in seen:
                seen.add(target)
                pending.append(target)
    return seen
