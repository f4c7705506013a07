"""Benchmark scores against the recorded reference values: counts exactly, ratios to the precision of float32."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from infra.settings import Settings
from tasks.golden.cases import run_golden
from tasks.golden.metrics import MetricLoader
from tasks.training.optimisation import reference_rate
from tasks.verification.enso_scores import enso_skill, lead_weights, nino_index
from tasks.verification.frame_scores import frame_scores
from tasks.verification.sevir_scores import SevirSkill, sevir_counts, sevir_skill

# The data folder's neighbour, wherever both are mounted.
METRICS = (Settings().golden or Settings().data.resolve().parent / "golden") / "earthformer" / "metrics"
PUBLISHED = {"csi": "csi", "pod": "pod", "sucr": "sucr", "bias": "legacy_bias"}

golden = pytest.mark.skipif(not METRICS.is_dir(), reason="the golden metrics are not here (SQUALL_GOLDEN)")


def recorded(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    return json.loads((METRICS / f"{name}.json").read_text()), load_file(METRICS / f"{name}.safetensors")


def assert_scores(skill: SevirSkill, expected: dict[str, Any]) -> None:
    for published, ours in PUBLISHED.items():
        for index, threshold in enumerate(skill.thresholds):
            np.testing.assert_allclose(getattr(skill, ours)[index], expected[f"{threshold:g}"][published], atol=2e-6)
        if "avg" in expected:
            np.testing.assert_allclose(getattr(skill.mean(), ours), expected["avg"][published], atol=2e-6)


@golden
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


@golden
def test_sevir_skill_of_one_sample_with_the_plain_frequency_bias() -> None:
    _, arrays = recorded("sevir_skill")
    told = json.loads((METRICS / "sevir_skill_single.json").read_text())
    skill = sevir_skill(sevir_counts(arrays["pred"][1:2], arrays["target"][1:2]), eps=1e-6)
    for index, threshold in enumerate(skill.thresholds):
        for name, value in told["values"][f"{threshold:g}"].items():
            assert getattr(skill, name)[index] == pytest.approx(value, abs=1e-6)


@golden
@pytest.mark.parametrize("pool", [1, 4, 16])
def test_sevir_skill_of_block_maxima(pool: int) -> None:
    told, arrays = recorded("sevir_pool")
    expected = told["pool"][str(pool)]
    counts = sevir_counts(arrays["pred"], arrays["target"], pool)
    np.testing.assert_array_equal(counts.over_leads().hits, expected["hits"])
    np.testing.assert_array_equal(counts.over_leads().misses, expected["misses"])
    np.testing.assert_array_equal(counts.over_leads().false_alarms, expected["fas"])
    assert_scores(sevir_skill(counts), expected["scores"])


@golden
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


@golden
def test_frame_errors_and_structural_similarity() -> None:
    told, arrays = recorded("mmnist")
    scores = frame_scores(arrays["pred"], arrays["target"])
    assert scores.mse == pytest.approx(told["frame_mse"], rel=1e-6)
    assert scores.mae == pytest.approx(told["frame_mae"], rel=1e-6)
    assert scores.ssim == pytest.approx(told["ssim_data_range_none"], abs=1e-6)
    assert frame_scores(arrays["pred"], arrays["target"], 1.0).ssim == pytest.approx(
        told["ssim_data_range_1"], abs=1e-6
    )


@golden
def test_the_published_learning_rate_is_the_reference_rate() -> None:
    case = json.loads((METRICS / "lr_schedule.json").read_text())["case_published"]
    rates = [
        reference_rate(step, case["total_steps"], base=case["lr"], floor=case["min_lr_ratio"]) for step in range(160)
    ]
    np.testing.assert_allclose(rates, case["lr_at_step"][:160], rtol=1e-12, atol=1e-18)


@golden
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
