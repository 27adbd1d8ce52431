"""slimvit push: a run on the Hugging Face Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slimvit.io.hub.name import FOLDERS

if TYPE_CHECKING:
    from slimvit.workflows.push.contents import UploadContents


@click.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("repo", metavar="USER/NAME")
@click.option("--private", is_flag=True, help="Make the repository a private one.")
@click.option(
    "--license", metavar="ID", help="Of the model, as the Hub names it (apache-2.0). [default: the card names none]"
)
@click.option("--base-model", metavar="USER/NAME", help="The model it was cut from. [default: what the recipe tells]")
@click.option("--revision", metavar="BRANCH", help="Branch to push to, made if it is not there. [default: main]")
@click.option("--message", metavar="TEXT", help="Of the commit.")
@click.option(
    "--include",
    multiple=True,
    type=click.Choice(FOLDERS),
    help="Push this model of the run too: the best epoch's, or the uncut one. Repeatable.",
)
@click.option("--keep-card", is_flag=True, help="Leave a README.md that is there as it is.")
@click.option("--force", is_flag=True, help="Replace an earlier push.")
@click.option("--dry-run", is_flag=True, help="Print the files and the card; ask nobody, send nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(run: Path, dry_run: bool, as_json: bool, **given: Any) -> None:
    """Put the folder RUN on the Hugging Face Hub as the model repository USER/NAME, in one commit, with a model card
    written from its report.

    The repository is made if it is not there. One that holds something else is left alone. Log in first: hf auth
    login, or set HF_TOKEN. Afterwards every command, and slimvit.load, takes hf-hub:USER/NAME[@REVISION] as a model.

    \b
    Example:
      slimvit push runs/digits me/digits-half --license apache-2.0 --dry-run
    """
    from slimvit.workflows.push.contents import PushOptions, upload_contents

    options = PushOptions(**given)
    parcel = upload_contents(run, options)
    _tell(parcel, run)
    if dry_run:
        _show(parcel, as_json)
        return
    from slimvit.workflows.push.upload import push

    done = push(parcel, options)
    click.echo(json.dumps(done, indent=1) if as_json else f"{done['url']}\nload it: slimvit.load({done['model']!r})")


def _tell(parcel: UploadContents, run: Path) -> None:
    """What a user should know before it is public."""
    if parcel.left_out:
        click.echo(f"{run}: left out: {', '.join(parcel.left_out)}", err=True)
    if parcel.places:
        click.echo(f"{run}: its recipe, which is pushed, names places here: {', '.join(parcel.places)}", err=True)


def _show(parcel: UploadContents, as_json: bool) -> None:
    sizes = {path: file.stat().st_size for path, file in parcel.files.items()}
    if as_json:
        click.echo(json.dumps({"repo": parcel.repo, "files": sizes, "left_out": parcel.left_out, "card": parcel.card}))
        return
    for path, size in sizes.items():
        click.echo(f"{size:>13,}  {path}")
    click.echo(f"{len(parcel.card.encode()):>13,}  README.md:\n\n{parcel.card}", nl=False)
