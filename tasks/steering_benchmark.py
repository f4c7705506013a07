"""How far a domain's PreDiff can be steered: what the step of the alignment benchmark does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from infra.settings import Domain, Settings
from infra.tracking import Tracking
from tasks.benchmarking import log_origin
from tasks.contenders import load_networks, sampling_variants, window_spec
from tasks.learning import cut_samples
from tasks.training.data import TrainingData
from tasks.training.datasets import Sequences

if TYPE_CHECKING:
    from tasks.training.intensity_table import IntensityRow

EXPERIMENT = "squall/benchmark/alignment"
_GUIDANCES = ("calibrated", "legacy")
DEFAULT_INTENSITIES = (-4.0, -2.0, 0.0, 2.0, 4.0)
_DESCRIPTION = "mlflow.note.content"  # shown as Markdown on the run's page


@dataclass(frozen=True)
class AlignmentBenchmark:
    """What to try.

    Attributes:
        model: A PreDiff: `NAME@ALIAS`, `NAME/VERSION` or the family (the domain's champion of it).
        intensities: n of the average intensities mu + n sigma to steer to.
        windows: Wet held-out windows, at most.
        members: Of each ensemble.
        seed: Of everything random.
        steps: Sampler settings such as `20` or `ddim:50`; none takes the model's own.
        guidance: calibrated, or legacy: the published rule, of a diffusion.
    """

    model: str = "prediff"
    intensities: tuple[float, ...] = DEFAULT_INTENSITIES
    windows: int = 16
    members: int = 8
    seed: int = 0
    steps: tuple[str, ...] = ()
    guidance: str = "calibrated"


@dataclass(frozen=True)
class AlignmentReport:
    """What came out.

    Attributes:
        text: The table in Markdown.
        rows: Of each sampler setting: members that were not steered, then every intensity.
        monotone: By model and setting, whether more was achieved wherever more was asked for.
        windows: Windows that were judged.
        run_link: Where people see the table.
    """

    text: str
    rows: tuple[IntensityRow, ...]
    monotone: dict[str, bool]
    windows: int
    run_link: str

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; what has no evidence is null."""
        from tasks.verification.promotion import without_nan

        rows = [row.as_dict() for row in self.rows]
        plain: dict[str, Any] = without_nan(
            {"windows": self.windows, "run": self.run_link, "monotone": self.monotone, "rows": rows}
        )
        return plain


def compare_domain_intensities(
    domain: Domain, settings: Settings, data: TrainingData | Sequences, asked: AlignmentBenchmark
) -> AlignmentReport:
    """Steer ensembles on held-out wet windows to several intensities, read off what came out, and log the table.

    Raises:
        ValueError: a model that cannot be steered or was trained on other cells, an unknown setting, or no window.
        ModelMissing: a model that is not registered.
    """
    import torch

    from models.prediff.forecaster import PreDiffForecaster
    from tasks.training.intensity_table import as_markdown, is_monotone, tabulate_intensities
    from tasks.training.sampling_steps import vary
    from tasks.verification.promotion import without_nan

    if asked.guidance not in _GUIDANCES:
        raise ValueError(f"expected the guidance {' or '.join(_GUIDANCES)}; got {asked.guidance!r}")
    torch.set_num_threads(settings.threads)
    networks = load_networks([asked.model], domain, settings, data.info)
    samples = cut_samples(data, window_spec(domain, data.info, networks))
    variants = {name: one for name, (one, _) in sampling_variants(networks, asked.steps).items()} or networks
    windows = samples.held_out("test", asked.windows, wet=True)
    tracking = Tracking(settings.tracking_uri)
    with tracking.run(EXPERIMENT, domain.name) as log:
        log_origin(log, domain, samples, asked)
        rows, monotone = list["IntensityRow"](), dict[str, bool]()
        for name, forecaster in variants.items():
            if not isinstance(forecaster, PreDiffForecaster):
                raise ValueError(f"expected a model that can be steered; got {name}, {type(forecaster).__name__}")
            steered = cast("PreDiffForecaster", vary(forecaster, guidance=asked.guidance))
            found = tabulate_intensities(
                name, steered, samples, windows, asked.intensities, members=asked.members, seed=asked.seed
            )
            monotone[name] = is_monotone(found)
            rows += found
        log.table(without_nan({"rows": [row.as_dict() for row in rows], "monotone": monotone}), "intensities.json")
        log.tags({_DESCRIPTION: as_markdown(rows)})
        link = tracking.run_link(log)
    return AlignmentReport(as_markdown(rows), tuple(rows), monotone, len(windows), link)
