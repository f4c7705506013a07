"""A published checkpoint becomes a registered version that nowcasts can run and trainings can start from."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from tempfile import TemporaryDirectory

from infra.registry import ModelVersion, TensorSignature
from infra.tracking import Tracking
from models.published import import_weights, published_model

EXPERIMENT = "squall/import"


def import_published(kind: str, path: Path, tracking_uri: str, *, name: str | None = None) -> ModelVersion:
    """Import a published file and register it; it waits as challenger, because nothing has judged it here.

    All of the file is read and checked before the registry hears of it.

    Args:
        kind: What it is, such as earthformer-sevir.
        path: torch.save, Lightning or safetensors file.
        tracking_uri: Address of the registry.
        name: Registered name; default: the kind.

    Raises:
        CheckpointError: a damaged or foreign file; the first wrong name is told with both shapes.
        ValueError: no such kind, or a name MLflow cannot keep.
        OSError: the file cannot be read, or the registry does not answer.
    """
    registered = name or kind
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", registered):
        raise ValueError(f"expected a name of letters, digits, '.', '-' and '_'; got {registered!r}")
    model = published_model(kind)
    with TemporaryDirectory(prefix="squall-import-") as folder:
        checkpoint = import_weights(model, path, Path(folder) / "checkpoint")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        tags = {
            "squall.published_model": kind,
            "squall.source_file": path.name,
            "squall.source_sha256": digest,
        }
        tracking = Tracking(tracking_uri)
        with tracking.run(EXPERIMENT, kind) as log:
            log.tags(tags)
            signature = TensorSignature(model.inputs, model.outputs)
            version = tracking.register(registered, checkpoint, run_id=log.run_id, signature=signature, tags=tags)
    tracking.challenge(registered, version.version)
    return tracking.version(registered, version.version)
