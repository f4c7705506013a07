"""A progress bar that knows a training ends by steps or by time, whichever comes first."""

from __future__ import annotations

from typing import Any, Protocol

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Progressing(Protocol):
    """What the bar shows."""

    progress: Any

    def share_done(self) -> float:
        """Progress 0..1."""


class TrainingBar:
    """Share done, step, loss and best score on one line."""

    def __init__(self, training: Progressing, title: str = "training", score: str = "CSI") -> None:
        self.training, self.score = training, score
        self.bar = Progress(
            TextColumn(title),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
        )
        self.line: TaskID | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Show the bar on the first process."""
        if trainer.is_global_zero:
            self.line = self.bar.add_task("", total=1.0)
            self.bar.start()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the bar."""
        if self.line is None:
            return
        progress = self.training.progress
        best = "" if progress.best_score is None else f" best {self.score} {abs(progress.best_score):.3f}"
        text = f"step {progress.step} loss {_loss(outputs):.4f}{best}"
        self.bar.update(self.line, completed=self.training.share_done(), description=text)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the last line."""
        if self.line is not None:
            self.bar.stop()
            self.line = None


def _loss(outputs: Any) -> float:
    return float(outputs["loss"] if isinstance(outputs, dict) else outputs)
