"""Networks made elsewhere, into the same way: a .nir file, or a torch module of SpikingJelly neurons."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import h5py

from snnkit.errors import ConfigError, UsageError
from snnkit.interchange import nir_read
from snnkit.interchange.nir_read import Choices, Imported
from snnkit.network import Network, save
from snnkit.pipeline import first_samples, load, load_samples
from snnkit.quantization import CALIBRATION, Quantization, quantize


def import_nir(path: str | os.PathLike[str], choices: Choices | None = None) -> Imported:
    """The network in a .nir file; see :func:`snnkit.interchange.nir_read.read`."""
    return nir_read.read(path, choices)


def import_module(
    name: str,
    input_shape: Sequence[int],
    *,
    timesteps: int,
    weights: str | os.PathLike[str] | None = None,
    encoding: Literal["direct", "events"] = "direct",
) -> Network:
    """The float network of the module that ``module:function`` returns, with the weights of a file.

    Weights are a state dict, in safetensors or a torch file without pickled code. Raises :class:`ConfigError` where
    they or the function are missing, :class:`UnsupportedError` with everything that cannot be lowered.
    """
    from torch import nn

    from snnkit.config import resolve
    from snnkit.training.checkpoint import load_weights
    from snnkit.training.lower import lower

    try:
        models: dict[str, Callable[[], object]] = {}
        model = resolve(name, models, "model")()
    except TypeError as error:
        raise ConfigError(f"the model '{name}' cannot be made: {error}", "give a function without arguments") from None
    if not isinstance(model, nn.Module):
        raise ConfigError(f"the model '{name}' returned {type(model).__name__}", "return a torch.nn.Module")
    if weights is not None:
        load_weights(model, Path(weights))
    source = {"format": "torch", "module": name, "weights": None if weights is None else Path(weights).name}
    return lower(model, input_shape, timesteps=timesteps, encoding=encoding, metadata={"imported": source})


def import_to_file(
    source: str,
    output: str | os.PathLike[str],
    *,
    choices: Choices,
    weights: str | None = None,
    input_shape: str | None = None,
) -> Imported:
    """Imports a .nir file or a ``module:function`` and writes the network to ``output``, in one move.

    ``input_shape`` is ``C,H,W`` or ``N``, of a module. Raises :class:`UsageError` for options of the other kind.
    """
    if Path(output).is_dir():
        raise UsageError(f"'{output}' is a folder", "name the network file to write with -o")
    if ":" in source and not Path(source).exists():
        given = {"reset": choices.reset, "dt": choices.dt, "dialect": choices.dialect}
        if of_nir := [name for name, value in given.items() if value is not None]:
            raise UsageError(
                f"--{of_nir[0]} belongs to .nir files; the module '{source}' says it itself", "leave it out"
            )
        if input_shape is None or choices.timesteps is None:
            raise UsageError("a module says neither its input nor its timesteps", "give --input-shape and --timesteps")
        net = import_module(
            source,
            _shape(input_shape),
            timesteps=choices.timesteps,
            weights=weights,
            encoding=choices.encoding or "direct",
        )
        imported = Imported(net, exact=False)
    else:
        if weights is not None or input_shape is not None:
            raise UsageError("--weights and --input-shape belong to module:function", "leave them out")
        if Path(source).suffix.lower() != ".nir" and not h5py.is_hdf5(source):
            raise UsageError(f"'{source}' is no NIR file", "give FILE.nir, or module:function that returns a module")
        imported = import_nir(source, choices)
    save(imported.network, output)
    return imported


def quantize_file(
    path: str | os.PathLike[str],
    data: str | None,
    output: str | os.PathLike[str] | None = None,
    *,
    calibrate: int | None = None,
    **settings: Any,
) -> Quantization:
    """Quantises the float network of a file on the first ``calibrate`` (1,000) samples of ``data``; writes ``output``.

    ``data`` is a data set's name or ``x.npy[,y.npy]``, ``output`` by default ``NAME-integer.safetensors`` beside it,
    ``settings`` are those of :func:`snnkit.quantization.quantize`.
    """
    path = Path(path)
    net = load(path)
    if data is None:
        raise UsageError("a network file brings no calibration samples", "name them with --data NAME or x.npy[,y.npy]")
    samples = first_samples(net, load_samples(net, data), CALIBRATION if calibrate is None else max(1, calibrate))
    result = quantize(net, samples.x, samples.y, **settings)
    target = path.with_name(f"{path.stem}-integer.safetensors") if output is None else Path(output)
    return dataclasses.replace(result, path=save(result.network, target))


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError:
        shape = ()
    if len(shape) not in (1, 3) or min(shape) < 1:
        raise UsageError(f"--input-shape '{text}' is not a shape", "give C,H,W or N, as in 1,28,28")
    return shape
