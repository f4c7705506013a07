"""report.json: how a product came about, for people and programs."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import PurePosixPath

from pydantic import AwareDatetime, BaseModel, ConfigDict

from infra.objects import ObjectStore
from infra.revision import software_versions
from infra.settings import Domain
from tasks.forecasting.context import Context
from tasks.forecasting.ensemble import EnsembleCost, EnsembleRun, intensity_in_words
from tasks.forecasting.ladder import Forecast

REPORT = "report.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class FrameReport(_Part):
    """One slot of the context; age [s] from its valid time to `at`, coverage as a share of the grid."""

    time: AwareDatetime
    age_s: float
    status: str
    source_key: str
    interpolated: bool
    coverage: float


class ModelReport(_Part):
    """Which model; `run_id` is its training run, None for a baseline."""

    name: str
    version: str
    run_id: str | None


class SkippedReport(_Part):
    """A rung that was passed over, with the name of the error and its message."""

    rung: str
    kind: str
    reason: str


class GuardrailReport(_Part):
    """A check that the forecast kept: what was found against which limit."""

    name: str
    found: float
    limit: float


class EnsembleReport(_Part):
    """What was asked of the ensemble and what the deadline left.

    Attributes:
        members_asked: How many were wanted; the report's `members` says how many there are.
        steps_asked: Sampling steps of each member, in full.
        steps: Sampling steps taken.
        sampler: Method.
        choice: full, fewer steps or fewer members.
        reason: Of the choice, in words.
        intensity: n of the average intensity mu + n sigma that members were steered to; None: not steered.
        shared_s: Seconds for all members together: context, anchor.
        member_s: Seconds of each member apart from its steps: decoding.
        step_s: Seconds of each step of each member.
        load_s: Seconds of loading the model.
    """

    members_asked: int
    steps_asked: int
    steps: int
    sampler: str
    choice: str
    reason: str
    intensity: float | None
    shared_s: float
    member_s: float
    step_s: float
    load_s: float

    @property
    def cost(self) -> EnsembleCost:
        """What the next ensemble of this model is expected to cost."""
        return EnsembleCost(self.shared_s, self.member_s, self.step_s, self.load_s)


class Report(_Part):
    """Provenance of one product.

    Attributes:
        domain: Its name.
        title: Its title.
        run: Name of the product's folder.
        path: The folder, below the store's root.
        init_time: Time of the newest frame used; lead times count from it.
        at: The moment whose knowledge was used.
        received_rule: How "received by `at`" was decided.
        latency_s: Delay assumed where receipt was not recorded [s].
        archive_snapshot: What was read.
        as_of: Snapshot asked for; None when the newest was taken.
        quantity: CF-style name of what is forecast.
        units: Its units.
        licence: SPDX identifier of the observations.
        verdict: On the context.
        reasons: Why it is not complete.
        frames: The context.
        observed_share: Share of the grid that the context observes.
        rung: That answered.
        why: In words.
        skipped: Rungs above it.
        adaptation: How the context was fitted to the model; empty for not at all.
        model: Whose forecast it is.
        code_revision: Of this program.
        seed: Of the members.
        members: How many.
        ensemble: How they were drawn; None for one member.
        guardrails: That the forecast kept.
        late: Whether it missed its deadline.
        seconds: Per stage, up to the writing of this report.
        software: Package -> version.
    """

    domain: str
    title: str
    run: str
    path: str
    init_time: AwareDatetime
    at: AwareDatetime
    received_rule: str
    latency_s: float
    archive_snapshot: str
    as_of: str | None
    quantity: str
    units: str
    licence: str
    verdict: str
    reasons: tuple[str, ...]
    frames: tuple[FrameReport, ...]
    observed_share: float
    rung: str
    why: str
    skipped: tuple[SkippedReport, ...]
    adaptation: str
    model: ModelReport
    code_revision: str
    seed: int
    members: int
    ensemble: EnsembleReport | None = None
    guardrails: tuple[GuardrailReport, ...]
    late: bool
    seconds: dict[str, float]
    software: dict[str, str]

    @property
    def intensity(self) -> float | None:
        """n of the average intensity mu + n sigma of a what-if; None: a forecast."""
        return self.ensemble.intensity if self.ensemble else None

    def encode(self) -> bytes:
        """The bytes of report.json."""
        return self.model_dump_json(indent=1).encode()


def build_report(
    context: Context, forecast: Forecast, domain: Domain, path: str, *, as_of: str | None, seconds: Mapping[str, float]
) -> Report:
    """The report of a forecast that goes to folder `path`; `seconds` [s] per stage, the forecast's own are added."""
    field = forecast.dataset[context.quantity]
    return Report(
        domain=domain.name,
        title=domain.title,
        run=PurePosixPath(path).name,
        path=path,
        init_time=context.init_time,
        at=context.at,
        received_rule=context.rule,
        latency_s=context.latency.total_seconds(),
        archive_snapshot=context.snapshot,
        as_of=as_of,
        quantity=context.quantity,
        units=str(field.attrs["units"]),
        licence=context.licence,
        verdict=context.verdict.value,
        reasons=context.reasons,
        frames=tuple(
            FrameReport(
                time=slot.time,
                age_s=slot.age.total_seconds(),
                status=slot.status,
                source_key=slot.source_key,
                interpolated=slot.interpolated,
                coverage=slot.coverage,
            )
            for slot in context.slots
        ),
        observed_share=round(float(context.observed.values.mean()), 4),
        rung=forecast.rung,
        why=_why(forecast),
        skipped=tuple(SkippedReport(rung=s.rung, kind=s.kind, reason=s.reason) for s in forecast.skipped),
        adaptation=forecast.note,
        model=ModelReport(name=forecast.model.name, version=forecast.model.version, run_id=forecast.model.run_id),
        code_revision=str(forecast.dataset.attrs["code_revision"]),
        seed=forecast.seed,
        members=field.sizes["member"],
        ensemble=_ensemble(forecast.ensemble) if forecast.ensemble else None,
        guardrails=tuple(GuardrailReport(name=g.name, found=g.found, limit=g.limit) for g in forecast.guardrails),
        late=forecast.late,
        seconds={name: round(value, 4) for name, value in {**seconds, **_own(forecast)}.items()},
        software=software_versions(),
    )


def read_report(store: ObjectStore, path: str) -> Report:
    """The report of the product in folder `path`. Raises FileNotFoundError."""
    return Report.model_validate_json(store.read(f"{path}/{REPORT}"))


def show_product(store: ObjectStore, path: str) -> str:
    """Provenance of the product in folder `path`, in words. Raises FileNotFoundError."""
    report = read_report(store, path)
    lines = [
        f"{report.title or report.domain}: {report.quantity} from {_clock(report.init_time)}, {report.members} members",
        f"Issued from what was known at {_clock(report.at)} ({report.received_rule}), archive snapshot "
        f"{report.archive_snapshot}{' as asked for' if report.as_of else ''}.",
        f"Context: {report.verdict}, {len(report.frames)} frames, newest {report.frames[-1].age_s:.0f} s old, "
        f"{report.observed_share:.0%} of the grid observed.",
        *(f"  - {reason}" for reason in report.reasons),
        f"Forecast: {report.why}; model {report.model.name} version {report.model.version}"
        f"{f', training run {report.model.run_id}' if report.model.run_id else ''}, seed {report.seed}"
        f"{f'; {report.adaptation}' if report.adaptation else ''}.",
        *_ensemble_lines(report),
        *(f"  - {entry.rung} passed over: {entry.kind}: {entry.reason}" for entry in report.skipped),
        "Guardrails kept: " + ", ".join(f"{g.name} {g.found:g} (limit {g.limit:g})" for g in report.guardrails) + ".",
        "Seconds: " + ", ".join(f"{name} {value:.2f}" for name, value in report.seconds.items()) + ".",
        f"Code {report.code_revision}; observations licensed {report.licence or 'unknown'}.",
    ]
    return "\n".join(lines)


def _ensemble(run: EnsembleRun) -> EnsembleReport:
    return EnsembleReport(
        members_asked=run.members_asked,
        steps_asked=run.steps_asked,
        steps=run.steps,
        sampler=run.sampler,
        choice=run.choice,
        reason=run.reason,
        intensity=run.intensity,
        shared_s=round(run.cost.shared_s, 6),
        member_s=round(run.cost.member_s, 6),
        step_s=round(run.cost.step_s, 6),
        load_s=round(run.cost.load_s, 6),
    )


def _ensemble_lines(report: Report) -> list[str]:
    run = report.ensemble
    if run is None:
        return []
    lines = [
        f"Ensemble: {report.members} of {run.members_asked} members, {run.steps} of {run.steps_asked} steps of "
        f"{run.sampler} ({run.choice}: {run.reason}); {run.step_s:.3g} s for a step of a member."
    ]
    if run.intensity is not None:
        words = intensity_in_words(run.intensity)
        lines.append(
            f"What-if, no forecast: the average intensity is held at {words} of what the context leads to expect."
        )
    return lines


def _why(forecast: Forecast) -> str:
    late = ", after its deadline" if forecast.late else ""
    if not forecast.skipped:
        return f"{forecast.rung}, the first rung{late}"
    return f"{forecast.rung}, because {' and '.join(entry.rung for entry in forecast.skipped)} could not answer{late}"


def _own(forecast: Forecast) -> dict[str, float]:
    return {f"forecast.{stage}": value for stage, value in forecast.seconds.items()}


def _clock(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
