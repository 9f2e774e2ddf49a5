"""Example saliency maps as a picture: a row an image, a column a network."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from snnkit.errors import UnavailableError
from snnkit.files import write_atomically


def draw(path: Path, images: Tensor, maps: Mapping[str, Tensor], labels: Mapping[str, Sequence[str]]) -> Path:
    """Writes a PNG of ``images`` [N, C, H, W] in 0..1 beside their maps [N, H, W], each map on its own scale.

    ``labels`` holds a caption an image for the column "image" and for each network. Raises
    :class:`UnavailableError` where matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UnavailableError(
            "the picture of example maps needs matplotlib", "install it: pip install 'snnkit[report]'"
        ) from None
    shown = images.movedim(1, -1) if images.shape[1] == 3 else images.mean(1)
    columns = {"image": shown, **maps}
    figure = Figure(figsize=(1.8 * len(columns), 1.95 * len(images)), layout="constrained")
    for row, axes in enumerate(figure.subplots(len(images), len(columns), squeeze=False)):
        for axis, (name, pictures) in zip(axes, columns.items(), strict=True):
            scale = {"cmap": "gray", "vmin": 0, "vmax": 1} if name == "image" else {"cmap": "magma", "vmin": 0}
            axis.imshow(pictures[row].numpy(), interpolation="nearest", **scale)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_xlabel(labels[name][row], fontsize=8)
            if row == 0:
                axis.set_title(name, fontsize=10)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return write_atomically(path, content.getvalue())
