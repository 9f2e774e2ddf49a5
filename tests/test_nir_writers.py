"""Networks that SpikingJelly and snnTorch export themselves, at run time: equal spikes, or a stated reason."""

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from snnkit.cli.main import run
from snnkit.errors import ConfigError, UsageError
from snnkit.foreign import import_module
from snnkit.interchange import nir_read
from snnkit.interchange.nir_read import Choices
from snnkit.network import Network, load
from snnkit.training.lower import lower
from snnkit_targets import reference
from tests.nir_reader import simulate

with warnings.catch_warnings():  # their own, of torch.jit
    warnings.simplefilter("ignore")
    import snntorch
    from snntorch.export_nir import export_to_nir as snntorch_export
    from spikingjelly.activation_based.nir_exchange import export_to_nir as spikingjelly_export

STEPS = 6


def dyadic(model: nn.Module) -> nn.Module:
    """Weights of which sums are exact in float32: framework and network see the same membranes."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim:
            parameter.data = torch.randint(-16, 32, parameter.shape, generator=generator) / 32
    return model.eval()


def spiking(kind: str) -> nn.Module:
    match kind:
        case "IF":
            return neuron.IFNode()
        case "LIF":
            return neuron.LIFNode(tau=4.0, decay_input=False)
        case "LIF, input decayed":
            return neuron.LIFNode(tau=2.0)
        case "PLIF":
            return neuron.ParametricLIFNode(init_tau=2.0, decay_input=False)
    return neuron.CUBALIFNode(c_decay=0.5, v_decay=0.75)


def convolutional(kind: str) -> nn.Module:
    """Events [N, 2, 6, 6] to the spikes of 3 neurons, one timestep a call."""
    first = [layer.Conv2d(2, 4, 3, padding=1), spiking(kind), layer.AvgPool2d(2)]
    return dyadic(nn.Sequential(*first, layer.Flatten(), layer.Linear(36, 3), spiking(kind)))


def events(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2, (STEPS, 5, *shape)).astype(np.uint8)


def assert_same_answer(net: Network, x: np.ndarray, expected: torch.Tensor) -> None:
    """The network's summed output [N, classes] is that of the framework."""
    assert expected.any()
    readouts = reference.run(net, x, reference.Options()).readouts
    np.testing.assert_array_equal(readouts, expected.numpy())


@pytest.mark.parametrize("kind", ["IF", "LIF", "LIF, input decayed", "PLIF", "CUBALIF"])
def test_spikingjelly(kind: str, tmp_path: Path) -> None:
    model, x = convolutional(kind), events(2, 6, 6)
    frames = torch.tensor(x, dtype=torch.float32)
    spikingjelly_export(model, frames[0], tmp_path / "net.nir", dt=1e-4)
    choices = Choices(reset="zero", dt=1e-4, timesteps=STEPS, encoding="events", at_threshold="fire")
    imported = nir_read.read(tmp_path / "net.nir", choices)
    assert not imported.notes
    functional.reset_net(model)
    with torch.no_grad():
        expected = sum(model(frame) for frame in frames)
    assert_same_answer(imported.network, x, expected)
    if kind == "CUBALIF":
        return
    functional.reset_net(model)  # lowered without NIR, it is the same network
    lowered = lower(model, (2, 6, 6), timesteps=STEPS, encoding="events", input_has_time=False)
    ours, theirs = (reference.run(net, x, reference.Options()) for net in (lowered, imported.network))
    np.testing.assert_array_equal(ours.readouts, theirs.readouts)
    assert list(ours.firing_rates().values()) == list(theirs.firing_rates().values())


def test_spikingjelly_s_threshold(tmp_path: Path) -> None:
    """It fires at the threshold, NIR above it: without the option, spikes are lost."""
    model = nn.Sequential(layer.Linear(2, 2, bias=False), neuron.IFNode())
    model[0].weight.data = torch.eye(2)
    spikingjelly_export(model, torch.ones(1, 2), tmp_path / "net.nir", dt=1e-4)
    spikes = {}
    for at_threshold in ("silent", "fire"):
        choices = Choices(reset="zero", dt=1e-4, timesteps=4, encoding="events", at_threshold=at_threshold)
        net = nir_read.read(tmp_path / "net.nir", choices).network
        spikes[at_threshold] = reference.run(net, np.ones((4, 1, 2), np.uint8), reference.Options()).readouts.tolist()
    assert spikes == {"silent": [[2.0, 2.0]], "fire": [[4.0, 4.0]]}


@pytest.mark.parametrize("late", [False, True])
def test_snntorch_s_convolutions(late: bool, tmp_path: Path) -> None:
    """It resets to zero late or at once: the spikes are the same."""

    def leaky(*shape: int, output: bool = False) -> nn.Module:
        common = {"init_hidden": True, "output": output, "reset_mechanism": "zero", "reset_delay": late}
        return snntorch.Leaky(beta=torch.full(shape, 0.75), threshold=torch.full(shape, 1.0), **common)

    first = [dyadic(nn.Conv2d(2, 4, 3, padding=1)), leaky(4, 6, 6), nn.AvgPool2d(2)]
    model = nn.Sequential(*first, nn.Flatten(), dyadic(nn.Linear(36, 3)), leaky(3, output=True))
    x = events(2, 6, 6)
    exported(model, torch.zeros(1, 2, 6, 6), tmp_path)
    choices = Choices(reset="zero", dt=1e-4, timesteps=STEPS, encoding="events")
    imported = nir_read.read(tmp_path / "net.nir", choices)
    with torch.no_grad():
        expected = sum(model(frame)[0] for frame in torch.tensor(x, dtype=torch.float32))
    assert_same_answer(imported.network, x, expected)


@pytest.mark.parametrize(("late", "largest", "equal"), [(False, 1.9, True), (False, 3.0, False), (True, 1.9, False)])
def test_snntorch_s_reset_by_subtraction(late: bool, largest: float, equal: bool, tmp_path: Path) -> None:
    """Equal spikes if it is not late and no membrane passes twice the threshold, as docs/nir.md says."""
    one = torch.ones(1)
    leaky = snntorch.Leaky(beta=0.75 * one, threshold=one, init_hidden=True, output=True, reset_delay=late)
    model = nn.Sequential(nn.Linear(2, 1, bias=False), leaky)
    model[0].weight.data = torch.tensor([[largest, 0.4]])
    x = np.zeros((STEPS, 1, 2), np.uint8)
    x[0, 0, 0] = x[1, 0, 1] = 1
    exported(model, torch.zeros(1, 2), tmp_path)
    choices = Choices(reset="subtract", dt=1e-4, timesteps=STEPS, encoding="events")
    net = nir_read.read(tmp_path / "net.nir", choices).network
    with torch.no_grad():
        theirs = [bool(model(frame)[0]) for frame in torch.tensor(x, dtype=torch.float32)]
    rasters = reference.run(net, x, reference.Options(record="raster")).rasters
    assert rasters
    (ours,) = rasters.values()
    assert any(theirs)
    assert (ours.ravel().tolist() == theirs) == equal


@pytest.mark.parametrize("reset", ["zero", "subtract"])
@pytest.mark.parametrize("kind", ["Leaky", "Synaptic"])
def test_snntorch(kind: str, reset: Any, tmp_path: Path) -> None:
    def spiking(size: int, *, output: bool = False) -> nn.Module:
        beta, threshold = torch.full((size,), 0.75), torch.full((size,), 1.0)
        common = {"threshold": threshold, "init_hidden": True, "output": output, "reset_mechanism": reset}
        if kind == "Leaky":
            return snntorch.Leaky(beta=beta, reset_delay=False, **common)
        return snntorch.Synaptic(alpha=torch.full((size,), 0.5), beta=beta, reset_delay=False, **common)

    layers = [nn.Linear(12, 6), spiking(6), nn.Linear(6, 3), spiking(3, output=True)]
    for layer_ in layers[::2]:
        dyadic(layer_)
        if reset == "subtract":  # below twice the threshold
            layer_.weight.data /= 8
    model, x = nn.Sequential(*layers), events(12)
    graph = exported(model, torch.zeros(1, 12), tmp_path)
    assert set(graph.nodes) >= {"input", "output"}
    choices = Choices(reset=reset, dt=1e-4, timesteps=STEPS, encoding="events")
    imported = nir_read.read(tmp_path / "net.nir", choices)
    with torch.no_grad():
        steps = [model(frame)[0] for frame in torch.tensor(x, dtype=torch.float32)]
    assert_same_answer(imported.network, x, sum(steps))
    with pytest.raises(UsageError, match="how its neurons reset"):
        nir_read.read(tmp_path / "net.nir", Choices(dt=1e-4, timesteps=STEPS))


@pytest.mark.parametrize("kind", ["RLeaky", "RSynaptic"])
def test_snntorch_s_recurrent_layers(kind: str, tmp_path: Path) -> None:
    common = {"threshold": torch.full((6,), 1.0), "reset_mechanism": "zero", "reset_delay": False, "output": True}
    decays = {"beta": torch.full((6,), 0.5)} | ({"alpha": torch.full((6,), 0.5)} if kind == "RSynaptic" else {})
    recurrent = getattr(snntorch, kind)(**decays, **common, linear_features=6, init_hidden=True)
    dyadic(recurrent.recurrent)
    model, x = nn.Sequential(dyadic(nn.Linear(4, 6)), recurrent), events(4)
    if kind == "RLeaky":
        exported(model, torch.zeros(1, 4), tmp_path)
        with torch.no_grad():
            expected = sum(model(frame)[0] for frame in torch.tensor(x, dtype=torch.float32))
    else:  # snnTorch 1.0 fails to run it without a late reset; its graph is compared with the graph's equations
        recurrent.reset_delay = True
        graph = exported(model, torch.zeros(1, 4), tmp_path)
        expected = torch.tensor(np.stack([simulate(graph, x[:, b], STEPS)[1] for b in range(5)]))
    choices = Choices(reset="zero", dt=1e-4, timesteps=STEPS, encoding="events")
    net = nir_read.read(tmp_path / "net.nir", choices).network
    assert net.recurrent
    assert_same_answer(net, x, expected)


def exported(model: nn.Module, sample: torch.Tensor, folder: Path) -> nir.NIRGraph:
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = snntorch_export(model, sample, ignore_dims=[0])
    nir.write(folder / "net.nir", graph)
    return graph


def made() -> nn.Module:
    return convolutional("LIF")


def test_a_module_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = convolutional("LIF")
    weights = {name: torch.rand_like(value) - 0.3 for name, value in model.state_dict().items()}
    model.load_state_dict(weights)
    save_file(weights, tmp_path / "weights.safetensors")
    torch.save(weights, tmp_path / "weights.pt")
    x = np.random.default_rng(0).random((5, 2, 6, 6), dtype=np.float32)
    expected = lower(model, (2, 6, 6), timesteps=4)
    arguments = ["import", f"{__name__}:made", "--input-shape", "2,6,6", "--timesteps", "4"]
    for name in ("weights.safetensors", "weights.pt"):
        output = tmp_path / f"{name}.net"
        assert run([*arguments, "--weights", str(tmp_path / name), "-o", str(output)]) == 0
        net = load(output)
        assert net.metadata["imported"] == {"format": "torch", "module": f"{__name__}:made", "weights": name}
        readouts = [reference.run(n, x, reference.Options()).readouts for n in (net, expected)]
        np.testing.assert_array_equal(*readouts)
    capsys.readouterr()
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    assert run([*arguments, "--weights", str(tmp_path / "bad.pt"), "-o", str(tmp_path / "no")]) == 2
    assert "cannot be read as weights" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    with pytest.raises(ConfigError, match="returned str"):
        import_module("os:getcwd", (1,), timesteps=1)
