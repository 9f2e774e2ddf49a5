"""Augmentation, against torchvision's functions on single images."""

import itertools
import math

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from snnkit.config import AugmentConfig
from snnkit.errors import ConfigError
from snnkit.training import augment, autoaugment
from snnkit.training.augment import Augmentation

NOTHING = {"crop": 0}
FACTORS = ("Brightness", "Color", "Contrast", "Sharpness")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """Noise, gradients, a picture of few levels, two constant ones: uint8 [6, 3, 32, 32]."""
    noise = torch.randint(0, 256, (2, 3, 32, 32), generator=seeded(), dtype=torch.uint8)
    ramp = torch.arange(32)[:, None] * 4 + torch.arange(32) * 2 + torch.tensor([0, 20, 60])[:, None, None]
    few = torch.randint(0, 3, (3, 32, 32), generator=seeded(1)) * 40 + 60
    flat = torch.full((2, 3, 32, 32), 255, dtype=torch.uint8)
    flat[0] = 37
    flat[0, 0, 5, 5] = 38
    return torch.cat([noise, ramp[None].to(torch.uint8), few[None].to(torch.uint8), flat])


def reference(operation: str, image: torch.Tensor, value: float) -> torch.Tensor:
    """What torchvision's AutoAugment does to one image."""
    base = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
    if operation in FACTORS:
        value -= 1
    elif operation == "Solarize":
        value /= 255
    return base._apply_image_or_video_transform(
        image, operation, value, interpolation=v2.InterpolationMode.NEAREST, fill={}
    )


def values(operation: str) -> list[float]:
    """Every argument that the policy can draw, at all ten magnitudes and both signs."""
    return sorted({autoaugment.magnitude(operation, m, s, (32, 32)) for m in range(10) for s in (-1.0, 1.0)})


OPERATIONS = sorted({name for pair in autoaugment.CIFAR10 for name, _, _ in pair} | {"ShearX"})


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 32, 20)])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_equal_torchvisions(pictures: torch.Tensor, operation: str, shape: tuple[int, int, int]) -> None:
    pictures = pictures[:, : shape[0], : shape[1], : shape[2]]
    arguments = values(operation)
    cases = list(itertools.product(range(len(pictures)), arguments))
    batch = pictures[[picture for picture, _ in cases]]
    found = autoaugment.apply(batch, {operation: (list(range(len(cases))), [value for _, value in cases])})
    expected = torch.stack([reference(operation, pictures[picture], value) for picture, value in cases])
    if operation in ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"):
        # where a place lies half-way between two pixels the rounding of the grid decides
        assert (found != expected).float().mean() <= (0 if "Translate" in operation else 0.002)
    else:
        assert torch.equal(found, expected)


def test_arguments_equal_torchvisions() -> None:
    space = v2.AutoAugment._AUGMENTATION_SPACE
    for operation in OPERATIONS:
        table, signed = space[operation]
        magnitudes = table(10, 32, 24)
        for level in range(10):
            found = autoaugment.magnitude(operation, level, -1.0, (32, 24))
            if magnitudes is None:
                assert found == 0
                continue
            expected = float(magnitudes[level]) * (-1 if signed else 1)
            if "Translate" in operation:
                expected = int(expected)
            elif operation in FACTORS:
                expected += 1
            elif operation == "Solarize":
                expected *= 255
            assert found == pytest.approx(expected, abs=1e-4), (operation, level)


def test_the_policy_is_the_published_one() -> None:
    theirs = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)._policies
    assert [[(name, p, m or 0) for name, p, m in pair] for pair in theirs] == [
        [tuple(operation) for operation in pair] for pair in autoaugment.CIFAR10
    ]


def test_every_image_gets_its_own_operations(pictures: torch.Tensor) -> None:
    """A batch with all operations at once equals each image alone."""
    chosen = {name: ([i], [values(name)[0]]) for i, name in enumerate(OPERATIONS)}
    batch = pictures[:1].repeat(len(OPERATIONS), 1, 1, 1)
    together = autoaugment.apply(batch, chosen)
    for index, name in enumerate(OPERATIONS):
        alone = autoaugment.apply(pictures[:1], {name: ([0], [values(name)[0]])})
        assert torch.equal(together[index], alone[0]), name
    untouched = autoaugment.apply(pictures, {"Invert": ([1], [0.0])})
    assert torch.equal(untouched[0], pictures[0])
    assert torch.equal(untouched[1], 255 - pictures[1])


def test_the_policy_is_drawn_with_its_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: dict[str, float] = dict.fromkeys(OPERATIONS, 0)
    monkeypatch.setattr(
        autoaugment,
        "apply",
        lambda x, chosen: [counts.update({k: counts[k] + len(v[0])}) for k, v in chosen.items()] and x,
    )
    samples = 20000
    autoaugment.autoaugment(torch.zeros(samples, 3, 4, 4, dtype=torch.uint8), autoaugment.draw(samples, seeded()))
    for name in OPERATIONS:
        expected = (
            samples / 25 * sum(p for pair in autoaugment.CIFAR10 for operation, p, _ in pair if operation == name)
        )
        assert abs(counts[name] - expected) <= 5 * math.sqrt(expected + 1), name


def test_autoaugment_takes_floats_and_refuses_what_it_cannot_take(pictures: torch.Tensor) -> None:
    floats = pictures.float() / 255
    drawn = autoaugment.draw(6, seeded(3))
    assert torch.equal(autoaugment.autoaugment(floats, drawn), autoaugment.autoaugment(pictures, drawn))
    with pytest.raises(ConfigError, match="1 or 3 channels, not 2"):
        autoaugment.autoaugment(pictures[:, :2], drawn)


def test_a_crop_is_torchvisions_crop_after_padding() -> None:
    x = torch.rand(300, 2, 5, 6, generator=seeded())
    found = augment.shift(x, 2, augment.draw_moves(300, 2, seeded(1)))
    dy, dx = torch.randint(0, 5, (2, 300, 1, 1), generator=seeded(1)).flatten(1).tolist()
    for image, moved, top, left in zip(x, found, dy, dx, strict=True):
        assert torch.equal(moved, tv.crop(tv.pad(image, [2]), top, left, 5, 6))
    assert len({*zip(dy, dx, strict=True)}) == 25
    assert torch.equal(augment.shift(x, 0, augment.draw_moves(300, 0, seeded())), x)


def test_half_of_the_images_are_flipped(pictures: torch.Tensor) -> None:
    x = pictures[:1].repeat(1000, 1, 1, 1)
    found = augment.flip(x, augment.draw_flips(1000, seeded()))
    flipped = (found == tv.horizontal_flip(x)).all((1, 2, 3))
    assert torch.equal(found[~flipped], x[~flipped])
    assert 430 < int(flipped.sum()) < 570


def test_cutout_is_a_square_cut_off_at_the_border() -> None:
    found = augment.cutout(torch.ones(4000, 2, 12, 10), 4, augment.draw_centres(4000, (12, 10), seeded()))
    assert torch.equal(found[:, 0], found[:, 1])
    holes = found[:, 0] == 0
    rows, columns = holes.any(2).sum(1), holes.any(1).sum(1)
    assert torch.equal(rows * columns, holes.sum((1, 2)))  # a rectangle
    assert {*rows.tolist()} == {*columns.tolist()} == {2, 3, 4}
    share = holes.float().mean(0)  # how often each pixel is covered: the centre lies anywhere
    assert share[4:8, 4:6].mean() == pytest.approx(16 / 120, rel=0.1)
    assert share[0, 0] < share[5, 5]


def test_mixup_blends_images_and_labels() -> None:
    x, y = torch.rand(50, 1, 4, 4, generator=seeded()), torch.arange(50)
    weights = []
    for seed in range(200):
        mixed, (first, other, weight) = augment.draw_mixup(50, 0.4, seeded(seed))(x, y)
        assert torch.allclose(mixed, weight * x + (1 - weight) * x[other])
        assert torch.equal(first, y)
        assert torch.equal(other.sort()[0], y)
        weights.append(weight)
    variance = 1 / (4 * (2 * 0.4 + 1))  # of Beta(a, a)
    assert np.mean(weights) == pytest.approx(0.5, abs=0.1)
    assert np.var(weights) == pytest.approx(variance, rel=0.2)


def test_cutmix_weighs_labels_by_area() -> None:
    x, y = torch.arange(40.0)[:, None, None, None].expand(40, 2, 9, 7), torch.arange(40)
    weights = []
    for seed in range(300):
        mixed, (first, other, weight) = augment.draw_cutmix(40, (9, 7), 1.0, seeded(seed))(x, y)
        kept = mixed == x
        assert torch.equal(mixed[~kept], x[other][~kept])
        moved = other != y
        assert torch.allclose(kept[moved].float().mean((1, 2, 3)), torch.tensor(weight), atol=1e-6)
        assert torch.equal(first, y)
        weights.append(weight)
    assert min(weights) < 0.1
    assert max(weights) > 0.95


def test_one_function_does_it_all(pictures: torch.Tensor) -> None:
    y = torch.arange(6)
    first, again = Augmentation(ALL, seeded(2)), Augmentation(ALL, seeded(2))
    kinds = set()
    for _ in range(20):
        x, labels = first(pictures, y)
        x_again, labels_again = again(pictures, y)
        assert (x.dtype, x.shape) == (torch.float32, pictures.shape)
        assert 0 <= x.min() <= x.max() <= 1
        assert torch.equal(x, x_again)
        kinds.add(type(labels))
        assert type(labels) is type(labels_again)
    assert kinds == {torch.Tensor, tuple}
    x, labels = Augmentation(AugmentConfig(**NOTHING), seeded())(pictures, y)
    assert torch.equal(x, pictures / 255)
    assert labels is y


ALL = AugmentConfig(crop=4, flip=True, autoaugment="cifar10", cutout=16, mixup=0.2, cutmix=1.0, p=0.5)


@pytest.mark.parametrize("events", [False, True])
def test_batches_together_are_batches_one_by_one(events: bool) -> None:
    config, x = ALL, torch.randint(0, 256, (120, 3, 16, 12), generator=seeded(), dtype=torch.uint8)
    if events:
        config = AugmentConfig(crop=2, flip=True, cutout=5, cutmix=1.0, p=0.5)
        x = torch.randint(0, 2, (120, 4, 2, 8, 8), generator=seeded(), dtype=torch.uint8)
    y = torch.arange(120)
    together, alone = Augmentation(config, seeded(1)), Augmentation(config, seeded(1))
    mixed = 0
    for found, images, labels in zip(together.batches(x, y, 12), x.chunk(12), y.chunk(12), strict=True):
        expected = alone(images, labels)
        assert torch.equal(found[0], expected[0])
        assert type(found[1]) is type(expected[1])
        pairs = zip(found[1], expected[1], strict=True) if isinstance(found[1], tuple) else [(found[1], expected[1])]
        assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in pairs)
        mixed += isinstance(found[1], tuple)
    assert 0 < mixed < 12


def test_digits_are_moved_as_before(pictures: torch.Tensor) -> None:
    floats = torch.rand(64, 1, 8, 8, generator=seeded())
    x, _ = Augmentation(AugmentConfig(), seeded(5))(floats, torch.zeros(64))
    assert torch.equal(x, augment.shift(floats, 1, augment.draw_moves(64, 1, seeded(5))))


def test_events_keep_their_frames_together() -> None:
    frames = (torch.rand(30, 4, 2, 8, 8, generator=seeded()) < 0.2).to(torch.uint8)
    y = torch.arange(30)
    x, labels = Augmentation(AugmentConfig(**NOTHING), seeded())(frames, y)
    assert torch.equal(x, frames.transpose(0, 1).float())
    assert labels is y
    same = frames[:, :1].expand(-1, 4, -1, -1, -1)
    config = AugmentConfig(crop=2, flip=True, cutout=3, cutmix=1.0)
    x, labels = Augmentation(config, seeded())(same, y)
    assert x.shape == (4, 30, 2, 8, 8)
    assert {*x.unique().tolist()} <= {0.0, 1.0}
    assert all(torch.equal(x[0], frame) for frame in x)
    for wrong in ({"autoaugment": "cifar10"}, {"mixup": 1.0}):
        with pytest.raises(ConfigError):
            Augmentation(AugmentConfig(**wrong), seeded())(frames, y)
