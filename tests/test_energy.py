"""Energy: hand-computed figures, ranges, what is unknown, and the ANN beside."""

import dataclasses
import json

import numpy as np
import pytest
import yaml

from snnkit.analysis.counts import NodeCounts, OpCounts, count
from snnkit.analysis.energy import Routing, ann_baselines, estimate, format_energy, list_models, load_model
from snnkit.analysis.energy_baselines import INT8_ADDITION, INT8_MULTIPLICATION
from snnkit.errors import UsageError
from snnkit.network import LIF, Affine, Edge, Input, Network, Readout, Trace

PJ = 1e-12


def toy():
    """A 10-20 net: T=8, 22 input spikes, none of them in the first timestep, 440 synaptic events, 160 updates."""
    weight = np.ones((20, 10), np.float32)
    nodes = (
        Input(name="in", shape=(10,), encoding="events"),
        Affine(name="dense", inputs=(Edge("in"),), weight=weight),
        Readout(name="out", inputs=(Edge("dense"),)),
    )
    events = np.zeros((8, 1, 10), np.uint8)
    events[1:].reshape(-1)[:66:3] = 1
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


def test_toy_network_costs_29_3_nanojoules_by_sanafe():
    """Its synapses at 35.5 pJ, all 160 updates at 51.2, the 140 after the first spike at 21.6, and 22 packets."""
    counts = toy()
    assert (counts.total("updates_reached"), counts.total("messages")) == (140, 22)
    energy = estimate(counts, load_model("loihi1-sanafe"))
    assert energy.joules == pytest.approx((440 * 35.5 + 160 * 51.2 + 140 * 21.6 + 22 * 111) * PJ)
    assert format_energy(energy.joules) == "29.3 nJ"
    assert energy.bound is None  # a packet a layer is the least, an update of every reached neuron the most


def test_updates_before_anything_arrives_are_not_reached():
    """The first spike comes at t=1 and one step late: of 3 timesteps, a neuron without bias holds nothing in two."""
    weight = np.ones((2, 1), np.float32)
    nodes = (
        Input(name="in", shape=(1,), encoding="events"),
        Affine(name="a", inputs=(Edge("in", 1),), weight=weight, bias=np.array([0.0, 0.5], np.float32)),
        LIF(name="n", inputs=(Edge("a"),), v_threshold=np.array(9, np.float32), voltage_decay=np.array(0, np.int32)),
        Affine(name="head", inputs=(Edge("n"),), weight=np.ones((2, 2), np.float32)),
        Readout(name="out", inputs=(Edge("head"),)),
    )
    net = Network(nodes=nodes, timesteps=3)
    events = np.array([0, 1, 1], np.uint8).reshape(3, 1, 1)
    silent = {
        "spikes_per_step": {"n": np.zeros((3, 1), np.int32)},
        "spikes_per_neuron": {"n": np.zeros((1, 2), np.int32)},
    }
    counts = count(net, events, Trace(target="hand", readouts=np.zeros((1, 2), np.float32), **silent))
    assert {node.name: node.updates_reached for node in counts.nodes} == {"a": 0, "n": 1 + 3, "head": 0, "out": 0}
    assert counts.total("messages") == 1  # the second one would arrive after the last timestep


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
    assert energy.low == energy.high == energy.joules
    three_bits = 0.2 * 9 / 64 + 0.03 * 3 / 8  # ceil(log2(4 + 1)) of T=4
    assert [term.joules / PJ for term in energy.baselines] == pytest.approx([120 * 4.6, 120 * 0.23, 120 * three_bits])
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
    assert energy.break_even(dear) == f"break-even at a firing rate of {100 * rate:.2f} %"
    free, endless = (dataclasses.replace(dear, count=count) for count in (0, 1e9))
    assert energy.break_even_rate(free) is None
    assert energy.break_even(free) == "costs less than this network without any spike"
    assert energy.break_even_rate(endless) == 1.0
    assert energy.break_even(endless) == "costs more than this network at any firing rate"


def test_a_silent_network_has_no_rate_to_scale():
    silent = tuple(
        dataclasses.replace(n, effective_acs=0, updates_active=0, updates_inactive=80 * (n.kind == "LIF"), spikes=0)
        for n in made_up().nodes
    )
    energy = estimate(dataclasses.replace(made_up(), nodes=silent), load_model("horowitz2014-45nm"))
    dear = dataclasses.replace(energy.baselines[0], count=1e6)
    assert energy.break_even_rate(dear) is None
    assert energy.break_even(dear).startswith("no neuron fired")  # and not that the ANN costs less
    json.dumps(energy.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("kind", "parameters", "weight_access", "low", "high"),
    [("integer", 8000, 10, 10, 10), ("integer", 30000, 20, 20, 20), ("float", 30000, 100, 100, 100),
     ("integer", 2 * 10**6, 1950, 1300, 2600)],
)  # fmt: skip
def test_memory_terms_by_hand(kind, parameters, weight_access, low, high):
    """An access is one of 64 bits. 50 events fetch a weight each, 100 input MACs two, 40 updates go both ways."""
    counts = dataclasses.replace(made_up(kind), parameters=parameters)
    model = load_model("horowitz2014-45nm-memory")
    bits, state = (32, 32) if kind == "float" else (8, 24)
    energy = estimate(counts, model)
    terms = [term for term in energy.terms if term.operation == "memory_access"]
    assert [term.count for term in terms] == pytest.approx([50 * bits / 64, 2 * 100 * bits / 64, 2 * 40 * state / 64])
    assert terms[0].joules == pytest.approx(50 * bits / 64 * weight_access * PJ)
    assert (terms[0].low / PJ, terms[0].high / PJ) == pytest.approx((50 * bits / 64 * low, 50 * bits / 64 * high))
    assert terms[2].joules == pytest.approx(2 * 40 * state / 64 * 10 * PJ)  # ten neurons fit anywhere
    bare = estimate(counts, load_model("horowitz2014-45nm")).joules
    assert energy.joules == pytest.approx(bare + sum(term.joules for term in terms))
    assert energy.high - energy.low == pytest.approx(sum(term.high - term.low for term in terms))
    int8 = next(term for term in energy.baselines if "int8" in term.name)
    level = {8000: 10, 30000: 20, 2 * 10**6: 1950}[parameters]
    assert int8.joules == pytest.approx(120 * (0.23 + 2 * 8 / 64 * level) * PJ)


def test_ranges_go_through_to_the_totals():
    energy = estimate(made_up(), load_model("truenorth"))
    assert (energy.low, energy.high) == pytest.approx((50 * 2.5 * PJ, 50 * 26 * PJ))
    assert energy.joules == energy.high
    cheap, dear = (energy.break_even_rate(energy.baselines[0], end) for end in ("high", "low"))
    assert cheap == energy.break_even_rate(energy.baselines[0]) < dear
    dearer = dataclasses.replace(energy.baselines[0], count=0.5 * energy.high / energy.baselines[0].price.joules)
    ends = [100 * energy.break_even_rate(dearer, end) for end in ("high", "low")]
    assert energy.break_even(dearer) == f"break-even at a firing rate of {ends[0]:.2f} % to {ends[1]:.2f} %"


def test_what_nobody_has_priced_is_unknown():
    energy = estimate(made_up(), load_model("spinnaker2"))
    assert dict(energy.unknown) == {"input layer, at every timestep": 100, "neuron updates": 40, "static power": None}
    assert energy.to_json()["unknown"][0] == {"name": "input layer, at every timestep", "count": 100}
    assert ("spike routing between cores, which needs a mapping", None) in estimate(
        made_up(), load_model("loihi1-davies2018")
    ).unknown


def test_routing_by_hand():
    routing = Routing(messages=12, hops=30)
    davies = by_name(estimate(made_up(), load_model("loihi1-davies2018"), routing=routing))
    assert davies["spike routing, within tiles"].joules == pytest.approx(12 * 1.7 * PJ)
    hops = davies["spike routing, hops between tiles"]
    assert (hops.low, hops.joules, hops.high) == pytest.approx((90 * PJ, 105 * PJ, 120 * PJ))
    fitted = by_name(estimate(made_up(), load_model("loihi1-sanafe"), routing=routing))
    assert fitted["spike messages, one a receiving core"].joules == pytest.approx(12 * 111 * PJ)
    assert not any(term.at_least for term in fitted.values())
    bounded = estimate(made_up(), load_model("loihi1-sanafe"), routing=routing)
    assert bounded.bound is None  # updates are an upper bound, but static power is not counted at all


def test_relays_by_hand():
    """24 relay neurons at 4 timesteps that repeat 6 spikes: one weight a spike, and an update at every timestep."""
    routing = Routing(messages=12, hops=0, relay_updates=96, relay_spikes=6, chip="a chip")
    davies = estimate(made_up(), load_model("loihi1-davies2018"), routing=routing)
    terms = by_name(davies)
    relays = {name: term.joules / PJ for name, term in terms.items() if name.startswith("relays: ")}
    assert relays == pytest.approx(
        {
            "relays: synaptic events": 6 * 23.6,
            "relays: neuron updates, active": 6 * 81,
            "relays: neuron updates, inactive": 90 * 52,
        }
    )
    without = estimate(made_up(), load_model("loihi1-davies2018"), routing=Routing(messages=12, hops=0))
    assert davies.joules - without.joules == pytest.approx(sum(relays.values()) * PJ)
    assert (davies.routed_on, without.routed_on) == ("a chip", "")
    fitted = by_name(estimate(made_up(), load_model("loihi1-sanafe"), routing=routing))
    assert fitted["relays: synaptic events"].joules == pytest.approx(6 * 24 * PJ)  # each reads a convolution of 1 x 1
    assert fitted["relays: neurons visited"].joules == pytest.approx(96 * 51.2 * PJ)
    assert fitted["relays: neurons updated"].price.bound == "at most"
    assert dict(estimate(made_up(), load_model("truenorth"), routing=routing).unknown)["relays: neuron updates"] == 96
    arithmetic = estimate(made_up(), load_model("horowitz2014-45nm"), routing=routing)
    assert not any(name.startswith("relays") for name in by_name(arithmetic))  # it says nothing of any chip
    assert arithmetic.routed_on is None


def test_messages_that_enter_a_mapped_chip():
    """The toy net's 22 input spikes are packets, wherever its neurons lie; a host's come on top."""
    routing = Routing(messages=0, hops=0, from_host=3)
    terms = by_name(estimate(toy(), load_model("loihi1-sanafe"), routing=routing))
    assert terms["spike messages that enter the chip"].joules == pytest.approx(25 * 111 * PJ)
    assert terms["spike messages that enter the chip"].at_least


def test_sanafe_prices_convolutions_apart():
    convolved = dataclasses.replace(made_up().nodes[2], name="c", kind="Conv2d", effective_acs=60)
    counts = dataclasses.replace(made_up(), nodes=(*made_up().nodes, convolved))
    terms = by_name(estimate(counts, load_model("loihi1-sanafe")))
    assert terms["synaptic events, dense"].joules == pytest.approx(50 * 35.5 * PJ)
    assert terms["synaptic events, convolution"].joules == pytest.approx(30 * 24 * PJ)
    assert terms["neurons that spike"].joules == pytest.approx(10 * 69.3 * PJ)


def test_latency_power_and_energy_delay_by_hand():
    energy = estimate(made_up(), load_model("truenorth"), depth=3)
    record = energy.to_json(rate=100)
    assert record["latency"]["first_answer"] == {"timesteps": 7, "seconds": pytest.approx((7e-3,) * 3)}
    assert record["latency"]["next_answer"]["timesteps"] == 4
    assert record["latency"]["answers_per_second"] == pytest.approx(250)
    assert record["energy_delay"] == pytest.approx((50 * 2.5 * PJ * 7e-3, 50 * 26 * PJ * 7e-3, 50 * 26 * PJ * 7e-3))
    assert record["power"] == {
        "rate": 100, "watts": pytest.approx(50 * 26 * PJ * 100), "low": pytest.approx(50 * 2.5 * PJ * 100),
        "high": pytest.approx(50 * 26 * PJ * 100), "static": "unknown",
    }  # fmt: skip
    unknown = estimate(made_up(), load_model("spinnaker2"), depth=3).to_json()
    assert unknown["energy_delay"] is None and unknown["latency"]["first_answer"] == {"timesteps": 7, "seconds": None}


def test_static_power_by_hand(tmp_path):
    """2 mW, up to 3, over 4 timesteps of 10 us: 80 to 120 nJ an answer, and always there in the power."""
    static = {"value": 2, "high": 3, "unit": "mW", "source": "Someone, 2026"}
    step = {"value": 10, "unit": "us", "source": "Someone, 2026"}
    model = load_model(write(tmp_path, own(static_power=static, timestep=step)))
    energy = estimate(made_up(), model, depth=1)
    term = by_name(energy)["static power, over the timesteps"]
    assert (term.low, term.joules, term.high) == pytest.approx((80e-9, 80e-9, 120e-9))
    assert energy.power(1000) == pytest.approx((50 * PJ * 1000 + 2e-3, 50 * PJ * 1000 + 2e-3, 50 * PJ * 1000 + 3e-3))
    assert "static power" not in dict(energy.unknown)
    assert energy.to_json(rate=1000)["power"]["static"] == "included"
    json.dumps(energy.to_json(rate=1000), allow_nan=False)


@pytest.mark.parametrize("name", list_models())
def test_shipped_models_are_complete(name):
    model = load_model(name)
    assert model.name == name and model.label == "modelled" and model.leaves_out
    assert any("static power" in reason for reason in model.leaves_out)
    energy = estimate(made_up("integer"), model, depth=2)
    assert 0 < energy.low <= energy.joules <= energy.high
    assert all(term.price.source for term in energy.terms + energy.baselines)
    assert energy.to_json()["terms"][0]["count_label"] == "simulated"


def test_shipped_constants():
    loihi = load_model("loihi1-davies2018").precisions["int8"]
    assert (loihi.synaptic_event.value, loihi.synaptic_event.bound) == (23.6, "at least")
    assert (loihi.update_active.joules, loihi.update_inactive.joules) == pytest.approx((81e-12, 52e-12))
    assert list_models() == [
        "horowitz2014-45nm", "horowitz2014-45nm-memory", "loihi1-davies2018", "loihi1-sanafe", "spinnaker2",
        "truenorth",
    ]  # fmt: skip
    horowitz = load_model("horowitz2014-45nm").precisions
    assert horowitz["int8"].graded_mac.value == pytest.approx(INT8_MULTIPLICATION + INT8_ADDITION)
    assert (horowitz["fp16"].graded_mac.value, horowitz["fp16"].synaptic_event.value) == (1.5, 0.4)
    assert [term.name for term in ann_baselines(toy())] == [
        f"the same ANN, {precision}, by horowitz2014-45nm" for precision in ("fp32", "int8", "int4")
    ]
    chip = estimate(toy(), load_model("loihi1-davies2018")).baselines
    assert [term.name.rsplit(" ")[-1] for term in chip] == ["horowitz2014-45nm"] * 3 + ["horowitz2014-45nm-memory"] * 3


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
    assert sum("does not price" in reason for reason in energy.leaves_out) == 2


def test_unknown_names_paths_and_precisions(tmp_path):
    with pytest.raises(UsageError, match="no energy model 'loihi1'") as caught:
        load_model("loihi1")
    assert "loihi1-" in caught.value.hint
    with pytest.raises(UsageError, match="cannot be read"):
        load_model(tmp_path / "absent.yaml")
    with pytest.raises(UsageError, match="no precision 'int4'") as caught:
        estimate(made_up(), load_model("horowitz2014-45nm"), precision="int4")
    assert "fp32, fp16, int8" in caught.value.hint


@pytest.mark.parametrize(
    ("joules", "text"),
    [
        (1.23e-7, "123 nJ"), (0, "0 J"), (1.8704e-8, "18.7 nJ"), (9.999e-7, "1 µJ"), (2.5e-6, "2.5 µJ"),
        (0.1, "100 mJ"), (4.2e-12, "4.2 pJ"), (7.0, "7 J"),
    ],
)  # fmt: skip
def test_format_energy(joules, text):
    assert format_energy(joules) == text
