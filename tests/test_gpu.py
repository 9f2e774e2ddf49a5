"""What only a GPU shows; everywhere else these tests are skipped."""

import pytest
import torch

import snnkit
from snnkit.config import load_config
from snnkit.network import verify
from snnkit.runs import Run
from snnkit.training.augment import Augmentation
from snnkit.training.encoding import Encoder
from snnkit.training.integer import IntegerNetwork
from snnkit.training.models import build_student, build_teacher
from snnkit.training.neurons import SpikingNeuron
from snnkit.training.objective import StudentObjective
from snnkit.training.schedule import build_optimizer
from snnkit.training.steps import WARM_UP, Graphed, Recorder, eager
from snnkit.training.trainer import distill, fast
from tests.golden import GOLDEN
from tests.networks import raw_inputs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
AUGMENTED = "data.augment={crop: 4, flip: true, autoaugment: cifar10, cutout: 16, mixup: 0.2, cutmix: 1.0, p: 0.5}"
NARROW = ("student.model=resnet18", "teacher.model=resnet18", "student.width=0.125", "teacher.width=0.125")
TRAIN = ("train.optimizer=sgd", "train.lr=0.05", "losses.feature=0.1", "losses.ensemble=0.3")


def objective(config, x):
    torch.manual_seed(0)
    student, teacher = (
        build((3, 32, 32), 100, section).cuda().to(memory_format=torch.channels_last)
        for build, section in ((build_student, config.student), (build_teacher, config.teacher))
    )
    return StudentObjective(student, teacher, config, Encoder("direct", 4), x[:2].float() / 255).cuda().train()


def losses_of(config, step_of, x, y, steps, *, compiled=False):
    """Each step's loss; after the first ones the processor may not wait for the device."""
    made = objective(config, x)
    if compiled:
        made.compile_passes()
    optimizer, step = build_optimizer(made, config.train), step_of(made)
    augment, found = Augmentation(config.data.augment, torch.Generator().manual_seed(0)), []
    for number in range(steps):
        torch.cuda.set_sync_debug_mode("error" if number > WARM_UP else "default")
        images, labels = augment(x, y)
        optimizer.zero_grad()
        outcome = step(images.contiguous(memory_format=torch.channels_last), labels)
        torch.nn.utils.clip_grad_norm_(made.parameters(), 5.0)
        optimizer.step()
        found.append(outcome.loss.clone())
    torch.cuda.set_sync_debug_mode("default")
    return torch.stack(found).cpu()


@pytest.mark.parametrize("reset", ["zero", "subtract"])
@pytest.mark.parametrize("decay", [0, 2048])
def test_fused_neurons_fire_as_on_the_cpu(decay, reset):
    neuron = SpikingNeuron(voltage_decay=decay, reset=reset)
    x = torch.randint(-40, 60, (4, 8, 16, 6, 6)).float() / 64  # exact, so that no rounding counts
    for layout in (x, x.transpose(2, 4).contiguous().transpose(2, 4), x[:1].expand(4, *x.shape[1:])):
        assert torch.equal(neuron(layout.cuda()).cpu(), neuron(layout))


INTEGER = [name for name, net in GOLDEN.items() if verify(net) == "integer"]


@pytest.mark.parametrize("name", INTEGER)
def test_integer_networks_give_the_same_spikes(name):
    net = GOLDEN[name]
    inputs = raw_inputs(net, samples=6)
    cpu, gpu = (snnkit.run(net, inputs, "reference", device=device, record="raster") for device in ("cpu", "cuda"))
    assert (cpu.readouts == gpu.readouts).all()
    assert all((cpu.rasters[name] == gpu.rasters[name]).all() for name in cpu.rasters)


@pytest.mark.parametrize("name", [name for name in INTEGER if not GOLDEN[name].recurrent])
def test_what_is_fine_tuned_is_the_integer_network(name):
    net = GOLDEN[name]
    x = torch.from_numpy(raw_inputs(net, samples=6))
    here = IntegerNetwork(net).readouts(x)
    with fast(torch.device("cuda"), "tf32"), torch.autocast("cuda", torch.bfloat16):
        there = IntegerNetwork(net).cuda().readouts(x.cuda())
    assert torch.equal(here, there.cpu())


def check_a_graph(precision, *, compiled):
    config = load_config(None, [AUGMENTED, *NARROW, *TRAIN, f"train.precision={precision}"])
    torch.manual_seed(0)
    x, y = torch.randint(256, (64, 3, 32, 32)).to(torch.uint8).cuda(), torch.randint(100, (64,)).cuda()
    with fast(x.device, precision):
        plain = losses_of(config, lambda made: eager(made, made.weights), x, y, 8)
        graph = losses_of(config, lambda made: Graphed(made, Recorder(x.device)), x, y, 8, compiled=compiled)
    assert plain.isfinite().all()
    assert torch.allclose(graph[:3], plain[:3], rtol=0.02)
    assert torch.allclose(graph, plain, rtol=0.1)  # sums in another order, and spikes that follow from them


def check_pieces(tmp_path, graph, compiled):
    how = [f"train.cuda_graph={graph}", f"train.compile={compiled}"]
    settings = ["train.precision=bf16", *how, "train.ema=0.9", "train.curriculum={2: 0.5}"]
    config, run = load_config(None, [*settings, "teacher.epochs=12", "train.epochs=12"]), Run(tmp_path)
    assert not distill(config, run, device="cuda", stop_after=16).finished
    summary = distill(config, run, device="cuda", resume=True)
    assert summary.student.percent > 90


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_a_graph_trains_what_its_kernels_train(precision):
    check_a_graph(precision, compiled=False)


@pytest.mark.parametrize("graph", ["true", "false"])
def test_a_run_in_pieces_learns(tmp_path, graph):
    check_pieces(tmp_path, graph, compiled="false")


def test_compiled_steps_train_what_their_kernels_train(tmp_path):
    """The last test, because compiling takes a minute or two."""
    check_a_graph("bf16", compiled=True)
    check_pieces(tmp_path, "false", compiled="true")
