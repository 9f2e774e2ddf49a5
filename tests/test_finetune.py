"""Fine-tuning on real data: it trains the network that is exported, repeats exactly, and needs no teacher."""

import json
import shutil

import numpy as np
import pytest

from snnkit.analysis.accuracy import Accuracy
from snnkit.config import load_config
from snnkit.errors import UnsupportedError, UsageError
from snnkit.network import load, predictions, same
from snnkit.quantization import Quantizer, quantize_run
from snnkit.runs import Run
from snnkit.training import trainer
from snnkit.training.data import Dataset, Split, load_dataset
from snnkit.training.finetune import Finetuning, finetune, unrounded
from snnkit.training.lower import lower_run
from snnkit.training.trainer import load_student
from snnkit_targets import reference
from tests.test_network import replace

SETTINGS = [
    *("teacher.channels=[8,8,8]", "student.channels=[6,8,8]", "teacher.epochs=2", "train.epochs=4", "train.threads=1"),
    *("train.precision=bf16", "train.curriculum={2: 0.5}"),  # neither may reach the integer arithmetic
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("finetune") / "run")
    trainer.distill(load_config(None, SETTINGS), run)
    return run


@pytest.fixture(scope="module")
def quantizer(run: Run) -> Quantizer:
    split = load_dataset("digits").validation
    return Quantizer(lower_run(run), split.x, split.y)


def test_it_learns_repeats_exactly_and_keeps_the_scales(run: Run, quantizer: Quantizer) -> None:
    data = load_dataset("digits")
    integer, _ = quantizer.integer(weight_bits=2)
    found = [
        finetune(
            run, data, quantizer.folded, integer, load_student(run), Finetuning(2, samples=512, lr=3e-3, seed=seed)
        )
        for seed in (1, 1, 2)
    ]
    (first, records), (again, _), (other, _) = found
    assert same(first, again)
    assert not same(first, other)
    assert [record["epoch"] for record in records] == [1, 2]
    assert records[1]["loss"] < records[0]["loss"]
    assert {"cross_entropy", "kl", "feature", "student", "validation_accuracy"} <= set(records[0])
    assert first.metadata == integer.metadata
    for before, after in zip(integer.neurons, first.neurons, strict=True):
        assert before.v_threshold.tolist() == after.v_threshold.tolist()
    for synapse in first.synapses:
        assert np.abs(synapse.weight).max() == 1
    measured = quantizer.measure(first)
    # the reference sees what training saw at the end
    assert measured.accuracies["integer network"].percent == pytest.approx(records[1]["validation_accuracy"])


def test_what_is_trained_starts_from_the_unrounded_weights(quantizer: Quantizer) -> None:
    integer, _ = quantizer.integer(weight_bits=4, per_channel=True)
    for name, weight in unrounded(quantizer.folded, integer).items():
        np.testing.assert_array_equal(np.clip(np.rint(weight), -7, 7), integer[name].weight)


def test_the_command_writes_what_it_measured(run: Run, tmp_path) -> None:
    copy = Run(shutil.copytree(run.path, tmp_path / "run"))
    copy.teacher.unlink()  # then the float student alone teaches
    result = quantize_run(copy.path, weight_bits=4, stem="host", finetuning=Finetuning(1, samples=256))
    assert same(load(copy.network), result.network)
    written = json.loads(copy.quantization.read_text())
    assert written == json.loads(json.dumps({"schema": 1, "network": "network.safetensors", **result.to_json()}))
    assert (written["weight_bits"], written["input_bits"], written["stem"]) == (4, 8, "host")
    assert [set(record) & {"kl", "feature", "student"} for record in written["finetuning"]] == [{"student"}]
    paired, test = written["paired"], written["test"]
    assert paired["samples"] == 360
    assert paired["drop"] == pytest.approx(test["student"]["accuracy"] - test["integer network"]["accuracy"])
    for node in written["nodes"]:
        assert node["weight_bits"] == 4
        for what in ("sum", "u", "v"):
            (worst_low, worst_high), (low, high) = node[what]["worst"], node[what]["observed"]
            assert worst_low <= low < high <= worst_high
            assert worst_high < node[what]["limit"]


@pytest.mark.parametrize("faulty", [{"epochs": 0}, {"epochs": 1, "samples": 1}, {"epochs": 1, "lr": float("nan")}])
def test_settings_that_train_nothing_are_refused(faulty) -> None:
    with pytest.raises(UsageError):
        Finetuning(**faulty)


def test_a_layer_that_training_has_silenced_is_named(quantizer: Quantizer) -> None:
    integer, _ = quantizer.integer()
    victim = integer.synapses[1]
    weight = -np.abs(victim.weight)
    silenced = replace(integer, victim.name, weight=weight, bias=np.zeros_like(victim.bias))
    with pytest.raises(UnsupportedError, match=r"dead: node 'stages.1.neuron' never fires \(float: \d"):
        quantizer.measure(silenced)
    driven = replace(integer, victim.name, weight=weight, bias=np.full_like(victim.bias, 4095))
    with pytest.raises(UnsupportedError, match=r"node 'stages.1.neuron' fires at every timestep"):
        quantizer.measure(replace(driven, "stages.1.neuron", v_threshold=np.array(1, np.int32)))


def random_images(_root: str | None) -> Dataset:
    """Eight classes that differ by their brightness in one channel, 3x16x16."""
    rng = np.random.default_rng(0)

    def split(count: int) -> Split:
        y = np.arange(count) % 8
        x = rng.random((count, 3, 16, 16), dtype=np.float32) * 0.5
        x[:, 0] += y[:, None, None] / 16
        return Split(x.astype(np.float32), y.astype(np.int64))

    return Dataset("random", split(64), split(32), split(32), tuple("abcdefgh"))


def test_a_residual_network_is_folded_quantised_and_fine_tuned(tmp_path) -> None:
    """ResNet-18 with identity and 1x1 shortcuts, of a sixteenth of the width, averaged over its last map."""
    settings = [
        *("data.name=tests.test_finetune:random_images", "student.model=resnet18", "student.width=0.0625"),
        *("losses.kl=0", "losses.feature=0", "train.epochs=12", "train.batch_size=16", "train.threads=1"),
    ]
    run = Run(tmp_path / "run")
    trainer.distill(load_config(None, settings), run)
    result = quantize_run(run.path, finetuning=Finetuning(2, samples=32))
    assert result.notes == ("average 'pool': folded into the layers behind it, exact",)
    assert len(result.nodes) == 17
    assert sum("shortcut_from" in synapse.name for synapse in result.network.synapses) == 5
    assert all(node.observed.fits and node.overflows == 0 for node in result.nodes)
    split = random_images(None).test
    trace = reference.run(load(run.network), split.x, reference.Options())
    assert Accuracy.of(predictions(trace), split.y) == result.test["integer network"]
