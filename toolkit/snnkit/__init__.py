"""snnkit: distil, quantise, export and validate spiking networks before they go to neuromorphic hardware.

The functions here are what the command line calls. They are loaded when first used: ``import snnkit`` is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "check": "snnkit.pipeline",
    "count": "snnkit.analysis.counts",
    "distill": "snnkit.training.trainer",
    "estimate": "snnkit.analysis.energy",
    "evaluate": "snnkit.pipeline",
    "export": "snnkit.pipeline",
    "import_module": "snnkit.foreign",
    "import_nir": "snnkit.foreign",
    "load": "snnkit.pipeline",
    "load_chip": "snnkit.analysis.chips",
    "load_config": "snnkit.config",
    "load_dataset": "snnkit.training.data",
    "load_model": "snnkit.analysis.energy",
    "map_network": "snnkit.analysis.mapping",
    "lower": "snnkit.training.lower",
    "predictions": "snnkit.network",
    "quantize": "snnkit.pipeline",
    "run": "snnkit.pipeline",
    "save": "snnkit.network",
}
__all__ = sorted(_HOMES)

if TYPE_CHECKING:
    from snnkit.analysis.chips import load_chip as load_chip
    from snnkit.analysis.counts import count as count
    from snnkit.analysis.energy import estimate as estimate
    from snnkit.analysis.energy import load_model as load_model
    from snnkit.analysis.mapping import map_network as map_network
    from snnkit.config import load_config as load_config
    from snnkit.foreign import import_module as import_module
    from snnkit.foreign import import_nir as import_nir
    from snnkit.network import predictions as predictions
    from snnkit.network import save as save
    from snnkit.pipeline import check as check
    from snnkit.pipeline import evaluate as evaluate
    from snnkit.pipeline import export as export
    from snnkit.pipeline import load as load
    from snnkit.pipeline import quantize as quantize
    from snnkit.pipeline import run as run
    from snnkit.training.data import load_dataset as load_dataset
    from snnkit.training.lower import lower as lower
    from snnkit.training.trainer import distill as distill


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'snnkit' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
