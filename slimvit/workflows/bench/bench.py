"""Time models side by side on this machine, each pruned one beside its original: `slimvit bench`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path
from typing import Any

import torch

from slimvit.measure.latency.batch_size import Growth, OutOfMemory, find_batch_size
from slimvit.measure.latency.interleave import InterleavedTimer, compile_defect, compiling
from slimvit.measure.latency.machine import device_words, threads, versions
from slimvit.measure.latency.peak_memory import peak_on_cpu, peak_on_gpu
from slimvit.measure.latency.timer import Times, by_round
from slimvit.report.timing import Timing, read_timings, write_timings
from slimvit.utils.device import resolve_device
from slimvit.utils.distributed import check_precision
from slimvit.utils.errors import SlimvitError
from slimvit.utils.progress import log
from slimvit.workflows.bench.models import BenchModel, open_bench_models
from slimvit.workflows.bench.result import BenchTimes, speedup_fields

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class BenchOptions:
    """Machine settings and method of a benchmark."""

    device: str = "auto"
    threads: int | None = None
    """CPU threads of torch; None keeps torch's number."""
    precisions: tuple[str, ...] = ("fp32",)
    """Precisions of weights and images: `fp32`, `bf16`."""
    compiled: tuple[bool, ...] = (False,)
    """Time eager models (False), compiled ones (True), or both."""
    batches: tuple[int, ...] = ()
    """Batch sizes to try for throughput; empty grows the batch until it no longer pays."""
    rounds: int = 30
    img_size: int | None = None
    save: bool = True
    """Write the timings into the run folders."""


@dataclass(frozen=True)
class BenchRow:
    """One model in one setting."""

    model: str
    original: str | None
    """Name of its original; None for a model that was not cut."""
    params: int | None
    macs: int | None
    timing: Timing

    def to_json(self) -> dict[str, Any]:
        """Return the fields of the model and of its timing in one dict."""
        own = {"model": self.model, "original": self.original, "params": self.params, "macs": self.macs}
        return own | self.timing.model_dump(mode="json")


def bench(models: str | Path | Sequence[str | Path], **settings: Any) -> list[BenchRow]:
    """Time models side by side on this machine, each pruned one beside its original, as `slimvit bench` does.

    Args:
        models: Names as the command takes them: run folders, embedded models, timm names, Hub names, .onnx files.
        **settings: Fields of `BenchOptions`: `device`, `threads`, `precisions`, `compiled`, `batches`, `rounds`,
            `img_size`, `save`.

    Returns:
        One row per model and setting: `model`, `original`, `params`, `macs`, and `timing` with `latency_ms` (one
        image), `throughput` (images/s), `speedup` and their intervals.

    Raises:
        SlimvitError: A model cannot be opened, compiled or run here.

    Example:
        >>> slimvit.bench("runs/digits", device="cpu", rounds=20)
    """
    names = [models] if isinstance(models, str | Path) else models
    return bench_models([str(name) for name in names], BenchOptions(**settings))


def bench_models(names: Sequence[str], options: BenchOptions) -> list[BenchRow]:
    """Time the named models and the originals of the pruned ones.

    Raises:
        SlimvitError: A model cannot be opened, compiled or run here; settings are checked before anything is timed.
    """
    device = resolve_device(options.device)
    for precision in options.precisions:
        check_precision(precision, device)
    if any(options.compiled) and (defect := compile_defect(device)) is not None:
        raise SlimvitError(f"compile: torch.compile does not work here: {defect}; leave --compile out")
    with threads(options.threads):  # before files are opened: ONNX Runtime reads it then
        models = open_bench_models(names, options.img_size)
        for model in models:
            if model.folder is not None and options.save:
                read_timings(model.folder)  # a damaged file is an error before the long part
        _log_sizes(models)
        _check_onnx_files([c.name for c in models if c.is_file], device, options)
        rows = [row for setting in _settings(models, device, options) for row in setting]
    if options.save:
        _save(models, rows)
    return rows


def _settings(models: list[BenchModel], device: torch.device, options: BenchOptions) -> Iterator[list[BenchRow]]:
    """The rows of each setting; eager and compiled models of one precision share the batch size."""
    for precision, group in groupby(product(options.precisions, options.compiled), key=lambda pair: pair[0]):
        growth: Growth | None = None
        for model in models:
            model.model.to(device, DTYPES[precision])
        for _, compiled in group:
            present = [c for c in models if c.takes(precision, compiled)]
            if not present:
                continue
            log(f"{device_words(device)}, {precision}, {'compiled' if compiled else 'eager'}")
            if growth is None:
                growth = _batch_size([c for c in models if c.takes(precision, False)], options.batches)
            yield _setting(present, growth, device, precision, compiled, options.rounds)


def _batch_size(models: list[BenchModel], batches: tuple[int, ...]) -> Growth:
    """Find the batch size for throughput with eager models."""
    with torch.inference_mode():
        growth = find_batch_size(_timer(models, False).calls, batches)
    if not growth.speeds:
        raise SlimvitError(f"{growth.ended}; bench fewer or smaller models, or give smaller --batches")
    log(f"batch {growth.best} fills it" + (f": {growth.ended}" if growth.ended else ""))
    return growth


def _setting(
    models: list[BenchModel], growth: Growth, device: torch.device, precision: str, compiled: bool, rounds: int
) -> list[BenchRow]:
    timer, batch = _timer(models, compiled), growth.best
    try:
        with compiling() if compiled else nullcontext():
            one = timer.times(1, rounds)
            full = one if batch == 1 else timer.times(batch, rounds)
            peaks = {c.name: _peak(c, timer, batch, device, precision) for c in models}
    except OutOfMemory:
        raise SlimvitError(f"the device's memory ends before {batch} images; give smaller --batches") from None
    shared = Timing(
        device=device_words(device), precision=precision, compiled=compiled, batch=batch, rounds=rounds,
        versions=versions(),
    )  # fmt: skip
    times = {c.name: _bench_times(c, one, full, peaks[c.name], growth, compiled) for c in models}
    return [_row(c, times, shared) for c in models]


def _timer(models: list[BenchModel], compiled: bool) -> InterleavedTimer:
    return InterleavedTimer({c.name: c.model for c in models}, {c.name: c.input_size for c in models}, compiled)


def _peak(model: BenchModel, timer: InterleavedTimer, batch: int, device: torch.device, precision: str) -> int | None:
    """Peak memory in bytes; None on a Mac's GPU, and for compiled models on a CPU, where the compiler sets the peak."""
    if device.type == "cuda":
        return peak_on_gpu(model.model, timer.callable_of(model.name), model.input_size, batch)
    if device.type != "cpu" or timer.compiled:
        return None
    return peak_on_cpu(model.build, model.input_size, batch, DTYPES[precision])


def _bench_times(
    c: BenchModel, one: Times, full: Times, peak: int | None, growth: Growth, compiled: bool
) -> BenchTimes:
    speeds = growth.speeds
    few = 4 * speeds[1][c.name] / speeds[4][c.name] if {1, 4} <= speeds.keys() and not compiled else None
    return BenchTimes(c, by_round(one[c.name]), one[c.name], by_round(full[c.name]), growth.best, peak, few, compiled)


def _row(model: BenchModel, times: dict[str, BenchTimes], shared: Timing) -> BenchRow:
    own = times[model.name]
    original = None if model.original is None else times[model.original]
    setting = {"precision": model.precision or shared.precision, "versions": {**shared.versions, **model.versions}}
    speedup = {} if original is None else speedup_fields(own, original)
    timing = shared.model_copy(update=setting | own.figures() | speedup)
    return BenchRow(model.name, model.original, model.params, model.macs, timing)


def _check_onnx_files(files: list[str], device: torch.device, options: BenchOptions) -> None:
    """Log the settings that ONNX files are not timed in; raise `SlimvitError` if those are all settings."""
    if not files:
        return
    text = f"{', '.join(files)}: ONNX Runtime runs a file on the CPU, in the precision it was written in, uncompiled"
    if device.type != "cpu":
        raise SlimvitError(f"{text}; give --device cpu")
    if "fp32" not in options.precisions or False not in options.compiled:
        raise SlimvitError(f"{text}; add --precision fp32 and --eager, or leave it out")
    others = [p for p in options.precisions if p != "fp32"] + ["compiled"] * any(options.compiled)
    if others:
        log(f"{text}, so it is not timed among {' and '.join(others)}")


def _log_sizes(models: list[BenchModel]) -> None:
    sizes = {c.name: "x".join(map(str, c.input_size)) for c in models}
    if len(set(sizes.values())) > 1:
        text = ", ".join(f"{name} {size}" for name, size in sizes.items())
        log(f"these models take images of different sizes, so their images/s cannot be compared: {text}")


def _save(models: list[BenchModel], rows: list[BenchRow]) -> None:
    for model in models:
        if model.folder is not None:
            write_timings(model.folder, [row.timing for row in rows if row.model == model.name])
