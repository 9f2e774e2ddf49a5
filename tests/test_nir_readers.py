"""What other frameworks make of an exported graph: the table in docs/nir.md, row by row."""

import contextlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path

import nir
import numpy as np
import pytest
import torch

from snnkit.interchange.nir_write import promises
from snnkit.network import LIF, Affine, AvgPool2d, Conv2d, Edge, Flatten, Input, Network, Node, Readout, verify
from snnkit_exporters import nir as exporter
from snnkit_targets import reference
from tests.networks import raw_inputs

with warnings.catch_warnings():  # their own, of torch.jit
    warnings.simplefilter("ignore")
    from norse.torch.utils.import_nir import from_nir as norse_import
    from snntorch.import_nir import import_from_nir as snntorch_import
    from spikingjelly.activation_based.nir_exchange import import_from_nir as spikingjelly_import

DT = 1e-4
# what a reader does with a case, in the dialects r=1 and r=1/dt: equal spikes, others, or its refusal;
# not read: an error or others, as the order of a set falls
EXPECTED = {
    "SpikingJelly 2.0": {
        "IF": ("refused", "equal"),
        "LIF": ("equal", "equal"),
        "CubaLIF": ("equal", "equal"),
        "residual sum": ("equal", "equal"),
        "recurrent": ("equal", "equal"),
        "grouped convolution": ("equal", "equal"),
        "AvgPool2d": ("equal", "equal"),
        "reset by subtraction": ("differs", "differs"),
    },
    "snnTorch 1.0": {
        "IF": ("refused", "refused"),
        "LIF": ("equal", "equal"),
        "CubaLIF": ("equal", "equal"),
        "residual sum": ("equal", "equal"),
        "recurrent": ("refused", "refused"),
        "grouped convolution": ("equal", "equal"),
        "AvgPool2d": ("equal", "equal"),
        "reset by subtraction": ("differs", "differs"),
    },
    "Norse 1.1": {
        "IF": ("equal", "equal"),
        "LIF": ("equal", "differs"),
        "CubaLIF": ("equal", "equal"),
        "residual sum": ("not read", "not read"),
        "recurrent": ("equal", "differs"),
        "grouped convolution": ("equal", "differs"),
        "AvgPool2d": ("not read", "not read"),
        "reset by subtraction": ("differs", "differs"),
    },
}


def network(case: str) -> Network:
    """Events [2, 4, 4] through a convolution and two layers of neurons to 5 classes, in integers; pooling in floats."""
    rng = np.random.default_rng(1)
    kind = case if case in ("IF", "CubaLIF") else "LIF"
    grouped, pooled, recurrent = case == "grouped convolution", case == "AvgPool2d", case == "recurrent"

    def layer(kind: type[Conv2d] | type[Affine], name: str, source: Edge, *shape: int, **settings: object) -> Node:
        weight = rng.integers(-100, 127, shape)
        bias = None if case == "CubaLIF" else rng.integers(-20, 20, shape[0])
        place = {"name": name, "inputs": (source,), **settings}
        if pooled:  # dyadic, so that no order of summation rounds
            return kind(**place, weight=(weight / 64).astype(np.float32), bias=(bias / 64).astype(np.float32))
        return kind(
            **place,
            weight=weight.astype(np.int8),
            bias=None if bias is None else bias.astype(np.int32),
            weight_exponent=1,
        )

    def neurons(name: str, threshold: int, *sources: str) -> Node:
        return LIF(
            name=name,
            inputs=tuple(Edge(source) for source in sources),
            v_threshold=np.array(threshold / 128 + 1 / 1024, np.float32) if pooled else np.array(threshold, np.int32),
            voltage_decay=np.array(0 if kind == "IF" else 2048, np.int32),
            current_decay=np.array(2048 if kind == "CubaLIF" else 4096, np.int32),
            reset="subtract" if case == "reset by subtraction" else "zero",
        )

    per_group = 1 if grouped else 2
    padded = {"padding": (1, 1)}
    nodes: list[Node] = [
        Input(name="pixels", shape=(2, 4, 4), encoding="events", bits=0 if pooled else 1),
        layer(Conv2d, "conv", Edge("pixels"), 4, per_group, 3, 3, groups=2 // per_group, **padded),
        neurons("lif", 150, "conv"),
    ]
    last, features = "lif", 64
    if case == "residual sum":
        nodes += [
            layer(Conv2d, "conv2", Edge("lif"), 4, 4, 3, 3, **padded),
            layer(Conv2d, "skip", Edge("lif"), 4, 4, 1, 1),
        ]
        nodes.append(neurons("lif2", 150, "conv2", "skip"))
        last = "lif2"
    if pooled:
        nodes.append(AvgPool2d(name="pool", inputs=(Edge("lif"),), kernel_size=(2, 2), stride=(2, 2)))
        last, features = "pool", 16
    nodes += [Flatten(name="flat", inputs=(Edge(last),)), layer(Affine, "fc", Edge("flat"), 5, features)]
    sources = ["fc"]
    if recurrent:
        nodes.append(layer(Affine, "rec", Edge("end", 1), 5, 5))
        sources.append("rec")
    nodes += [neurons("end", 250, *sources), Readout(name="out", mode="count", inputs=(Edge("end"),))]
    return Network(nodes=tuple(nodes), timesteps=4)


def spikingjelly(path: Path, x: torch.Tensor) -> torch.Tensor:
    model, state, steps = spikingjelly_import(path, dt=DT), None, []
    for frame in x:
        spikes, state = model(frame, state)
        steps.append(spikes)
    return torch.stack(steps)


def snntorch(path: Path, x: torch.Tensor) -> torch.Tensor:
    """Sample by sample: its Flatten has start_dim 0 as the graph says, which takes the batch along."""
    samples = []
    for b in range(x.shape[1]):
        model, steps = snntorch_import(nir.read(path)), []
        state: tuple[object, ...] = ()
        for frame in x[:, b : b + 1]:
            spikes, *rest = model(frame, *state)
            state = tuple(rest)
            steps.append(spikes.reshape(-1))
        samples.append(torch.stack(steps))
    return torch.stack(samples, 1)


def norse(path: Path, x: torch.Tensor) -> torch.Tensor:
    """Sample by sample, for the same reason."""
    samples = []
    for b in range(x.shape[1]):
        model, state, steps = norse_import(nir.read(path), dt=DT, ignore_warnings=True), None, []
        for frame in x[:, b : b + 1]:
            spikes, state = model(frame, state)
            steps.append(spikes.reshape(-1))
        samples.append(torch.stack(steps))
    return torch.stack(samples, 1)


READERS: dict[str, Callable[[Path, torch.Tensor], torch.Tensor]] = {
    "SpikingJelly 2.0": spikingjelly,
    "snnTorch 1.0": snntorch,
    "Norse 1.1": norse,
}


@pytest.mark.parametrize("dialect", ["r=1", "r=1/dt"])
@pytest.mark.parametrize(("reader", "case"), [(reader, case) for reader, cases in EXPECTED.items() for case in cases])
def test_a_row_of_the_table(reader: str, case: str, dialect: str, tmp_path: Path) -> None:
    net = network(case)
    assert verify(net) == ("float" if case == "AvgPool2d" else "integer")
    assert case == "AvgPool2d" or not promises(net)
    (path,) = exporter.export(net, tmp_path / "net.nir", exporter.Options(dialect=dialect, dt=DT))
    x = raw_inputs(net, samples=4)
    rasters = reference.run(net, x, reference.Options(record="raster")).rasters
    assert rasters
    assert 0.1 < rasters["end"].mean() < 0.95
    expected = EXPECTED[reader][case][dialect == "r=1/dt"]
    try:
        with contextlib.redirect_stdout(io.StringIO()), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            spikes = READERS[reader](path, torch.tensor(x, dtype=torch.float32)).numpy()
    except Exception:  # each reader has its own kinds of refusals
        if expected not in ("refused", "not read"):
            raise
        return
    equal = spikes.shape == rasters["end"].shape and (spikes == rasters["end"]).all()
    assert equal == (expected == "equal")
    assert expected != "refused"


def test_the_table_of_the_docs_says_the_same() -> None:
    text = (Path(__file__).parent.parent / "docs" / "nir.md").read_text(encoding="utf-8")
    for reader, cases in EXPECTED.items():
        for case, (one, by_dt) in cases.items():
            assert f"| {reader} | {case} | {one} | {by_dt} |" in text
