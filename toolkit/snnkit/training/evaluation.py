"""Accuracy and firing rates of torch models."""

import torch
from torch import Tensor, nn

from snnkit.analysis.accuracy import Accuracy
from snnkit.training.data import Split
from snnkit.training.neurons import is_neuron, reset_neurons


def evaluate(model: nn.Module, split: Split, batch_size: int = 256) -> Accuracy:
    """Accuracy of a teacher or student on a split; the model is left in eval mode."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    answers = classify(model, torch.from_numpy(split.x).to(device), batch_size)
    return Accuracy.of(answers.cpu().numpy(), split.y)


@torch.no_grad()
def classify(model: nn.Module, x: Tensor, batch_size: int = 256) -> Tensor:
    """The class with the largest logit (summed over time for a student), int64 [N]; the model is left in eval mode."""
    model.eval()
    answers = []
    for batch in x.split(batch_size):  # type: ignore[no-untyped-call]
        reset_neurons(model)
        logits = model(batch)
        answers.append((logits.sum(0) if logits.dim() == 3 else logits).argmax(1))
    return torch.cat(answers)


@torch.no_grad()
def firing_rates(model: nn.Module, x: Tensor, batch_size: int = 256) -> dict[str, float]:
    """Spikes per neuron and timestep of every spiking layer over the samples ``x``, 0..1, by module path."""
    spikes: dict[str, float] = {}
    slots: dict[str, int] = {}
    handles = []
    for name, module in model.named_modules():
        if is_neuron(module):

            def count(_module: nn.Module, _inputs: object, output: Tensor, name: str = name) -> None:
                spikes[name] = spikes.get(name, 0.0) + float(output.sum(dtype=torch.float64))
                slots[name] = slots.get(name, 0) + output.numel()

            handles.append(module.register_forward_hook(count))
    try:
        classify(model, x, batch_size)
    finally:
        for handle in handles:
            handle.remove()
    return {name: spikes[name] / slots[name] for name in spikes}
