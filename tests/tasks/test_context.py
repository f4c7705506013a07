"""Contexts and their verdicts: what was known, what may be filled, and that missing is never dry."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builders.nowcasts import LATENCY, STEP, Frames, moving_rain, newest_context, slot_time, small_domain, write_archive
from tasks.forecasting.context import Context, Verdict, build_context
from tasks.forecasting.ladder import NoForecast, baseline_rung, run_ladder

RAIN = moving_rain(10)


def without(*missing: int, count: int = 10) -> dict[int, Frames]:
    """Frames 0..count-1 but those named."""
    return {step: RAIN[step] for step in range(count) if step not in missing}


def context_of(root: Path, frames: dict[int, Frames], last: int = 9, **options: int) -> Context:
    """The context known as soon as slot `last` should be there."""
    domain = small_domain(root, **options)
    return newest_context(domain, write_archive(domain, frames), last)


def test_a_full_context_is_complete_and_says_what_it_is_made_of(tmp_path: Path) -> None:
    context = context_of(tmp_path, without())
    assert context.verdict is Verdict.COMPLETE
    assert context.reasons == ()
    assert [slot.time for slot in context.slots] == [slot_time(step) for step in range(5, 10)]
    assert [slot.age for slot in context.slots][-1] == LATENCY
    assert context.slots[-1].source_key == "frame-9"
    assert {slot.status for slot in context.slots} <= {"present", "late"}
    assert context.init_time == slot_time(9)
    assert context.rule == "valid_time + latency"
    assert np.allclose(context.frames.values, RAIN[5:], atol=1e-6)
    assert context.licence == "CC-BY-4.0"
    assert context.snapshot


def test_a_single_gap_is_interpolated_along_the_motion_and_says_so(tmp_path: Path) -> None:
    context = context_of(tmp_path, without(7))
    assert context.verdict is Verdict.INTERPOLATED
    assert [slot.interpolated for slot in context.slots] == [False, False, True, False, False]
    assert "15:35" in context.reasons[0]
    filled, truth = context.frames.values[2], RAIN[7]
    known = np.isfinite(filled)
    assert np.abs(filled - truth)[known].mean() < 0.25 * np.abs((RAIN[6] + RAIN[8]) / 2 - truth)[known].mean()


def test_two_missing_in_a_row_cut_the_context_short_even_where_two_are_allowed(tmp_path: Path) -> None:
    context = context_of(tmp_path, without(6, 7), max_missing=2)
    assert context.verdict is Verdict.SHORTENED
    assert [slot.time for slot in context.slots] == [slot_time(8), slot_time(9)]


def test_more_gaps_than_allowed_cut_the_context_short(tmp_path: Path) -> None:
    context = context_of(tmp_path, without(6, 8))
    assert [slot.time for slot in context.slots] == [slot_time(7), slot_time(8), slot_time(9)]
    assert context.verdict is Verdict.SHORTENED
    assert context.slots[1].interpolated


def test_the_oldest_frame_is_never_interpolated(tmp_path: Path) -> None:
    context = context_of(tmp_path, without(5))
    assert context.verdict is Verdict.SHORTENED
    assert context.frames.sizes["time"] == 4


def test_a_missing_newest_frame_makes_the_context_stale_and_init_time_honest(tmp_path: Path) -> None:
    context = context_of(tmp_path, without(9))
    assert context.verdict is Verdict.STALE
    assert context.init_time == slot_time(8)
    assert context.slots[-1].age == STEP + LATENCY


def test_a_newest_frame_older_than_allowed_is_refused(tmp_path: Path) -> None:
    domain = small_domain(tmp_path)
    archive = write_archive(domain, without())
    just = build_context(archive, domain, slot_time(9) + timedelta(minutes=15), latency=LATENCY)
    late = build_context(archive, domain, slot_time(9) + timedelta(minutes=15, seconds=1), latency=LATENCY)
    assert (just.verdict, late.verdict) == (Verdict.STALE, Verdict.REFUSED)
    assert late.frames.sizes["time"] == 0
    assert "allowed" in late.reasons[-1]


def test_an_empty_archive_window_is_refused(tmp_path: Path) -> None:
    domain = small_domain(tmp_path)
    archive = write_archive(domain, without())
    assert build_context(archive, domain, slot_time(200), latency=LATENCY).verdict is Verdict.REFUSED
    assert build_context(archive, domain, slot_time(-100), latency=LATENCY).verdict is Verdict.REFUSED


def test_nothing_received_after_the_moment_is_used(tmp_path: Path) -> None:
    domain = small_domain(tmp_path)
    times = {step: slot_time(step) + timedelta(seconds=60) for step in range(10)}
    times[9] = slot_time(9) + timedelta(minutes=4)
    archive = write_archive(domain, without(), received=times)
    before = build_context(archive, domain, slot_time(9) + timedelta(minutes=2), latency=LATENCY)
    after = build_context(archive, domain, slot_time(9) + timedelta(minutes=4), latency=LATENCY)
    assert (before.verdict, before.init_time, before.rule) == (Verdict.STALE, slot_time(8), "received_at")
    assert (after.verdict, after.init_time) == (Verdict.COMPLETE, slot_time(9))


def test_where_receipt_is_unknown_latency_decides(tmp_path: Path) -> None:
    domain = small_domain(tmp_path)
    archive = write_archive(domain, without(), received={step: slot_time(step) for step in (6, 7)})
    early = build_context(archive, domain, slot_time(9) + LATENCY - timedelta(seconds=1), latency=LATENCY)
    assert early.init_time == slot_time(8)
    assert early.verdict is Verdict.COMPLETE
    assert early.rule == "both"


def test_a_pinned_snapshot_hides_what_came_later(tmp_path: Path) -> None:
    domain = small_domain(tmp_path)
    archive = write_archive(domain, without(8, 9))
    old = archive.snapshot()
    write_later(domain, archive)
    at = slot_time(9) + LATENCY
    assert build_context(archive, domain, at, latency=LATENCY).init_time == slot_time(9)
    pinned = build_context(archive, domain, at, as_of=old, latency=LATENCY)
    assert (pinned.snapshot, pinned.init_time) == (old, slot_time(7))


def write_later(domain: object, archive: object) -> None:
    """Put frames 8 and 9 into an archive that lacks them."""
    from builders.nowcasts import CRS
    from tasks.archive.archive import Archive, Received
    from tasks.feeds.frames import build_frame

    assert isinstance(archive, Archive)
    spec = archive.spec
    archive.write(
        [
            Received(
                build_frame(RAIN[s], quantity="rainfall_rate", time=slot_time(s), crs=CRS, x=spec.x, y=spec.y),
                f"frame-{s}",
                f"tag-{s}",
                bytes([s]) * 32,
            )
            for s in (8, 9)
        ]
    )


def test_a_wholly_unobserved_frame_counts_as_missing(tmp_path: Path) -> None:
    frames = without()
    frames[7] = np.full_like(RAIN[7], np.nan)
    context = context_of(tmp_path, frames)
    assert context.verdict is Verdict.INTERPOLATED
    assert context.slots[2].interpolated


def test_a_drop_in_coverage_is_flagged_and_next_to_none_is_missing(tmp_path: Path) -> None:
    frames = {step: field.copy() for step, field in without().items()}
    frames[7][20:] = np.nan
    frames[8][3:] = np.nan
    context = context_of(tmp_path, frames)
    assert any("15:35" in reason and "flagged" in reason for reason in context.reasons)
    assert any("15:40" in reason and "missing" in reason for reason in context.reasons)
    assert context.slots[3].interpolated


def test_rain_that_stops_everywhere_at_once_is_an_outage(tmp_path: Path) -> None:
    frames = without()
    frames[9] = np.zeros_like(RAIN[9])
    context = context_of(tmp_path, frames)
    assert context.verdict is Verdict.STALE
    assert context.init_time == slot_time(8)


def test_a_truly_dry_world_is_complete(tmp_path: Path) -> None:
    context = context_of(tmp_path, {step: np.zeros_like(RAIN[0]) for step in range(10)})
    assert context.verdict is Verdict.COMPLETE


def test_only_cells_that_newest_and_half_of_the_frames_see_are_observed(tmp_path: Path) -> None:
    frames = {step: field.copy() for step, field in without().items()}
    for step in (5, 6, 7):
        frames[step][:, :4] = np.nan
    frames[9][:5] = np.nan
    observed = context_of(tmp_path, frames).observed.values
    assert not observed[:5].any()
    assert not observed[:, :4].any()
    assert observed[5:, 4:].all()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(missing=st.sets(st.integers(0, 9), max_size=9), all_nan=st.booleans())
def test_missing_frames_never_turn_rain_into_a_dry_forecast(
    tmp_path_factory: pytest.TempPathFactory, missing: set[int], all_nan: bool
) -> None:
    domain = small_domain(tmp_path_factory.mktemp("archive"), lead_times=3)
    frames = without(*missing)
    if all_nan:
        frames |= {step: np.full_like(RAIN[0], np.nan) for step in missing}
    context = newest_context(domain, write_archive(domain, frames), 9)
    rungs = [baseline_rung(name, context, domain) for name in ("extrapolation", "persistence")]
    present = [step for step in range(10) if step not in missing]
    if not present or slot_time(9) + LATENCY - slot_time(present[-1]) > domain.context.max_age:
        assert context.verdict is Verdict.REFUSED
        with pytest.raises(NoForecast):
            run_ladder(context, rungs, domain, deadline=timedelta(seconds=60), seed=0)
        return
    newest = present[-1]
    assert context.init_time == slot_time(newest)
    assert (context.verdict is Verdict.COMPLETE) == (not missing & {5, 6, 7, 8, 9})
    assert np.isfinite(context.frames.values).any(axis=(1, 2)).all()
    forecast = run_ladder(context, rungs, domain, deadline=timedelta(seconds=60), seed=0)
    wet = (RAIN[newest] >= 1).mean()
    for lead in range(3):
        field = forecast.dataset["rainfall_rate"].values[0, lead]
        assert (field >= 1).sum() / np.isfinite(field).sum() > 0.5 * wet
