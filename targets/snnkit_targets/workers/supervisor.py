"""The owner of a workplace: it runs commands for a parent process, and outlives it by just enough to tidy up.

Usage: ``python -I -S supervisor.py FOLDER PARENT_PID``. It makes FOLDER, answers ``ready``, then reads one JSON
``{"command": [...], "environment": {...}}`` a line and answers ``started PID`` and ``exited CODE``. When the parent
says ``end``, closes the pipe or dies, whatever still runs is ended, shared memory whose name starts with FOLDER's name
is unlinked, and FOLDER is removed. Commands see neither this pipe nor the parent's output: theirs goes to FOLDER.

Standard library only. Linux: as a child subreaper it inherits every process that its commands leave behind.
"""

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
POLL = 0.05  # seconds between two looks at the parent and the command
GRACE = 0.7  # seconds from SIGTERM to SIGKILL, in which multiprocessing's resource tracker unlinks what was leaked
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lives, not a place for temporary files


class Ended(Exception):  # noqa: N818 - a message, not an error
    """The parent wants no more, or is gone, or this process was told to end."""


class Supervisor:
    """Reads requests on descriptor 0, answers on descriptor 1."""

    def __init__(self, folder: Path, parent: int) -> None:
        self.folder = folder
        self.parent = parent
        self.pending = b""
        self.group = 0  # the process group of the last command, 0 before the first

    def serve(self) -> None:
        """Answers requests until :class:`Ended`."""
        self.answer("ready")
        while True:
            while b"\n" not in self.pending:
                self.listen(POLL * 10)
            line, _, self.pending = self.pending.partition(b"\n")
            self.execute(json.loads(line))

    def listen(self, seconds: float) -> None:
        """Waits that long for input; raises :class:`Ended` if the parent wants or can have no more."""
        if select.select([0], [], [], seconds)[0]:
            received = os.read(0, 65536)
            self.pending += received
            if not received or self.pending.endswith(b"end\n"):
                raise Ended
        # a process forked by the parent may hold the pipe open after the parent's death
        if os.getppid() != self.parent:
            raise Ended

    def execute(self, request: dict[str, Any]) -> None:
        """Runs one command in a session of its own, ends what it left behind, and reports how it ended."""
        try:
            with open(self.folder / "stdout", "wb") as out, open(self.folder / "stderr", "wb") as err:  # noqa: PTH123
                process = subprocess.Popen(
                    request["command"],
                    env=request["environment"],
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    start_new_session=True,
                )
        except OSError as error:
            self.answer(f"failed {error}")
            return
        self.group = process.pid
        self.answer(f"started {process.pid}")
        # without reaping: as long as the leader is a zombie, its group's number is not given to anybody else
        while (ended := os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is None:
            self.listen(POLL)
        process.returncode = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        end_processes(self.group)
        self.answer(f"exited {process.returncode}")

    def answer(self, text: str) -> None:
        try:
            os.write(1, f"{text}\n".encode())
        except BrokenPipeError:
            raise Ended from None


def end_processes(group: int) -> None:
    """Ends a process group and whatever became a child of this process: SIGTERM, a moment's grace, SIGKILL."""
    deadline = time.monotonic() + GRACE
    told: set[int] = set()
    signal_all([-group] if group else [], signal.SIGTERM)
    while not nothing_left():
        if time.monotonic() < deadline:
            strays = set(children(outside=group)) - told
            signal_all(strays, signal.SIGTERM)
            told |= strays
        else:
            signal_all([*([-group] if group else []), *children()], signal.SIGKILL)
        time.sleep(POLL / 5)


def signal_all(targets: Iterable[int], number: int) -> None:
    """Signals processes (positive) and process groups (negative), some of which may be gone."""
    for target in targets:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(target, number)


def children(outside: int = 0) -> list[int]:
    """The living children of this process that are not in the process group ``outside``, from /proc."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(parent) == os.getpid() and int(group) != outside and state != "Z":
                found.append(int(entry.name))
    return found


def nothing_left() -> bool:
    """Collects the exit codes that are there; whether this process has no child any more."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


def tidy(folder: Path) -> None:
    """Unlinks the shared memory and semaphores that carry the folder's name, then removes the folder."""
    for entry in SHARED_MEMORY.glob("*"):
        if entry.name.startswith((folder.name, f"sem.{folder.name}")):
            entry.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    folder, parent = Path(sys.argv[1]), int(sys.argv[2])

    def stop(*_: object) -> None:
        raise Ended

    def ignore(*_: object) -> None:  # unlike SIG_IGN, not inherited by the commands
        pass

    supervisor = Supervisor(folder, parent)
    ending = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    try:
        for number in ending:
            signal.signal(number, stop)
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        folder.mkdir(mode=0o700)
        supervisor.serve()
    except Ended:
        pass
    finally:
        for number in ending:
            signal.signal(number, ignore)
        end_processes(supervisor.group)
        tidy(folder)


if __name__ == "__main__":
    main()
