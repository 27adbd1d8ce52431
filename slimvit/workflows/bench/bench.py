"""Models timed side by side on this machine, each slim one beside its original, setting by setting."""

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
    """Where and how often."""

    device: str = "auto"
    threads: int | None = None
    """Of torch on a CPU; None leaves them as they are."""
    precisions: tuple[str, ...] = ("fp32",)
    """What the weights and images are in: `fp32`, `bf16`."""
    compiled: tuple[bool, ...] = (False,)
    batches: tuple[int, ...] = ()
    """To try for the throughput; none grows the batch until it does not pay."""
    rounds: int = 30
    img_size: int | None = None
    save: bool = True
    """Write the timings into the run folders."""


@dataclass(frozen=True)
class BenchRow:
    """One model in one setting."""

    model: str
    original: str | None
    """The model it is compared with."""
    params: int | None
    macs: int | None
    timing: Timing

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain data, the timing's fields beside the model's."""
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
    """Time the named models and the originals of the pruned ones; everything is checked first."""
    device = resolve_device(options.device)
    for precision in options.precisions:
        check_precision(precision, device)
    if any(options.compiled) and (defect := compile_defect(device)) is not None:
        raise SlimvitError(f"compile: torch.compile does not work here: {defect}; leave --compile out")
    with threads(options.threads):  # of ONNX Runtime too, from when it opens a file
        contenders = open_bench_models(names, options.img_size)
        for contender in contenders:
            if contender.folder is not None and options.save:
                read_timings(contender.folder)  # what is damaged there is told before the long part
        _say_sizes(contenders)
        _check_files([c.name for c in contenders if c.is_file], device, options)
        rows = [row for setting in _settings(contenders, device, options) for row in setting]
    if options.save:
        _save(contenders, rows)
    return rows


def _settings(contenders: list[BenchModel], device: torch.device, options: BenchOptions) -> Iterator[list[BenchRow]]:
    """The rows of one precision, compiled or not, after the other; the batch is one for both."""
    for precision, group in groupby(product(options.precisions, options.compiled), key=lambda pair: pair[0]):
        growth: Growth | None = None
        for contender in contenders:
            contender.model.to(device, DTYPES[precision])
        for _, compiled in group:
            present = [c for c in contenders if c.takes(precision, compiled)]
            if not present:
                continue
            log(f"{device_words(device)}, {precision}, {'compiled' if compiled else 'eager'}")
            if growth is None:
                growth = _filling([c for c in contenders if c.takes(precision, False)], options.batches)
            yield _setting(present, growth, device, precision, compiled, options.rounds)


def _filling(contenders: list[BenchModel], batches: tuple[int, ...]) -> Growth:
    """The batch to measure throughput at, found with the models as they are, uncompiled."""
    with torch.inference_mode():
        growth = find_batch_size(_timer(contenders, False).calls, batches)
    if not growth.speeds:
        raise SlimvitError(f"{growth.ended}; bench fewer or smaller models, or give smaller --batches")
    log(f"batch {growth.best} fills it" + (f": {growth.ended}" if growth.ended else ""))
    return growth


def _setting(
    contenders: list[BenchModel], growth: Growth, device: torch.device, precision: str, compiled: bool, rounds: int
) -> list[BenchRow]:
    contest, batch = _timer(contenders, compiled), growth.best
    try:
        with compiling() if compiled else nullcontext():
            one = contest.times(1, rounds)
            full = one if batch == 1 else contest.times(batch, rounds)
            peaks = {c.name: _peak(c, contest, batch, device, precision) for c in contenders}
    except OutOfMemory:
        raise SlimvitError(f"the device's memory ends before {batch} images; give smaller --batches") from None
    shared = Timing(
        device=device_words(device), precision=precision, compiled=compiled, batch=batch, rounds=rounds,
        versions=versions(),
    )  # fmt: skip
    found = {c.name: _measured(c, one, full, peaks[c.name], growth, compiled) for c in contenders}
    return [_row(c, found, shared) for c in contenders]


def _timer(contenders: list[BenchModel], compiled: bool) -> InterleavedTimer:
    return InterleavedTimer({c.name: c.model for c in contenders}, {c.name: c.input_size for c in contenders}, compiled)


def _peak(
    contender: BenchModel, contest: InterleavedTimer, batch: int, device: torch.device, precision: str
) -> int | None:
    """Bytes; None where it is not measured: on a Mac's GPU, and on a CPU for a compiled model, whose compiler needs
    more than the model."""
    if device.type == "cuda":
        return peak_on_gpu(contender.model, contest.callable_of(contender.name), contender.input_size, batch)
    if device.type != "cpu" or contest.compiled:
        return None
    return peak_on_cpu(contender.build, contender.input_size, batch, DTYPES[precision])


def _measured(c: BenchModel, one: Times, full: Times, peak: int | None, growth: Growth, compiled: bool) -> BenchTimes:
    speeds = growth.speeds
    few = 4 * speeds[1][c.name] / speeds[4][c.name] if {1, 4} <= speeds.keys() and not compiled else None
    return BenchTimes(c, by_round(one[c.name]), one[c.name], by_round(full[c.name]), growth.best, peak, few, compiled)


def _row(contender: BenchModel, found: dict[str, BenchTimes], shared: Timing) -> BenchRow:
    mine = found[contender.name]
    original = None if contender.original is None else found[contender.original]
    own = {"precision": contender.precision or shared.precision, "versions": {**shared.versions, **contender.versions}}
    timing = shared.model_copy(
        update=own | mine.figures() | ({} if original is None else speedup_fields(mine, original))
    )
    return BenchRow(contender.name, contender.original, contender.params, contender.macs, timing)


def _check_files(files: list[str], device: torch.device, options: BenchOptions) -> None:
    """Say what of the settings ONNX files do not take part in; raise :class:`SlimvitError` where that is all."""
    if not files:
        return
    told = f"{', '.join(files)}: ONNX Runtime runs a file on the CPU, in the precision it was written in, uncompiled"
    if device.type != "cpu":
        raise SlimvitError(f"{told}; give --device cpu")
    if "fp32" not in options.precisions or False not in options.compiled:
        raise SlimvitError(f"{told}; add --precision fp32 and --eager, or leave it out")
    others = [p for p in options.precisions if p != "fp32"] + ["compiled"] * any(options.compiled)
    if others:
        log(f"{told}, so it is not timed among {' and '.join(others)}")


def _say_sizes(contenders: list[BenchModel]) -> None:
    sizes = {c.name: "x".join(map(str, c.input_size)) for c in contenders}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} {size}" for name, size in sizes.items())
        log(f"these models take images of different sizes, so their images/s cannot be compared: {told}")


def _save(contenders: list[BenchModel], rows: list[BenchRow]) -> None:
    for contender in contenders:
        if contender.folder is not None:
            write_timings(contender.folder, [row.timing for row in rows if row.model == contender.name])
