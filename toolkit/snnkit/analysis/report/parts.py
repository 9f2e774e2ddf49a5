"""From networks, counts, energies and traces to the parts of a report."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from snnkit.analysis.counts import NodeCounts
from snnkit.analysis.energy import Energy, Latency, Term
from snnkit.analysis.mapping import LayerMapping, Mapping
from snnkit.analysis.report import content, png
from snnkit.analysis.timesteps import AtTimesteps, at_each_timestep
from snnkit.network import Network, Trace, infer_shapes, predictions, verify
from snnkit.network.ir import Array


def facts(net: Network, whole: AtTimesteps) -> content.Facts:
    """What the network is; ``whole`` is its run over all timesteps."""
    known, counts = net.metadata, whole.counts
    quantization = known.get("quantization")
    bits = quantization.get("weight_bits") if isinstance(quantization, dict) else None
    return content.Facts(
        dataset=_text(known.get("dataset")) or "unknown data",
        teacher=_text(known.get("teacher")),
        student=_text(known.get("student")),
        kind=verify(net),
        timesteps=net.timesteps,
        weight_bits=bits if isinstance(bits, int) else None,
        input_bits=net.input.bits,
        input_shape=net.input.shape,
        classes=class_names(net),
        neurons=counts.neurons,
        parameters=counts.parameters,
        footprint_bytes=counts.footprint_bytes,
        ann_macs=counts.ann_macs,
        firing_rate=counts.firing_rate,
        samples=counts.samples,
    )


def class_names(net: Network) -> tuple[str, ...]:
    """A name for each class: those of the metadata where they are as many, else the index."""
    count = infer_shapes(net)[net.readout.name][0]
    names = net.metadata.get("classes")
    if not isinstance(names, list) or len(names) != count:
        names = list(range(count))
    return tuple(str(name) for name in names)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def step(row: AtTimesteps) -> content.Step:
    """A row of the sweep over timesteps."""
    return content.Step(
        timesteps=row.timesteps,
        accuracy=None if row.accuracy is None else content.Accuracy.of(row.accuracy),
        spikes=row.counts.mean("spikes"),
        effective_acs=row.counts.mean("effective_acs"),
        effective_macs=row.counts.mean("effective_macs"),
        energies=tuple(total(energy) for energy in row.energies),
    )


def layers(net: Network, rows: Sequence[AtTimesteps]) -> tuple[content.Layer, ...]:
    """A layer a node that computes, over all timesteps and at each of them."""
    shapes, counts = infer_shapes(net), rows[-1].counts
    found = []
    for node, steps in zip(counts.nodes, at_each_timestep(rows), strict=True):
        neurons = math.prod(shapes[node.name]) if node.kind == "LIF" else 0
        found.append(
            content.Layer(
                **_operations(node, counts.samples),
                neurons=neurons,
                rate=node.spikes / (neurons * counts.samples * net.timesteps) if neurons else None,
                rates=tuple(spikes / neurons for spikes in steps.counts["spikes"]) if neurons else (),
                acs=steps.counts["effective_acs"] if node.dense else (),
                macs=steps.counts["effective_macs"] if node.dense else (),
            )
        )
    return tuple(found)


def _operations(node: NodeCounts, samples: int) -> dict[str, Any]:
    means = {name: getattr(node, name) / samples for name in ("spikes", "effective_acs", "effective_macs", "dense")}
    updates = (node.updates_active + node.updates_inactive) / samples
    return {"name": node.name, "kind": node.kind, "place": node.place, **means, "updates": updates}


def total(energy: Energy) -> content.Total:
    """What an energy adds up to."""
    names = ("model", "precision", "joules", "low", "high", "bound")
    return content.Total(**{name: getattr(energy, name) for name in names})


def energy(found: Energy) -> content.Energy:
    """Every term, and the same network as an ANN."""
    return content.Energy(
        **total(found).model_dump(),
        title=found.title,
        technology=found.technology,
        source=found.source,
        label=found.label,
        terms=tuple(
            content.Term(**_term(term), at_least=term.at_least, caveat=term.price.caveat) for term in found.terms
        ),
        baselines=tuple(
            content.Baseline(
                **_term(baseline),
                break_even=found.break_even(baseline),
                break_even_rates=(found.break_even_rate(baseline, "high"), found.break_even_rate(baseline, "low")),
            )
            for baseline in found.baselines
        ),
        unknown=tuple(content.Unknown(name=name, count=count) for name, count in found.unknown),
        latency=None if found.latency is None else latency(found.latency),
        energy_delay=found.energy_delay(),
        energy_delay_bound=found.energy_delay_bound,
        routed_on=found.routed_on,
        leaves_out=found.leaves_out,
    )


def _term(term: Term) -> dict[str, Any]:
    numbers = {name: getattr(term, name) for name in ("name", "operation", "count", "joules", "low", "high")}
    return {**numbers, "price": term.price.text(), "source": term.price.source}


def latency(found: Latency) -> content.Latency:
    """Timesteps and, where one has a published length, seconds."""
    return content.Latency(
        first=found.first,
        next=found.next,
        seconds=found.seconds(found.first),
        source=found.timestep.source if found.timestep else None,
        bound=found.timestep.bound if found.timestep else None,
    )


def samples(
    net: Network, x: Array, y: Array | None, trace: Trace, indices: Sequence[int], drawn: int
) -> tuple[content.Sample, ...]:
    """The raw samples ``x`` of a trace with rasters; ``indices`` are their numbers in the test split.

    Of a layer with more than ``drawn`` neurons, every second, third, ... is shown.
    """
    assert trace.rasters is not None
    direct, names, answers = net.input.encoding == "direct", class_names(net), predictions(trace)
    found = []
    for i, index in enumerate(indices):
        label = None if y is None else int(y[i])
        rasters = []
        for name, raster in trace.rasters.items():
            fired = raster[:, i].reshape(len(raster), -1)
            stride = math.ceil(fired.shape[1] / drawn)
            shown = tuple(tuple(np.flatnonzero(row[::stride]).tolist()) for row in fired)
            rasters.append(
                content.Raster(node=name, neurons=fired.shape[1], stride=stride, spikes=int(fired.sum()), fired=shown)
            )
        found.append(
            content.Sample(
                index=index,
                label=names[label] if label is not None and label < len(names) else None,
                prediction=names[int(answers[i])],
                correct=None if label is None else bool(answers[i] == label),
                image=png.picture(x[i] if direct else x[:, i]),
                readouts=tuple(trace.readouts[i].tolist()),
                rasters=tuple(rasters),
            )
        )
    return tuple(found)


def chip(found: Mapping, samples: int) -> content.Chip:
    """A mapping; ``samples`` is from how many its spikes come."""
    order = {layer.name: index for index, layer in enumerate(found.layers)}
    mesh = found.chip.mesh
    return content.Chip(
        name=found.chip.name,
        title=found.chip.title,
        approximate=found.chip.approximate,
        fits=found.fits,
        chips=found.chips,
        available=found.chip.cores.value * found.chips_allowed,
        rows=mesh.rows,
        columns=mesh.columns,
        per_tile=mesh.cores_per_tile,
        cores=tuple(
            content.Core(
                core=core.core,
                chip=core.chip,
                row=core.row,
                column=core.column,
                layer=order[next(iter(core.layers))],
                use=max(core.utilisation.values(), default=0.0),
            )
            for core in found.cores
        ),
        layers=tuple(_chip_layer(layer) for layer in found.layers),
        violations=tuple(content.Violation(**violation.to_json()) for violation in found.violations),
        warnings=found.warnings,
        unchecked=found.unchecked,
        first_steps=found.latency_first.steps,
        next_steps=found.latency_next.steps,
        first_seconds=found.latency_first.seconds,
        throughput=found.throughput,
        between_cores=None if found.routed is None else found.routed.between_cores,
        samples=samples,
    )


def _chip_layer(layer: LayerMapping) -> content.ChipLayer:
    fullest = max(layer.utilisation, key=lambda name: layer.utilisation[name], default="")
    names = ("name", "kind", "first_core", "cores", "axons_in", "axons_out", "memory_words")
    return content.ChipLayer(
        **{name: getattr(layer, name) for name in names},
        neurons=layer.neurons_per_core,
        fullest=fullest.replace("_", " "),
        use=layer.utilisation.get(fullest, 0.0),
    )
