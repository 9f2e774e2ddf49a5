"""A workplace: a temporary folder and processes that end, with all they left behind, when their parent is done or dead.

Between this process and the commands stands a supervisor (``workers/supervisor.py``) in a session of its own. It sees
this process end in whatever way, SIGKILL included, then ends the commands' process group, unlinks the shared memory
that carries the folder's name, and removes the folder. Linux only.
"""

import contextlib
import json
import os
import re
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from snnkit.errors import WorkerError, WorkerTimeoutError

SUPERVISOR = Path(__file__).parent / "workers" / "supervisor.py"
STARTING = 20.0  # seconds in which the supervisor must be ready
ENDING = 3.0  # seconds for it to tidy up: 0.7 s of grace for SIGTERM, then SIGKILL
GRACE = 0.7
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lives, not a place for temporary files
TAIL = 4000  # characters of stderr that an error carries
_ERROR_LINE = re.compile(r"^(\w+\.)*(\w*(Error|Exception|Interrupt)|error|fatal)\b", re.IGNORECASE)


@contextlib.contextmanager
def workplace() -> Iterator["Workplace"]:
    """A :class:`Workplace`; afterwards nothing of it is left, whichever way the block ends."""
    place = Workplace()
    try:
        place.open()
        yield place
    finally:
        place.close()


class Workplace:
    """Runs commands one after the other in ``folder``; made by :func:`workplace`."""

    def __init__(self) -> None:
        # shared memory named after the folder is unlinked at the end, so the name must be nobody else's
        self.folder = Path(tempfile.gettempdir(), f"snnkit-{os.getpid()}-{secrets.token_hex(6)}")
        self._group = 0
        self._name = ""
        self._pending = b""
        self._supervisor = subprocess.Popen(
            [sys.executable, "-I", "-S", str(SUPERVISOR), str(self.folder), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def open(self) -> None:
        """Waits until the folder is there."""
        if self._answer(time.monotonic() + STARTING)[0] != "ready":
            raise WorkerError("the worker's supervisor did not start", f"is '{self.folder.parent}' writable?")

    def run(self, command: Sequence[str], environment: Mapping[str, str], seconds: float, name: str) -> str:
        """Runs a command to its end and returns its stdout; processes that it leaves behind are ended.

        Raises :class:`WorkerError` where it fails or dies, :class:`WorkerTimeoutError` after ``seconds``; both carry
        the last of its stderr as a note. ``name`` is what the messages call it.
        """
        deadline = time.monotonic() + seconds
        self.start(command, environment, name)
        while (output := self.poll(deadline - time.monotonic())) is None:
            if time.monotonic() >= deadline:
                raise self.timeout(f"{name} did not finish within {seconds:g} s")
        return output

    def start(self, command: Sequence[str], environment: Mapping[str, str], name: str) -> None:
        """Starts a command; :meth:`poll` says what became of it."""
        self._name = name
        request = json.dumps({"command": [str(part) for part in command], "environment": dict(environment)})
        assert self._supervisor.stdin
        with contextlib.suppress(BrokenPipeError):  # then there is no answer, either
            self._supervisor.stdin.write(f"{request}\n".encode())
            self._supervisor.stdin.flush()

    def poll(self, seconds: float) -> str | None:
        """The stdout of the command once it has ended well, None if nothing was heard of it for ``seconds``."""
        what, detail = self._answer(time.monotonic() + seconds)
        match what:
            case "timeout":
                return None
            case "started":
                self._group = int(detail)
                return None
            case "exited" if detail == "0":
                return (self.folder / "stdout").read_text(errors="replace")
            case "exited":
                raise self._failure(self._name, int(detail))
            case "failed":
                raise WorkerError(f"{self._name} could not be started: {detail}", "check the installation")
        message = f"{self._name} was stopped: its supervisor is gone"
        raise WorkerError(message, "it was killed from outside, or memory ran out; run it again")

    def timeout(self, message: str) -> WorkerTimeoutError:
        """The error of a command that takes too long, with the last of its stderr."""
        error = WorkerTimeoutError(message, "raise the time limit, or give it less to do")
        self._noted(error)
        return error

    def close(self) -> None:
        """Ends everything. If a signal interrupts this, the supervisor finishes it alone."""
        supervisor = self._supervisor
        assert supervisor.stdin
        assert supervisor.stdout
        try:
            with contextlib.suppress(OSError):
                supervisor.stdin.write(b"end\n")
                supervisor.stdin.flush()
            with contextlib.suppress(OSError):
                supervisor.stdin.close()
            supervisor.wait(ENDING)
        except subprocess.TimeoutExpired:
            supervisor.kill()
            supervisor.wait()
        finally:
            supervisor.stdout.close()
        if supervisor.returncode != 0:
            self._tidy()

    def _answer(self, deadline: float) -> tuple[str, str]:
        """The supervisor's next answer, ``timeout`` at the deadline, ``gone`` if it will not answer any more."""
        assert self._supervisor.stdout
        output = self._supervisor.stdout.fileno()
        poll = select.poll()
        poll.register(output, select.POLLIN)
        while b"\n" not in self._pending:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return "timeout", ""
            received = os.read(output, 65536)
            if not received:
                return "gone", ""
            self._pending += received
        line, _, self._pending = self._pending.partition(b"\n")
        what, _, detail = line.decode(errors="replace").partition(" ")
        return what, detail

    def _failure(self, name: str, code: int) -> WorkerError:
        line = _last_error(self._stderr())
        if not line and code < 0:
            message = f"{name} was killed by {signal.Signals(-code).name}"
            return WorkerError(message, "it was killed from outside, or memory ran out; run it again")
        message = f"{name} failed: {line or f'exit code {code}'}"
        return self._noted(WorkerError(message, "its whole message stands in the traceback, which -v shows"))

    def _noted(self, error: WorkerError) -> WorkerError:
        if text := self._stderr().strip():
            error.add_note(f"the end of its stderr:\n{text}")
        return error

    def _stderr(self) -> str:
        with contextlib.suppress(OSError), (self.folder / "stderr").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            return file.read().decode(errors="replace")
        return ""

    def _tidy(self) -> None:
        """What the supervisor would have done, had it not been killed."""
        deadline = time.monotonic() + GRACE
        number: int = signal.SIGTERM
        while self._group and time.monotonic() < deadline + GRACE:
            try:
                os.killpg(self._group, number)
            except (ProcessLookupError, PermissionError):
                break
            time.sleep(GRACE / 10)
            number = signal.SIGKILL if time.monotonic() > deadline else 0
        for entry in SHARED_MEMORY.glob("*"):
            if entry.name.startswith((self.folder.name, f"sem.{self.folder.name}")):
                entry.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def _last_error(stderr: str) -> str:
    """The last line that names an error, as Python and uv write it; empty if there is none."""
    lines = [line.strip() for line in stderr.splitlines() if _ERROR_LINE.match(line)]
    return lines[-1][:300] if lines else ""
