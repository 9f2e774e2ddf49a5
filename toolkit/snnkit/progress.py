"""A bar on stderr while chunks of samples are computed, where stderr is a terminal."""

import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def advancing(items: Sequence[Item], what: str) -> Iterator[Item]:
    """The items, with a bar called ``what`` if there are several and someone watches."""
    if len(items) < 2 or not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, what, console=Console(stderr=True), transient=True)
