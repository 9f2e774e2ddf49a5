"""What this machine has for snnkit, and how to get what it lacks."""

import os
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "torchvision", "spikingjelly", "onnx", "onnxruntime", "scikit-learn", "h5py", "uv")


@dataclass(frozen=True)
class Check:
    """One finding; ``fix`` says what to do where ``ok`` is false. ``optional``: snnkit works without it."""

    name: str
    ok: bool
    detail: str
    fix: str = ""
    optional: bool = False


def examine(*, remove_lava: bool = False) -> list[Check]:
    """Looks at everything; ``remove_lava`` first removes the Lava environment, to have it made anew."""
    from snnkit_targets import lava

    checks = [_python(), *map(_package, PACKAGES), _gpu()]
    if remove_lava:
        removed = lava.remove_environment()
        checks.append(Check("Lava environment", True, f"removed {removed}" if removed else "there was none"))
    else:
        checks += _lava()
    return [*checks, _data()]


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return Check("Python", sys.version_info >= (3, 11), found, "" if sys.version_info >= (3, 11) else "install 3.11")


def _package(name: str) -> Check:
    try:
        return Check(name, True, version(name))
    except PackageNotFoundError:
        return Check(name, False, "not installed", "install snnkit again: make setup")


def _gpu() -> Check:
    import torch

    if torch.cuda.is_available():
        return Check("GPU", True, torch.cuda.get_device_name(), optional=True)
    return Check("GPU", False, "none that torch can use", "not needed for small networks; see --device", optional=True)


def _lava() -> list[Check]:
    from snnkit_targets import lava

    if missing := lava.available():
        found, _, fix = missing.partition("; ")
        return [Check("Lava", False, found, fix, optional=True)]
    environment = lava.environment()
    if environment is None:
        fix = "made at the first 'run --target lava'"
        return [Check("Lava", True, "Python 3.10 found, environment not made yet", fix, optional=True)]
    versions = ", ".join(f"{name} {environment.versions[name]}" for name in lava.REQUIRED)
    return [Check("Lava", True, f"{versions} in {environment.prefix}", optional=True)]


def _data() -> Check:
    root = os.environ.get("SNNKIT_DATA")
    if root is None:
        return Check("data", True, "digits (with scikit-learn); SNNKIT_DATA is not set", optional=True)
    exists = Path(root).is_dir()
    return Check("data", exists, f"SNNKIT_DATA={root}", "" if exists else "the folder does not exist", optional=True)
