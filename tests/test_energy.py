"""Energy models: hand-computed figures, sources, and files that are wrong."""

import dataclasses
import json

import numpy as np
import pytest
import yaml

from snnkit.analysis.counts import NodeCounts, OpCounts, count
from snnkit.analysis.energy import ann_baselines, estimate, format_energy, list_models, load_model
from snnkit.errors import ConfigError, UsageError
from snnkit.network import Affine, Edge, Input, Network, Readout, Trace

PJ = 1e-12


def toy():
    """The 10-20 net of the literature's comparisons: T=8, 22 input spikes, 440 synaptic events, 160 updates."""
    weight = np.ones((20, 10), np.float32)
    nodes = (
        Input(name="in", shape=(10,), encoding="events"),
        Affine(name="dense", inputs=(Edge("in"),), weight=weight),
        Readout(name="out", inputs=(Edge("dense"),)),
    )
    events = np.zeros((8, 1, 10), np.uint8)
    events.reshape(-1)[:22] = 1
    trace = Trace(
        target="hand", readouts=np.zeros((1, 20), np.float32), spikes_per_step={}, spikes_per_neuron={}, steps=8
    )
    return count(Network(nodes=nodes, timesteps=8), events, trace)


def made_up(kind="integer", place="chip"):
    """Two samples with round numbers: per sample 100 input MACs (25 once), 50 ACs, 10 spikes, 40 updates."""
    stem = NodeCounts(
        name="stem", kind="Conv2d", place=place, effective_macs=200, macs_once=50, dense=800, reads_input=True
    )
    first = NodeCounts(
        name="n", kind="LIF", place=place, spikes=20, updates_active=20, updates_inactive=60, state_additions=80,
        state_multiplications=80,
    )  # fmt: skip
    head = NodeCounts(name="head", kind="Affine", effective_acs=100, acs_once=100, dense=160)
    return OpCounts(
        kind=kind,
        samples=2,
        timesteps=4,
        neurons=10,
        ann_macs=120,
        parameters=1,
        footprint_bytes=1,
        connection_sparsity=0,
        nodes=(stem, first, head),
    )


def by_name(energy):
    return {term.name: term for term in energy.terms}


def test_toy_network_costs_18_7_nanojoules_on_loihi():
    counts = toy()
    assert (counts.total("effective_acs"), counts.total("updates_inactive")) == (440, 160)
    energy = estimate(counts, load_model("loihi1-davies2018"))
    assert energy.joules == pytest.approx((440 * 23.6 + 160 * 52) * PJ)
    assert format_energy(energy.joules) == "18.7 nJ"
    assert energy.bound == "at least"
    assert energy.summary == "modelled, Loihi 1 constants, int8, without static power"


def test_loihi_terms_by_hand():
    terms = by_name(estimate(made_up(), load_model("loihi1-davies2018")))
    assert {name: term.joules / PJ for name, term in terms.items()} == pytest.approx(
        {
            "synaptic events": 50 * 23.6,
            "input layer, at every timestep": 100 * 0.23,  # never as synaptic events
            "neuron updates, active": 10 * 81,
            "neuron updates, inactive": 30 * 52,
        }
    )


def test_host_stem_is_computed_once_and_its_neurons_left_out():
    energy = estimate(made_up(place="host"), load_model("loihi1-davies2018"))
    terms = by_name(energy)
    assert terms["input layer, on the host"].joules == pytest.approx(25 * 0.23 * PJ)
    assert terms["neuron updates, inactive"].count == 0
    assert "input layer, at every timestep" not in terms
    assert any("host computes" in reason for reason in energy.leaves_out)


@pytest.mark.parametrize(
    ("kind", "ac", "mac", "addition", "multiplication"),
    [("float", 0.9, 4.6, 0.9, 3.7), ("integer", 0.03, 0.23, 0.1, 3.1)],
)
def test_horowitz_terms_by_hand(kind, ac, mac, addition, multiplication):
    energy = estimate(made_up(kind), load_model("horowitz2014-45nm"))
    assert energy.precision == ("fp32" if kind == "float" else "int8")
    assert energy.joules == pytest.approx((50 * ac + 100 * mac + 40 * addition + 40 * multiplication) * PJ)
    assert [term.joules / PJ for term in energy.baselines] == pytest.approx([120 * 4.6, 120 * 0.23])
    assert energy.summary.endswith("without memory")


def test_averages_have_a_line_of_their_own():
    counts = made_up()
    pooled = dataclasses.replace(counts.nodes[2], effective_macs=6, effective_acs=0)
    energy = estimate(dataclasses.replace(counts, nodes=(*counts.nodes[:2], pooled)), load_model("horowitz2014-45nm"))
    assert by_name(energy)["graded synapses"].count == 3


@pytest.mark.parametrize("name", ["loihi1-davies2018", "horowitz2014-45nm"])
def test_break_even_rate_balances_the_books(name):
    counts, model = made_up("float"), load_model(name)
    energy = estimate(counts, model)
    dear = dataclasses.replace(energy.baselines[0], count=1.1 * energy.joules / energy.baselines[0].price.joules)
    rate = energy.break_even_rate(dear)
    assert 0 < rate < 1
    scale = rate / counts.firing_rate
    stem, neurons, head = counts.nodes
    busier = (
        stem,
        dataclasses.replace(
            neurons,
            updates_active=neurons.updates_active * scale,
            updates_inactive=80 - neurons.updates_active * scale,
        ),
        dataclasses.replace(head, effective_acs=head.effective_acs * scale),
    )
    assert estimate(dataclasses.replace(counts, nodes=busier), model).joules == pytest.approx(dear.joules)
    assert energy.break_even_rate(dataclasses.replace(dear, count=0)) is None
    assert energy.break_even_rate(dataclasses.replace(dear, count=1e9)) == 1.0


def test_a_silent_network_has_no_rate_to_scale():
    silent = tuple(
        dataclasses.replace(n, effective_acs=0, updates_active=0, updates_inactive=80 * (n.kind == "LIF"), spikes=0)
        for n in made_up().nodes
    )
    energy = estimate(dataclasses.replace(made_up(), nodes=silent), load_model("horowitz2014-45nm"))
    dear = dataclasses.replace(energy.baselines[0], count=1e6)
    assert energy.break_even_rate(dear) is None
    json.dumps(energy.to_json(), allow_nan=False)


@pytest.mark.parametrize("name", list_models())
def test_shipped_models_name_their_sources(name):
    model = load_model(name)
    assert model.name == name and model.label == "modelled" and model.leaves_out
    assert any("static power" in reason for reason in model.leaves_out)
    for prices in model.precisions.values():
        for price in prices.model_dump().values():
            assert price is None or "20" in price["source"]  # the year of a publication


def test_shipped_constants():
    loihi = load_model("loihi1-davies2018").precisions["int8"]
    assert (loihi.synaptic_event.value, loihi.synaptic_event.bound) == (23.6, "at least")
    assert (loihi.update_active.joules, loihi.update_inactive.joules) == pytest.approx((81e-12, 52e-12))
    assert list_models() == ["horowitz2014-45nm", "loihi1-davies2018"]
    assert [term.name for term in ann_baselines(toy())] == [
        f"the same ANN, {precision}, by horowitz2014-45nm" for precision in ("fp32", "int8")
    ]


def test_json_has_every_term_with_its_source():
    record = json.loads(json.dumps(estimate(made_up(), load_model("loihi1-davies2018")).to_json(), allow_nan=False))
    assert record["joules"] == pytest.approx(sum(term["joules"] for term in record["terms"]))
    assert all(term["price"]["source"] for term in record["terms"] + record["baselines"])
    assert record["leaves_out"][0] == "static power"


def own(**changes):
    price = {"value": 1, "unit": "pJ", "source": "Someone, 2026"}
    model = {
        "name": "mine",
        "title": "my chip",
        "technology": "7 nm",
        "source": "Someone, 2026",
        "precisions": {"int8": {"synaptic_event": price}},
        "leaves_out": ["static power"],
    }
    return model | changes


def write(tmp_path, model):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(model))
    return path


def test_own_model_by_path_names_what_it_does_not_price(tmp_path):
    energy = estimate(made_up("float"), load_model(write(tmp_path, own())))
    assert energy.joules == pytest.approx(50 * PJ)
    assert sum("does not price" in reason for reason in energy.leaves_out) == 3


PRICE = {"value": 1, "unit": "pJ", "source": "Someone, 2026"}
WRONG = {
    "precisions.int8.synaptic_event.unit": {"int8": {"synaptic_event": PRICE | {"unit": "J"}}},
    "precisions.int8.synaptic_event.source": {"int8": {"synaptic_event": {"value": 1, "unit": "pJ"}}},
    "precisions.int8.synaptic_event.value": {"int8": {"synaptic_event": PRICE | {"value": -1}}},
    "precisions.int8.synaptic_event.joule": {"int8": {"synaptic_event": PRICE | {"joule": 1}}},
    "precisions.int8.hop": {"int8": {"synaptic_event": PRICE, "hop": PRICE}},
    "priced twice": {
        "int8": dict.fromkeys(
            ("synaptic_event", "update_active", "update_inactive", "state_addition", "state_multiplication"), PRICE
        )
    },
    "belong together": {"int8": {"synaptic_event": PRICE, "update_active": PRICE}},
}


@pytest.mark.parametrize("key", WRONG)
def test_wrong_files_name_the_key(tmp_path, key):
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        load_model(write(tmp_path, own(precisions=WRONG[key])))


@pytest.mark.parametrize("text", ["a: [", "", "- 1", "name: x\n  y: z"])
def test_files_that_are_no_model(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"x\.yaml"):
        load_model(path)


def test_unknown_names_paths_and_precisions(tmp_path):
    with pytest.raises(UsageError, match="no energy model 'loihi1'") as caught:
        load_model("loihi1")
    assert "loihi1-davies2018" in caught.value.hint
    with pytest.raises(UsageError, match="cannot be read"):
        load_model(tmp_path / "absent.yaml")
    with pytest.raises(UsageError, match="no precision 'fp16'") as caught:
        estimate(made_up(), load_model("horowitz2014-45nm"), precision="fp16")
    assert "fp32, int8" in caught.value.hint


@pytest.mark.parametrize(
    ("joules", "text"),
    [
        (1.23e-7, "123 nJ"), (0, "0 J"), (1.8704e-8, "18.7 nJ"), (9.999e-7, "1 µJ"), (2.5e-6, "2.5 µJ"),
        (0.1, "100 mJ"), (4.2e-12, "4.2 pJ"), (7.0, "7 J"),
    ],
)  # fmt: skip
def test_format_energy(joules, text):
    assert format_energy(joules) == text
