"""Why two targets part: the layer where they first differ is replayed by other rules, until one gives what was seen."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from snnkit.analysis.compare import Agreement, Diagnosis, Divergence, Side
from snnkit.analysis.replay import REFERENCE, Layer, Replay, Rules, alternatives
from snnkit.network import LIF, Network, Trace, infer_shapes, verify
from snnkit.network.inputs import encode_inputs
from snnkit.network.ir import Affine, Array, Input, Synapse, reads_input

WINDOW = 32  # samples that are replayed
LATE = 16  # of them, at most so many before the one that differs

State = Callable[[int, int, str], tuple[Array, Array]]
"""``state(sample, timestep, node)``: u and v [*shape] of a target, as compared with the threshold."""


@dataclass(frozen=True, eq=False)
class _Case:
    """A rule that may have been followed: by it, this many spikes of the layer come out wrong."""

    cause: str
    explanation: str
    rules: Rules
    replay: Replay
    wrong: int


def diagnose(
    net: Network,
    inputs: Array,
    a: Trace,
    b: Trace,
    agreement: Agreement,
    states: Mapping[str, State] | None = None,
) -> Agreement:
    """The agreement with its diagnosis, where it has a divergence; ``inputs`` are the raw samples of both traces.

    A target without an entry in ``states``, by its name, gets the reference's u and v. For a float network the rules of
    integers do not apply, so that its cause stays unknown.
    """
    where = agreement.divergence
    if where is None or a.rasters is None or b.rasters is None:
        return agreement
    if verify(net) != "integer":
        sides = _observed(a, where), _observed(b, where)
        text = "float networks may differ by the order of their sums; only integer ones are replayed"
        return dataclasses.replace(agreement, diagnosis=Diagnosis("unknown", text, "", b.target, None, sides))
    if where.node == net.readout.name:
        return dataclasses.replace(agreement, diagnosis=_readouts(net, inputs, a, b, where))
    return dataclasses.replace(agreement, diagnosis=_Search(net, inputs, a, b, where, states or {}).diagnosis())


class _Search:
    """The layer of the divergence in both traces, replayed for some samples around it."""

    def __init__(
        self, net: Network, inputs: Array, a: Trace, b: Trace, where: Divergence, states: Mapping[str, State]
    ) -> None:
        first = max(0, where.sample - LATE)
        self.samples = slice(first, first + WINDOW)
        self.net, self.where, self.states, self.first = net, where, states, first
        self.shapes = infer_shapes(net)
        self.traces = (a, b)
        axis = 0 if net.input.encoding == "direct" else 1
        self.inputs, self.axis = inputs, axis
        self.raw = inputs[(slice(None),) * axis + (self.samples,)]
        self.encoded = encode_inputs(net, self.raw)

    def diagnosis(self) -> Diagnosis:
        node = self.where.node
        unseen = self._unseen(node)
        known = [self._case(trace, node, "", "", REFERENCE) for trace in self.traces]
        faulty = 0 if known[0].wrong and not known[1].wrong else 1
        trace = self.traces[faulty]
        if not known[faulty].wrong:
            text = "both follow the reference on what they recorded of the layers before"
            return self._answer(known, faulty, ("unknown", text, ""), None, [])
        cases = sorted(self._cases(trace, node), key=lambda case: case.wrong)
        exact = self._settle(trace, _least([case for case in cases if not case.wrong]))
        spikes = f"{self._raster(trace, node).size:,} neuron-steps of '{node}' in {self.encoded_samples} samples"
        if not exact:
            best = cases[0] if cases and cases[0].wrong < known[faulty].wrong else None
            text = "no rule that was tried gives these spikes"
            text += (
                f"; {best.wrong} of {known[faulty].wrong} differences are left where it {best.explanation}"
                if best
                else ""
            )
            text += f"; not recorded: {', '.join(unseen)}" if unseen else ""
            return self._answer(known, faulty, ("unknown", text, f"{known[faulty].wrong} of {spikes} differ"), None, [])
        best = exact[0]
        evidence = f"gives all {spikes}; by the reference {known[faulty].wrong} differ"
        others = [f"{case.cause}: {case.explanation}" for case in exact[1:] if case.cause != best.cause]
        return self._answer(known, faulty, (best.cause, best.explanation, evidence), best, others)

    @property
    def encoded_samples(self) -> int:
        return len(self._raster(self.traces[0], self.where.node)[0])

    def _raster(self, trace: Trace, node: str) -> Array:
        assert trace.rasters is not None
        return trace.rasters[node][:, self.samples]

    def _unseen(self, node: str) -> list[str]:
        held = set(self.traces[0].rasters or {}) & set(self.traces[1].rasters or {})
        return [name for name in self._sources(node) if name not in held]

    def _sources(self, node: str) -> Iterator[str]:
        """The neurons whose spikes reach a node without other neurons between."""
        for edge in self.net[node].inputs:
            if isinstance(self.net[edge.source], LIF):
                yield edge.source
            elif not isinstance(self.net[edge.source], Input):
                yield from self._sources(edge.source)

    def _layer(self, trace: Trace, node: str, encoded: Array | None = None) -> Layer:
        """A node with what the target itself sent to it; where that is not recorded, with what the other did."""
        rasters = {}
        for name in self._sources(node):
            holder = next((t for t in (trace, *self.traces) if name in (t.rasters or {})), None)
            rasters[name] = (
                np.zeros((self.net.timesteps, len(self.encoded), *self.shapes[name]), bool)
                if holder is None
                else self._raster(holder, name)
            )
        neuron = self.net[node]
        assert isinstance(neuron, LIF)
        return Layer(self.net, neuron, self.encoded if encoded is None else encoded, rasters, self.shapes[node])

    def _case(self, trace: Trace, node: str, cause: str, how: str, rules: Rules, layer: Layer | None = None) -> _Case:
        replay = (layer or self._layer(trace, node)).run(rules)
        wrong = int(np.count_nonzero(replay.spikes != self._raster(trace, node)))
        return _Case(cause, how, rules, replay, wrong)

    def _cases(self, trace: Trace, node: str) -> Iterator[_Case]:
        neuron = self.net[node]
        assert isinstance(neuron, LIF)
        layer = self._layer(trace, node)
        for cause, how, rules in alternatives(self.net, neuron):
            if rules.carry and self.first:  # the state of the samples before is not known
                continue
            yield self._case(trace, node, cause, how, rules, layer)
        if any(reads_input(self.net, self.net[edge.source]) for edge in neuron.inputs):
            for how, encoded in self._readings():
                yield self._case(trace, node, "input", how, REFERENCE, self._layer(trace, node, encoded))

    def _readings(self) -> Iterator[tuple[str, Array]]:
        yield from input_readings(self.net, self.raw)
        total = self.inputs.shape[self.axis]
        window = np.arange(total)[self.samples]
        for late, how in ((-1, "gets the sample before"), (1, "gets the next sample")):
            yield how, encode_inputs(self.net, self.inputs.take((window + late) % total, axis=self.axis))

    def _settle(self, trace: Trace, exact: list[_Case]) -> list[_Case]:
        """Where several causes fit, those that also give the other layers that are not as by the reference."""
        for neuron in self.net.neurons:
            if len({case.cause for case in exact}) < 2:
                break
            if neuron.name == self.where.node or neuron.name not in (trace.rasters or {}):
                continue
            if not self._case(trace, neuron.name, "", "", REFERENCE).wrong:
                continue
            left = [c for c in exact if not self._case(trace, neuron.name, c.cause, c.explanation, c.rules).wrong]
            exact = left or exact
        return exact

    def _answer(
        self,
        known: list[_Case],
        faulty: int,
        verdict: tuple[str, str, str],
        best: _Case | None,
        also: list[str],
    ) -> Diagnosis:
        cause, explanation, evidence = verdict
        node = self.net[self.where.node]
        assert isinstance(node, LIF)
        sides = []
        for index, trace in enumerate(self.traces):
            case, source = known[index], "the reference's, from the spikes that reached it"
            if index == faulty and best is not None:
                case, source = best, f"the reference's with its cause, {cause}, put in"
            sides.append(self._side(trace, case.replay, source))
        channel = np.unravel_index(self.where.neuron, self.shapes[node.name])[0]
        threshold = int(node.v_threshold if node.v_threshold.ndim == 0 else node.v_threshold[channel]) << 6
        name = self.traces[faulty].target
        return Diagnosis(cause, explanation, evidence, name, threshold, (sides[0], sides[1]), tuple(also))

    def _side(self, trace: Trace, replay: Replay, source: str) -> Side:
        where = self.where
        index = where.timestep, where.sample - self.first
        u: float | None
        v: float | None
        u, v = (float(x[index].reshape(-1)[where.neuron]) for x in (replay.u, replay.v))
        if state := self.states.get(trace.target):
            u, v = (
                float(np.asarray(x).reshape(-1)[where.neuron]) for x in state(where.sample, where.timestep, where.node)
            )
            source = "its own"
            u, v = (None if np.isnan(x) else x for x in (u, v))
        assert trace.rasters is not None
        spike = bool(trace.rasters[where.node][where.timestep, where.sample].reshape(-1)[where.neuron])
        return Side(trace.target, spike, u, v, source)


def _least(cases: list[_Case]) -> list[_Case]:
    """Without those that change more than another one that fits as well."""
    changes = [{(f.name, getattr(c.rules, f.name)) for f in dataclasses.fields(Rules)} - _DEFAULTS for c in cases]
    return [
        case for case, mine in zip(cases, changes, strict=True) if not any(other < mine for other in changes if other)
    ]


_DEFAULTS = {(f.name, getattr(REFERENCE, f.name)) for f in dataclasses.fields(Rules)}


def input_readings(net: Network, raw: Array) -> Iterator[tuple[str, Array]]:
    """Ways to read the samples wrongly: how, and what enters the network then."""
    entry = net.input
    encoded = encode_inputs(net, raw)
    if entry.encoding == "direct":
        levels = raw.astype(np.float64) / entry.scale
        most = 2**entry.bits - 1
        yield (
            "cuts the input's fractions off, the reference rounds",
            np.clip(np.floor(levels) + entry.zero_point, 0, most),
        )
        if entry.zero_point:
            yield "leaves the input's zero point out", np.clip(np.rint(levels), 0, most)
        for bits in range(1, 9):
            if bits != entry.bits:
                other = np.clip(np.rint(raw.astype(np.float64) * (2**bits - 1)), 0, 2**bits - 1)
                yield f"takes the input at {bits} bits instead of {entry.bits}", other
    yield "takes the input as 0 and 1", (encoded != 0).astype(encoded.dtype)
    yield (
        "gets the input upside down",
        1.0 * np.flip(encoded, -2) if len(entry.shape) == 3 else 1.0 * np.flip(encoded, -1),
    )
    if len(entry.shape) == 3:
        yield "gets the input mirrored", 1.0 * np.flip(encoded, -1)
        if entry.shape[1] == entry.shape[2]:
            yield "gets the input with rows and columns swapped", 1.0 * np.swapaxes(encoded, -1, -2)
        if entry.shape[0] > 1:
            yield "gets the input's channels in reverse order", 1.0 * np.flip(encoded, -3)
    if entry.encoding == "direct":
        yield "gets the input at the first timestep only", _once(net, encoded)
    else:
        yield "gets the timesteps in reverse order", encoded[::-1]


def _once(net: Network, encoded: Array) -> Array:
    frames = np.zeros((net.timesteps, *encoded.shape), encoded.dtype)
    frames[0] = encoded
    return frames


def _observed(trace: Trace, where: Divergence) -> Side:
    assert trace.rasters is not None
    if where.node not in trace.rasters:
        return Side(trace.target, None, None, float(trace.readouts[where.sample, where.neuron]), "its own")
    spike = bool(trace.rasters[where.node][where.timestep, where.sample].reshape(-1)[where.neuron])
    return Side(trace.target, spike, None, None, "")


def _readouts(net: Network, inputs: Array, a: Trace, b: Trace, where: Divergence) -> Diagnosis:
    """Equal spikes and other answers: the readout is computed once more, and by other rules."""
    assert a.rasters is not None
    answers = dict(_readings(net, inputs, a))
    wrong = [int(np.count_nonzero((t.readouts != answers[""]).any(axis=1))) for t in (a, b)]
    faulty = 0 if wrong[0] and not wrong[1] else 1
    trace = (a, b)[faulty]
    sides = tuple(Side(t.target, None, None, float(t.readouts[where.sample, where.neuron]), "its own") for t in (a, b))
    fits = [name for name, answer in answers.items() if name and np.array_equal(answer, trace.readouts)]
    cause, _, how = fits[0].partition(": ") if fits else ("unknown", "", "no rule that was tried gives these answers")
    evidence = f"{wrong[faulty]} of {trace.samples} readouts differ from the reference's on the same spikes"
    return Diagnosis(cause, how, evidence, trace.target, None, (sides[0], sides[1]), tuple(fits[1:]))


def _readings(net: Network, inputs: Array, trace: Trace) -> Iterator[tuple[str, Array]]:
    """Readouts [B, classes] by rule, ``cause: how``; the reference's under the empty name."""
    assert trace.rasters is not None
    node = net.readout
    steps: Array | int = 0
    bias: Array | int = 0
    shapes = infer_shapes(net)
    encoded = encode_inputs(net, inputs)
    for edge in node.inputs:
        source = net[edge.source]
        if isinstance(source, LIF):
            steps = steps + trace.rasters[source.name].astype(np.int64)
            continue
        assert isinstance(source, Synapse)
        probe = LIF(name="readout", inputs=(edge,), v_threshold=np.array(0), voltage_decay=np.array(0))
        layer = Layer(net, probe, encoded, trace.rasters, shapes[node.name])
        steps = steps + layer.drive(REFERENCE)
        if isinstance(source, Affine) and source.bias is not None:
            bias = bias + source.bias.astype(np.int64)
    drive = np.asarray(steps)
    right = (drive + bias).sum(axis=0)
    yield "", right
    yield "bias: leaves the bias out", drive.sum(axis=0)
    yield "bias: adds the bias once a sample, the reference at every timestep", drive.sum(axis=0) + bias
    for bits in (24 - 6, 16):
        most = 2 ** (bits - 1)
        yield f"wrap: the readout wraps at {bits} bits", (right + most) % (2 * most) - most
        limited = np.zeros_like(right)
        for step in drive:
            limited = np.clip(limited + step + bias, 1 - most, most - 1)
        yield f"saturation: the readout saturates at {bits} bits", limited
    yield "delay: the last timestep is missing", (drive + bias)[:-1].sum(axis=0)
    yield "delay: the first timestep is missing", (drive + bias)[1:].sum(axis=0)
    carried = np.cumsum(right, axis=0)
    yield "reset: does not clear the readout between samples", carried
