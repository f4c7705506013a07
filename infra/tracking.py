"""MLflow behind one door: runs with parameters, metrics and figures, and (`infra.model_registry`) the models."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import urlopen

from infra.model_registry import CHALLENGER, CHAMPION, PREVIOUS, ModelRegistry
from infra.registry import ModelMissing, ModelVersion, RegistryEvent, TensorSignature, TrackingUnavailable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "PREVIOUS",
    "ModelMissing",
    "ModelVersion",
    "RegistryEvent",
    "RunLog",
    "TensorSignature",
    "Tracking",
    "TrackingUnavailable",
]

_ANSWER_WITHIN = 5.0


class RunLog:
    """One open MLflow run."""

    def __init__(self, client: Any, run_id: str, experiment_id: str) -> None:
        self._client, self.run_id, self.experiment_id = client, run_id, experiment_id

    def params(self, values: Mapping[str, object]) -> None:
        """Log parameters once; repeating equal values is harmless."""
        for key, value in values.items():
            self._client.log_param(self.run_id, key, value)

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        for key, value in values.items():
            self._client.set_tag(self.run_id, key, value)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics at a step; a NaN (no evidence) is left out rather than drawn as a number."""
        from mlflow.entities import Metric

        now = int(datetime.now(UTC).timestamp() * 1000)
        found = [Metric(key, float(value), now, step) for key, value in values.items() if value == value]
        for at in range(0, len(found), 500):
            self._client.log_batch(self.run_id, metrics=found[at : at + 500])

    def figure(self, figure: Figure, path: str) -> None:
        """Store a matplotlib figure under the run's artifacts."""
        self._client.log_figure(self.run_id, figure, path)

    def table(self, content: Mapping[str, object], path: str) -> None:
        """Store a JSON document under the run's artifacts."""
        self._client.log_dict(self.run_id, dict(content), path)

    def file(self, path: Path, folder: str | None = None) -> None:
        """Store a file under the run's artifacts."""
        self._client.log_artifact(self.run_id, str(path), folder)


class Tracking(ModelRegistry):
    """An MLflow tracking server and registry, or a SQLite file with artifacts beside it."""

    def __init__(self, uri: str) -> None:
        """Connect to `uri`: http(s)://... or sqlite:///absolute/path.db.

        Raises:
            TrackingUnavailable: no server answers there (asked once, briefly: MLflow itself retries for minutes).
        """
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # standard output is --json's
        for name in ("alembic", "mlflow.store.db.utils"):
            logging.getLogger(name).setLevel(logging.WARNING)
        from mlflow import MlflowClient

        if uri.startswith("sqlite:///"):
            Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        else:
            _require_answer(uri)
        super().__init__(MlflowClient(tracking_uri=uri, registry_uri=uri), uri)

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        if found := self._client.get_experiment_by_name(name):
            return str(found.experiment_id)
        try:
            return str(self._client.create_experiment(name, artifact_location=self._artifacts()))
        except MlflowException:  # another process was first
            if (found := self._client.get_experiment_by_name(name)) is None:
                raise
            return str(found.experiment_id)

    def _artifacts(self) -> str | None:
        if not self.uri.startswith("sqlite:///"):
            return None  # the server decides
        return str(Path(self.uri.removeprefix("sqlite:///")).resolve().parent / "mlflow-artifacts")

    @contextmanager
    def run(
        self, experiment: str, name: str, run_id: str | None = None, tags: Mapping[str, str] | None = None
    ) -> Iterator[RunLog]:
        """A run of `experiment`, new (with `tags`) or by id continued; FAILED when the block raises, else FINISHED."""
        experiment_id = self._experiment(experiment)
        if run_id is None:
            run_id = self._client.create_run(experiment_id, run_name=name, tags=dict(tags or {})).info.run_id
        else:
            self._client.update_run(run_id, status="RUNNING")
        try:
            yield RunLog(self._client, run_id, experiment_id)
        except BaseException:
            self._client.set_terminated(run_id, "FAILED")
            raise
        self._client.set_terminated(run_id, "FINISHED")

    def find_run(self, experiment: str, name: str) -> str | None:
        """Id of the newest run of that name in `experiment`; None where there is none."""
        return self._newest(experiment, f"attributes.run_name = '{name}'")

    def find_tagged(self, experiment: str, tag: str, value: str) -> str | None:
        """Id of the newest run in `experiment` whose `tag` has this value; None where there is none."""
        return self._newest(experiment, f"tags.`{tag}` = '{value}'")

    def _newest(self, experiment: str, condition: str) -> str | None:
        found = self._client.search_runs([self._experiment(experiment)], condition, max_results=1)
        return str(found[0].info.run_id) if found else None

    def run_link(self, log: RunLog) -> str:
        """Address of a run's page in the MLflow UI; the store's address where there is no server."""
        if not self.uri.startswith("http"):
            return self.uri
        return f"{self.uri}/#/experiments/{log.experiment_id}/runs/{log.run_id}"


def _require_answer(uri: str) -> None:
    try:
        with urlopen(f"{uri.rstrip('/')}/health", timeout=_ANSWER_WITHIN):
            pass
    except HTTPError:  # it answers; whether it lets us in shows later
        pass
    except OSError as error:
        raise TrackingUnavailable(f"expected an MLflow server at {uri}; {error}") from error
