"""`raymotion push` and `pull`: copy checkpoints to and from the Hugging Face hub, folders and object stores."""

from __future__ import annotations

import click


@click.command()
@click.argument("model")
@click.argument("target")
@click.option("--private", is_flag=True, help="Make the repository a private one.")
@click.option(
    "--revision", metavar="BRANCH", help="Branch of the repository, made if it is not there.  [default: main]"
)
@click.option("--overwrite", is_flag=True, help="Replace another checkpoint in the folder TARGET.")
def push(model: str, target: str, private: bool, revision: str | None, overwrite: bool) -> None:
    """Copy a model to the Hugging Face hub, or to another folder.

    MODEL is a checkpoint, a folder or an address. TARGET is owner/name on the hub, or a folder or an address (a folder
    below this one: ./models/teacher). Only the files of the checkpoint are sent, including its model card. The token is
    taken from HF_TOKEN or `hf auth login`.

    \b
    Example:
      raymotion push teacher/ owner/emotion-teacher --private
      raymotion push teacher/ s3://bucket/models/teacher
    """
    from raymotion.models.hub import push as run

    done = run(model, target, private=private, revision=revision, overwrite=overwrite)
    click.echo(f"{done.info.kind.name} {done.info.fingerprint} -> {done.target}")


@click.command()
@click.argument("source")
@click.option("--out", required=True, metavar="FOLDER", help="Folder or address of the copy.")
@click.option("--revision", metavar="REVISION", help="Branch, tag or commit of the repository.  [default: main]")
@click.option("--overwrite", is_flag=True, help="Replace another checkpoint in FOLDER.")
def pull(source: str, out: str, revision: str | None, overwrite: bool) -> None:
    """Copy a checkpoint from the Hugging Face hub, or from another folder.

    SOURCE is owner/name on the hub, or a folder or an address. Only the files of a checkpoint are fetched, never a
    pickle, and they are checked before they are put in FOLDER.

    \b
    Example:
      raymotion pull owner/emotion-teacher --out teacher/
      raymotion pull s3://bucket/models/teacher --out teacher/
    """
    from raymotion.models.hub import pull as run

    done = run(source, out, revision=revision, overwrite=overwrite)
    click.echo(f"{done.info.kind.name} {done.info.fingerprint} -> {done.target}")
    click.echo(f'next: raymotion predict {done.target} --caption "A man laughs."')
