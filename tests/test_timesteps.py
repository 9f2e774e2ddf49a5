"""The same network with fewer timesteps: one pass must answer what separate runs answer."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from snnkit.analysis.accuracy import Accuracy
from snnkit.analysis.counts import count, fan_out
from snnkit.analysis.energy import estimate, load_model
from snnkit.analysis.timesteps import COUNTED, at_each_timestep
from snnkit.cli.main import run as snnkit_command
from snnkit.errors import DataError, UsageError
from snnkit.network import LIF, Flatten, Network, infer_shapes, predictions, quantize, save
from snnkit.network.depth import latency
from snnkit.network.inputs import encode_inputs
from snnkit.network.ir import Synapse
from snnkit.pipeline import Samples, check, energy, over_timesteps
from snnkit.runs import Run
from snnkit_targets import reference
from tests.networks import integer_networks, raw_inputs
from tests.test_network import float_network

LABELS = np.array([0, 1, 0, 1, 0, 1, 1])


@given(integer_networks())
@settings(max_examples=20)
def test_every_row_equals_a_run_of_its_own(net: Network) -> None:
    inputs = raw_inputs(net, samples=7)
    rows = over_timesteps(net, Samples(inputs, LABELS, "random"), ["loihi1-davies2018"])
    assert [row.timesteps for row in rows] == list(range(1, net.timesteps + 1))
    for row in rows:
        shorter = dataclasses.replace(net, timesteps=row.timesteps)
        given_inputs = inputs if net.input.encoding == "direct" else inputs[: row.timesteps]
        trace = reference.run(shorter, given_inputs, reference.Options())
        assert row.accuracy == Accuracy.of(predictions(trace), LABELS)
        assert row.counts == count(shorter, given_inputs, trace)
        assert row.counts.mean("spikes") == trace.spikes_per_inference
        assert row.energies == (estimate(row.counts, load_model("loihi1-davies2018"), depth=latency(net)),)


@given(integer_networks())
@settings(max_examples=20)
def test_what_happens_at_each_timestep(net: Network) -> None:
    """Spikes as the trace recorded them; operations from every value that arrives, times the weights that it meets."""
    inputs, shapes = raw_inputs(net, samples=7), infer_shapes(net)
    trace = reference.run(net, inputs, reference.Options(record="raster"))
    assert trace.rasters is not None
    rows = over_timesteps(net, Samples(inputs, None, "random"), ["loihi1-davies2018"])
    encoded = encode_inputs(net, inputs)
    frames = {net.input.name: encoded if encoded.ndim > 1 + len(net.input.shape) else np.stack([encoded] * len(rows))}
    frames |= trace.rasters
    for layer in at_each_timestep(rows):
        node = net[layer.name]
        if isinstance(node, LIF):
            assert layer.counts["spikes"] == pytest.approx(trace.spikes_per_step[node.name].mean(axis=1))
        operations = np.add(layer.counts["effective_acs"], layer.counts["effective_macs"])
        expected = np.zeros(len(rows))
        for edge in node.inputs if isinstance(node, Synapse) else ():
            delay, source = edge.delay, edge.source
            if isinstance(net[source], Flatten):
                (inner,) = net[source].inputs
                delay, source = delay + inner.delay, inner.source
            leaving = fan_out(node, shapes[edge.source])
            values = (frames[source] != 0).reshape(len(rows), 7, -1).mean(axis=1) @ leaving.reshape(-1)
            expected[delay:] += values[: max(0, len(rows) - delay)]
        assert operations == pytest.approx(expected)
        for name in COUNTED:
            (total,) = [getattr(counted, name) for counted in rows[-1].counts.nodes if counted.name == layer.name]
            assert 7 * sum(layer.counts[name]) == pytest.approx(total)


@given(integer_networks())
@settings(max_examples=10)
def test_a_mapping_is_priced_at_every_number_of_timesteps(net: Network) -> None:
    inputs = raw_inputs(net, samples=5)
    (mapping,) = check(net, ["loihi2"])
    samples = Samples(inputs, None, "random")
    rows = over_timesteps(net, samples, ["loihi1-sanafe"], mapping=mapping)
    for row in rows:
        shorter = dataclasses.replace(net, timesteps=row.timesteps)
        cut = inputs if net.input.encoding == "direct" else inputs[: row.timesteps]
        counts, energies = energy(shorter, Samples(cut, None, "random"), ["loihi1-sanafe"], mapping=mapping)
        assert (row.counts, row.energies) == (counts, tuple(energies))
    (whole,) = check(net, ["loihi2"], samples)  # the spikes that 'snnkit check' shows are those that are priced
    assert whole.routed is not None
    (packets,) = [t.count for t in rows[-1].energies[0].terms if t.name == "spike messages, one a receiving core"]
    assert packets == pytest.approx(whole.routed.within_core + whole.routed.between_cores)
    assert (rows[-1].energies[0].routed_on or "").startswith("Intel Loihi 2")


def test_a_trace_is_cut_only_where_its_steps_are_known() -> None:
    net = quantize(float_network())
    inputs = raw_inputs(net, samples=3)
    whole = reference.run(net, inputs, reference.Options(record="raster"))
    last = whole.until(net.timesteps)
    np.testing.assert_array_equal(last.readouts, whole.readouts)
    for name, counts in whole.spikes_per_neuron.items():
        np.testing.assert_array_equal(last.spikes_per_neuron[name], counts)
    for timesteps in (0, net.timesteps + 1):
        with pytest.raises(UsageError, match=f"cannot be cut to {timesteps}"):
            whole.until(timesteps)
    with pytest.raises(UsageError, match="does not say what happened at each timestep"):
        reference.run(net, inputs, reference.Options()).until(1)


def test_labels_that_do_not_fit_are_refused() -> None:
    net = quantize(float_network())
    with pytest.raises(DataError, match="3 samples have 7 labels"):
        over_timesteps(net, Samples(raw_inputs(net, samples=3), LABELS, "random"), ["loihi1-davies2018"])


def test_the_command_prints_and_writes_every_row(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    net = quantize(float_network())
    run = Run(tmp_path / "run")
    save(net, run.network)
    run.config.write_text("name: x\n")
    np.save(tmp_path / "x.npy", raw_inputs(net, samples=7))
    np.save(tmp_path / "y.npy", LABELS)
    command = ["energy", str(run.path), "--timesteps", "--data"]
    assert snnkit_command([*command, f"{tmp_path / 'x.npy'},{tmp_path / 'y.npy'}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(run.timesteps.read_text())
    assert [row["timesteps"] for row in found["rows"]] == list(range(1, net.timesteps + 1))
    assert all(row["samples"] == 7 and 0 <= row["accuracy"] <= 100 for row in found["rows"])
    spikes = [row["spikes"] for row in found["rows"]]
    assert spikes == sorted(spikes)
    sums = {name: sum(sum(layer[name]) for layer in found["layers"]) for name in ("spikes", "effective_acs")}
    assert sums == pytest.approx({name: found["rows"][-1][name] for name in sums})
    assert [energy["model"] for energy in found["rows"][0]["energies"]].count("loihi1-davies2018") == 1
    assert snnkit_command([*command, str(tmp_path / "x.npy")]) == 0
    printed = capsys.readouterr().out
    assert "no labels" in printed
    assert f"T={net.timesteps}" in printed
    assert f"t={net.timesteps}" in printed
