"""When a challenger's ensemble takes the champion's place."""

from __future__ import annotations

from tasks.verification.ensemble_promotion import decide_ensemble
from tasks.verification.promotion import Unavailable
from tasks.verification.resampling import Interval


def interval(difference: float, half: float) -> Interval:
    return Interval(difference, difference - half, difference + half, 0.95, 12)


def test_an_ensemble_is_promoted_on_a_lower_crps_with_certainty_and_on_nothing_else() -> None:
    told = {"crps": {"challenger": 1.0}, "windows": 64, "members": 8}
    sure, unsure = interval(0.3, 0.1), interval(0.3, 0.4)
    assert decide_ensemble({"persistence": sure, "extrapolation": sure}, **told).ladder_rank == "above"  # type: ignore[arg-type]
    first = decide_ensemble({"persistence": sure, "extrapolation": unsure}, **told)  # type: ignore[arg-type]
    assert first.promote
    assert first.ladder_rank == "below"
    assert not decide_ensemble({"persistence": unsure}, **told).promote  # type: ignore[arg-type]
    assert not decide_ensemble({"persistence": sure, "champion": unsure}, **told).promote  # type: ignore[arg-type]
    lost = decide_ensemble({"persistence": sure}, Unavailable("tiny-prediff 1", "damaged"), **told)  # type: ignore[arg-type]
    assert not lost.promote
    assert "damaged" in lost.reason
