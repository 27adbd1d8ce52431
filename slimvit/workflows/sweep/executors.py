"""Executors of a sweep: this process, several processes on this machine, or a Ray cluster."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from slimvit.config.options import Options
from slimvit.config.recipe import Recipe
from slimvit.train.checkpoint import Interrupted
from slimvit.utils.errors import SlimvitError
from slimvit.utils.files import disk_errors, write_whole
from slimvit.workflows.run import run


@dataclass(frozen=True)
class Task:
    """One run, and the log file that explains it if it fails."""

    recipe: Recipe
    options: Options
    log_file: Path


class Executor(Protocol):
    """Runs tasks."""

    def submit(self, task: Task) -> Future[str | None]:
        """Queue a task. Its future returns None once the run folder is written, or the error in one line."""


def run_task(task: Task) -> str | None:
    """Carry out one run in this process, and return its error in one line or None; interrupts are raised."""
    try:
        run(task.recipe, task.options).context.engine.close()
    except Interrupted:
        raise
    except Exception as error:
        with disk_errors(task.log_file):
            task.log_file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(task.log_file, traceback.format_exc())
        return str(error) if isinstance(error, SlimvitError) else f"{type(error).__name__}: {error}".splitlines()[0]
    return None


class SerialExecutor(Executor):
    """One run after another in this process."""

    def submit(self, task: Task) -> Future[str | None]:
        future: Future[str | None] = Future()
        future.set_result(run_task(task))
        return future


class ProcessExecutor(Executor):
    """One process per run, `jobs` at a time; they share the cores and are spread over the GPUs."""

    def __init__(self, jobs: int) -> None:
        self.pool = ThreadPoolExecutor(jobs)
        self.threads = max(1, (os.cpu_count() or 1) // jobs)
        self.gpus: queue.Queue[int] = queue.Queue()
        count = torch.cuda.device_count()
        for i in range(jobs if count else 0):
            self.gpus.put(i % count)
        self.stdin, self.stdin_end = os.pipe()
        """Standard input of the runs: a pipe that closes with `stdin_end` or when this process is killed."""

    def submit(self, task: Task) -> Future[str | None]:
        return self.pool.submit(self._run_process, task)

    def stop(self) -> None:
        """Stop every run after it has saved its state. Runs do not get the Ctrl-C of the terminal."""
        self.pool.shutdown(wait=False, cancel_futures=True)  # first, so that no waiting run starts when one ends
        os.close(self.stdin_end)
        self.pool.shutdown()
        os.close(self.stdin)

    def _run_process(self, task: Task) -> str | None:
        recipe = task.log_file.with_suffix(".yaml")
        with disk_errors(task.log_file):
            task.log_file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(recipe, task.recipe.to_yaml())
            task.log_file.unlink(missing_ok=True)
            with self._gpu() as environment, task.log_file.open("x") as log_text:
                code = subprocess.run(
                    _command(task, recipe), stdin=self.stdin, stdout=subprocess.DEVNULL, stderr=log_text,
                    env=environment, start_new_session=True,
                ).returncode  # fmt: skip
            recipe.unlink()
            if code == 0:
                task.log_file.unlink()
        return None if code == 0 else _error_line(code, task.log_file)

    @contextmanager
    def _gpu(self) -> Iterator[dict[str, str]]:
        """The environment of one run, with the GPU that it holds meanwhile."""
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
        if self.gpus.empty():
            yield environment
            return
        gpu = self.gpus.get()
        try:
            yield environment | {"CUDA_VISIBLE_DEVICES": str(gpu)}
        finally:
            self.gpus.put(gpu)


def _command(task: Task, recipe: Path) -> list[str]:
    options = task.options
    words = [sys.executable, "-m", "slimvit", "run", str(recipe), "--out", str(options.out), *options.flags()]
    words += ["--ends-with-stdin"]
    words += ["--resume"] if options.resume else []
    return words + (["--cache", str(options.cache)] if options.cache else [])


def _error_line(code: int, log_file: Path) -> str:
    """The last line of the log file, or the signal or exit code of a process that wrote none."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines = [line for line in log_file.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("Error: ") if lines else f"ended with exit code {code}"


class RayExecutor(Executor):
    """A Ray cluster, by default a local one. All machines of the cluster must see the sweep folder."""

    def __init__(self) -> None:
        try:
            import ray
        except ImportError:
            raise SlimvitError("engine ray: the package is not installed; pip install 'slimvit[ray]'") from None
        if not ray.is_initialized():
            ray.init(log_to_driver=False)
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        self.run_task = ray.remote(num_gpus=gpus)(run_task)

    def submit(self, task: Task) -> Future[str | None]:
        future: Future[str | None] = self.run_task.remote(task).future()
        return future
