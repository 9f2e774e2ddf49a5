"""Definitions as YAML files: those that come with snnkit are found by name, a user's by its path."""

import os
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from snnkit.errors import ConfigError, UsageError, did_you_mean

Definition = TypeVar("Definition", bound=BaseModel)


def shipped(folder: str) -> list[str]:
    """The names of the files in a folder beside this module."""
    entries = (resources.files("snnkit.analysis") / folder).iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def load_definition(form: type[Definition], folder: str, what: str, name_or_path: str | os.PathLike[str]) -> Definition:
    """The definition of that name, or in the YAML file at that path; ``what`` is what messages call it.

    Raises :class:`UsageError` for an unknown name or a missing file, :class:`ConfigError` for a file that is not of
    this form, naming every key that is wrong.
    """
    name = os.fspath(name_or_path)
    if name in shipped(folder):
        text = (resources.files("snnkit.analysis") / folder / f"{name}.yaml").read_text("utf-8")
        return _parse(form, text, f"{what} '{name}'")
    path = Path(name)
    if path.suffix not in (".yaml", ".yml") and not path.is_file():
        raise UsageError(f"there is no {what} '{name}'", did_you_mean(name, shipped(folder)))
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the {what} '{name}' cannot be read ({error})", "check the path") from None
    return _parse(form, text, f"{what} '{name}'")


def _parse(form: type[Definition], text: str, called: str) -> Definition:
    try:
        content: Any = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{called} is not YAML: {error}", "correct the file") from None
    try:
        return form.model_validate(content)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in error.errors()]
        raise ConfigError(
            f"{called} is not valid: " + "; ".join(problems),
            "correct these keys; those that come with snnkit show the form",
        ) from None
