"""A network of your own, the whole way: plain torch and SpikingJelly in; integers, ONNX, Lava and energy out.

Run it: python examples/own_model.py [OUTPUT_FOLDER]
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

import snnkit


class MyNetwork(nn.Module):
    """Any module of supported layers: [N, 1, 8, 8] to logits per timestep, [T, N, 10]."""

    def __init__(self, timesteps: int = 4) -> None:
        super().__init__()
        self.timesteps = timesteps
        self.conv1 = layer.Conv2d(1, 12, 3, padding=1, bias=False, step_mode="m")
        self.bn1 = layer.BatchNorm2d(12, step_mode="m")
        self.lif1 = neuron.LIFNode(tau=2.0, decay_input=False, detach_reset=True, step_mode="m")
        self.conv2 = layer.Conv2d(12, 24, 3, stride=2, padding=1, step_mode="m")
        self.if2 = neuron.IFNode(detach_reset=True, step_mode="m")
        self.flatten = layer.Flatten(step_mode="m")
        self.fc = layer.Linear(24 * 4 * 4, 10, step_mode="m")

    def forward(self, x: Tensor) -> Tensor:
        """Direct encoding: the image at every timestep."""
        x = x.unsqueeze(0).repeat(self.timesteps, 1, 1, 1, 1)
        x = self.lif1(self.bn1(self.conv1(x)))
        x = self.if2(self.conv2(x))
        return self.fc(self.flatten(x))


def train(model: nn.Module, x: Tensor, y: Tensor, epochs: int = 12) -> None:
    """Your own training, as you do it today."""
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            functional.reset_net(model)
            loss = F.cross_entropy(model(x[batch]).mean(0), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    functional.reset_net(model)
    model.eval()


def main() -> None:
    """Train, lower, quantise, export, run on every target that is there, count."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own_model")
    torch.manual_seed(0)
    digits = snnkit.load_dataset("digits")
    model = MyNetwork()
    train(model, torch.from_numpy(digits.train.x), torch.from_numpy(digits.train.y))

    metadata = {"dataset": "digits", "classes": list(digits.classes)}
    net = snnkit.lower(model, (1, 8, 8), timesteps=4, metadata=metadata)
    integer = snnkit.quantize(net, digits.validation.x).network
    snnkit.save(integer, folder / "network.safetensors")
    snnkit.export(integer, folder / "network.onnx", "onnx")
    snnkit.export(integer, folder / "network.net", "lava")

    x, y = digits.test.x, digits.test.y
    for target in ("reference", "onnxruntime"):
        trace = snnkit.run(integer, x, target)
        print(f"{target}: {(snnkit.predictions(trace) == y).sum()} of {len(y)} correct")
    counts = snnkit.count(integer, x, trace)
    energy = snnkit.estimate(counts, snnkit.load_model("loihi1-davies2018"))
    print(f"{counts.mean('effective_acs'):.0f} synaptic operations, {1e9 * energy.joules:.0f} nJ ({energy.summary})")
    print(f"written: {folder}; on simulated Loihi: snnkit run {folder / 'network.safetensors'} --target lava")


if __name__ == "__main__":
    main()
