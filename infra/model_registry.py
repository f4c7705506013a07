"""The registry of models in MLflow: versions, their checkpoints, and who is champion.

A registered version holds config.json + model.safetensors behind a pyfunc model from code. `champion` is what nowcasts
use, `challenger` what waits for a verdict, `previous` what a rollback returns to; every change of an alias is recorded
as an event on the registered model.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infra.registry import ModelMissing, ModelVersion, RegistryEvent, TensorSignature, TrackingUnavailable

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
EVENT_TAG, EVENT_TIME = "squall.event.", "%Y-%m-%dT%H.%M.%S.%f%z"  # MLflow allows no + in a tag's name
_NOT_FOUND = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


class ModelRegistry:
    """The registered models behind an MLflow client; `infra.tracking.Tracking` connects."""

    def __init__(self, client: Any, uri: str) -> None:
        self._client, self.uri = client, uri

    def register(
        self,
        name: str,
        folder: Path,
        *,
        run_id: str,
        signature: TensorSignature,
        tags: Mapping[str, str] | None = None,
    ) -> ModelVersion:
        """Register the checkpoint folder (config.json + model.safetensors) as a new version of `name`.

        Args:
            name: `<domain>-<model>`.
            folder: Checkpoint.
            run_id: Run the version belongs to.
            signature: Shapes of input and output.
            tags: Tags of the version.
        """
        mlflow = _pyfunc()
        from mlflow.models import ModelSignature
        from mlflow.types import ParamSchema, ParamSpec, Schema

        declared = ModelSignature(
            inputs=Schema([_tensor_spec(signature.inputs)]),
            outputs=Schema([_tensor_spec(signature.outputs)]),
            params=ParamSchema([ParamSpec("members", "long", 1), ParamSpec("seed", "long", 0)]),
        )
        with self._fluent(), _known_warnings(), mlflow.start_run(run_id=run_id):
            logged = mlflow.pyfunc.log_model(
                name=name,
                python_model=str(Path(__file__).with_name("served_forecaster.py")),
                artifacts={"checkpoint": str(folder)},
                signature=declared,
                pip_requirements=["torch", "numpy", "safetensors", "pydantic"],
            )
            self._require_model(name)
            created = self._client.create_model_version(
                name, source=logged.model_uri, run_id=run_id, tags=dict(tags or {}), model_id=logged.model_id
            )
        return self.version(name, created.version)

    def _require_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    @contextmanager
    def _fluent(self) -> Iterator[None]:
        # log_model has no client form: it reads the process-wide address.
        import mlflow

        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(self.uri)  # the registry's follows it
        try:
            yield
        finally:
            mlflow.set_tracking_uri(before)

    def version(self, name: str, which: str | int) -> ModelVersion:
        """The version of `name` with the alias or number `which`.

        Raises:
            ModelMissing: no such model, alias or version.
        """
        from mlflow.exceptions import MlflowException

        with _reachable(self.uri):
            try:
                number = int(which) if str(which).isdigit() else self._alias(name, str(which))
                found = self._client.get_model_version(name, str(number))
            except MlflowException as error:
                if error.error_code not in _NOT_FOUND:
                    raise
                raise ModelMissing(f"expected a registered model {name}@{which} at {self.uri}; found none") from error
            return self._describe(found)

    def _alias(self, name: str, alias: str) -> int:
        return int(self._client.get_model_version_by_alias(name, alias).version)

    def _describe(self, found: Any) -> ModelVersion:
        aliases = self._client.get_registered_model(found.name).aliases  # a searched version does not list its own
        mine = tuple(sorted(alias for alias, number in aliases.items() if int(number) == int(found.version)))
        created = datetime.fromtimestamp(found.creation_timestamp / 1000, UTC)
        return ModelVersion(found.name, int(found.version), found.run_id or None, mine, dict(found.tags), created)

    def find(self, name: str, which: str | int) -> ModelVersion | None:
        """As `version`, None where there is none."""
        try:
            return self.version(name, which)
        except ModelMissing:
            return None

    def models(self) -> list[str]:
        """Names of all registered models."""
        return sorted(model.name for model in self._client.search_registered_models(max_results=1000))

    def versions(self, name: str) -> list[ModelVersion]:
        """All versions of a model, oldest first."""
        found = self._client.search_model_versions(f"name='{name}'", max_results=1000)
        return sorted((self._describe(version) for version in found), key=lambda version: version.version)

    def download(self, name: str, which: str | int, into: Path) -> Path:
        """Fetch a version's checkpoint; the folder, under `into`, holds config.json and model.safetensors.

        Raises:
            ModelMissing: no such model, alias or version.
        """
        mlflow = _pyfunc()
        version = self.version(name, which)
        folder = into / name / _identity(version)
        if not (folder / "model.safetensors").exists():
            with _reachable(self.uri), self._fluent():
                uri = f"models:/{name}/{version.version}"
                fetched = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, tracking_uri=self.uri))
                (found,) = fetched.glob("artifacts/*/model.safetensors")
            _copy_atomically(found.parent, folder)
        return folder

    def registered_by(self, name: str, run_id: str, tags: Mapping[str, str]) -> ModelVersion | None:
        """The version of `name` that a run has registered with these tags, among others; None where it has not."""
        mine = (found for found in self.versions(name) if found.run_id == run_id)
        return next((found for found in mine if tags.items() <= found.tags.items()), None)

    def tag_version(self, name: str, version: int, tags: Mapping[str, str]) -> None:
        """Set tags of one registered version."""
        for key, value in tags.items():
            self._client.set_model_version_tag(name, str(version), key, value)

    def challenge(self, name: str, version: int) -> None:
        """Give `version` the alias challenger."""
        self._client.set_registered_model_alias(name, CHALLENGER, str(version))

    def promote(self, name: str, version: int, reason: str) -> None:
        """Make `version` champion and the champion before it `previous`; repeating it changes nothing.

        Raises:
            ModelMissing: no such version.
        """
        self._crown(name, self.version(name, version), "promoted", reason)

    def refuse(self, name: str, version: int, reason: str) -> None:
        """Record that `version` was not promoted, and why; it stays registered without an alias."""
        self._drop_challenger(name, version)
        champion = self.find(name, CHAMPION)
        self._record(name, "refused", version, champion.version if champion else None, reason)

    def rollback(self, name: str, reason: str) -> ModelVersion:
        """Return to the previous champion.

        Raises:
            ModelMissing: there is no previous champion.
        """
        target = self.version(name, PREVIOUS)
        self._crown(name, target, "rolled-back", reason)
        return self.version(name, CHAMPION)

    def _crown(self, name: str, target: ModelVersion, event: str, reason: str) -> None:
        champion = self.find(name, CHAMPION)
        if champion is not None and champion.version == target.version:
            return
        if champion is not None:
            self._client.set_registered_model_alias(name, PREVIOUS, str(champion.version))
        self._client.set_registered_model_alias(name, CHAMPION, str(target.version))
        self._drop_challenger(name, target.version)
        self._record(name, event, target.version, champion.version if champion else None, reason)

    def _drop_challenger(self, name: str, version: int) -> None:
        challenger = self.find(name, CHALLENGER)
        if challenger is not None and challenger.version == version:
            self._client.delete_registered_model_alias(name, CHALLENGER)

    def _record(self, name: str, event: str, version: int, replaced: int | None, reason: str) -> None:
        at = datetime.now(UTC).strftime(EVENT_TIME).replace("+0000", "Z")
        content = {"event": event, "version": version, "replaced": replaced, "reason": reason}
        self._client.set_registered_model_tag(name, f"{EVENT_TAG}{at}", json.dumps(content))

    def history(self, name: str) -> list[RegistryEvent]:
        """Who became champion when and why, oldest first.

        Raises:
            ModelMissing: no such model.
        """
        from mlflow.exceptions import MlflowException

        with _reachable(self.uri):
            try:
                tags = self._client.get_registered_model(name).tags
            except MlflowException as error:
                if error.error_code not in _NOT_FOUND:
                    raise
                raise ModelMissing(f"expected a registered model; got {name!r}") from error
        events = sorted((key.removeprefix(EVENT_TAG), text) for key, text in tags.items() if key.startswith(EVENT_TAG))
        return [RegistryEvent(at=datetime.strptime(at, EVENT_TIME), **json.loads(text)) for at, text in events]


@contextmanager
def _reachable(uri: str) -> Iterator[None]:
    """What MLflow cannot answer or deliver, whatever its reason, is one error that a caller can act on."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise TrackingUnavailable(f"{uri}: {error}") from error


@contextmanager
def _known_warnings() -> Iterator[None]:
    # MLflow warns about a type hint of its own on import, and about a missing example although a signature is given.
    with warnings.catch_warnings():
        for message in (".*Any type hint is inferred", ".*An input example was not provided"):
            warnings.filterwarnings("ignore", message=message, category=UserWarning)
        yield


def _pyfunc() -> Any:
    with _known_warnings():
        import mlflow
        import mlflow.pyfunc
    return mlflow


def _identity(version: ModelVersion) -> str:
    # Every registry counts from 1, and so does a model that was deleted and registered anew.
    return f"{version.version}-{version.created_at:%Y%m%dT%H%M%S%f}-{version.run_id or 'imported'}"


def _tensor_spec(shape: tuple[int, ...]) -> Any:
    import numpy as np
    from mlflow.types import TensorSpec

    return TensorSpec(np.dtype(np.float32), shape)


def _copy_atomically(source: Path, target: Path) -> None:
    import shutil
    from uuid import uuid4

    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{uuid4().hex[:8]}.part")
    shutil.copytree(source, partial)
    try:
        partial.rename(target)
    except OSError:  # another process fetched the same version
        shutil.rmtree(partial)
        if not target.exists():
            raise
