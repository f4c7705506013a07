"""What the model registry says, as plain records: versions, changes of champion, shapes, and what can be missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime


class ModelMissing(LookupError):
    """The registry has no such model, version or alias."""


class TrackingUnavailable(ConnectionError):
    """The tracking server does not answer."""


@dataclass(frozen=True)
class ModelVersion:
    """One version of a registered model.

    Attributes:
        name: Registered name, `<domain>-<model>`.
        version: Number, as MLflow counts.
        run_id: Training run it came from; None for an import.
        aliases: champion, challenger, previous, or none.
        tags: Tags of the version.
        created_at: When it was registered (aware, UTC).
    """

    name: str
    version: int
    run_id: str | None
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    created_at: datetime


@dataclass(frozen=True)
class RegistryEvent:
    """One change of who is champion.

    Attributes:
        at: When (aware, UTC).
        event: promoted, rolled-back or refused.
        version: The version concerned.
        replaced: Champion before; None if there was none.
        reason: In words.
    """

    at: datetime
    event: str
    version: int
    replaced: int | None
    reason: str


@dataclass(frozen=True)
class TensorSignature:
    """Shapes (−1 = any) of a model's float32 input and output, batch first."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
