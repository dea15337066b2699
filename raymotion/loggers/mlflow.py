"""MLflow: a run on a tracking server, or in a local database."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any, ClassVar
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from raymotion.errors import InputError
from raymotion.loggers.logger import LoggedRun, Logger, Status

MOST_AT_ONCE = 100  # parameters in one request
LONGEST = 6000  # characters of a parameter's value
ENDS = {"complete": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


class MlflowLogger(Logger):
    """A run in MLflow, with the recipe as its parameters.

    Credentials come from the environment (`MLFLOW_TRACKING_USERNAME`, `MLFLOW_TRACKING_PASSWORD`,
    `MLFLOW_TRACKING_TOKEN`).

    Attributes:
        tracking_uri: the server or the database (`sqlite:///mlflow.db`); None: `MLFLOW_TRACKING_URI`, else MLflow's
            default.
        experiment: made if there is none of this name.
        tags: further tags of the run.
    """

    packages: ClassVar[Mapping[str, str]] = {"mlflow": "mlflow-skinny"}
    tracking_uri: str | None = None
    experiment: str = Field("raymotion", min_length=1)
    tags: dict[str, str] = {}

    _client: Any = None
    _run: str = ""

    @field_validator("tracking_uri")
    @classmethod
    def _without_password(cls, value: str | None) -> str | None:
        if value is not None and urlsplit(value).password:
            raise InputError(  # of a ValueError, pydantic would repeat the address
                "logger mlflow: tracking_uri holds a password, which does not belong into a recipe",
                remedy="Give the address in the environment, as MLFLOW_TRACKING_URI.",
            )
        return value

    @property
    def needs(self) -> Mapping[str, str]:
        local = (self.tracking_uri or "").startswith("sqlite:")
        return {**self.packages, **({"sqlalchemy": "sqlalchemy", "alembic": "alembic"} if local else {})}

    def begin(self, run: LoggedRun) -> str:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it announces each table of a new database
        self._client = client = MlflowClient(tracking_uri=self.tracking_uri)
        if run.id is not None:
            client.update_run(run.id, status="RUNNING")
            self._run = run.id
            return run.id
        if not self._run:  # else the last try came as far as this
            experiment = client.get_experiment_by_name(self.experiment)
            number = client.create_experiment(self.experiment) if experiment is None else experiment.experiment_id
            tags = {"mlflow.source.name": "raymotion", **self.tags}
            self._run = client.create_run(number, run_name=run.name, tags=tags).info.run_id
        known = [Param(name, str(value)[:LONGEST]) for name, value in run.flat.items()]
        for start in range(0, len(known), MOST_AT_ONCE):
            client.log_batch(self._run, params=known[start : start + MOST_AT_ONCE])
        return self._run

    def log(self, epoch: int, figures: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        # A killed command may have sent an epoch that it did not record, and MLflow keeps both of two equal steps.
        if any(own.step == epoch for own in self._client.get_metric_history(self._run, next(iter(figures)))):
            return
        now = int(time.time() * 1000)
        self._client.log_batch(self._run, metrics=[Metric(name, own, now, epoch) for name, own in figures.items()])

    def end(self, status: Status, summary: Mapping[str, float | str]) -> None:
        for name, value in summary.items():
            if isinstance(value, str):
                self._client.set_tag(self._run, name, value)
            else:
                self._client.log_metric(self._run, name, value)
        self._client.set_terminated(self._run, status=ENDS[status])
