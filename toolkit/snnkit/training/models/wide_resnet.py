"""The wide residual network, a strong teacher for small images (Zagoruyko and Komodakis, BMVC 2016)."""

from torch import Tensor, nn

from snnkit.config import TeacherConfig
from snnkit.training.models.parts import Shape, image_shape, initialise_convolutions, strides, widths


class PreActivationBlock(nn.Module):
    """norm-ReLU-conv-dropout-norm-ReLU-conv around a shortcut; [N, C, H, W]."""

    def __init__(self, before: int, after: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(before), nn.BatchNorm2d(after)
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.shortcut = None
        if stride > 1 or before != after:
            self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.norm1(x).relu()
        around = x if self.shortcut is None else self.shortcut(active)
        out: Tensor = around + self.conv2(self.dropout(self.norm2(self.conv1(active)).relu()))
        return out


class WideResNet(nn.Module):
    """Three stages of ``blocks`` blocks, [N, C, H, W] to logits [N, K]."""

    def __init__(self, inputs: int, classes: int, channels: tuple[int, ...], blocks: int, dropout: float) -> None:
        super().__init__()
        before, *after = channels
        self.stem = nn.Conv2d(inputs, before, 3, padding=1, bias=False)
        self.stages = nn.Sequential()
        for width, stride in zip(after, strides(len(after)), strict=True):
            sizes = [(before, stride)] + [(width, 1)] * (blocks - 1)
            self.stages.append(nn.Sequential(*(PreActivationBlock(wide, width, step, dropout) for wide, step in sizes)))
            before = width
        self.norm = nn.BatchNorm2d(before)
        self.classifier = nn.Linear(before, classes)
        self.taps = tuple(f"stages.{index}" for index in range(len(after)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stages(self.stem(x))).relu()
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


def wide_resnet28_8(input_shape: Shape, classes: int, config: TeacherConfig) -> nn.Module:
    """WRN-28-8 for 32x32 images: stem of 16 and stages of 128-256-512 channels, four blocks each, optional dropout."""
    channels = widths(config, (16, 128, 256, 512), "wide_resnet28_8")
    inputs = image_shape(input_shape, "wide_resnet28_8")[0]
    net = WideResNet(inputs, classes, channels, 4, config.dropout)
    initialise_convolutions(net)
    return net
