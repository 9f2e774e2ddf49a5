"""Accuracy and firing rates of torch models."""

import torch
from torch import Tensor, nn

from snnkit.analysis.accuracy import Accuracy
from snnkit.network.ir import Array
from snnkit.training.data import Split
from snnkit.training.neurons import is_neuron, reset_neurons


def evaluate(model: nn.Module, split: Split, batch_size: int = 256) -> Accuracy:
    """Accuracy of a student on a split, of a teacher on its ``still`` images; the model is left in eval mode."""
    return Accuracy.of(predict(model, split, batch_size), split.y)


def predict(model: nn.Module, split: Split, batch_size: int = 256) -> Array:
    """The model's answers to a split, int64 [N]."""
    answers: Array = classify(model, *_inputs(model, split), batch_size).cpu().numpy()
    return answers


@torch.no_grad()
def classify(model: nn.Module, x: Tensor, axis: int = 0, batch_size: int = 256) -> Tensor:
    """The class with the largest logit (summed over time for a student), int64 [N]; the model is left in eval mode.

    ``axis`` of ``x`` counts the samples.
    """
    model.eval()
    answers = []
    for batch in x.split(batch_size, axis):  # type: ignore[no-untyped-call]
        reset_neurons(model)
        logits = model(batch)
        answers.append((logits.sum(0) if logits.dim() == 3 else logits).argmax(1))
    return torch.cat(answers)


@torch.no_grad()
def firing_rates(model: nn.Module, split: Split, batch_size: int = 256) -> dict[str, float]:
    """Spikes per neuron and timestep of every spiking layer over the samples, 0..1, by module path."""
    spikes: dict[str, Tensor] = {}
    slots: dict[str, int] = {}
    handles = []
    for name, module in model.named_modules():
        if is_neuron(module):

            def count(_module: nn.Module, _inputs: object, output: Tensor, name: str = name) -> None:
                total = output.sum(dtype=torch.float64)
                spikes[name] = spikes[name] + total if name in spikes else total
                slots[name] = slots.get(name, 0) + output.numel()

            handles.append(module.register_forward_hook(count))
    try:
        classify(model, *_inputs(model, split), batch_size)
    finally:
        for handle in handles:
            handle.remove()
    return {name: float(spikes[name]) / slots[name] for name in spikes}


def _inputs(model: nn.Module, split: Split) -> tuple[Tensor, int]:
    """The split's inputs where the model is and of its precision, and the axis of the samples."""
    x = torch.from_numpy(split.x)
    parameter = next(model.parameters(), x)
    dtype = parameter.dtype if parameter.is_floating_point() else torch.float32
    return x.to(parameter.device, dtype), 0 if split.encoding == "direct" else 1
