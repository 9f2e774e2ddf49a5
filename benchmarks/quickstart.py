"""Wall time and peak memory of `snnkit quickstart`, its process tree included: cold and warm.

Cold starts without Lava's environment (uv's cache of packages stays), warm with it. Linux only: memory is the sum of
the proportional set sizes of all processes, sampled ten times a second.

    python benchmarks/quickstart.py [--quick] [--json]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

LIMIT_SECONDS = 90.0
LIMIT_BYTES = 3e9
INTERVAL = 0.1


def tree_memory(root: psutil.Process) -> int:
    """Bytes held by a process and everything below it; shared pages count once."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it ended while we looked
    return total


def measure(command: list[str]) -> dict[str, float]:
    """Runs a command to its end; its seconds and the peak bytes of its process tree."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        root, peak = psutil.Process(child.pid), 0
        while child.poll() is None:
            try:
                peak = max(peak, tree_memory(root))
            except psutil.NoSuchProcess:
                break
            time.sleep(INTERVAL)
        output = child.stdout.read() if child.stdout else ""
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {child.returncode}:\n{output}")
    return {"seconds": time.perf_counter() - start, "peak_bytes": float(peak)}


def main() -> int:
    """Measures, prints, and says whether the limits hold."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="warm only")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    snnkit = str(Path(sys.executable).with_name("snnkit"))
    results = {}
    for name in ["warm"] if arguments.quick else ["cold", "warm"]:
        if name == "cold":
            subprocess.run([snnkit, "doctor", "--remove-lava"], check=True, stdout=subprocess.DEVNULL)
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measure([snnkit, "quickstart", "-q", "-o", f"{folder}/run"])
    passed = all(r["seconds"] <= LIMIT_SECONDS and r["peak_bytes"] <= LIMIT_BYTES for r in results.values())
    if arguments.json:
        print(json.dumps({"results": results, "passed": passed}))
    else:
        for name, result in results.items():
            print(f"{name}: {result['seconds']:.1f} s, peak {result['peak_bytes'] / 1e9:.2f} GB")
        if len(results) == 2:
            print(f"cold / warm: {results['cold']['seconds'] / results['warm']['seconds']:.2f}")
        print(f"limits {LIMIT_SECONDS:.0f} s and {LIMIT_BYTES / 1e9:.0f} GB: {'held' if passed else 'NOT HELD'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
