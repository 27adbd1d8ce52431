"""Start-up time of the command line: median over whole processes, compared with an empty Python.

python benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "slimvit --help": ["-m", "slimvit", "--help"],
    "slimvit recipes list": ["-m", "slimvit", "recipes", "list"],
    "slimvit prune --help": ["-m", "slimvit", "prune", "--help"],
}
RUNS = 11


def seconds(arguments: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    lines = [f"# Start-up time, seconds, median of {RUNS} (smallest, largest)", "", "| command | s |", "| --- | --- |"]
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(RUNS + 1):  # the first round warms the disk
        for name, arguments in COMMANDS.items():
            times[name].append(seconds(arguments))
    for name, every in times.items():
        counted = every[1:]
        lines.append(f"| {name} | {statistics.median(counted):.2f} ({min(counted):.2f}-{max(counted):.2f}) |")
    text = "\n".join(lines) + "\n"
    (Path(__file__).parent / "results" / "startup.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
