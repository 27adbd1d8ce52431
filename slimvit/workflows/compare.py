"""Compare runs and sweeps: `slimvit report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from slimvit.report.compare.collect import collect_runs
from slimvit.report.compare.comparison import Comparison, compare_runs
from slimvit.report.compare.measurement import CollectedRuns
from slimvit.report.compare.pick import PickRule, parse_pick
from slimvit.utils.errors import StoreError
from slimvit.utils.output import link_target, new_folder


def report(
    *places: str | Path,
    out: str | Path | None = None,
    pick: Sequence[str | PickRule] = (),
    references: Sequence[str | Path] = (),
    allow_mixed: bool = False,
    force: bool = False,
) -> Comparison:
    """Compare run folders and sweeps, as `slimvit report` does.

    Args:
        *places: Run folders, sweep folders, or runs on the Hub (`hf-hub:user/name`).
        out: Folder to write tables (csv, json, md, tex), a page (html) and pictures to.
        pick: Bounds under which the best run is named, such as `top1 >= -1.0` or `macs <= 0.6`.
        references: Runs to compare with that are never picked.
        allow_mixed: Allow runs on different data, images or input sizes in one table.
        force: Replace an earlier report folder.

    Raises:
        StoreError: A place is no run, or `out` exists or holds runs of the comparison.
        PickError: A bound is malformed.

    Example:
        >>> slimvit.report("runs/a", "runs/b", pick=["macs <= 0.6"], out="runs/tradeoff")
    """
    target = None if out is None else link_target(Path(out))
    collected = collect_runs([Path(p) for p in places], [Path(r) for r in references], allow_mixed)
    _check_apart(collected, target)
    comparison = compare_runs(collected, [parse_pick(p) if isinstance(p, str) else p for p in pick])
    if target is not None:
        from slimvit.report.compare.formats import write_comparison  # brings matplotlib

        with new_folder(target, force) as folder:
            write_comparison(comparison, folder)
    return comparison


def _check_apart(collected: CollectedRuns, out: Path | None) -> None:
    """Raise `StoreError` if the report would replace a run that it compares."""
    if out is not None and any(
        out.resolve() in (f, *f.parents) for f in (m.folder.resolve() for m in collected.measurements)
    ):
        raise StoreError(f"{out}: holds runs that the report compares; name another folder for --out")
