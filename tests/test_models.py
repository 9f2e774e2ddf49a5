"""Students and their artificial twins, teachers, and what a configuration can ask of them."""

import functools
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from snnkit import pipeline
from snnkit.config import StudentConfig, TeacherConfig, load_config
from snnkit.errors import ConfigError, UnavailableError
from snnkit.network import (
    AvgPool2d,
    Conv2d,
    apply,
    fold_batchnorm,
    fold_pooling,
    infer_shapes,
    materialise_shortcuts,
    predictions,
    quantize,
    verify,
)
from snnkit.runs import Run
from snnkit.training import checkpoint
from snnkit.training.evaluation import classify
from snnkit.training.lower import lower
from snnkit.training.models import STUDENTS, TEACHERS, build_student, build_teacher, initialise
from snnkit.training.models.parts import UncentredNorm2d
from snnkit.training.models.torchvision import replace_head
from snnkit.training.neurons import SpikingNeuron
from snnkit.training.passes import tapped
from snnkit.training.trainer import distill, load_student
from snnkit_exporters import lava
from snnkit_targets import onnxruntime, reference

SIZES = {  # parameters with 100 classes, and multiply-accumulates of one 32x32 image; see the comments
    "resnet18": (11_220_132, 0.5555e9),  # 11.2 M, 0.5555 G: published for CIFAR-100
    "resnet19": (12_615_396, 2.285e9),  # 12.6 M, 2.285 G
    "resnet20": (278_324, 0.0408e9),  # 0.27 M and 41 M in He et al. 2016, there with option A
    "vgg11": (9_274_532, 0.1528e9),  # the usual VGG for CIFAR, pooled: 9.2 M, 153 M
    "vgg16": (14_770_212, 0.3132e9),  # 14.7 M, 313 M
    "wide_resnet28_8": (23_401_012, 3.36e9),  # 23.4 M: Zagoruyko and Komodakis 2016
}


def operations(model, shape):
    """Multiply-accumulates of convolutions and linear layers for one sample, from what goes in and comes out."""
    counted = []

    def count(module, _inputs, output):
        counted.append(output.numel() * module.weight[0].numel())

    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [module.register_forward_hook(count) for module in layers]
    with torch.no_grad():
        model.eval()(torch.zeros(1, *shape))
    for handle in handles:
        handle.remove()
    return sum(counted)


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_the_published_ones(name):
    parameters, multiplications = SIZES[name]
    model = build_teacher((3, 32, 32), 100, TeacherConfig(model=name))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert operations(model, (3, 32, 32)) == pytest.approx(multiplications, rel=1e-3)


def test_the_twin_of_resnet18_computes_what_torchvisions_does():
    """With the stem of small images, and weights handed over in the order of the layers."""
    from torchvision import models

    other = models.resnet18(num_classes=10)
    other.conv1, other.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    own = build_teacher((3, 32, 32), 10, TeacherConfig(model="resnet18"))
    generator = torch.Generator().manual_seed(0)
    for module in other.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    own.load_state_dict(dict(zip(own.state_dict(), other.state_dict().values(), strict=True)))
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = other.eval()(x)
        assert torch.allclose(own.eval()(x), expected, atol=1e-3 * expected.abs().max().item())


def test_subsampling_shortcuts_cost_no_parameters():
    model = build_teacher((3, 32, 32), 10, TeacherConfig(model="resnet20", shortcut="A"))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trained == 269_722  # He et al. 2016: 0.27 M


def small(name, **settings):
    """A student of a few channels, with random statistics, so that every layer fires."""
    channels = {
        "resnet18": (6, 8, 8, 10),
        "resnet19": (6, 8, 8),
        "resnet20": (4, 8, 8),
        "vgg9": (6, 8, 8),
        "vgg11": (6, 8, 8, 8, 10),
        "vgg16": (6, 8, 8, 8, 10),
        "mlp": (24, 16),
    }.get(name, (6, 8))
    return StudentConfig(model=name, channels=channels, **settings)


def randomised(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            uncentred = isinstance(module, UncentredNorm2d)
            for tensor, low, high in [
                (module.weight, 0.7, 1.4),
                (module.bias, 0.2, 0.7),
                (module.running_mean, -0.1, 0.1),
                (module.running_var, 0.02 if uncentred else 0.2, 0.1 if uncentred else 1.0),
            ]:
                if tensor is not None and not (uncentred and tensor is module.running_mean):
                    tensor.data.uniform_(low, high, generator=generator)
        if isinstance(module, nn.Conv2d) and module.weight.requires_grad and not isinstance(model.pool, nn.Identity):
            module.weight.data /= model.kind.gain  # of one size in both kinds; the convnet's are so anyway
        if isinstance(module, nn.Linear):
            module.weight.data.normal_(0, 2 / module.in_features**0.5, generator=generator)
            if module.bias is not None:
                module.bias.data.uniform_(-0.1, 0.3, generator=generator)
    return model.eval()


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_and_its_twin_share_every_parameter(name):
    config = small(name, timesteps=3)
    student = build_student((3, 16, 16), 10, config)
    twin = build_teacher((3, 16, 16), 10, TeacherConfig(model=name, channels=config.channels))
    own, other = student.state_dict(), twin.state_dict()
    assert {key: value.shape for key, value in own.items()} == {key: value.shape for key, value in other.items()}
    assert not any(isinstance(module, SpikingNeuron) for module in twin.modules())
    initialise(student, randomised(twin).state_dict())
    assert all(torch.equal(student.state_dict()[key], other[key]) for key in other)
    x = torch.rand(2, 3, 16, 16)
    assert student(x).shape == (3, 2, 10)
    assert twin(x).shape == (2, 10)
    with tapped(student) as spikes, tapped(twin) as features, torch.no_grad():
        student(x), twin(x)
    assert [tuple(s.shape[1:]) for s in spikes] == [tuple(f.shape) for f in features]
    assert len(spikes) == (0 if name == "mlp" else len(config.channels))
    assert all(set(s.unique().tolist()) <= {0.0, 1.0} for s in spikes)


def test_a_twin_of_step_functions_is_the_student_of_one_timestep():
    """With ReLU replaced by a step at the threshold, one topology computes the same in both kinds."""
    for name in ("resnet20", "vgg9", "convnet"):
        student = randomised(build_student((3, 16, 16), 10, small(name, timesteps=1, neuron="if")))
        twin = build_teacher((3, 16, 16), 10, TeacherConfig(model=name, channels=small(name).channels)).eval()
        twin.load_state_dict(student.state_dict())
        for module in twin.modules():
            if isinstance(module, nn.ReLU):
                module.forward = lambda x: (x >= 1.0).float()
        x = torch.rand(4, 3, 16, 16)
        with torch.no_grad():
            assert torch.allclose(student(x)[0], twin(x), atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "vgg9", "convnet", "mlp"])
def test_images_and_the_same_image_as_events_give_the_same(name):
    student = randomised(build_student((2, 16, 16), 10, small(name, timesteps=3)))
    x = torch.rand(2, 2, 16, 16)
    with torch.no_grad():
        logits = student(x)
        assert torch.allclose(student(x.expand(3, *x.shape)), logits, atol=1e-5)
        student.timesteps = 5  # may change from call to call
        assert student(x).shape == (5, 2, 10)
        assert torch.allclose(student(x)[:3], logits, atol=1e-5)
        assert build_student((4, 2, 16, 16), 10, small(name))(torch.rand(4, 3, 2, 16, 16)).shape == (4, 3, 10)


def test_the_stem_sees_a_still_image_once():
    student = build_student((1, 8, 8), 10, small("resnet20", timesteps=4))
    calls = []
    student.stages[0].conv.register_forward_hook(lambda _m, args, _o: calls.append(len(args[0])))
    student.stages[1][0].second.conv.register_forward_hook(lambda _m, args, _o: calls.append(len(args[0])))
    student(torch.rand(3, 1, 8, 8))
    assert calls == [3, 12]


def test_all_parameters_of_a_student_learn():
    for neuron in ("plif", "cuba"):
        student = build_student((3, 16, 16), 10, small("resnet20", neuron=neuron))
        with torch.no_grad():
            for module in student.modules():
                if isinstance(module, UncentredNorm2d):
                    module.weight.fill_(2.0)
        F.cross_entropy(student(torch.rand(8, 3, 16, 16)).mean(0), torch.arange(8)).backward()
        for name, parameter in student.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_subsampling_is_the_papers_slicing_and_padding():
    student = build_student((3, 8, 8), 10, small("resnet20", shortcut="A"))
    block = student.stages[2][0]
    x = torch.rand(2, 4, 8, 8)
    expected = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
    assert torch.equal(block.shortcut(x), expected)
    assert not any(parameter.requires_grad for parameter in block.shortcut.parameters())


def test_normalisation_without_an_offset():
    norm = UncentredNorm2d(3)
    x = torch.randn(8, 3, 4, 4) * 3 + 1
    out = norm(x)
    assert torch.allclose(out.square().mean((0, 2, 3)), torch.ones(3), atol=1e-4)
    power = x.square().mean((0, 2, 3))
    assert torch.allclose(norm.running_var, 0.9 + 0.1 * power)
    assert torch.equal(norm.running_mean, torch.zeros(3))
    norm.reset_running_stats()
    norm.momentum = None  # the average over all batches
    norm(x), norm(2 * x)
    assert torch.allclose(norm.running_var, 2.5 * power)
    norm.eval()
    assert torch.equal(norm(torch.zeros(1, 3, 2, 2)), torch.zeros(1, 3, 2, 2))
    norm.weight.data.fill_(3.0)
    assert torch.allclose(norm(x), F.batch_norm(x, torch.zeros(3), norm.running_var, norm.weight), atol=1e-5)
    norm.reset_parameters()
    assert torch.equal(norm.weight, torch.ones(3))


def assert_lowered(student, shape, x, encoding="direct"):
    """torch = float network = folded float network, spike by spike; reference = onnxruntime on integers, exactly."""
    net = lower(student, shape, timesteps=3, encoding=encoding)
    assert verify(net) == "float"
    given = x.numpy() if encoding == "direct" else x.numpy().astype(np.uint8)
    rasters = {}
    for name, module in student.named_modules():
        if isinstance(module, SpikingNeuron):
            module.register_forward_hook(lambda _m, _i, out, name=name: rasters.update({name: out.numpy()}))
    with torch.no_grad():
        logits = student(x).sum(0).numpy()
    folded = apply(net, [fold_batchnorm, materialise_shortcuts, fold_pooling])
    assert not any(isinstance(node, AvgPool2d) for node in folded)
    for found in (net, folded):
        trace = reference.run(found, given, reference.Options(record="raster"))
        assert set(trace.rasters) == set(rasters)
        for name, raster in rasters.items():
            assert 0.01 < raster.mean() < 0.95, f"{name} fires at {raster.mean()}"
            # a sum within rounding of the threshold may fall on the other side, and others follow it
            assert (trace.rasters[name] != raster.astype(bool)).mean() < 2e-3, name
        same = np.abs(trace.readouts - logits).max(1) < 1e-3
        assert same.mean() >= 0.75
    integer = quantize(folded)
    exact = reference.run(integer, given, reference.Options(record="raster"))
    other = onnxruntime.run(integer, given, onnxruntime.Options(record="raster"))
    assert np.array_equal(exact.readouts, other.readouts)
    for name, raster in exact.rasters.items():
        assert raster.any()
        assert np.array_equal(raster, other.rasters[name])
    return net, integer


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("resnet18", {}),
        ("resnet18", {"neuron": "plif"}),
        ("resnet20", {"shortcut": "A", "neuron": "if"}),
        ("resnet19", {"neuron": "cuba", "v_threshold": 2.0}),
        ("vgg9", {"reset": "subtract"}),
        ("vgg16", {"neuron": "plif"}),
        ("mlp", {}),
        ("mlp", {"neuron": "cuba"}),
        ("convnet", {"neuron": "cuba"}),
    ],
)
def test_every_student_lowers_folds_quantises_and_runs(name, settings):
    torch.manual_seed(1)
    student = randomised(build_student((3, 16, 16), 10, small(name, timesteps=3, **settings)))
    for index, module in enumerate(student.modules()):
        if isinstance(module, SpikingNeuron) and module.w is not None:
            # as trained: no two alike; on the grid, so that torch and the network compute the same
            decay = 1500 + 17 * index
            module.w.data.fill_(-np.log(4096 / decay - 1))
            assert module.voltage_decay == decay
    net, integer = assert_lowered(student, (3, 16, 16), torch.rand(8, 3, 16, 16))
    if name.startswith("resnet"):
        last = net[student.taps[-1]]
        assert len(last.inputs) == 2
        assert all(isinstance(integer[edge.source], Conv2d) for edge in integer[last.name].inputs)
        pixels = np.prod(infer_shapes(integer)[last.name])  # not averaged: the classifier sees them all
        assert integer["classifier"].weight.shape == (10, pixels)
    if settings.get("neuron") == "cuba":
        assert {int(node.current_decay) for node in integer.neurons} == {2048}


def test_events_are_lowered_too():
    torch.manual_seed(1)
    student = randomised(build_student((2, 16, 16), 10, small("resnet20", timesteps=3)))
    assert_lowered(student, (2, 16, 16), (torch.rand(3, 8, 2, 16, 16) < 0.5).float(), "events")


def test_quantisation_says_what_each_step_costs():
    torch.manual_seed(0)
    student = randomised(build_student((1, 8, 8), 10, small("convnet", neuron="plif")))
    x = torch.rand(40, 1, 8, 8)
    labels = classify(student, x).numpy()
    result = pipeline.quantize(lower(student, (1, 8, 8), timesteps=4), x.numpy(), labels)
    assert list(result.accuracies) == ["float network", "integer network"]
    assert result.accuracies["float network"].correct >= 38
    assert result.accuracies["integer network"].correct == 40 - result.changed_predictions


def test_a_run_starts_from_its_teacher_and_reports_the_student_as_trained(tmp_path):
    settings = [
        *("teacher.model=mlp", "teacher.channels=[20]", "teacher.epochs=3", "losses.kl=0", "losses.feature=0"),
        *("student.model=mlp", "student.channels=[20]", "student.neuron=plif", "student.init_from=teacher"),
        *("train.epochs=1", "train.lr=1e-8", "train.threads=1", "data.augment.crop=0"),
    ]
    run = Run(tmp_path / "run")
    summary = distill(load_config(None, settings), run)
    teacher = checkpoint.read_weights(run.teacher)
    student = load_student(run).state_dict()
    assert all(torch.allclose(student[name], tensor, atol=1e-5) for name, tensor in teacher.items())
    result = pipeline.quantize_run(run.path)
    assert list(result.accuracies) == ["student", "float network", "integer network"]
    assert summary.student.percent > 30  # nothing but the teacher's weights
    again = Run(tmp_path / "again")
    settings[-1:] = [f"student.init_from={run.teacher}", "student.model=mlp"]
    assert distill(load_config(None, settings), again).student == summary.student


def test_a_soft_reset_is_refused_by_lava():
    student = randomised(build_student((1, 8, 8), 10, small("convnet", reset="subtract")))
    net = lower(student, (1, 8, 8), timesteps=4)
    integer = quantize(apply(net, [fold_batchnorm, materialise_shortcuts, fold_pooling]))
    reasons = lava.check(integer, lava.Options())
    assert sum("resets by subtraction" in reason for reason in reasons) == 2


def test_a_learned_tau_is_put_on_the_grid_once():
    student = build_student((1, 8, 8), 10, small("convnet", neuron="plif", tau=3.0))
    w = student.stages[0].neuron.w
    w.data.fill_(0.123)
    net = lower(student, (1, 8, 8), timesteps=4)
    assert int(net["stages.0.neuron"].voltage_decay) == round(4096 / (1 + np.exp(-0.123)))
    assert int(net["stages.1.neuron"].voltage_decay) == 1365


def test_weights_that_do_not_fit_are_named():
    student = build_student((1, 8, 8), 10, small("convnet", neuron="plif"))
    before = {key: value.clone() for key, value in student.state_dict().items()}
    twin = build_teacher((1, 8, 8), 10, TeacherConfig(channels=(6, 8))).state_dict()
    for state, message in [
        ({key: value for key, value in twin.items() if "stages.1.conv" not in key}, "stages.1.conv.weight' is missing"),
        ({**twin, "more": torch.zeros(1)}, "'more' is unknown to it"),
        ({**twin, "classifier.bias": torch.zeros(3)}, r"'classifier.bias' is \(3,\), the student's \(10,\)"),
    ]:
        with pytest.raises(ConfigError, match=message):
            initialise(student, state)
    assert all(torch.equal(value, student.state_dict()[key]) for key, value in before.items())
    initialise(student, twin)
    assert torch.equal(student.state_dict()["stages.0.neuron.w"], before["stages.0.neuron.w"])
    cuba = build_student((1, 8, 8), 10, small("convnet", neuron="cuba"))
    with pytest.raises(ConfigError, match="no offsets, which on a chip go past the filter") as error:
        initialise(cuba, twin)
    assert "neurons 'lif'" in error.value.hint


@pytest.mark.parametrize(
    ("config", "shape", "message"),
    [
        (
            StudentConfig(model="resnet18", channels=(8, 8)),
            (3, 16, 16),
            "has 4 stages, but channels names 2",
        ),
        (StudentConfig(model="vgg9"), (64,), "'vgg9' takes images"),
        (StudentConfig(model="resnet"), (3, 16, 16), "no student model 'resnet'"),
        (TeacherConfig(model="wide_resnet28_8", channels=(8,)), (3, 16, 16), "has 4 stages"),
        (TeacherConfig(model="torchvision:resnet51"), (3, 16, 16), "no classifier 'resnet51'"),
        (TeacherConfig(mean=(0.5,), std=(0.5,)), (3, 16, 16), "hold 1 and 1 values, the samples 3 channels"),
    ],
)
def test_what_a_model_cannot_be(config, shape, message):
    build = build_student if isinstance(config, StudentConfig) else build_teacher
    with pytest.raises(ConfigError, match=message):
        build(shape, 10, config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("teacher={mean: [0.5]}", "mean and std need each other"),
        ("teacher={replace_head: true}", "replace_head is for pretrained"),
        ("teacher={pretrained: true}", "pretrained is for torchvision"),
        ("student.neuron=qif", "student.neuron"),
        ("student.width=0", "student.width"),
    ],
)
def test_settings_that_contradict_each_other(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, [override])


def test_a_width_multiplies_all_stages():
    student = build_student((3, 16, 16), 10, StudentConfig(model="resnet18", width=0.125))
    assert [stage[0].first.conv.out_channels for stage in student.stages[1:]] == [8, 16, 32, 64]
    assert build_student((1, 8, 8), 10, StudentConfig(width=0.01)).stages[0].conv.out_channels == 1


def test_wide_resnets_drop_out_in_training_only():
    config = TeacherConfig(model="wide_resnet28_8", width=0.0625, dropout=0.5)
    teacher = build_teacher((3, 16, 16), 10, config)
    x = torch.rand(2, 3, 16, 16)
    with tapped(teacher) as features:
        assert not torch.equal(teacher(x), teacher(x))
    assert [tuple(f.shape[1:]) for f in features] == [(8, 16, 16), (16, 8, 8), (32, 4, 4)]
    teacher.eval()
    assert torch.equal(teacher(x), teacher(x))


def test_mean_and_deviation_are_taken_out_and_names_stay():
    plain = build_teacher((3, 8, 8), 10, TeacherConfig()).eval()
    config = TeacherConfig(mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    own = build_teacher((3, 8, 8), 10, config).eval()
    own.load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, 8, 8)
    shifted = (x - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([0.5, 1.0, 2.0])[:, None, None]
    assert torch.allclose(own(x), plain(shifted), atol=1e-5)


def test_torchvisions_classifiers_are_teachers(tmp_path):
    config = TeacherConfig(model="torchvision:resnet18")
    teacher = build_teacher((3, 32, 32), 7, config)
    with tapped(teacher.eval()) as features, torch.no_grad():
        assert teacher(torch.rand(1, 3, 32, 32)).shape == (1, 7)
    assert [f.shape[1] for f in features] == [64, 128, 256, 512]
    torch.save(teacher.state_dict(), tmp_path / "weights.pt")
    checkpoint.load_weights(build_teacher((3, 32, 32), 7, config), tmp_path / "weights.pt")
    with pytest.raises(ConfigError, match="size mismatch"):
        checkpoint.load_weights(build_teacher((3, 32, 32), 8, config), tmp_path / "weights.pt")


class Weights:
    """What torchvision knows of pretrained weights; nothing is downloaded in a test."""

    meta = {"categories": list("abc")}  # noqa: RUF012
    DEFAULT: "Weights"

    def transforms(self):
        return types.SimpleNamespace(mean=[0.5, 0.5, 0.5], std=[2.0, 2.0, 2.0])


Weights.DEFAULT = Weights()


def test_pretrained_weights(monkeypatch):
    from torchvision import models

    plain = models.get_model("squeezenet1_0", num_classes=3)
    fetched = models.resnet18(num_classes=3).eval()
    monkeypatch.setattr(models, "get_model_weights", lambda name: Weights)
    monkeypatch.setattr(models, "get_model", lambda name, weights: fetched)
    pretrained = functools.partial(TeacherConfig, model="torchvision:resnet18", pretrained=True)
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = fetched((x - 0.5) / 2.0)
        teacher = build_teacher((3, 32, 32), 3, pretrained())
        assert torch.allclose(teacher(x), expected, atol=1e-5)
    with pytest.raises(ConfigError, match="know 3 classes, the data set has 7") as error:
        build_teacher((3, 32, 32), 7, pretrained())
    assert "replace_head" in error.value.hint
    assert build_teacher((3, 32, 32), 7, pretrained(replace_head=True)).fc.out_features == 7
    assert (pretrained().ready, pretrained(replace_head=True).ready) == (True, False)
    with pytest.raises(ConfigError, match="no linear layer"):
        replace_head(plain, 7)

    def offline(name, weights):
        raise OSError("<urlopen error no route>")

    monkeypatch.setattr(models, "get_model", offline)
    with pytest.raises(UnavailableError, match="cannot be fetched: <urlopen error no route>"):
        build_teacher((3, 32, 32), 3, pretrained())


def test_a_list_of_models_needs_no_torchvision():
    assert set(STUDENTS) < set(TEACHERS)
    assert all(function.__doc__ for function in (*STUDENTS.values(), *TEACHERS.values()))


def test_under_bf16_autocast_a_student_answers_almost_the_same():
    torch.manual_seed(0)
    for neuron in ("lif", "plif", "cuba"):
        student = randomised(build_student((3, 16, 16), 10, small("resnet20", neuron=neuron)))
        student.taps = ("stages.0.neuron", *student.taps)
        x = torch.rand(32, 3, 16, 16)
        with torch.no_grad(), tapped(student) as spikes, torch.autocast("cpu", torch.bfloat16):
            logits = student(x)
        assert {s.dtype for s in spikes} == {logits.dtype} == {torch.bfloat16}
        with torch.no_grad(), tapped(student) as exact:
            expected = student(x)
        assert (spikes[0].float() != exact[0]).float().mean() < 0.01  # a random network multiplies what differs
        assert (logits - expected).abs().mean() < 0.4 * expected.std()  # 1.13 of it if they were unrelated
        assert (logits.float().sum(0).argmax(1) == expected.sum(0).argmax(1)).float().mean() > 0.8


@pytest.mark.parametrize("threshold", [0.8, 1.0])
def test_a_residual_block_begins_by_passing_spikes_on(threshold):
    student = build_student((3, 8, 8), 10, small("resnet18", timesteps=3, v_threshold=threshold))
    spikes = (torch.rand(3, 64, 6, 8, 8) < 0.2).float()
    with torch.no_grad():
        same = student.stages[1][0](spikes) == spikes
    assert same.float().mean() > 0.9
    assert same[spikes == 1].float().mean() > 0.9


@pytest.mark.parametrize("model", ["resnet20", "vgg16"])
def test_deep_students_learn_from_their_own_first_weights(tmp_path, model):
    """That is, without a teacher's. Guessing has a loss of 2.30; weights of He's size stay there for ten epochs."""
    channels = [24] * len(small(model).channels)
    student = (f"student.model={model}", f"student.channels={channels}", "student.timesteps=2")
    train = ("train.optimizer=sgd", "train.lr=0.1", "train.epochs=4", "train.batch_size=64", "train.threads=1")
    run = Run(tmp_path)
    distill(load_config(None, [*student, *train, "losses.kl=0", "losses.feature=0"]), run)
    assert run.read_metrics()[3]["loss"] < 2.2


def test_predictions_of_a_lowered_student_are_the_students():
    student = randomised(build_student((1, 8, 8), 10, small("convnet")))
    x = torch.rand(64, 1, 8, 8)
    trace = reference.run(lower(student, (1, 8, 8), timesteps=4), x.numpy(), reference.Options())
    assert (predictions(trace) == classify(student, x).numpy()).mean() > 0.95


def test_the_example_for_cifar100_is_the_published_student():
    config = load_config(Path(__file__).parents[1] / "examples" / "cifar100_resnet18.yaml")
    student = build_student((3, 32, 32), 100, config.student)
    assert sum(parameter.numel() for parameter in student.parameters()) == 11_220_132
    initialise(student, build_teacher((3, 32, 32), 100, config.teacher).state_dict())
    assert student.timesteps == 4
