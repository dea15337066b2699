"""Weights & Biases: a run in a project, online or in files that `wandb sync` uploads."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from raymotion.loggers.logger import LoggedRun, Logger, Status


class WandbLogger(Logger):
    """A run in Weights & Biases, with the recipe as its config.

    The key comes from the environment (`WANDB_API_KEY`) or from `wandb login`.

    Attributes:
        project: made if there is none of this name.
        entity: team or user; None: the user's default.
        group: of the run; trials of a study are grouped by the study.
        mode: None: `WANDB_MODE`, else online. offline: files for `wandb sync`.
        folder: where `wandb` writes its files; None: the current folder.
    """

    packages: ClassVar[Mapping[str, str]] = {"wandb": "wandb"}
    project: str = Field("raymotion", min_length=1)
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    mode: Literal["online", "offline"] | None = None
    folder: str | None = None

    _run: Any = None
    _open: ClassVar[set[str]] = set()  # ids of the runs of this process

    def begin(self, run: LoggedRun) -> str:
        import wandb

        self._run = wandb.init(
            project=self.project, entity=self.entity, group=self.group, tags=self.tags or None, mode=self.mode,
            dir=self.folder, name=run.name, config=dict(run.parameters), id=run.id or uuid.uuid4().hex, resume="allow",
            # One run for each logger of this process, and nothing between the lines of the command.
            reinit="create_new", settings=wandb.Settings(silent=True, console="off"),
        )  # fmt: skip
        self._open.add(str(self._run.id))
        return str(self._run.id)

    def log(self, epoch: int, figures: Mapping[str, float]) -> None:
        # A step that the server has already is dropped there.
        self._run.log(dict(figures), step=epoch)

    def end(self, status: Status, summary: Mapping[str, float | str]) -> None:
        self._run.summary.update({**summary, "status": status})
        self._run.finish(exit_code=0 if status == "complete" else 1)
        self._open.discard(str(self._run.id))
        import wandb

        # The last figures are written after `finish` has returned, and a worker of Ray may be killed before. This waits
        # for them; it would also end the runs that others have open.
        if not self._open and wandb.run is None:
            wandb.teardown()
