"""slimvit prune: prune a model to a budget."""

from __future__ import annotations

import json
from typing import Any

import click

from slimvit.cli import options, shared
from slimvit.config.choices import CRITERIA, DENSE_MIXES, REFIT_TARGETS, SCOPES

budget_options = options.group(
    "Budget",
    click.option("--target-macs", type=float, metavar="F", help="Final MACs as a fraction of the model's MACs, 0-1. "
                 "The tables' FLOPs (G) are the same number: one multiply-add counts as 1."),
    click.option("--target-params", type=float, metavar="F", help="Final parameters as a fraction, 0-1."),
    click.option("--target-latency", type=float, metavar="F",
                 help="Final latency of a batch on this device as a fraction, 0-1."),
    click.option("--target", multiple=True, callback=options.parse_fractions, metavar="NAME=F",
                 help="Final cost as a fraction, for any kind of budget by its name: macs=0.5."),
    click.option("--latency-batch", type=int, metavar="N", help="Batch size of --target-latency. [default: 1]"),
    click.option("--ratio", type=float, metavar="R", help="Fraction of the heads to remove, 0-1."),
    click.option("--heads", callback=options.parse_numbers, metavar="N[,N...]",
                 help="Heads to keep in every block, or one number per stage."),
    click.option("--mlp-ratio", type=float, metavar="R", help="Fraction of the MLP neurons to remove, 0-1."),
    click.option("--plan", metavar="FILE", help="Plan file written by --dry-run --out, edited by hand if you like."),
)  # fmt: skip

method_options = options.group(
    "Method",
    click.option("--parts", callback=options.parse_words, metavar="PART[,PART...]",
                 help="Parts a target may cut: heads, mlp, qk, tokens, branches. [default: heads; also mlp if heads "
                 "alone cannot meet the target]"),
    click.option("--scope", type=click.Choice(SCOPES),
                 help="Prune every block alike (uniform), or where the loss rises least (global). [default: global]"),
    click.option("--min-heads", type=int, metavar="N",
                 help="Heads that every block keeps; 0 allows a block without attention. [default: 1]"),
    click.option("--neuron-group", type=int, metavar="N", help="Remove neurons in groups of N. [default: 8]"),
    click.option("--criterion", type=options.Word(CRITERIA),
                 help="How heads and neurons are scored. [default: residual]"),
    click.option("--calibration-images", type=int, metavar="N",
                 help="Training images for scoring and refit. [default: 512]"),
    click.option("--steps", type=int, metavar="K", help="Prune in K rounds of scoring, cutting and refit. "
                 "[default: 1]"),
    click.option("--step-epochs", type=int, metavar="N", help="Epochs of fine-tuning between rounds. [default: 0]"),
    click.option("--refit", type=click.Choice(REFIT_TARGETS), help="Target of the closed-form repair. "
                 "[default: stream]"),
    click.option("--dense", type=click.Choice(DENSE_MIXES),
                 help="Insert dense attention, with one learnable mix per pair of blocks (layer) or per pair and head "
                 "(head)."),
)  # fmt: skip

training_options = options.group(
    "Training",
    click.option("--finetune-epochs", type=int, metavar="N", help="Epochs of fine-tuning at the end. [default: 0]"),
    click.option("--lr", type=float, metavar="LR", help="Peak learning rate of fine-tuning. [default: 2e-5]"),
    click.option("--distill/--no-distill", default=None, help="Also learn from the unpruned model. [default: on]"),
)

dry_run_option = options.group(
    "Output",
    click.option("--dry-run", is_flag=True, help="Print the plan, its savings and the expected run time; cut nothing."),
)


@options.command()
@click.argument("model")
@options.model_options
@options.data_options
@budget_options
@method_options
@options.seed_option
@options.adapt_options
@training_options
@options.no_augment
@options.machine_options
@options.training_machine
@options.out_options
@dry_run_option
@options.resume_option
def prune_command(model: str, dry_run: bool, **given: Any) -> None:
    """Prune MODEL to a budget: score heads and neurons, cut, repair in closed form, fine-tune if asked, measure, save.

    \b
    MODEL is one of
      deit_small_patch16_224         a timm name (slimvit models)
      vit_digits                     an embedded model (slimvit models --embedded)
      runs/digits                    the folder of an earlier run
      hf-hub:user/name[@revision]    a model on the Hugging Face Hub, pruned or timm's own

    \b
    Examples:
      slimvit prune vit_digits --data digits --target-macs 0.6 --out runs/digits
      slimvit prune vit_digits --data digits --ratio 0.5 --dry-run
      slimvit prune deit_small_patch16_224 --data photos/ --adapt-epochs 20 --ratio 0.33 --out runs/photos
    """
    from slimvit.config.recipe import Recipe

    shared.need_data(given)
    _check_idle_options(given)
    recipe = Recipe.parse(_recipe(model, given), "command line")
    if dry_run:
        _plan_only(recipe, given)
    else:
        shared.run_and_show(recipe, given)


def _check_idle_options(given: dict[str, Any]) -> None:
    """Raise a usage error for an option that would have no effect."""
    idle = (
        ("finetune_epochs", {"lr": "--lr", "distill": "--distill"}),
        ("adapt_epochs", {"adapt_mode": "--adapt", "adapt_lr": "--adapt-lr"}),
    )
    for epochs, dependent in idle:
        for name, option in dependent.items():
            if given[name] is not None and not given[epochs]:
                raise click.UsageError(f"{option} does nothing without --{epochs.replace('_', '-')} N")


def _recipe(model: str, given: dict[str, Any]) -> dict[str, Any]:
    from slimvit.config.recipe import PruneSection

    prune = PruneSection.model_fields
    tree = shared.sections(model, given)
    more = {
        "prune": {k: given[k] for k in prune},
        "refit": {"target": given["refit"]},
        "dense": {"mix": given["dense"]},
        "finetune": {"epochs": given["finetune_epochs"], "lr": given["lr"], "distill": given["distill"]}
        | (options.NO_AUGMENTATION if given["no_augment"] else {}),
    }
    return tree | shared.dropped_none(more)


def _plan_only(recipe: Any, given: dict[str, Any]) -> None:
    from slimvit.report.run.plan_text import estimate_text
    from slimvit.workflows.dry_run import dry_run, estimate

    state, plan = dry_run(recipe, shared.run_options(given))
    forecast = estimate(state, plan)
    shared.echo(json.dumps(forecast, indent=1) if given["as_json"] else estimate_text(forecast))
    if given["out"] is not None:
        edit = " and ".join(plan.edited_keys())
        shared.echo(f"\nplan: {given['out'] / 'plan.json'} (edit {edit}, then give it to --plan)", err=given["as_json"])
