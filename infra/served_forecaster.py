"""What MLflow runs when a registered model is loaded: a checkpoint folder behind the forecaster contract.

MLflow stores this file's text with the model ("models from code"), so nothing of ours is pickled. `models` is looked
up by name because this file is executed by MLflow, wherever Squall is installed, and is not part of the layers.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class ServedForecaster(PythonModel):  # type: ignore[misc]
    """Contexts in, forecasts out, both in physical units."""

    def load_context(self, context: Any) -> None:
        """Load config.json and model.safetensors from the version's artifacts."""
        self.forecaster = import_module("models.forecaster").load_forecaster(context.artifacts["checkpoint"])

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """Forecasts (batch, member, lead_time, y, x) float32 of contexts (batch, t_in, y, x) float32.

        Units are those the model was trained on (mm h-1 or dBZ); NaN in a context = not observed.
        """
        chosen = params or {}
        members, seed = int(chosen.get("members", 1)), int(chosen.get("seed", 0))
        leads = self.forecaster.t_out
        return np.stack(
            [self.forecaster.forecast(field, leads, members=members, seed=seed) for field in np.asarray(model_input)]
        )


set_model(ServedForecaster())
