import dataclasses
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snnkit.errors import UnsupportedError, UsageError
from snnkit.network import LIF, Affine, Conv2d, Edge, Flatten, Input, Network, Node, Readout
from snnkit_exporters import _lava_netx as netx
from snnkit_exporters import lava

OPTIONS = lava.Options()


def i32(value) -> np.ndarray:
    return np.array(value, np.int32)


def i8(value) -> np.ndarray:
    return np.array(value, np.int8)


def small(timesteps: int = 3) -> Network:
    """Conv, conv stride 2 with groups, flatten, dense, dense: 2 x 5 x 4 events to 3 classes."""
    rng = np.random.default_rng(1)
    nodes = (
        Input(name="in", shape=(2, 5, 4), encoding="events", bits=1),
        Conv2d(name="c1", inputs=(Edge("in"),), weight=i8(rng.integers(-9, 9, (4, 2, 3, 3))), padding=(1, 0)),
        LIF(name="n1", inputs=(Edge("c1"),), v_threshold=i32(7), voltage_decay=i32(0)),
        Conv2d(
            name="c2",
            inputs=(Edge("n1"),),
            weight=i8(rng.integers(-9, 9, (6, 2, 3, 2))),
            bias=i32(rng.integers(-5, 5, 6)),
            weight_exponent=1,
            stride=(2, 1),
            padding=(1, 0),
            groups=2,
        ),
        LIF(name="n2", inputs=(Edge("c2"),), v_threshold=i32(9), voltage_decay=i32(400), current_decay=i32(4096)),
        Flatten(name="f", inputs=(Edge("n2"),)),
        Affine(name="d", inputs=(Edge("f"),), weight=i8(rng.integers(-9, 9, (5, 18))), weight_exponent=1),
        LIF(name="n3", inputs=(Edge("d"),), v_threshold=i32(9), voltage_decay=i32(0)),
        Affine(
            name="head",
            inputs=(Edge("n3"),),
            weight=i8(rng.integers(-9, 9, (3, 5))),
            bias=i32([5, -7, 0]),
            weight_exponent=1,
        ),
        Readout(name="out", inputs=(Edge("head"),)),
    )
    return Network(nodes=nodes, timesteps=timesteps)


def change(net: Network, name: str, **fields) -> Network:
    nodes = tuple(dataclasses.replace(node, **fields) if node.name == name else node for node in net.nodes)
    return dataclasses.replace(net, nodes=nodes)


def test_the_file_holds_what_netx_reads(tmp_path: Path) -> None:
    net = small()
    assert lava.check(net, OPTIONS) == []
    assert lava.export(net, tmp_path / "a.net", OPTIONS) == [tmp_path / "a.net"]
    with h5py.File(tmp_path / "a.net") as file:
        layers = [file[f"layer/{index}"] for index in range(len(file["layer"]))]
        assert [layer["type"][0] for layer in layers] == [b"input", b"conv", b"conv", b"flatten", b"dense", b"dense"]
        assert layers[0]["shape"][()].tolist() == [2, 5, 4]
        assert layers[2]["shape"][()].tolist() == [6, 3, 1]
        assert layers[2]["stride"][()].tolist() == [2, 1]
        assert layers[2]["groups"][()] == 2
        assert (layers[2]["weight"][()] == 2 * net["c2"].weight.astype(int)).all()
        assert {name: layers[2]["neuron"][name][()] for name in ("vThMant", "vDecay", "iDecay")} == {
            "vThMant": 9,
            "vDecay": 400,
            "iDecay": 4096,
        }
        assert "bias" not in layers[1]
        assert layers[5]["bias"][()].tolist() == [15, -21, 0]  # T b: netx adds it once
        assert "neuron" not in layers[5]
        assert dict(file.attrs) == {"timesteps": 3, "reset_interval": 3, "reset_offset": 1, "input_message_bits": 0}


def test_exporting_twice_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lava.export(small(), tmp_path / "a.net", OPTIONS)
    monkeypatch.setattr("time.time", lambda: 4e9)
    lava.export(small(), tmp_path / "b.net", OPTIONS)
    assert (tmp_path / "a.net").read_bytes() == (tmp_path / "b.net").read_bytes()


def test_a_flatten_before_the_first_layer_becomes_a_flat_input(tmp_path: Path) -> None:
    nodes: tuple[Node, ...] = (
        Input(name="in", shape=(1, 2, 2), bits=4),
        Flatten(name="f", inputs=(Edge("in"),)),
        Flatten(name="g", inputs=(Edge("f"),)),
        Affine(name="head", inputs=(Edge("g"),), weight=i8([[1, -2, 3, 4], [4, 3, -2, 1]])),
        Readout(name="out", inputs=(Edge("head"),)),
    )
    lava.export(Network(nodes=nodes, timesteps=1), tmp_path / "a.net", OPTIONS)
    with h5py.File(tmp_path / "a.net") as file:
        assert [file[f"layer/{i}/type"][0] for i in range(len(file["layer"]))] == [b"input", b"dense"]
        assert file["layer/0/shape"][()].tolist() == [4]


def branched() -> Network:
    """A sum of two convolutions, one of them late."""
    net = small()
    extra = dataclasses.replace(net["c1"], name="c1b", inputs=(Edge("in", delay=1),))
    nodes = [node for node in net.nodes if node.name != "n1"]
    joined = dataclasses.replace(net["n1"], inputs=(Edge("c1"), Edge("c1b")))
    nodes[2:2] = [extra, joined]
    return dataclasses.replace(net, nodes=tuple(nodes))


def summed() -> Network:
    """A convolution that reads the sum of two spike trains."""
    net = small()
    twin = dataclasses.replace(net["n1"], name="n1b", inputs=(Edge("c1b"),))
    nodes = list(net.nodes)
    nodes[2:2] = [dataclasses.replace(net["c1"], name="c1b"), twin]
    return change(dataclasses.replace(net, nodes=tuple(nodes)), "c2", inputs=(Edge("n1"), Edge("n1b")))


def overflowing() -> Network:
    """A dense layer whose sum Lava's accumulator does not hold."""
    nodes: tuple[Node, ...] = (
        Input(name="in", shape=(600,), bits=8),
        *(
            Affine(name=f"d{k}", inputs=(Edge("in"),), weight=i8(np.full((2, 600), 127)), weight_exponent=1)
            for k in range(900)
        ),
        LIF(
            name="n",
            inputs=tuple(Edge(f"d{k}") for k in range(900)),
            v_threshold=i32(7),
            voltage_decay=i32(0),
        ),
        Affine(name="head", inputs=(Edge("n"),), weight=i8([[1, 2]])),
        Readout(name="out", inputs=(Edge("head"),)),
    )
    return Network(nodes=nodes, timesteps=1)


def deep(layers: int) -> Network:
    """A shortcut over so many layers."""
    nodes: list[Node] = [Input(name="in", shape=(2,), encoding="events", bits=1)]

    def layer(index: int, *sources: str) -> None:
        synapses = [Affine(name=f"d{index}.{s}", inputs=(Edge(s),), weight=i8([[1, 2], [3, 4]])) for s in sources]
        edges = tuple(Edge(synapse.name) for synapse in synapses)
        nodes.extend([*synapses, LIF(name=f"n{index}", inputs=edges, v_threshold=i32(3), voltage_decay=i32(0))])

    layer(0, "in")
    for index in range(1, layers):
        layer(index, f"n{index - 1}")
    layer(layers, f"n{layers - 1}", "n0")
    nodes += [Affine(name="head", inputs=(Edge(f"n{layers}"),), weight=i8([[1, 2]]))]
    return Network(nodes=(*nodes, Readout(name="out", inputs=(Edge("head"),))), timesteps=1)


def joined(*extra: Node) -> Network:
    """``small`` with nodes before its third neurons, which also read the last of them."""
    net = change(small(), "n3", inputs=(Edge("d"), Edge(extra[-1].name)))
    position = [node.name for node in net.nodes].index("n3")
    return dataclasses.replace(net, nodes=(*net.nodes[:position], *extra, *net.nodes[position:]))


def recurrent(delay: int) -> Network:
    return joined(Affine(name="loop", inputs=(Edge("n3", delay),), weight=i8(np.ones((5, 5)))))


@pytest.mark.parametrize(
    ("net", "reasons"),
    [
        (small(), []),
        (branched(), []),
        (recurrent(2), []),
        (deep(63), []),
        (deep(64), ["node 'n64' (LIF) reads 'n0' 63 steps late; a delay holds up to 62"]),
        (recurrent(1), ["node 'n3' (LIF) lies on a cycle whose delays are shorter"]),
        (summed(), ["node 'c2' (Conv2d) reads the sum of 'n1' and 'n1b', which is not binary"]),
        (change(small(), "n2", reset="subtract"), ["node 'n2' (LIF) resets by subtraction"]),
        (
            change(small(), "n1", v_threshold=i32([1, 2, 3, 4]), voltage_decay=i32([0, 0, 0, 1])),
            ["node 'n1' (LIF) has a v_threshold per channel", "node 'n1' (LIF) has a voltage_decay per channel"],
        ),
        (change(small(), "c1", weight=i8(np.zeros((4, 2, 3, 3)))), ["node 'c1' (Conv2d) has no weight other than"]),
        (change(small(), "d", weight=i8(np.zeros((5, 18)))), ["node 'd' (Affine) has no weight other than zero"]),
        (change(small(), "c1", weight_exponent=6), ["node 'c1' (Conv2d) has weights from"]),
        (change(small(), "c1", padding=(200, 0)), ["node 'c1' (Conv2d) has a kernel, stride, padding"]),
        (
            change(change(branched(), "c1", bias=i32([4000, 0, 0, 0])), "c1b", bias=i32([100, 0, 0, 0])),
            ["node 'n1' (LIF) has biases that add up to 4100"],
        ),
        (overflowing(), ["node 'n' (LIF) may sum up to 34,975,800,000, which overflows"]),
    ],
)
def test_check_names_the_node_and_the_reason(net: Network, reasons: list[str], tmp_path: Path) -> None:
    if isinstance(node := net.nodes[1], Conv2d) and node.padding != (1, 0):  # the layers behind it would not fit
        net = change(net, "d", weight=i8(np.ones((5, 6 * 202))))
    found = lava.check(net, OPTIONS)
    assert len(found) == len(reasons), found
    assert all(text.startswith(start) for text, start in zip(found, reasons, strict=True)), found
    if reasons:
        for name in ("a.net", "a.lava"):
            with pytest.raises(UnsupportedError) as caught:
                lava.export(net, tmp_path / name, OPTIONS)
            assert caught.value.reasons == tuple(found)
        assert list(tmp_path.iterdir()) == []


def test_a_stem_on_the_host_must_be_the_only_reader_of_the_input() -> None:
    assert lava.check(dataclasses.replace(small(), stem="host"), OPTIONS) == []
    flat = Flatten(name="g", inputs=(Edge("in"),))
    both = joined(flat, Affine(name="late", inputs=(Edge("g"),), weight=i8(np.ones((5, 40)))))
    assert lava.check(dataclasses.replace(both, stem="host"), OPTIONS) == [
        "the stem is computed by the host, and 'n3' on the chip also read the input"
    ]
    nodes = (
        Input(name="in", shape=(2,), bits=8),
        Affine(name="head", inputs=(Edge("in"),), weight=i8([[1, 2]])),
        Readout(name="out", inputs=(Edge("head"),)),
    )
    assert lava.check(Network(nodes=nodes, timesteps=1, stem="host"), OPTIONS) == [
        "the stem is computed by the host, and no neurons read the input alone"
    ]


@pytest.mark.parametrize(
    ("net", "reasons"),
    [
        (dataclasses.replace(small(), stem="host"), ["the stem is computed by the host"]),
        (
            branched(),
            [
                "node 'in' (Input) feeds several nodes",
                "node 'c1b' (Conv2d) reads an input late",
                "node 'n1' (LIF) sums several inputs",
            ],
        ),
        (change(small(), "head", bias=i32([1366, 0, 0])), ["node 'head' (Affine) has a bias that adds up to 4098"]),
        (
            change(small(), "head", weight=i8(np.full((3, 5), -8)), weight_exponent=0),
            ["node 'head' (Affine) has weights from -8 to -8 which netx changes"],
        ),
    ],
)
def test_what_netx_cannot_hold_becomes_a_directory(net: Network, reasons: list[str], tmp_path: Path) -> None:
    assert lava.check(net, OPTIONS) == []
    assert lava.suffix(net, OPTIONS) == ".lava"
    found = lava.check(net, lava.Options(form="net"))
    assert len(found) == len(reasons)
    assert all(text.startswith(start) for text, start in zip(found, reasons, strict=True))
    with pytest.raises(UnsupportedError) as caught:
        lava.export(net, tmp_path / "a.net", OPTIONS)
    assert caught.value.reasons == tuple(found)
    assert "a directory" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
    written = lava.export(net, tmp_path / "a.lava", OPTIONS)
    assert sorted(written) == sorted((tmp_path / "a.lava").iterdir())


def test_the_directory_names_what_is_connected(tmp_path: Path) -> None:
    lava.export(branched(), tmp_path / "a.lava", OPTIONS)
    graph = json.loads((tmp_path / "a.lava" / "graph.json").read_text())
    depths = {layer["name"]: layer["depth"] for layer in graph["neurons"]}
    assert depths == {"n1": 1, "n2": 2, "n3": 3, "out": 4}
    ways = [(synapse["source"], synapse["name"], synapse["target"]) for synapse in graph["synapses"]]
    assert ways[:2] == [("in for depth 1, 0 late", "c1", "n1"), ("in for depth 1, 1 late", "c1b", "n1")]
    assert graph["relays"] == []
    with np.load(tmp_path / "a.lava" / "arrays.npz") as arrays:
        assert (arrays["c1b.weight"] == branched()["c1"].weight).all()
        assert arrays["n2.bias"].tolist() == branched()["c2"].bias.tolist()


def test_a_directory_is_the_same_twice_and_replaces_only_its_like(tmp_path: Path) -> None:
    target = tmp_path / "a.lava"
    contents = []
    for _ in range(2):
        lava.export(branched(), target, OPTIONS)
        contents.append({path.name: path.read_bytes() for path in target.iterdir()})
    assert contents[0] == contents[1]
    assert [path.name for path in tmp_path.iterdir()] == ["a.lava"]
    (target / "notes.txt").touch()
    with pytest.raises(UsageError, match="is not an earlier export"):
        lava.export(branched(), target, OPTIONS)
    assert (target / "notes.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a.lava"]


def test_many_groups_are_written_out(tmp_path: Path) -> None:
    weight = i8(np.arange(1, 131).reshape(130, 1, 1, 1) % 100 + 1)
    nodes: tuple[Node, ...] = (
        Input(name="in", shape=(130, 2, 1), encoding="events", bits=1),
        Conv2d(name="c", inputs=(Edge("in"),), weight=weight, groups=130),
        LIF(name="n", inputs=(Edge("c"),), v_threshold=i32(3), voltage_decay=i32(0)),
        Flatten(name="f", inputs=(Edge("n"),)),
        Affine(name="head", inputs=(Edge("f"),), weight=i8(np.ones((2, 260)))),
        Readout(name="out", inputs=(Edge("head"),)),
    )
    net = Network(nodes=nodes, timesteps=1)
    assert lava.check(net, lava.Options(form="net")) == ["node 'c' (Conv2d) has 130 groups; Lava holds up to 127"]
    lava.export(net, tmp_path / "a.lava", OPTIONS)
    with np.load(tmp_path / "a.lava" / "arrays.npz") as arrays:
        assert (arrays["c.weight"][:, :, 0, 0] == np.diag(weight.flat)).all()


def test_check_gives_all_reasons_at_once() -> None:
    net = change(small(), "n1", reset="subtract")
    net = change(net, "c1", weight_exponent=6)
    net = change(net, "head", weight=i8(np.zeros((3, 5))))
    assert [reason.split("'")[1] for reason in lava.check(net, OPTIONS)] == ["c1", "n1", "head"]


def test_a_float_network_is_refused() -> None:
    net = small()
    nodes = []
    for node in net.nodes:
        fields = {
            field: getattr(node, field).astype(np.float32)
            for field in ("weight", "bias", "v_threshold")
            if getattr(node, field, None) is not None
        }
        if isinstance(node, Conv2d | Affine):
            fields["weight_exponent"] = 0
        if isinstance(node, Input):
            fields = {"bits": 0}
        nodes.append(dataclasses.replace(node, **fields))
    assert lava.check(dataclasses.replace(net, nodes=tuple(nodes)), OPTIONS) == [
        "the network is float; quantise it first"
    ]


def test_a_counting_readout_needs_a_directory(tmp_path: Path) -> None:
    net = small()
    nodes = (
        *(node for node in net.nodes if node.name not in ("head", "out")),
        Readout(name="out", inputs=(Edge("n3"),), mode="count"),
    )
    net = dataclasses.replace(net, nodes=nodes)
    assert lava.check(net, lava.Options(form="net")) == [
        "node 'out' (Readout) counts spikes, and netx has no such readout"
    ]
    lava.export(net, tmp_path / "a.lava", OPTIONS)
    assert json.loads((tmp_path / "a.lava" / "graph.json").read_text())["readout"]["counts"] == [["n3", 0]]


@given(st.lists(st.integers(-128, 127), min_size=1, max_size=12), st.integers(0, 1))
def test_mixed_signs_of_eight_bits_load_exactly(values: list[int], exponent: int) -> None:
    weight = i32([[*values, 1, -1]]) << exponent
    loaded = netx.loaded_weight(weight)
    assert loaded is not None
    assert (loaded == weight).all()


@pytest.mark.parametrize("values", [[0, 0], [-300, 1], [1, 255], [511, 600]])
def test_matrices_that_do_not_load(values: list[int]) -> None:
    loaded = netx.loaded_weight(i32([values]))
    assert (loaded is not None) == (values == [1, 255])
