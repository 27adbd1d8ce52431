"""slimvit prune: the main job."""

from __future__ import annotations

import json
from typing import Any

import click

from slimvit.cli import shared
from slimvit.config.choices import CRITERIA, DENSE_MIXES, REFIT_TARGETS, SCOPES

budget_options = shared.options(
    click.option("--ratio", type=float, metavar="R", help="Fraction of the heads to remove, 0-1."),
    click.option("--heads", callback=shared.numbers, metavar="N[,N...]",
                 help="Heads to keep in every block, or one number a stage."),
    click.option("--mlp-ratio", type=float, metavar="R", help="Fraction of the MLPs' hidden neurons to remove, 0-1."),
    click.option("--target-macs", type=float, metavar="F", help="MACs to end with, as a fraction of the model's."),
    click.option("--target-params", type=float, metavar="F", help="Parameters to end with, as a fraction."),
    click.option("--target-latency", type=float, metavar="F",
                 help="Time of a batch on this device to end with, as a fraction."),
    click.option("--latency-batch", type=int, metavar="N", help="Images in that batch. [default: 1]"),
    click.option("--parts", callback=shared.words, metavar="PART[,PART...]",
                 help="What may go to meet a target: heads, mlp, branches. [default: heads; mlp too where heads alone "
                 "cannot meet it]"),
    click.option("--plan", metavar="FILE", help="A plan written by --dry-run --out, perhaps edited by hand."),
    click.option("--scope", type=click.Choice(SCOPES), help="Cut every block alike, or wherever it costs least. "
                 "[default: global]"),
    click.option("--min-heads", type=int, metavar="N",
                 help="Heads every block keeps; 0 lets a block lose its attention. [default: 1]"),
    click.option("--neuron-group", type=int, metavar="N", help="Neurons go in groups of as many. [default: 8]"),
    click.option("--criterion", type=shared.Word(CRITERIA),
                 help="How heads and neurons are scored. [default: residual]"),
    click.option("--steps", type=int, metavar="K", help="Score, cut and refit in K rounds. [default: 1]"),
    click.option("--step-epochs", type=int, metavar="N", help="Fine-tune so long between rounds. [default: 0]"),
    click.option("--refit", type=click.Choice(REFIT_TARGETS), help="What the closed-form repair aims at. "
                 "[default: stream]"),
    click.option("--dense", type=click.Choice(DENSE_MIXES), help="Insert dense attention: one learnable mix a pair of "
                 "blocks, or a pair and head."),
    click.option("--calibration-images", type=int, metavar="N", help="Images scores and refit see. [default: 512]"),
)  # fmt: skip

training_options = shared.options(
    click.option("--finetune-epochs", type=int, metavar="N", help="Fine-tune afterwards. [default: 0]"),
    click.option("--lr", type=float, metavar="LR", help="Peak learning rate of the fine-tuning. [default: 2e-5]"),
    click.option("--distill/--no-distill", default=None, help="Learn from the uncut network too. [default: on]"),
)


@click.command()
@click.argument("model")
@shared.data_options
@budget_options
@training_options
@shared.no_augment
@shared.adapt_options
@shared.model_options
@click.option("--dry-run", is_flag=True, help="Print the plan, its savings and the time a run would take; cut nothing.")
@shared.how_options
@shared.training_how
@shared.out_options
def command(model: str, dry_run: bool, **given: Any) -> None:
    """Remove attention heads and MLP neurons from MODEL, repair what is left, fine-tune if asked, measure and save.

    MODEL is a timm name, an embedded model (`slimvit models --embedded`), the folder of an earlier run, or a model
    on the Hugging Face Hub, slim or timm's own: hf-hub:user/name[@revision].

    \b
    Examples:
      slimvit prune vit_digits --data digits --ratio 0.5 --out runs/digits
      slimvit prune deit_small_patch16_224 --data photos/ --adapt-epochs 20 --ratio 0.33 --out runs/photos
    """
    from slimvit.config.recipe import Recipe

    shared.need_data(given)
    _no_idle_options(given)
    recipe = Recipe.parse(_recipe(model, given), "command line")
    if dry_run:
        _plan_only(recipe, given)
    else:
        shared.run_and_show(recipe, given)


def _no_idle_options(given: dict[str, Any]) -> None:
    """An option that could do nothing is a mistake to be told of."""
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
        | (shared.AS_THEY_ARE if given["no_augment"] else {}),
    }
    return tree | shared.dropped_none(more)


def _plan_only(recipe: Any, given: dict[str, Any]) -> None:
    from slimvit.workflows.dry_run import estimate, estimate_text
    from slimvit.workflows.run import dry_run

    state, plan = dry_run(recipe, shared.how(given))
    forecast = estimate(state, plan)
    click.echo(json.dumps(forecast, indent=1) if given["as_json"] else estimate_text(forecast))
    if given["out"] is not None:
        edit = "kept_heads" if plan.kept_neurons == plan.neurons else "kept_heads and kept_neurons"
        click.echo(f"\nplan: {given['out'] / 'plan.json'} (edit {edit}, then give it to --plan)", err=given["as_json"])
