"""Still images as spikes: the same on the host and on the device, with the statistics they promise."""

import numpy as np
import pytest
import torch

from snnkit.training import encoding, spikes
from snnkit.training.encoding import Encoder


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    x = np.random.default_rng(0).random((40, 2, 9, 7), dtype=np.float32)
    x[0], x[1], x[2] = 0, 1, np.float32(0.5)
    return x


@pytest.mark.parametrize("timesteps", [1, 4, 7])
@pytest.mark.parametrize("seed", [0, 1, 2**31 - 2])
def test_host_and_device_agree_bit_for_bit(images: np.ndarray, timesteps: int, seed: int) -> None:
    x = torch.from_numpy(images)
    for coding, found in (("rate", encoding.rate(x, timesteps, seed)), ("latency", encoding.latency(x, timesteps))):
        expected = spikes.encode(images, coding, timesteps, seed)
        assert expected.dtype == np.uint8
        assert found.dtype == torch.float32
        assert found.shape == (timesteps, *images.shape)
        assert np.array_equal(found.numpy(), expected)


def test_direct_repeats_the_image(images: np.ndarray) -> None:
    x = torch.from_numpy(images)
    assert all(torch.equal(step, x) for step in encoding.direct(x, 3))


def test_rates_are_the_values(images: np.ndarray) -> None:
    timesteps = 1000
    found = spikes.rate(images, timesteps, seed=3).astype(np.float64)
    assert not found[:, 0].any()
    assert found[:, 1].all()
    error = (found.mean(0) - images)[2:]
    sigma = np.sqrt(images * (1 - images) / timesteps)[2:]
    z = error / np.maximum(sigma, 1e-3)
    assert abs(z.mean()) < 4 / np.sqrt(z.size)
    assert z.std() == pytest.approx(1, abs=0.05)
    assert np.abs(z).max() < 5


def test_random_spikes_are_independent() -> None:
    half = np.full((30, 1, 16, 16), 0.5, np.float32)
    found = 2.0 * spikes.rate(half, 8) - 1
    limit = 5 / np.sqrt(found.size)
    assert abs((found[1:] * found[:-1]).mean()) < limit  # time
    assert abs((found[:, 1:] * found[:, :-1]).mean()) < limit  # samples
    assert abs((found[..., 1:] * found[..., :-1]).mean()) < limit  # columns
    assert abs((found[..., 1:, :] * found[..., :-1, :]).mean()) < limit  # rows
    other = 2.0 * spikes.rate(half, 8, seed=1) - 1
    assert abs((found * other).mean()) < limit  # seeds


def test_rates_do_not_depend_on_how_many_samples_follow(images: np.ndarray) -> None:
    assert np.array_equal(spikes.rate(images, 5)[:, :7], spikes.rate(images[:7], 5))


def test_brighter_pixels_spike_earlier() -> None:
    x = np.array([[0.0, 0.1, 0.5, 0.9, 1.0]], np.float32)
    found = spikes.latency(x, 5)
    assert found.sum(0).tolist() == [[0, 1, 1, 1, 1]]
    assert found.argmax(0)[0, 1:].tolist() == [4, 2, 0, 0]


def test_what_student_and_teacher_see(images: np.ndarray) -> None:
    x = torch.from_numpy(images)
    direct, rate, latency = (Encoder(kind, 4) for kind in ("direct", "rate", "latency"))
    assert direct.student(x) is x
    torch.manual_seed(0)
    first, second = rate.student(x), rate.student(x)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(rate.student(x), first)
    assert torch.equal(latency.student(x), encoding.latency(x, 4))
    assert all(encoder.teacher(x) is x for encoder in (direct, rate, latency))
    frames = (x[:20].unflatten(0, (4, 5)) > 0.5).float()
    events = Encoder("events", 4)
    assert events.student(frames) is frames
    assert torch.allclose(events.teacher(frames), frames.sum(0) / 4)


def test_levels_become_floats_as_on_the_host() -> None:
    levels = np.arange(256, dtype=np.uint8)
    assert np.array_equal(encoding.as_floats(torch.from_numpy(levels)).numpy(), levels / np.float32(255))
    floats = torch.rand(3)
    assert encoding.as_floats(floats) is floats
