"""Any classifier of torchvision as the teacher: ``torchvision:NAME``."""

from typing import Any

import torch
from torch import Tensor, nn

from snnkit.config import TeacherConfig
from snnkit.errors import ConfigError, UnavailableError, did_you_mean

PREFIX = "torchvision:"
STAGES = ("layer1", "layer2", "layer3", "layer4")  # what its ResNets call their stages


def torchvision_teacher(classes: int, config: TeacherConfig) -> nn.Module:
    """The classifier that ``config.model`` names; with ``pretrained`` torchvision's own weights.

    Those know their own classes: other ones need ``replace_head``, which puts an untrained last layer in their place.
    Pretrained models get their images as they were trained, with mean and deviation taken out.
    """
    from torchvision import models

    name = config.model.removeprefix(PREFIX)
    names = models.list_models(module=models)
    if name not in names:
        raise ConfigError(f"torchvision has no classifier '{name}'", did_you_mean(name, names))
    if not config.pretrained:
        return _tapped(models.get_model(name, weights=None, num_classes=classes))
    weights = models.get_model_weights(name).DEFAULT
    known = len(weights.meta["categories"])
    if known != classes and not config.replace_head:
        raise ConfigError(
            f"torchvision's weights of '{name}' know {known} classes, the data set has {classes}",
            "set teacher.replace_head to train a new last layer, or give a teacher.checkpoint",
        )
    try:
        model = models.get_model(name, weights=weights)
    except Exception as error:  # whatever the download raises
        raise UnavailableError(
            f"the weights of '{name}' cannot be fetched: {' '.join(str(error).split())}",
            "give teacher.checkpoint, or try again with a connection",
        ) from None
    if config.replace_head:
        replace_head(model, classes)
    preset = weights.transforms()
    standardised(model, tuple(preset.mean), tuple(preset.std))
    return _tapped(model)


def replace_head(model: nn.Module, classes: int) -> None:
    """Puts an untrained linear layer of ``classes`` outputs in the place of the last one."""
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ConfigError("the model has no linear layer to replace", "choose another teacher")
    name, last = linear[-1]
    parent, _, leaf = name.rpartition(".")
    head = nn.Linear(last.in_features, classes, bias=last.bias is not None)
    setattr(model.get_submodule(parent), leaf, head)


def standardised(model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> nn.Module:
    """Takes ``mean`` and ``std`` of each channel out of what enters ``model``; its weights keep their names."""

    def before(_module: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
        x = args[0]
        mean_, std_ = (torch.tensor(values, dtype=x.dtype, device=x.device)[:, None, None] for values in (mean, std))
        return (x - mean_) / std_

    model.register_forward_pre_hook(before)
    return model


def _tapped(model: Any) -> nn.Module:
    if all(hasattr(model, stage) for stage in STAGES):
        model.taps = STAGES
    found: nn.Module = model
    return found
