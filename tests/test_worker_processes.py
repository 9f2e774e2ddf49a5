"""Workers that die, raise or hang, and parents that are killed: nothing is left behind."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from snnkit.errors import WorkerError, WorkerTimeoutError
from snnkit_targets._processes import Workplace, workplace

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the supervisor needs Linux")

MARGIN = 5.0  # seconds that an ending may take
MARK = "SNNKIT_TEST_MARK"

# A worker as bad as they come: a child that ignores SIGTERM and one in a session of its own, each with shared memory,
# one segment tracked, one that only its name can find, and a semaphore.
HANGS = """
import multiprocessing, os, secrets, signal, sys, time
from multiprocessing import shared_memory
from pathlib import Path
prefix = Path.cwd().name
multiprocessing.current_process()._config["semprefix"] = "/" + prefix
def child(number):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if number:
        os.setsid()
    Path(sys.argv[1], f"child-{number}").touch()
    time.sleep(3600)
for number in range(2):
    multiprocessing.get_context("fork").Process(target=child, args=(number,)).start()
tracked = shared_memory.SharedMemory(create=True, size=64)
Path("/dev/shm", prefix + "-untracked").write_bytes(b"x")
semaphore = multiprocessing.get_context("spawn").Semaphore(1)
while len(list(Path(sys.argv[1]).glob("child-*"))) < 2:
    time.sleep(0.01)
Path(sys.argv[1], "pid").write_text(f"{os.getpid()} {prefix} {tracked.name}")
Path(sys.argv[1], "ready").touch()
time.sleep(3600)
"""

PARENT = """
import os, signal, sys, time
from pathlib import Path
from snnkit_targets._processes import workplace
def terminate(number, frame):
    raise SystemExit(128 + number)
signal.signal(signal.SIGTERM, terminate)
try:
    with workplace() as place:
        if "fork" in sys.argv and os.fork() == 0:  # a child that holds the pipe's end, as a data loader's would
            time.sleep(8)
            os._exit(0)
        place.run([sys.executable, sys.argv[1], sys.argv[2]], os.environ, 600, "the worker")
except KeyboardInterrupt:
    sys.exit(130)
"""


def marked() -> list[psutil.Process]:
    """The processes that carry this test's mark in their environment, this one excepted."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            environ = Path(f"/proc/{process.pid}/environ").read_bytes()
            if process.pid != os.getpid() and f"{MARK}={os.environ[MARK]}".encode() in environ:
                found.append(process)
    return found


def wait_for(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for scripts and signs; afterwards no process, shared memory or temporary folder may be left."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv(MARK, tmp_path.name + str(os.getpid()))
    yield tmp_path
    wait_for(lambda: not marked(), MARGIN)
    assert list(temporary.iterdir()) == []
    if (tmp_path / "pid").exists():
        _, prefix, tracked = (tmp_path / "pid").read_text().split()
        assert [
            entry.name for entry in Path("/dev/shm").iterdir() if prefix in entry.name or entry.name == tracked
        ] == []


def script(bench: Path, text: str, name: str = "worker.py") -> Path:
    path = bench / name
    path.write_text(textwrap.dedent(text))
    return path


def run(place: Workplace, bench: Path, text: str, seconds: float = 30.0) -> str:
    return place.run([sys.executable, str(script(bench, text)), str(bench)], os.environ, seconds, "the worker")


def when_ready(bench: Path, action) -> threading.Thread:
    """Runs ``action(pid of the worker)`` in a thread as soon as the worker hangs."""

    def act() -> None:
        wait_for((bench / "ready").exists)
        action(int((bench / "pid").read_text().split()[0]))

    thread = threading.Thread(target=act)
    thread.start()
    return thread


def test_commands_run_one_after_the_other_in_the_folder(bench: Path) -> None:
    with workplace() as place:
        assert run(place, bench, "open('sign', 'w').write('1'); print('first')") == "first\n"
        assert run(place, bench, "print(open('sign').read())") == "1\n"
        assert (place.folder / "sign").read_text() == "1"


def test_a_worker_sees_no_pipe_of_the_parent(bench: Path) -> None:
    text = "import os; print([os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd') if int(n) < 3])"
    with workplace() as place:
        assert "pipe:" not in run(place, bench, text)


def test_processes_left_by_a_worker_that_ends_well_are_ended(bench: Path) -> None:
    text = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)'])"
    with workplace() as place:
        run(place, bench, text)
        assert len(marked()) == 1  # the supervisor


def test_much_output_does_not_block(bench: Path) -> None:
    with workplace() as place:
        text = "import sys; sys.stderr.write('x' * 2_000_000); sys.stdout.write('y' * 2_000_000)"
        assert len(run(place, bench, text)) == 2_000_000


def test_a_worker_that_raises(bench: Path) -> None:
    with pytest.raises(WorkerError, match="the worker failed: ValueError: 17 is odd") as caught, workplace() as place:
        run(place, bench, "raise ValueError('17 is odd')")
    assert "Traceback" in caught.value.__notes__[0]


def test_a_worker_that_only_exits(bench: Path) -> None:
    with pytest.raises(WorkerError, match="the worker failed: exit code 3"), workplace() as place:
        run(place, bench, "raise SystemExit(3)")


def test_a_command_that_does_not_exist(bench: Path) -> None:
    with workplace() as place:
        with pytest.raises(WorkerError, match="could not be started"):
            place.run(["/does/not/exist"], os.environ, 10, "the worker")
        assert run(place, bench, "print(1)") == "1\n"


def test_a_worker_that_hangs(bench: Path) -> None:
    started = time.monotonic()
    with pytest.raises(WorkerTimeoutError, match="did not finish within 2 s"), workplace() as place:
        run(place, bench, HANGS, seconds=2)
    assert time.monotonic() - started < 2 + MARGIN
    assert (bench / "ready").exists()


def test_a_worker_that_is_killed(bench: Path) -> None:
    thread = when_ready(bench, lambda pid: os.kill(pid, signal.SIGKILL))
    with pytest.raises(WorkerError, match="the worker was killed by SIGKILL"), workplace() as place:
        run(place, bench, HANGS)
    thread.join()


def test_a_supervisor_that_is_killed(bench: Path) -> None:
    with pytest.raises(WorkerError, match="its supervisor is gone"), workplace() as place:
        thread = when_ready(bench, lambda _: os.kill(place._supervisor.pid, signal.SIGKILL))
        run(place, bench, HANGS.replace("os.setsid()", "pass"))  # only the supervisor could have found that one
    thread.join()


def parent(bench: Path, *arguments: str) -> subprocess.Popen[bytes]:
    worker, program = script(bench, HANGS), script(bench, PARENT, "parent.py")
    ignored = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a suite under nohup would hand it on
    try:
        process = subprocess.Popen([sys.executable, str(program), str(worker), str(bench), *arguments])
    finally:
        signal.signal(signal.SIGHUP, ignored)
    wait_for((bench / "ready").exists)
    return process


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9), (signal.SIGHUP, -1)]
)
def test_a_parent_that_is_signalled(bench: Path, number: int, code: int) -> None:
    process = parent(bench)
    process.send_signal(number)
    assert process.wait(MARGIN) == code


def test_a_parent_that_is_killed_while_its_fork_holds_the_pipe(bench: Path) -> None:
    process = parent(bench, "fork")
    fork = [p for p in psutil.Process(process.pid).children() if "supervisor.py" not in " ".join(p.cmdline())]
    process.kill()
    process.wait(MARGIN)
    wait_for(lambda: {p.pid for p in marked()} <= {p.pid for p in fork}, MARGIN)
    for child in fork:
        child.kill()


def test_a_second_signal_while_the_first_is_handled(bench: Path) -> None:
    process = parent(bench)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(MARGIN) == 143


def test_foreign_shared_memory_stays(bench: Path) -> None:
    foreign = Path("/dev/shm", f"foreign-{os.getpid()}")
    foreign.touch()
    try:
        with workplace() as place:
            run(place, bench, "print(1)")
        assert foreign.exists()
    finally:
        foreign.unlink()
