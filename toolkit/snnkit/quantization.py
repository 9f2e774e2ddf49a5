"""From a trained student to a measured integer network: fold, quantise, repair ranges, fine-tune, compare.

Modules that need torch are imported where they are used.
"""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from snnkit.analysis.accuracy import Accuracy
from snnkit.analysis.paired import Paired
from snnkit.config import load_config
from snnkit.errors import UnsupportedError, UsageError
from snnkit.network import (
    AvgPool2d,
    Network,
    Trace,
    apply,
    fold_batchnorm,
    fold_pooling,
    materialise_shortcuts,
    predictions,
    replace_pooling,
    save,
    verify,
)
from snnkit.network import quantize as quantize_network
from snnkit.network.ir import Array, Node, Synapse
from snnkit.network.quantize import Moments
from snnkit.network.ranges import Range, Ranges, worst_case
from snnkit.runs import Run

if TYPE_CHECKING:
    from snnkit.training.finetune import Finetuning

SCHEMA = 1
CALIBRATION = 1000  # samples, by default at most
CHUNK = 500  # samples of the test split that are held at once
MARGIN = 0.95  # of the scale at which observed values just fit
READOUT_SHARE = 0.9  # of its range that the readout may reach: no threshold holds it back, other samples go further


@dataclass(frozen=True)
class QuantizedNode:
    """One neuron node before and after. ``scale`` (integers a float unit; ``v_threshold`` / (2 theta)) and threshold
    are lists where each channel has its own. ``rate``: spikes per neuron and timestep; ``overflows``: updates whose u
    wrapped or v saturated. ``worst`` case and ``observed`` ranges (None: a recurrent network) hold for the integer one.
    """

    name: str
    weight_bits: int
    scale: float | list[float]
    v_threshold: int | list[int]
    rate_float: float
    rate_integer: float
    overflows: int
    worst: Ranges
    observed: Ranges | None

    def to_json(self) -> dict[str, Any]:
        """The fields, and for each of sum, u and v the worst case, what was observed, and the limit on either side."""
        return _plain(self)


@dataclass(frozen=True)
class QuantizedReadout:
    """A membrane readout: its scale, and ranges as of :class:`QuantizedNode`; v is the answer so far."""

    name: str
    scale: float
    worst: Ranges
    observed: Ranges | None

    def to_json(self) -> dict[str, Any]:
        """As of :class:`QuantizedNode`."""
        return _plain(self)


def _plain(node: QuantizedNode | QuantizedReadout) -> dict[str, Any]:
    def pair(ranges: Ranges | None, what: str) -> list[int] | None:
        values: Range | None = getattr(ranges, what) if ranges else None
        return [values.low, values.high] if values else None

    fields = {spec.name: getattr(node, spec.name) for spec in dataclasses.fields(node)}
    del fields["worst"], fields["observed"]
    for what in ("sum", "u", "v"):
        limit = getattr(node.worst, what).limit
        fields[what] = {"limit": limit, "worst": pair(node.worst, what), "observed": pair(node.observed, what)}
    return fields


@dataclass(frozen=True, eq=False)
class Quantization:
    """The integer network, where it was written, and what the calibration samples showed.

    ``accuracies``, on these samples where their labels are known: of the network before and after, by what it is.
    ``notes`` say what was chosen. Of a run, also: ``test`` accuracies of the student as trained and of the integer
    network on the whole test split, ``paired`` their difference, and ``finetuning`` a record an epoch. ``readout`` is
    None where it counts spikes.
    """

    network: Network
    path: Path | None
    calibration_samples: int
    changed_predictions: int
    nodes: tuple[QuantizedNode, ...]
    readout: QuantizedReadout | None = None
    accuracies: dict[str, Accuracy] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    test: dict[str, Accuracy] = field(default_factory=dict)
    paired: Paired | None = None
    finetuning: tuple[dict[str, Any], ...] = ()

    @property
    def layers(self) -> "tuple[QuantizedNode | QuantizedReadout, ...]":
        """All that has ranges."""
        return *self.nodes, *([self.readout] if self.readout else [])

    def to_json(self) -> dict[str, Any]:
        """What ``quantization.json`` holds, without its schema number."""
        facts = self.network.metadata["quantization"]
        return {
            **{name: facts[name] for name in ("weight_bits", "input_bits", "per_channel")},
            "stem": self.network.stem,
            "calibration": {
                "samples": self.calibration_samples,
                "changed_predictions": self.changed_predictions,
                "accuracies": {name: accuracy.to_json() for name, accuracy in self.accuracies.items()},
            },
            "test": {name: accuracy.to_json() for name, accuracy in self.test.items()},
            "paired": self.paired.to_json() if self.paired else None,
            "finetuning": list(self.finetuning),
            "notes": list(self.notes),
            "nodes": [node.to_json() for node in self.nodes],
            "readout": self.readout.to_json() if self.readout else None,
        }


def quantize(
    net: Network,
    calibration: Array,
    labels: Array | None = None,
    *,
    weight_bits: int = 8,
    input_bits: int | None = None,
    per_channel: bool = False,
    stem: Literal["chip", "host"] = "chip",
) -> Quantization:
    """Folds and quantises a lowered network and runs both on ``calibration``, raw inputs, with ``labels`` if known.

    Scales are searched for the least error on these samples, and lowered where sums, u or v would leave their range.
    ``input_bits``: 6, or 8 where the host computes the stem. Raises :class:`UnsupportedError` where a layer has gone
    silent, or fires always, or where no scale fits.
    """
    quantizer = Quantizer(net, calibration, labels)
    options: dict[str, Any] = {"input_bits": input_bits, "per_channel": per_channel, "stem": stem}
    return quantizer.measure(*quantizer.integer(weight_bits=weight_bits, **options))


class Quantizer:
    """A lowered network, folded, and what it does on calibration samples: what all its quantisations start from."""

    def __init__(self, net: Network, calibration: Array, labels: Array | None = None) -> None:
        from snnkit_targets import reference

        self.folded, self.notes = fold(net)
        self.x, self.labels = calibration, labels
        self.before = reference.run(self.folded, calibration, reference.Options())
        self.moments = moments_of(self.folded, calibration, self.before)
        self._observed: tuple[Network, dict[str, Ranges]] | None = None  # of the network that was asked for last

    def integer(
        self,
        *,
        weight_bits: int = 8,
        input_bits: int | None = None,
        per_channel: bool = False,
        stem: Literal["chip", "host"] = "chip",
    ) -> tuple[Network, list[str]]:
        """The integer network of least error that stays in range on the calibration samples, and what was chosen."""
        ceilings: dict[str, float] = {}
        notes = list(self.notes)
        while True:
            integer = quantize_network(
                self.folded,
                weight_bits=weight_bits,
                input_bits=input_bits or (8 if stem == "host" else 6),
                per_channel=per_channel,
                stem=stem,
                moments=self.moments,
                ceilings=ceilings,
            )
            observed = self.observe(integer)
            most = {integer.readout.name: READOUT_SHARE}
            outside = {
                name: excess for name, ranges in observed.items() if (excess := _excess(ranges) / most.get(name, 1)) > 1
            }
            if not outside:
                return integer, notes
            for name, excess in outside.items():
                scale = float(np.max(integer.metadata["quantization"]["scales"][name]))
                ceilings[name] = scale / excess * MARGIN
                notes.append(f"node '{name}': scale lowered to {ceilings[name]:.4g}, as its values would leave 24 bits")

    def observe(self, integer: Network) -> dict[str, Ranges]:
        """The ranges of each neuron node, and of a membrane readout, on the calibration samples; empty for a recurrent
        network.
        """
        if self._observed is None or self._observed[0] is not integer:
            self._observed = integer, observe(integer, self.x)
        return self._observed[1]

    def contained(self, integer: Network) -> tuple[Network, list[str]]:
        """A trained network whose answers stay in range on the calibration samples, and what was done for that.

        Where they would not, all that enters the readout is halved: that changes no answer, but for the rounding of
        its biases.
        """
        readout = integer.readout
        ranges = self.observe(integer).get(readout.name)
        if ranges is None or _excess(ranges) <= READOUT_SHARE:
            return integer, []
        halved: dict[str, Node] = {}
        for edge in readout.inputs:
            synapse = integer[edge.source]
            assert isinstance(synapse, Synapse)
            bias = None if synapse.bias is None else np.rint(synapse.bias / 2).astype(np.int32)
            halved[synapse.name] = dataclasses.replace(synapse, bias=bias, weight_exponent=synapse.weight_exponent - 1)
        facts = dict(integer.metadata["quantization"])
        facts["scales"] = {**facts["scales"], readout.name: facts["scales"][readout.name] / 2}
        net = dataclasses.replace(
            integer,
            nodes=tuple(halved.get(node.name, node) for node in integer.nodes),
            metadata={**integer.metadata, "quantization": facts},
        )
        verify(net)
        return net, [f"node '{readout.name}': halved after training, as its values would leave 24 bits"]

    def measure(
        self,
        integer: Network,
        notes: Sequence[str] = (),
        finetuning: Sequence[dict[str, Any]] = (),
    ) -> Quantization:
        """What ``integer`` does on the calibration samples; refuses it where a layer is dead or overflows."""
        from snnkit_targets import reference

        observed = self.observe(integer)
        after = reference.run(integer, self.x, reference.Options())
        rates, integer_rates, worst = self.before.firing_rates(), after.firing_rates(), worst_case(integer)
        facts = integer.metadata["quantization"]
        nodes = tuple(
            QuantizedNode(
                name=neuron.name,
                weight_bits=facts["weight_bits"],
                scale=facts["scales"][neuron.name],
                v_threshold=neuron.v_threshold.tolist(),
                rate_float=rates[neuron.name],
                rate_integer=integer_rates[neuron.name],
                overflows=after.overflows[neuron.name],
                worst=worst[neuron.name],
                observed=observed.get(neuron.name),
            )
            for neuron in integer.neurons
        )
        readout = None
        if (name := integer.readout.name) in worst:
            readout = QuantizedReadout(name, facts["scales"][name], worst[name], observed.get(name))
        changed = int(np.count_nonzero(predictions(self.before) != predictions(after)))
        accuracies = {}
        if self.labels is not None:
            traces = {"float network": self.before, "integer network": after}
            accuracies = {name: Accuracy.of(predictions(trace), self.labels) for name, trace in traces.items()}
        result = Quantization(
            integer,
            None,
            after.samples,
            changed,
            nodes,
            readout,
            accuracies,
            tuple(notes),
            finetuning=tuple(finetuning),
        )
        _refuse(result)
        return result


def fold(net: Network) -> tuple[Network, list[str]]:
    """Synapses and neurons only, as :func:`snnkit.network.quantize` takes them, and what became of the averages."""
    exact = apply(net, [fold_batchnorm, materialise_shortcuts, fold_pooling])
    left = {node.name for node in exact.nodes if isinstance(node, AvgPool2d)}
    notes = []
    for node in net.nodes:
        if isinstance(node, AvgPool2d):
            notes.append(
                f"average '{node.name}': replaced by a strided depthwise layer with neurons of its own, not exact"
                if node.name in left
                else f"average '{node.name}': folded into the layers behind it, exact"
            )
    return apply(exact, [replace_pooling]), notes


def moments_of(net: Network, x: Array, trace: Trace) -> dict[str, Moments]:
    """Mean and mean square of what the input and all neurons send: of spikes both are the firing rate."""
    axes = (0,) if net.input.encoding == "direct" else (0, 1)
    values = x.astype(np.float32)
    found = {net.input.name: Moments(values.mean(axis=axes, dtype=np.float64), (values**2).mean(axis=axes))}
    for name, counts in trace.spikes_per_neuron.items():
        rate = counts.mean(axis=0, dtype=np.float64) / net.timesteps
        found[name] = Moments(rate, rate)
    return found


def observe(net: Network, x: Array) -> dict[str, Ranges]:
    """The ranges of each neuron node, and of a membrane readout, of an integer network over raw inputs; empty for a
    recurrent one.
    """
    import torch

    from snnkit.training.devices import torch_defaults
    from snnkit.training.integer import IntegerNetwork

    with torch_defaults():
        return {} if net.recurrent else IntegerNetwork(net).observe(torch.from_numpy(x))


def _excess(ranges: Ranges) -> float:
    """How many times the largest of all values exceeds its limit."""
    return max(max(-r.low, r.high) / r.limit for r in (ranges.sum, ranges.u, ranges.v))


def _refuse(result: Quantization) -> None:
    """Raises where a layer tells nothing apart, or left its range in spite of the scale that was chosen."""
    dead, outside = [], []
    for node in result.nodes:
        for rate, what in ((node.rate_integer, "never fires"), (1 - node.rate_integer, "fires at every timestep")):
            if rate == 0.0:
                already = node.rate_float == node.rate_integer
                before = "in the float network, too" if already else f"float: {100 * node.rate_float:.1f} %"
                dead.append(f"node '{node.name}' {what} ({before})")
    for layer in result.layers:
        if layer.observed and (excess := _excess(layer.observed)) > 1:
            outside.append(f"node '{layer.name}' reaches {excess:.2f} times what 24 bits hold")
    if dead:
        raise UnsupportedError("the integer network is dead", dead, "use more weight bits, or train for longer")
    if outside:
        raise UnsupportedError("the integer network overflows", outside, "use fewer input bits, or a smaller lr")


def quantize_run(
    path: str | os.PathLike[str],
    *,
    weight_bits: int = 8,
    input_bits: int | None = None,
    per_channel: bool = False,
    stem: Literal["chip", "host"] = "chip",
    calibrate: int | None = None,
    finetuning: "Finetuning | None" = None,
) -> Quantization:
    """Lowers and quantises the student of a run, writes its network and ``quantization.json``, and compares on the test
    split. With ``finetuning`` the integer network is trained before.

    Calibrated on the first ``calibrate`` (at most 1,000) samples of the validation split or, without one, of the
    training split. The accuracy there of the student as trained stands beside the float network's: lowering puts
    what was learned, as a PLIF neuron's tau, on the chip's grid.
    """
    from snnkit.training.data import load_configured
    from snnkit.training.evaluation import evaluate, predict
    from snnkit.training.lower import lower_run
    from snnkit.training.trainer import load_student

    if calibrate is not None and calibrate < 1:
        raise UsageError(f"cannot calibrate on {calibrate} samples", "give at least 1")
    run = Run.open(path)
    net = lower_run(run)
    data = load_configured(load_config(run.config).data, net.timesteps)
    samples = (data.validation if len(data.validation) else data.train).first(calibrate or CALIBRATION)
    quantizer = Quantizer(net, samples.x, samples.y)
    options: dict[str, Any] = {"input_bits": input_bits, "per_channel": per_channel, "stem": stem}
    integer, notes = quantizer.integer(weight_bits=weight_bits, **options)
    records: Sequence[dict[str, Any]] = ()
    if finetuning:
        from snnkit.training.finetune import finetune

        integer, records = finetune(run, data, quantizer.folded, integer, load_student(run), finetuning)
        integer, more = quantizer.contained(integer)
        notes += more
    result = quantizer.measure(integer, notes, records)
    student = load_student(run)
    before, after = predict(student, data.test), answers(result.network, data.test.x)
    result = dataclasses.replace(
        result,
        accuracies={"student": evaluate(student, samples), **result.accuracies},
        test={"student": Accuracy.of(before, data.test.y), "integer network": Accuracy.of(after, data.test.y)},
        paired=Paired.of(before, after, data.test.y),
        path=save(result.network, run.network),
    )
    run.write_json(run.quantization, {"schema": SCHEMA, "network": run.network.name, **result.to_json()})
    return result


def answers(net: Network, x: Array) -> Array:
    """The reference's predictions for raw inputs, int64 [B], in chunks of bounded memory."""
    from snnkit_targets import reference

    axis = 0 if net.input.encoding == "direct" else 1
    parts = np.array_split(x, range(CHUNK, x.shape[axis], CHUNK), axis=axis)
    return np.concatenate([predictions(reference.run(net, part, reference.Options())) for part in parts])
