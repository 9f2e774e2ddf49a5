"""The entry point: signals, errors in two lines, exit codes (0 yes, 1 no, 2 could not answer, 130 Ctrl-C)."""

import codecs
import io
import os
import signal
import sys
import traceback
from typing import Any, NoReturn

import typer

from snnkit.cli.output import printable
from snnkit.errors import SnnkitError, did_you_mean

# typer carries its own copy of click; its base classes are reached through the one that typer exports
UsageProblem: Any = typer.BadParameter.__mro__[1]
ClickProblem: Any = typer.BadParameter.__mro__[2]


def main() -> NoReturn:
    """Runs the command line and exits."""
    codecs.register_error("spell", _spell)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="spell")
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run(sys.argv[1:]))


def _terminate(number: int, frame: object) -> NoReturn:  # noqa: ARG001 - the signature of a signal handler
    raise SystemExit(128 + number)  # an exception, so that workers are ended on the way out


def _spell(error: UnicodeError) -> tuple[str, int]:
    """What a terminal without these characters shows in their place."""
    assert isinstance(error, UnicodeEncodeError)
    return "".join({"µ": "u"}.get(c, "?") for c in error.object[error.start : error.end]), error.end


def run(arguments: list[str]) -> int:
    """Runs one command; returns its exit code."""
    from snnkit.cli.commands import app

    try:
        return int(app(arguments, prog_name="snnkit", standalone_mode=False) or 0)
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone: `snnkit ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except UsageProblem as error:
        # the guesses that are appended to some messages belong into the hint
        message = error.message if hasattr(error, "possibilities") else error.format_message()
        return _report(message.partition(" Did you mean")[0], _usage_hint(error))
    except ClickProblem as error:
        return _report(error.format_message(), "see 'snnkit --help'")
    except SnnkitError as error:
        _trace(arguments)
        return _report(str(error), error.hint)
    except Exception as error:
        _trace(arguments)
        return _report(
            f"unexpected {type(error).__name__}: {error}",
            "this is a fault of snnkit; run it again with -v and report it",
        )


def _trace(arguments: list[str]) -> None:
    if {"-v", "--verbose"} & set(arguments):
        traceback.print_exc()


def _usage_hint(error: Any) -> str:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "snnkit"
    possibilities = getattr(error, "possibilities", None)
    option = getattr(error, "option_name", None)
    if option is not None:
        options = [name for parameter in context.command.params for name in parameter.opts] if context else []
        near = did_you_mean(option, possibilities or [name for name in options if name.startswith("--")])
        return f"{near}; see '{path} --help'".replace("?;", "?")
    commands = getattr(getattr(context, "command", None), "commands", None)
    if commands and error.message.lower().startswith("no such command"):
        return did_you_mean(error.message.split("'")[1], commands)
    return f"see '{path} --help'"


def _report(message: str, hint: str) -> int:
    """Two lines on stderr, whatever the texts hold."""
    for label, text in (("error", message), ("hint", hint)):
        print(f"{label}: {printable(' '.join(text.split()).rstrip('.'))}", file=sys.stderr)
    return 2
