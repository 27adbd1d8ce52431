"""slimvit compared with Torch-Pruning, random heads and other criteria, with and without the refit.

    python benchmarks/peers.py vit_digits swin_digits          # the embedded models, all of it: about an hour
    python benchmarks/peers.py dinov2 --parts untrained --threads 1        # 75 s a point (108 of them) on one core
    python benchmarks/peers.py dinov2 --parts trained --threads 1 --precision bf16    # 130 s a point, 190 without AMX
    python benchmarks/peers.py --render                        # results/peers.md from all rows so far

Every method gets the same model, images, calibration images, number of removed heads, epochs and seeds. The runs are
sweeps of slimvit in .cache/bench/peers; a repeated call continues them. Torch-Pruning's group Taylor and group L2
importance are its own code, with its normalisation by the mean of a block; `global` picks heads anywhere, `uniform`
the same number in every block. A run with a refit also gives the cut alone (its stage `pruned`). `dinov2` is ViT-S/14
at 56 px with a linear classifier on Fashion-MNIST (28 px), 5,000 test images, read from .cache/real/{dinov2,fashion}.
Rows go to results/peers.jsonl.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import timm
import torch
from setting import DINOV2, KEPT, REAL

from slimvit.config.options import Options
from slimvit.config.sweep import Sweep, points_of
from slimvit.io.sweep_folder import point_folder
from slimvit.report.record import Report
from slimvit.workflows.sweep.sweep import run_points

HERE = Path(__file__).parent
ROWS = HERE / "results" / "peers.jsonl"
FASHION = {"name": "torch/fashion_mnist", "root": str(REAL / "fashion"), "train_images": 2_000, "eval_images": 5_000}
BASES: dict[str, dict[str, Any]] = {
    "vit_digits": {"model": {"name": "vit_digits"}, "data": {"name": "digits"}},
    "swin_digits": {"model": {"name": "swin_digits"}, "data": {"name": "digits"}},
    "dinov2": {"model": DINOV2.model_dump() | {"img_size": 56}, "data": FASHION, "adapt": {"epochs": 100}},
}
TRAINING: dict[str, dict[str, Any]] = {
    "vit_digits": {"epochs": 3, "lr": 3e-4, "hflip": 0, "crop_scale": 0.8},
    "swin_digits": {"epochs": 3, "lr": 3e-4, "hflip": 0, "crop_scale": 0.8},
    "dinov2": {"epochs": 3, "lr": 5e-5, "hflip": 0, "crop_scale": 1.0, "cache_teacher": True, "eval_every": 3},
}
METHODS = {
    "slimvit (residual)": {"criterion": "residual"},
    "fisher": {"criterion": "fisher"},
    "taylor": {"criterion": "taylor"},
    "magnitude": {"criterion": "magnitude"},
    "Torch-Pruning Taylor, global": {"criterion": "tp-taylor"},
    "Torch-Pruning Taylor, uniform": {"criterion": "tp-taylor", "scope": "uniform"},
    "Torch-Pruning L2, global": {"criterion": "tp-magnitude"},
    "Torch-Pruning L2, uniform": {"criterion": "tp-magnitude", "scope": "uniform"},
    "random heads": {"criterion": "random"},
}
DEFAULT = next(iter(METHODS))
RATIOS, TRAINED = (1 / 6, 1 / 3, 1 / 2, 2 / 3), (1 / 2, 2 / 3)
WHAT = """Same model, images, calibration images, heads removed, epochs and seeds for every method. The importance of
Torch-Pruning's group Taylor and group L2 is its own code; `global` picks heads anywhere in the network, `uniform` the
same number in every block. `refit` is slimvit's closed-form repair, given to every method alike. Trained: three epochs
on all training images, learning from the uncut network too. The body of `dinov2` was not trained on these images
before, its classifier alone was, so training brings it above the original and away from its features."""
FIGURES = ("top1", "agreement", "feature_error")


def sweeps(base: str, methods: list[str], ratios: list[float], seeds: list[int]) -> dict[str, Sweep]:
    """The sweeps `untrained`, whose runs give both cut and refit, and `trained`."""
    points = [{"name": m, "change": {f"prune.{k}": v for k, v in METHODS[m].items()}} for m in methods]
    trained = [r for r in ratios if any(abs(r - t) < 0.01 for t in TRAINED)]
    files = {"untrained": {"base": BASES[base], "points": points, "grid": {"prune.ratio": ratios, "seed": seeds}}}
    if trained:
        grid = {"refit.target": ["none", "stream"], "prune.ratio": trained, "seed": seeds}
        files["trained"] = {"base": BASES[base] | {"finetune": TRAINING[base]}, "points": points, "grid": grid}
    return {part: Sweep.parse(content) for part, content in files.items()}


def rows_of(base: str, part: str, file: Sweep, folder: Path) -> Iterator[dict[str, Any]]:
    """One row per stage of every finished run."""
    for point in points_of(file):
        path = point_folder(folder, point.id) / "report.json"
        if not path.is_file():
            continue
        report, section = Report.read(path), point.recipe.prune
        method = next(m for m, s in METHODS.items() if s == _method(section))
        for stage in report.stages:
            if stage.stage == "original" or (part == "trained") != (stage.stage == "finetuned"):
                continue
            refit = stage.stage == "refit" or (part == "trained" and point.recipe.refit.target != "none")
            yield {
                "base": base, "method": method, "ratio": round(section.ratio or 0, 3), "seed": point.recipe.seed,
                "refit": refit, "epochs": point.recipe.finetune.epochs if part == "trained" else 0,
                "heads": stage.units["heads"], "macs": stage.macs, "original_macs": report.reference.macs,
                "original": report.reference.top1, "images": report.images,
                **{name: getattr(stage, name) for name in FIGURES},
            }  # fmt: skip


def _method(section: Any) -> dict[str, str]:
    return {"criterion": section.criterion} | ({"scope": "uniform"} if section.scope == "uniform" else {})


def write_rows(rows: list[dict[str, Any]], versions: str) -> None:
    """Add rows to the file, replacing earlier ones of the same run and stage."""
    earlier = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    by_key = {_key(row): row for row in [*earlier, *(row | {"versions": versions} for row in rows)]}
    ROWS.write_text("".join(json.dumps(by_key[key]) + "\n" for key in sorted(by_key)))


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[k] for k in ("base", "epochs", "ratio", "method", "refit", "seed"))


def render() -> str:
    """One table per model and ratio, and the methods that beat the default."""
    rows = pd.DataFrame([json.loads(line) for line in ROWS.read_text().splitlines()])
    used = rows.groupby("versions", sort=True)["base"].unique()
    machines = [f"{versions}: {', '.join(bases)}" for versions, bases in used.items()]
    lines = ["# slimvit beside its peers", "", *("- " + line for line in machines), "", WHAT, ""]
    for (base, ratio), group in rows.groupby(["base", "ratio"], sort=True):
        original = cell(group.drop_duplicates("seed")["original"], 2)
        lines += [f"## {base}: {ratio:.1%} of the heads removed", ""]
        lines += [f"Original {original} top-1, {group['images'].iloc[0]} test images; mean ± sample standard deviation "
                  "over seeds.", ""]  # fmt: skip
        lines += [*_table(group), "", *_front(group), ""]
    return "\n".join(lines)


ARMS = {"cut alone": (False, 0), "refit": (True, 0), "trained": (False, 3), "refit, trained": (True, 3)}


def _table(group: pd.DataFrame) -> list[str]:
    present = [a for a, (refit, epochs) in ARMS.items() if len(_of(group, refit, epochs))]
    heads = [f"{a}: {f}" for a in present for f in ("top-1", "agreement", "feature error")]
    lines = ["| method | seeds | " + " | ".join(heads) + " |", "|" + " --- |" * (2 + len(heads))]
    for method in METHODS:
        mine = group[group["method"] == method]
        if mine.empty:
            continue
        cells = [cell(_of(mine, *ARMS[a])[f], 3 if f == "feature_error" else 2) for a in present for f in FIGURES]
        lines.append(f"| {method} | {mine['seed'].nunique()} | " + " | ".join(cells) + " |")
    return lines


def _of(rows: pd.DataFrame, refit: bool, epochs: int) -> pd.DataFrame:
    return rows[(rows["refit"] == refit) & (rows["epochs"] == epochs)]


def cell(values: pd.Series, digits: int) -> str:
    if values.empty:
        return "-"
    spread = "" if len(values) < 2 else f" ± {values.std():.{digits}f}"
    return f"{values.mean():.{digits}f}{spread}"


def _front(group: pd.DataFrame) -> list[str]:
    """The methods with a better mean than slimvit's default, one line per arm and figure."""
    lines = []
    for arm, (refit, epochs) in ARMS.items():
        for figure, sign, digits in (("top1", 1, 2), ("feature_error", -1, 3)):
            means = sign * _of(group, refit, epochs).groupby("method")[figure].mean()
            if DEFAULT not in means or len(means) < 2:
                continue
            better = (means[means > means[DEFAULT]] - means[DEFAULT]).sort_values(ascending=False)
            names = ", ".join(f"{name} ({sign * value:+.{digits}f})" for name, value in better.items())
            result = f"ahead of the default: {names}" if names else "the default is at the front"
            lines.append(f"- {arm}, {figure.replace('top1', 'top-1').replace('_', ' ')}: {result}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bases", nargs="*", choices=[*BASES, []])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--ratios", nargs="+", type=float, default=list(RATIOS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--parts", nargs="+", choices=("untrained", "trained"), default=["untrained", "trained"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the training (slimvit's own)")
    parser.add_argument("--render", action="store_true", help="only write the table")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    versions = f"CPU ({platform.machine()}, {args.threads} threads), torch {torch.__version__}, timm {timm.__version__}"
    for base in [] if args.render else args.bases:
        for part, file in sweeps(base, args.methods, args.ratios, args.seeds).items():
            if part in args.parts:
                folder = KEPT / "peers" / f"{base}_{part}"
                run_points(file, points_of(file), folder, Options(device="cpu", precision=args.precision))
                trained_in = f", trained in {args.precision}" if part == "trained" else ""
                write_rows(list(rows_of(base, part, file, folder)), versions + trained_in)
    (HERE / "results" / "peers.md").write_text(render())


if __name__ == "__main__":
    main()
