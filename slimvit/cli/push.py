"""slimvit push: upload a run to the Hugging Face Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slimvit.cli import options, shared
from slimvit.io.hub.name import FOLDERS
from slimvit.utils.escaping import in_line

if TYPE_CHECKING:
    from slimvit.workflows.push.contents import UploadContents


@options.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("repo", metavar="USER/NAME")
@options.group(
    "Output",
    click.option("--private", is_flag=True, help="Create the repository as a private one."),
    click.option("--revision", metavar="BRANCH", help="Branch to push to; created if missing. [default: main]"),
    click.option("--message", metavar="TEXT", help="Commit message."),
    click.option("--include", multiple=True, type=click.Choice(FOLDERS),
                 help="Upload this model too: the one of the best epoch, or the unpruned one. Repeatable."),
    click.option("--license", metavar="ID", help="License of the model, by its id on the Hub, such as apache-2.0. "
                 "[default: none in the card]"),
    click.option("--base-model", metavar="USER/NAME",
                 help="Model that was pruned. [default: the one in the recipe]"),
    click.option("--keep-card", is_flag=True, help="Keep an existing README.md."),
    click.option("--force", is_flag=True, help="Replace an earlier push."),
    click.option("--dry-run", is_flag=True, help="Print the files and the card without contacting the Hub."),
)  # fmt: skip
@options.json_option
def push_command(run: Path, dry_run: bool, as_json: bool, **given: Any) -> None:
    """Upload the run folder RUN to the model repository USER/NAME on the Hugging Face Hub, with a model card.

    A missing repository is created; a repository with files of another program is refused. Log in first: hf auth login,
    or set HF_TOKEN. Afterwards every command and slimvit.load accept hf-hub:USER/NAME[@REVISION] as a model.

    \b
    Example:
      slimvit push runs/digits me/digits-half --license apache-2.0 --dry-run
    """
    from slimvit.workflows.push.contents import PushOptions, upload_contents

    options = PushOptions(**given)
    contents = upload_contents(run, options)
    _show_notes(contents, run)
    if dry_run:
        _show_contents(contents, as_json)
        return
    from slimvit.workflows.push.upload import upload

    pushed = upload(contents, options)
    load = f"{pushed['url']}\nload it: slimvit.load({pushed['model']!r})"
    shared.echo(json.dumps(pushed, indent=1) if as_json else load)


def _show_notes(contents: UploadContents, run: Path) -> None:
    """Print on stderr the files that are not uploaded and the local paths that the recipe reveals."""
    if contents.left_out:
        shared.echo(in_line(f"{run}: not uploaded: {', '.join(contents.left_out)}"), err=True)
    if contents.places:
        shared.echo(in_line(f"{run}: the uploaded recipe names local paths: {', '.join(contents.places)}"), err=True)


def _show_contents(contents: UploadContents, as_json: bool) -> None:
    sizes = {path: file.stat().st_size for path, file in contents.files.items()}
    if as_json:
        shared.echo(
            json.dumps({"repo": contents.repo, "files": sizes, "left_out": contents.left_out, "card": contents.card})
        )
        return
    for path, size in sizes.items():
        shared.echo(f"{size:>13,}  {path}")
    shared.echo(f"{len(contents.card.encode()):>13,}  README.md:\n\n{contents.card}", nl=False)
