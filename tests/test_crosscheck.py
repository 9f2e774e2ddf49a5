"""SANA-FE's simulation of Loihi as an oracle of counts and energy; what it cannot take is refused."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from snnkit import save
from snnkit.cli.main import run as snnkit_command
from snnkit.crosscheck import CrossCheck, cross_check
from snnkit.errors import UnavailableError, UnsupportedError
from snnkit.network import LIF, Affine, Conv2d, Edge, Flatten, Input, Network, Readout, infer_shapes
from snnkit.network.ir import Node
from snnkit.pipeline import Samples
from snnkit_targets import _sanafe

SEVERAL_CORES = (16, 12, 12)


def lif(name: str, source: str, threshold: int) -> LIF:
    values = np.array(threshold, np.int32)
    return LIF(name=name, inputs=(Edge(source),), v_threshold=values, voltage_decay=np.array(0, np.int32))


def biases(rng: np.random.Generator, outputs: int) -> np.ndarray:
    """None is 0, so that every neuron is driven at every timestep."""
    return (rng.integers(1, 5, outputs) * rng.choice([-1, 1], outputs)).astype(np.int32)


def mlp(*, biased: bool = True, present: float = 1.0) -> tuple[Network, np.ndarray]:
    rng = np.random.default_rng(3)
    weights = [rng.integers(-40, 60, shape).astype(np.int8) for shape in ((40, 30), (10, 40))]
    weights = [weight * (rng.random(weight.shape) < present) for weight in weights]
    first, last = (biases(rng, len(weight)) if biased else None for weight in weights)
    nodes = (
        Input(name="x", shape=(30,), encoding="events", bits=1),
        Affine(name="fc", inputs=(Edge("x"),), weight=weights[0], bias=first, weight_exponent=1),
        lif("hidden", "fc", 300),
        Affine(name="head", inputs=(Edge("hidden"),), weight=weights[1], bias=last, weight_exponent=1),
        Readout(name="out", inputs=(Edge("head"),)),
    )
    return Network(nodes=nodes, timesteps=6), (rng.random((6, 3, 30)) < 0.2).astype(np.uint8)


def cnn() -> tuple[Network, np.ndarray]:
    """Its second layer stands on several cores, and reads a graded input through the first."""
    rng = np.random.default_rng(4)

    def conv(name: str, source: str, outputs: int, inputs: int, *, stride: int) -> Conv2d:
        weight = rng.integers(-50, 60, (outputs, inputs, 3, 3)).astype(np.int8)
        more = {"bias": biases(rng, outputs), "stride": (stride, stride), "padding": (1, 1), "weight_exponent": 1}
        return Conv2d(name=name, inputs=(Edge(source),), weight=weight, **more)

    nodes: tuple[Node, ...] = (
        Input(name="x", shape=(1, 12, 12), bits=4, scale=1 / 15),
        conv("stem", "x", 4, 1, stride=1),
        lif("first", "stem", 2000),
        conv("conv", "first", SEVERAL_CORES[0], 4, stride=1),
        lif("second", "conv", 500),
        conv("down", "second", 4, 16, stride=2),
        lif("third", "down", 900),
        Flatten(name="flat", inputs=(Edge("third"),)),
        Affine(
            name="head",
            inputs=(Edge("flat"),),
            weight=rng.integers(-60, 60, (10, 144)).astype(np.int8),
            bias=biases(rng, 10),
        ),
        Readout(name="out", inputs=(Edge("head"),)),
    )
    return Network(nodes=nodes, timesteps=4), rng.random((2, 1, 12, 12), dtype=np.float32)


def agree(found: CrossCheck) -> None:
    """All but the hops, whose directions our model does not tell apart and which ours has none of for the inputs."""
    assert not any(found.mismatches.values())
    for row in found.rows[:7]:
        assert row.theirs == pytest.approx(row.ours, rel=1e-9), row.name
        assert row.theirs > 0
    hops, total, latency = found["energy of hops"], found["energy"], found["latency"]
    assert total.theirs - hops.theirs == pytest.approx(total.ours - hops.ours, rel=1e-9)
    assert hops.ours <= hops.theirs < 0.05 * total.theirs
    assert latency.ours < latency.theirs


def test_an_mlp_costs_what_sanafe_says() -> None:
    net, events = mlp()
    found = cross_check(net, Samples(events, None, "events"))
    assert (found.samples, found.timesteps, found.steps, found.given) == (3, 6, 8, "x")
    agree(found)


def test_a_cnn_costs_what_sanafe_says() -> None:
    net, x = cnn()
    found = cross_check(net, Samples(x, None, "images"))
    assert (found.given, found.steps) == ("first", 4 + 3)
    assert infer_shapes(net)["second"] == SEVERAL_CORES  # 2,304 neurons: spikes go to several cores
    assert found["packets"].ours > found["spikes"].ours
    agree(found)


def test_neurons_that_hold_nothing_are_the_only_difference() -> None:
    """Without biases a neuron rests at zero until it is reached; ours counts its update nevertheless, as a bound."""
    net, events = mlp(biased=False, present=0.15)
    found = cross_check(net, Samples(events, None, "events"))
    updates, total, hops = found["neuron updates"], found["energy"], found["energy of hops"]
    assert not any(found.mismatches.values())
    assert 0.5 * updates.ours < updates.theirs < updates.ours
    assert updates.bound == "at most"
    more = 21.6e-12 * (updates.ours - updates.theirs)
    assert total.ours - hops.ours == pytest.approx(total.theirs - hops.theirs + more, rel=1e-9)


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [((1, 1), (0, 0), (1, 1), 1), ((2, 1), (1, 2), (1, 2), 1), ((1, 3), (2, 0), (2, 1), 2)],
)
def test_every_synapse_of_a_convolution(
    stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int], groups: int
) -> None:
    rng = np.random.default_rng(0)
    weight = rng.integers(-3, 4, (4, 4 // groups, 3, 2)).astype(np.int8)
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    node = Conv2d(name="c", inputs=(Edge("x"),), weight=weight, weight_exponent=1, **geometry)
    x = rng.integers(0, 2, (4, 7, 6))
    expected = F.conv2d(torch.tensor(x[None]).double(), torch.tensor(2.0 * weight).double(), **geometry)[0].numpy()
    ends, values = _sanafe.synapses(node, x.shape, expected.shape)
    sums = np.bincount(ends[:, 1], values * x.ravel()[ends[:, 0]], expected.size)
    assert len({tuple(pair) for pair in ends.tolist()}) == len(ends)
    assert (values != 0).all()
    np.testing.assert_array_equal(sums.reshape(expected.shape), expected)


def test_what_sanafe_cannot_take_is_refused_all_at_once() -> None:
    net, events = mlp()
    filtered = dataclasses.replace(net["hidden"], current_decay=np.array(2048, np.int32))
    late = dataclasses.replace(net["head"], inputs=(Edge("hidden", 1),))
    changed = {"hidden": filtered, "head": late}
    other = dataclasses.replace(net, nodes=tuple(changed.get(node.name, node) for node in net))
    with pytest.raises(UnsupportedError) as error:
        cross_check(other, Samples(events, None, "events"))
    assert "'hidden' (LIF): there is no current filter" in str(error.value)
    assert "delayed edges" in str(error.value)


def test_too_many_synapses_are_refused() -> None:
    weight = np.ones((2300, 2300), np.int8)
    nodes = (
        Input(name="x", shape=(2300,), encoding="events", bits=1),
        Affine(name="fc", inputs=(Edge("x"),), weight=weight),
        Readout(name="out", inputs=(Edge("fc"),)),
    )
    assert "5,290,000 synapses" in _sanafe.check(Network(nodes=nodes, timesteps=1))[0]


def test_sanafe_missing_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: (name != "sanafe" and find(name, *more)) or None
    )
    net, events = mlp()
    with pytest.raises(UnavailableError, match="SANA-FE is not installed") as error:
        cross_check(net, Samples(events, None, "events"))
    assert "snnkit[sanafe]" in error.value.hint


def test_the_command_shows_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net, events = mlp()
    save(net, tmp_path / "net.safetensors")
    np.save(tmp_path / "x.npy", events)
    arguments = ["energy", str(tmp_path / "net.safetensors"), "--data", str(tmp_path / "x.npy"), "-m", "loihi1-sanafe"]
    assert snnkit_command([*arguments, "--cross-check", "sanafe"]) == 0
    printed = capsys.readouterr().out
    assert "SANA-FE" in printed and "spikes: identical" in printed
    assert snnkit_command([*arguments, "--cross-check", "sanafe", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["cross_check"]
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["spikes"]["ours"] == rows["spikes"]["theirs"] > 0
    assert found["mismatches"] == {"hidden": 0}
    for wrong in (["--cross-check", "brian"], ["--cross-check", "sanafe", "--timesteps"]):
        assert snnkit_command([*arguments, *wrong]) == 2
        assert "hint:" in capsys.readouterr().err
