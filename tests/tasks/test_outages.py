"""Rain that vanishes: an outage is missing and never dry, while rain that leaves and a dry archive are weather."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builders.nowcasts import LATENCY, Frames, newest_context, slot_time, small_domain, write_archive
from tasks.forecasting.context import Context, Verdict
from tasks.forecasting.ladder import baseline_rung, run_ladder

SHAPE = (20, 30)
ONE_CELL = 1 / 600


def raining(share: float) -> Frames:
    """(y, x) [mm h-1]: 2 in the first cells, up to `share` of them, 0 elsewhere."""
    field = np.zeros(SHAPE, np.float32)
    field.ravel()[: round(share * field.size)] = 2.0
    return field


def judged(root: Path, shares: list[float], last: int | None = None, frames: int = 5) -> Context:
    """The context at slot `last` (the newest by default) of an archive with these wet shares."""
    domain = small_domain(root, frames=frames)
    archive = write_archive(domain, [raining(share) for share in shares])
    return newest_context(domain, archive, len(shares) - 1 if last is None else last)


@pytest.mark.parametrize("residue", [0.0, ONE_CELL])
@pytest.mark.parametrize(
    ("blank", "verdict"), [(1, Verdict.STALE), (2, Verdict.STALE), (3, Verdict.REFUSED), (5, Verdict.REFUSED)]
)
def test_an_outage_is_stale_and_then_refused_however_long_and_with_clutter(
    tmp_path: Path, residue: float, blank: int, verdict: Verdict
) -> None:
    context = judged(tmp_path, [1.0] * 6 + [residue] * blank)
    assert context.verdict is verdict
    assert any("lost its rain" in reason and "100% at 15:25" in reason for reason in context.reasons)
    if verdict is Verdict.STALE:
        assert context.init_time == slot_time(5)


def test_a_single_blank_frame_amid_rain_is_interpolated(tmp_path: Path) -> None:
    context = judged(tmp_path, [0.4] * 6 + [ONE_CELL] + [0.4] * 2)
    assert context.verdict is Verdict.INTERPOLATED
    assert (context.frames.values[2] >= 0.1).mean() > 0.2


@pytest.mark.parametrize("minutes", [30, 60])
@pytest.mark.parametrize("cover", [0.3, 1.0])
def test_rain_that_leaves_within_half_an_hour_or_an_hour_is_accepted_frame_by_frame(
    tmp_path: Path, minutes: int, cover: float
) -> None:
    steps = minutes // 5
    shares = [cover] * 4 + [cover * (1 - step / steps) for step in range(steps + 1)] + [0.0] * 4
    domain = small_domain(tmp_path)
    archive = write_archive(domain, [raining(share) for share in shares])
    for last in range(4, len(shares)):
        context = newest_context(domain, archive, last)
        assert (context.verdict, context.reasons) == (Verdict.COMPLETE, ())


def test_rain_that_halves_every_five_minutes_is_accepted(tmp_path: Path) -> None:
    context = judged(tmp_path, [1.0, 0.5, 0.25, 0.125, 0.06, 0.03, 0.0])
    assert (context.verdict, context.reasons) == (Verdict.COMPLETE, ())


@pytest.mark.parametrize(("share", "kept"), [(0.05, True), (0.045, False)])
def test_after_ten_minutes_a_twentieth_of_the_wet_area_is_enough(tmp_path: Path, share: float, kept: bool) -> None:
    domain = small_domain(tmp_path)
    frames = {step: raining(1.0) for step in range(6)} | {7: raining(share)}
    context = newest_context(domain, write_archive(domain, frames), 7)
    assert (context.init_time == slot_time(7)) is kept


@pytest.mark.parametrize("residue", [0.0, ONE_CELL])
def test_a_dry_archive_stays_dry_and_complete(tmp_path: Path, residue: float) -> None:
    context = judged(tmp_path, [residue] * 10)
    assert (context.verdict, context.reasons) == (Verdict.COMPLETE, ())


def test_a_world_that_stays_dry_recovers_once_its_last_rain_is_older_than_the_window(tmp_path: Path) -> None:
    domain = small_domain(tmp_path)  # 15 min of max_age and 6 steps of context
    archive = write_archive(domain, [raining(1.0)] * 4 + [raining(0.0)] * 12)
    verdicts = [newest_context(domain, archive, last).verdict for last in range(6, 16)]
    assert verdicts[1:6] == [Verdict.REFUSED] * 5
    recovered = verdicts.index(Verdict.COMPLETE)
    assert set(verdicts[recovered:]) == {Verdict.COMPLETE}
    assert Verdict.COMPLETE not in verdicts[:recovered]


@st.composite
def outages(draw: st.DrawFn) -> tuple[list[Frames], int]:
    """Rain of 6 to 100 % wet cells that never changes by a factor of two, then 1 to 4 frames with hardly a cell."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    base = draw(st.floats(0.06, 0.55))
    shares = draw(st.lists(st.floats(base, 1.8 * base), min_size=6, max_size=6))
    order = rng.permutation(SHAPE[0] * SHAPE[1])
    rain = [raining(share).ravel()[order].reshape(SHAPE) for share in shares]
    blank = []
    for _ in range(draw(st.integers(1, 4))):
        field = np.zeros(SHAPE, np.float32)
        field.ravel()[rng.integers(0, field.size, draw(st.integers(0, 2)))] = 30.0
        blank.append(field)
    return rain + blank, len(blank)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(world=outages())
def test_blank_frames_after_rain_never_make_a_dry_product(
    tmp_path_factory: pytest.TempPathFactory, world: tuple[list[Frames], int]
) -> None:
    frames, blank = world
    domain = small_domain(tmp_path_factory.mktemp("archive"), lead_times=3)
    context = newest_context(domain, write_archive(domain, frames), len(frames) - 1)
    if timedelta(minutes=5 * blank) + LATENCY > domain.context.max_age:
        assert context.verdict is Verdict.REFUSED
        return
    assert (context.verdict, context.init_time) == (Verdict.STALE, slot_time(5))
    forecast = run_ladder(
        context, [baseline_rung("persistence", context, domain)], domain, deadline=timedelta(seconds=60), seed=0
    )
    assert (forecast.dataset["rainfall_rate"].values[0] >= 0.1).mean(axis=(1, 2)).min() > 0.05
