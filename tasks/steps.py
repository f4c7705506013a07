"""Every step of every flow in one table: what is retried, how long it may take, under which tags.

The only file of this package that knows Prefect. A step is a plain function of `tasks` under a policy; results stay in
the process (arrays are never pickled into a result store), and what must survive is in the archive or the store.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.task_engine import TaskRunTimeoutError
from prefect.tasks import exponential_backoff

from infra.processes import lower_priority
from tasks import benchmarking, cycle, ensemble_gate, learning, prediff_learning, prediff_plan, steering_benchmark
from tasks.feeds import FrameRejected
from tasks.training import resumption, turns
from tasks.verification import degradation, skill_log

if TYPE_CHECKING:
    from infra.settings import Settings
    from tasks.learning import Fitted
    from tasks.products.publishing import Published
    from tasks.products.report import Report
    from tasks.verification.degradation import SkillVerdict
    from tasks.verification.ensemble_promotion import EnsembleVerdict
    from tasks.verification.promotion import PromotionVerdict
    from tasks.verification.skill_table import SkillTable

P = ParamSpec("P")
R = TypeVar("R")

# A refusal is an answer, not an accident: asking again gives the same one. What took too long would do so again.
_ANSWERS = (ValueError, LookupError, FrameRejected, TaskRunTimeoutError)


def _accidental(step: object, run: object, state: State[Any]) -> bool:
    return not isinstance(state.result(raise_on_failure=False), _ANSWERS)


def _step(function: Callable[P, R], *, retries: int, minutes: int, tags: set[str]) -> Task[P, R]:
    return task(
        name=function.__name__,
        retries=retries,
        retry_delay_seconds=exponential_backoff(backoff_factor=2),
        retry_jitter_factor=0.5,
        retry_condition_fn=_accidental,
        timeout_seconds=minutes * 60,
        tags=tags,
        persist_result=False,
        cache_policy=NO_CACHE,
    )(function)


# Tried again after 2, 4, 8, 16 and 32 s: a store or registry that is away for half a minute fails no step. A training
# goes on from its newest state.
_OUTAGE = 5

# What is done, how often it is tried again, how long it may take [min], and its tags.
ingest_frames = _step(cycle.ingest_frames, retries=_OUTAGE, minutes=60, tags={"archive"})
await_newest = _step(cycle.await_newest, retries=_OUTAGE, minutes=5, tags={"archive"})
read_context = _step(cycle.read_context, retries=_OUTAGE, minutes=5, tags={"archive"})
make_forecast = _step(cycle.make_forecast, retries=0, minutes=10, tags={"model"})
publish_forecast = _step(cycle.publish_forecast, retries=_OUTAGE, minutes=5, tags={"store"})
look_at = _step(cycle.look_at, retries=_OUTAGE, minutes=5, tags={"store"})
score_products = _step(cycle.score_products, retries=_OUTAGE, minutes=60, tags={"store"})
summarise_skill = _step(cycle.summarise_skill, retries=_OUTAGE, minutes=5, tags={"store"})
log_skill = _step(skill_log.log_skill, retries=_OUTAGE, minutes=5, tags={"registry"})
judge_recent = _step(degradation.judge_skill, retries=0, minutes=5, tags={"skill"})
may_announce_degradation = _step(cycle.may_announce_degradation, retries=_OUTAGE, minutes=5, tags={"store"})
may_expire = _step(cycle.may_expire, retries=_OUTAGE, minutes=5, tags={"store"})
expire = _step(cycle.expire_products_and_snapshots, retries=_OUTAGE, minutes=30, tags={"store"})
find_begun = _step(resumption.find_begun, retries=_OUTAGE, minutes=5, tags={"registry"})
find_begun_plan = _step(prediff_plan.find_begun_plan, retries=_OUTAGE, minutes=5, tags={"registry"})
tag_snapshot = _step(cycle.tag_snapshot, retries=_OUTAGE, minutes=5, tags={"archive"})
sample_data = _step(learning.sample_data, retries=_OUTAGE, minutes=120, tags={"archive"})
fit_model = _step(learning.fit_model, retries=_OUTAGE, minutes=7 * 24 * 60, tags={"model", "gpu"})
plan_prediff = _step(prediff_plan.plan_prediff, retries=_OUTAGE, minutes=10, tags={"registry"})
fit_autoencoder = _step(prediff_learning.fit_autoencoder, retries=_OUTAGE, minutes=7 * 24 * 60, tags={"model", "gpu"})
encode_windows = _step(prediff_learning.encode_windows, retries=_OUTAGE, minutes=24 * 60, tags={"model", "gpu"})
fit_denoiser = _step(prediff_learning.fit_denoiser, retries=_OUTAGE, minutes=30 * 24 * 60, tags={"model", "gpu"})
fit_alignment = _step(prediff_learning.fit_alignment, retries=_OUTAGE, minutes=7 * 24 * 60, tags={"model", "gpu"})
assemble_prediff = _step(prediff_learning.assemble_prediff, retries=_OUTAGE, minutes=24 * 60, tags={"model"})
compare_ensemble_models = _step(ensemble_gate.compare_ensemble_models, retries=_OUTAGE, minutes=24 * 60, tags={"model"})
compare_models = _step(learning.compare_models, retries=_OUTAGE, minutes=120, tags={"model"})
promote_model = _step(learning.promote_model, retries=_OUTAGE, minutes=5, tags={"registry"})
compare_ensembles = _step(benchmarking.compare_domain_ensembles, retries=0, minutes=24 * 60, tags={"model", "gpu"})
compare_intensities = _step(
    steering_benchmark.compare_domain_intensities, retries=0, minutes=24 * 60, tags={"model", "gpu"}
)


def announce(event: str, domain: str, **payload: object) -> None:
    """Emit `squall.<event>` for a domain. No fact lives only in an event: losing one costs latency, never data."""
    emit_event(event=f"squall.{event}", resource={"prefect.resource.id": f"squall.domain.{domain}"}, payload=payload)


def show_product(domain: str, published: Published, report: Report, picture: bytes | None) -> None:
    """Put a product where people look: its picture, its verdict and its place among the run's artifacts."""
    image = f"![quick-look](data:image/png;base64,{b64encode(picture).decode()})\n\n" if picture else ""
    rows = "\n".join(f"| {name} | {text} |" for name, text in _product_lines(published, report).items())
    create_markdown_artifact(
        markdown=f"{image}| | |\n|---|---|\n{rows}\n",
        key=f"nowcast-{domain}" if report.intensity is None else f"what-if-{domain}",
        description=f"{report.init_time:%Y-%m-%d %H:%M} UTC, rung {report.rung}, verdict {report.verdict}",
    )


def _product_lines(published: Published, report: Report) -> dict[str, str]:
    return {
        "init time": f"{report.init_time:%Y-%m-%d %H:%M} UTC",
        "verdict": f"{report.verdict}: {'; '.join(report.reasons) or 'all frames there'}",
        "rung": f"{report.rung}: {report.why}",
        "model": f"{report.model.name} {report.model.version}",
        "ensemble": _ensemble_line(report),
        "archive snapshot": report.archive_snapshot,
        "product": f"`{published.path}`",
        "latest": "yes" if published.latest else "no: a newer product is out",
        "seconds": ", ".join(f"{name} {value:.2f}" for name, value in report.seconds.items()),
    }


def _ensemble_line(report: Report) -> str:
    run = report.ensemble
    if run is None:
        return "one member"
    steered = f", what-if at {run.intensity:+g} sigma" if run.intensity is not None else ""
    size = f"{report.members} of {run.members_asked} members, {run.steps} of {run.steps_asked} steps"
    return f"{size}: {run.choice}{steered}"


def show_skill(domain: str, table: SkillTable, verdict: SkillVerdict) -> None:
    """Put skill beside both baselines, and the verdict on it, among the run's artifacts: on wet windows, if any."""
    wet = table.wet_products > 0
    create_table_artifact(
        table=table.records("wet" if wet else "all"),
        key=f"skill-{domain}",
        description=f"CSI on {'wet' if wet else 'all'} windows, {table.products} products. {verdict.reason}",
    )


def show_training(domain: str, fitted: Fitted, verdict: PromotionVerdict | EnsembleVerdict) -> None:
    """Put a training's verdict and the link to its MLflow run among the run's artifacts."""
    create_markdown_artifact(
        markdown=f"**{verdict.reason}**\n\n"
        f"Against extrapolation: {verdict.against_extrapolation} (ladder rank: {verdict.ladder_rank})\n\n"
        f"[MLflow run]({fitted.run_link}), {fitted.steps} steps in {fitted.seconds:.0f} s\n",
        key=f"training-{domain}",
        description=f"{fitted.name} version {fitted.version}",
    )


def flow_run_id() -> str | None:
    """Id of this flow run: the same when it is started again because its process has vanished."""
    from prefect.runtime import flow_run

    found = flow_run.id
    return str(found) if found else None


def give_way(settings: Settings) -> None:
    """Let nowcasts on the same machine go first. What a command started keeps its priority: somebody waits for it."""
    from prefect.runtime import deployment

    if deployment.id is not None:
        lower_priority(settings.nice)


@contextmanager
def in_turn(settings: Settings, training: str) -> Iterator[None]:
    """Trainings of deployments follow one another on a machine; a later one waits here and says so in its log.

    A training that was started by a command is not held up: whoever asks for two at once gets two.
    """
    from prefect.runtime import deployment

    if deployment.id is None:
        yield
        return
    with turns.in_turn(settings, training, print):
        yield


def start_delay() -> float | None:
    """Seconds from the scheduled time of this flow run to now: scheduling and process start, apart from the work."""
    from prefect.runtime import flow_run

    moment = flow_run.scheduled_start_time
    return (datetime.now(UTC) - moment).total_seconds() if isinstance(moment, datetime) else None
