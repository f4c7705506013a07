"""Benchmark scores against the recorded reference values: counts exactly, ratios to the precision of float32."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from safetensors.numpy import load_file

from tasks.golden.cases import run_golden
from tasks.golden.metrics import MetricLoader
from tasks.training.optimisation import reference_rate
from tasks.verification.enso_scores import enso_skill, lead_weights, nino_index
from tasks.verification.frame_scores import frame_scores
from tasks.verification.scores import Contingency
from tasks.verification.sevir_scores import THRESHOLDS, SevirSkill, sevir_counts, sevir_skill

METRICS = Path(__file__).parents[1] / "golden" / "earthformer" / "metrics"
PUBLISHED = {"csi": "csi", "pod": "pod", "sucr": "sucr", "bias": "legacy_bias"}


def recorded(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    return json.loads((METRICS / f"{name}.json").read_text()), load_file(METRICS / f"{name}.safetensors")


def assert_scores(skill: SevirSkill, expected: dict[str, Any]) -> None:
    for published, ours in PUBLISHED.items():
        for index, threshold in enumerate(skill.thresholds):
            np.testing.assert_allclose(getattr(skill, ours)[index], expected[f"{threshold:g}"][published], atol=2e-6)
        if "avg" in expected:
            np.testing.assert_allclose(getattr(skill.mean(), ours), expected["avg"][published], atol=2e-6)


@pytest.mark.parametrize("case", ["mode_0", "mode_1", "mode_2", "degenerate_mode_0"])
def test_sevir_skill_of_two_batches(case: str) -> None:
    told, arrays = recorded("sevir_skill")
    suffix = "_degenerate" if "degenerate" in case else ""
    forecast, observed = arrays[f"pred{suffix}"], arrays[f"target{suffix}"]
    counts = sevir_counts(forecast[:2], observed[:2]) + sevir_counts(forecast[2:], observed[2:])
    table = counts.over_leads() if case.endswith("0") else counts
    expected = told["cases"][case]
    np.testing.assert_array_equal(table.hits.T, expected["hits"])
    np.testing.assert_array_equal(table.misses.T, expected["misses"])
    np.testing.assert_array_equal(table.false_alarms.T, expected["fas"])
    assert_scores(sevir_skill(counts, case[-1]), expected["scores"])  # type: ignore[arg-type]


def test_sevir_skill_of_one_sample_with_the_plain_frequency_bias() -> None:
    _, arrays = recorded("sevir_skill")
    told = json.loads((METRICS / "sevir_skill_single.json").read_text())
    skill = sevir_skill(sevir_counts(arrays["pred"][1:2], arrays["target"][1:2]), eps=1e-6)
    for index, threshold in enumerate(skill.thresholds):
        for name, value in told["values"][f"{threshold:g}"].items():
            assert getattr(skill, name)[index] == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("pool", [1, 4, 16])
def test_sevir_skill_of_block_maxima(pool: int) -> None:
    told, arrays = recorded("sevir_pool")
    expected = told["pool"][str(pool)]
    counts = sevir_counts(arrays["pred"], arrays["target"], pool)
    np.testing.assert_array_equal(counts.over_leads().hits, expected["hits"])
    np.testing.assert_array_equal(counts.over_leads().misses, expected["misses"])
    np.testing.assert_array_equal(counts.over_leads().false_alarms, expected["fas"])
    assert_scores(sevir_skill(counts), expected["scores"])


def test_enso_skill_from_temperature_to_the_weighted_correlation() -> None:
    told, arrays = recorded("enso")
    low, high = told["sst_min"], told["sst_max"]
    forecast, observed = (nino_index(arrays[f"{name}_box"] * (high - low) + low) for name in ("pred", "target"))
    np.testing.assert_allclose(forecast, arrays["nino_pred"], atol=2e-6)
    np.testing.assert_allclose(observed, arrays["nino_target"], atol=2e-6)
    np.testing.assert_allclose(nino_index(arrays["pred_box"]), arrays["nino_pred_not_normalised"], atol=2e-6)
    skill, expected = enso_skill(forecast, observed), told["case14"]
    assert skill.c_nino_m == pytest.approx(expected["C_M"], abs=1e-6)
    assert skill.c_nino_wm == pytest.approx(expected["C_WM"], abs=1e-6)
    assert skill.rmse_mean == pytest.approx(expected["rmse_mean"], abs=1e-6)
    longer = enso_skill(arrays["p24"], arrays["t24"])
    assert longer.rmse.sum() == pytest.approx(told["case24"]["rmse_sum"], rel=1e-6)
    assert longer.correlation.sum() == pytest.approx(told["case24"]["acc_sum_unweighted"], rel=1e-6)
    for case, leads in (("case14", 12), ("case24", 24)):
        np.testing.assert_allclose(lead_weights(leads), told[case]["default_weight"], rtol=1e-6)


def test_frame_errors_and_structural_similarity() -> None:
    told, arrays = recorded("mmnist")
    scores = frame_scores(arrays["pred"], arrays["target"])
    assert scores.mse == pytest.approx(told["frame_mse"], rel=1e-6)
    assert scores.mae == pytest.approx(told["frame_mae"], rel=1e-6)
    assert scores.ssim == pytest.approx(told["ssim_data_range_none"], abs=1e-6)
    assert frame_scores(arrays["pred"], arrays["target"], 1.0).ssim == pytest.approx(
        told["ssim_data_range_1"], abs=1e-6
    )


def test_the_published_learning_rate_is_the_reference_rate() -> None:
    case = json.loads((METRICS / "lr_schedule.json").read_text())["case_published"]
    rates = [
        reference_rate(step, case["total_steps"], base=case["lr"], floor=case["min_lr_ratio"]) for step in range(160)
    ]
    np.testing.assert_allclose(rates, case["lr_at_step"][:160], rtol=1e-12, atol=1e-18)


def test_every_file_of_the_metrics_folder_passes_as_a_golden_case(tmp_path: Path) -> None:
    results = run_golden(METRICS, known=[MetricLoader()])
    assert len(results) == 6
    assert all(result.ok for result in results), [result for result in results if not result.ok]
    folder = tmp_path / "metrics"
    folder.mkdir()
    for name in ("sevir_pool.json", "sevir_pool.safetensors"):
        (folder / name).write_bytes((METRICS / name).read_bytes())
    told = json.loads((folder / "sevir_pool.json").read_text())
    told["pool"]["4"]["hits"][2] += 1
    (folder / "sevir_pool.json").write_text(json.dumps(told))
    (result,) = run_golden(folder, known=[MetricLoader()])
    assert not result.ok


def test_a_perfect_enso_forecast_correlates_fully() -> None:
    index = np.random.default_rng(0).normal(size=(50, 12))
    assert enso_skill(index, index).c_nino_m == pytest.approx(1.0, abs=1e-6)
    assert lead_weights(12).sum() / 12 == pytest.approx(3.406, abs=1e-3)
    with pytest.raises(ValueError, match="one shape"):
        enso_skill(index, index[:, :3])


def test_identical_frames_are_wholly_similar() -> None:
    frames = np.random.default_rng(0).random((2, 3, 16, 16, 1)).astype(np.float32)
    scores = frame_scores(frames, frames)
    assert (scores.mse, scores.mae) == (0.0, 0.0)
    assert scores.ssim == pytest.approx(1.0)
    with pytest.raises(ValueError, match="11 x 11"):
        frame_scores(frames[:, :, :5], frames[:, :, :5])


def two_batches(leads: int = 3, side: int = 33) -> tuple[np.ndarray, np.ndarray]:
    """(sample, lead, y, x, channel) in 0..1; a corner was not forecast and a strip not observed at some leads."""
    random = np.random.default_rng(3)
    strength = np.array([0.3, 0.6, 0.8, 1.0]).reshape(4, 1, 1, 1, 1)
    observed = (strength * random.random((4, leads, side, side, 1)) ** 2).astype(np.float32)
    forecast = np.clip(observed + 0.1 * random.normal(size=observed.shape), 0, 1).astype(np.float32)
    forecast[:, :2, :5, :7] = np.nan
    observed[:2, 1:, 20:22] = np.nan
    return forecast, observed


def pooled(fields: np.ndarray, pool: int) -> np.ndarray:
    """Block maxima (sample, lead, y, x) in 0..255 by torch."""
    import torch

    scaled = torch.from_numpy(fields[..., 0] * np.float32(255))
    return torch.nn.functional.max_pool2d(scaled, pool).numpy()


@pytest.mark.parametrize("pool", [1, 4, 16])
def test_counts_and_scores_agree_with_two_independent_libraries(pool: int) -> None:
    from scores.categorical import BinaryContingencyManager

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pysteps.verification.detcatscores import det_cat_fct
    forecast, observed = two_batches()
    counts = sevir_counts(forecast[:1], observed[:1], pool) + sevir_counts(forecast[1:], observed[1:], pool)
    skill, by_lead = sevir_skill(counts, "0", eps=0.0), sevir_skill(counts, "1", eps=0.0)
    ours, theirs = pooled(forecast, pool), pooled(observed, pool)
    for row, threshold in enumerate(skill.thresholds):
        events = [xr.DataArray(np.where(np.isnan(f), np.nan, f >= threshold)) for f in (ours, theirs)]
        whole = BinaryContingencyManager(*events)
        told = {name: int(value) for name, value in whole.get_counts().items()}
        assert told["tp_count"] == counts.over_leads().hits[row]
        assert told["fn_count"] == counts.over_leads().misses[row]
        assert told["fp_count"] == counts.over_leads().false_alarms[row]
        assert told["tn_count"] == counts.over_leads().correct_negatives[row]
        library = (whole.critical_success_index(), whole.probability_of_detection(), whole.success_ratio())
        np.testing.assert_allclose((skill.csi[row], skill.pod[row], skill.sucr[row]), library, rtol=1e-12)
        np.testing.assert_allclose(skill.bias[row], whole.frequency_bias(), rtol=1e-12)
        np.testing.assert_allclose(skill.legacy_bias[row], (whole.frequency_bias() / np.log(2)) ** 2, rtol=1e-12)
        for lead in range(ours.shape[1]):
            both = np.isfinite(ours[:, lead]) & np.isfinite(theirs[:, lead])
            with np.errstate(invalid="ignore"):  # it computes scores that were not asked for
                found = det_cat_fct(
                    ours[:, lead][both], theirs[:, lead][both], threshold, ["CSI", "POD", "FAR", "BIAS"]
                )
            expected = (found["CSI"], found["POD"], 1 - found["FAR"], found["BIAS"])
            scores = (by_lead.csi, by_lead.pod, by_lead.sucr, by_lead.bias)
            np.testing.assert_allclose([score[row, lead] for score in scores], expected, rtol=1e-9)
    np.testing.assert_allclose(sevir_skill(counts, "2", eps=0.0).csi, by_lead.csi.mean(axis=1), rtol=1e-12)


def test_a_perfect_forecast_has_a_bias_of_one_and_the_legacy_transform_of_two() -> None:
    observed = np.random.default_rng(1).random((2, 2, 32, 32, 1)).astype(np.float32)
    skill = sevir_skill(sevir_counts(observed, observed), eps=0.0)
    assert skill.bias == pytest.approx(np.ones(6))
    assert skill.legacy_bias == pytest.approx(np.full(6, 2.0814), abs=1e-4)
    assert skill.mean().csi == pytest.approx(1.0)


def test_counts_beyond_what_single_precision_can_count_still_grow() -> None:
    large = np.full((1, 1, 6), 2**24, np.int64)
    counts = Contingency(large[0], large[0], large[0], large[0], THRESHOLDS)
    one = Contingency(*[np.ones((1, 6), np.int64)] * 4, THRESHOLDS)
    total = counts + one
    assert total.hits.dtype == np.int64
    assert (total.hits == 2**24 + 1).all()


def test_index_correlations_agree_with_numpy() -> None:
    random = np.random.default_rng(2)
    observed = random.normal(size=(60, 12))
    forecast = observed + random.normal(size=observed.shape) * np.linspace(0.1, 2, 12)
    expected = [np.corrcoef(forecast[:, lead], observed[:, lead])[0, 1] for lead in range(12)]
    skill = enso_skill(forecast, observed)
    np.testing.assert_allclose(skill.correlation, expected, atol=1e-6)
    assert skill.c_nino_m == pytest.approx(np.mean(expected), abs=1e-6)
