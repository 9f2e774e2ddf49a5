"""The command line: parse, call one function, print. Data goes to stdout, everything else to stderr.

Nothing but typer is imported before a command runs, so that ``snnkit --help`` is quick.
"""

from snnkit.cli.main import main

__all__ = ["main"]
