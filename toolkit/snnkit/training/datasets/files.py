"""Where the files of data sets lie, and what to say when they do not."""

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from snnkit.config import DataConfig
from snnkit.errors import DataError, UnavailableError


def cache_folder() -> Path:
    """The user's cache for data: XDG_CACHE_HOME or ~/.cache, ~/Library/Caches on macOS, %LOCALAPPDATA% on Windows."""
    home = Path.home()
    if sys.platform == "darwin":
        base = home / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return base / "snnkit" / "data"


def roots(root: str | None) -> list[Path]:
    """Where data are looked for, in order: ``root``, SNNKIT_DATA, the cache folder."""
    named = [root, os.environ.get("SNNKIT_DATA")]
    return [*(Path(path).expanduser() for path in named if path), cache_folder()]


def find(
    config: DataConfig,
    folders: Sequence[str],
    files: Sequence[str],
    download: Callable[[Path], object] | None = None,
) -> Path:
    """The first folder (one of ``folders`` in a root, or the root) that holds all ``files``.

    ``files`` are patterns, which may list alternatives: ``a|*.b``. Where there is none and the configuration allows it,
    ``download`` is called with the first root. Raises :class:`DataError` with the files and where to put them.
    """

    def complete(folder: Path) -> bool:
        return all(any(any(folder.glob(name)) for name in file.split("|")) for file in files)

    def search() -> Path | None:
        places = [root / folder for root in roots(config.root) for folder in (*folders, "")]
        return next((place for place in places if complete(place)), None)

    found = search()
    target = roots(config.root)[0]
    names = ", ".join(file.replace("|", " or ") for file in files)
    wanted = f"put {names} into {target / folders[0] if folders else target}"
    if found is None and config.download and download is not None:
        try:
            target.mkdir(parents=True, exist_ok=True)
            download(target)
        except (OSError, RuntimeError) as error:  # urllib's URLError is an OSError
            reason = " ".join(str(error).split())
            raise UnavailableError(f"'{config.name}' cannot be downloaded: {reason}", wanted) from None
        found = search()
    if found is None:
        looked = ", ".join(str(root) for root in roots(config.root))
        remedy = f"{wanted}, or set data.root or SNNKIT_DATA"
        if download is not None and not config.download:
            remedy += ", or set data.download to true"
        raise DataError(f"the files of '{config.name}' are not there; looked in {looked}", remedy)
    return found


def damaged(path: Path, reason: str) -> DataError:
    """The error for a file that cannot be what it should."""
    return DataError(f"'{path}' is damaged: {reason}", "remove it and get it again")


def checked_bytes(path: Path, md5: str) -> bytes:
    """The content of a file whose MD5 must be the published one."""
    content = path.read_bytes()
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise damaged(path, f"its MD5 is {found}, the published one {md5}")
    return content
