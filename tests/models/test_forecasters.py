"""One contract for every forecaster: a new one joins by a line in FORECASTERS."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from builders.ensembles import anchored_prediff
from builders.ensembles import forecaster as prediff
from builders.networks import flow_anchored_config, rain_context, small_config, tiny_config
from models.baselines.extrapolation import Extrapolation
from models.baselines.persistence import Persistence
from models.baselines.steps import Steps
from models.configuration import ForecasterConfig, build_network
from models.forecaster import ContextTooShort, Forecaster, NetworkForecaster, fill_gaps


def network_forecaster(config: ForecasterConfig) -> NetworkForecaster:
    """Untrained, but not at its anchor: every weight of the last projection is drawn."""
    torch.manual_seed(0)
    network = build_network(config)
    for name, parameter in network.named_parameters():
        if "dec_final_proj" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return NetworkForecaster(config, network)


FORECASTERS: dict[str, Callable[[], Forecaster]] = {
    "persistence": Persistence,
    "extrapolation": Extrapolation,
    "steps": Steps,
    "earthformer": lambda: network_forecaster(small_config()),
    "earthformer anchored": lambda: network_forecaster(small_config(anchor="persistence")),
    "earthformer anchored to extrapolation": lambda: network_forecaster(flow_anchored_config()),
    "earthformer/tiny": lambda: network_forecaster(tiny_config()),
    "prediff": prediff,
    "prediff anchored to extrapolation": lambda: prediff(anchored_prediff("extrapolation")),
}
SIZE = (20, 27)  # neither square nor any model's patch


@pytest.fixture(params=FORECASTERS)
def forecaster(request: pytest.FixtureRequest) -> Forecaster:
    return FORECASTERS[request.param]()


def test_it_keeps_the_protocol(forecaster: Forecaster) -> None:
    assert isinstance(forecaster, Forecaster)
    assert forecaster.family
    assert forecaster.t_in >= 1
    assert forecaster.t_out >= 1


@pytest.mark.parametrize("members", [1, 2])
def test_it_gives_every_member_and_lead_on_any_grid(forecaster: Forecaster, members: int) -> None:
    context = rain_context(forecaster.t_in, SIZE)
    lead_times = min(2, forecaster.t_out)
    forecast = forecaster.forecast(context, lead_times, members=members)
    assert forecast.shape == (members, lead_times, *SIZE)
    assert forecast.dtype == np.float32
    assert np.nanmin(forecast) >= 0
    assert np.isfinite(forecast).any()


def test_it_leaves_its_context_alone_and_repeats_itself(forecaster: Forecaster) -> None:
    context = rain_context(forecaster.t_in, SIZE)
    before = context.copy()
    first, second = (forecaster.forecast(context, 1, members=2, seed=3) for _ in range(2))
    assert np.array_equal(context, before)
    assert np.array_equal(first, second, equal_nan=True)


def test_a_longer_forecast_begins_like_a_shorter_one(forecaster: Forecaster) -> None:
    context = rain_context(forecaster.t_in, SIZE)
    longest = forecaster.forecast(context, min(3, forecaster.t_out))
    assert np.allclose(longest[:, :1], forecaster.forecast(context, 1), equal_nan=True)


def test_no_infinities_and_no_negative_rain_under_a_downpour(forecaster: Forecaster) -> None:
    context = np.full((forecaster.t_in, *SIZE), 300.0, np.float32)
    forecast = forecaster.forecast(context, 1)
    assert not np.isinf(forecast).any()
    assert np.nanmin(forecast) >= 0


def test_what_the_newest_frame_did_not_observe_is_not_invented(forecaster: Forecaster) -> None:
    context = rain_context(forecaster.t_in, SIZE)
    context[:, :, 13:] = np.nan
    forecast = forecaster.forecast(context, 1)
    assert np.isnan(forecast[..., 14:]).mean() > 0.8
    assert np.isfinite(forecast[..., :13]).mean() > 0.5


def test_a_missing_older_frame_is_not_dry(forecaster: Forecaster) -> None:
    if forecaster.t_in < 3:
        pytest.skip("needs older frames")
    context = np.full((forecaster.t_in, *SIZE), 5.0, np.float32)
    whole = forecaster.forecast(context, 1)
    context[1] = np.nan
    assert np.allclose(forecaster.forecast(context, 1), whole, rtol=1e-4, equal_nan=True)


def test_a_context_without_its_newest_frame_is_refused(forecaster: Forecaster) -> None:
    context = rain_context(forecaster.t_in, SIZE)
    context[-1] = np.nan
    with pytest.raises(ContextTooShort):
        forecaster.forecast(context, 1)
    with pytest.raises(ContextTooShort):
        forecaster.forecast(np.full_like(context, np.nan), 1)


def test_what_it_cannot_do_is_refused_in_words(forecaster: Forecaster) -> None:
    context = rain_context(forecaster.t_in, SIZE)
    with pytest.raises(ValueError, match="expected a context"):
        forecaster.forecast(context[0], 1)
    with pytest.raises(ValueError, match="expected a context"):
        forecaster.forecast(np.concatenate([context, context]), 1)
    for lead_times in (0, forecaster.t_out + 1):
        with pytest.raises(ValueError, match=f"expected 1 to {forecaster.t_out} lead times"):
            forecaster.forecast(context, lead_times)
    with pytest.raises(ValueError, match="expected at least one member"):
        forecaster.forecast(context, 1, members=0)


def test_an_untrained_anchored_network_is_persistence() -> None:
    config = small_config(anchor="persistence")
    context = rain_context(3, SIZE)
    forecast = NetworkForecaster(config, build_network(config)).forecast(context, 3)
    assert np.allclose(forecast, context[-1], rtol=1e-4)


def test_an_untrained_network_anchored_to_extrapolation_is_extrapolation() -> None:
    config = flow_anchored_config(cell_size_m=1000.0)
    context = np.stack([np.roll(rain_context(1, (40, 40))[0], 2 * step, axis=1) for step in range(3)])
    forecast = NetworkForecaster(config, build_network(config)).forecast(context, 3)
    extrapolated = Extrapolation(config.quantity, 1000.0, 300.0, t_out=3).forecast(context, 3)
    known = np.isfinite(extrapolated)
    assert known.any()
    assert np.allclose(forecast[known], extrapolated[known], rtol=1e-3, atol=1e-4)
    assert np.isfinite(forecast).all()


def test_a_dry_world_stays_dry_under_an_untrained_anchored_network() -> None:
    config = small_config(anchor="persistence")
    forecast = NetworkForecaster(config, build_network(config)).forecast(np.zeros((3, *SIZE), np.float32), 3)
    assert np.array_equal(forecast, np.zeros_like(forecast))


def test_on_its_own_grid_a_network_is_run_once_and_untiled() -> None:
    config = small_config()
    forecaster = network_forecaster(config)
    context = rain_context(3, (16, 16))
    with torch.inference_mode():
        u = config.transform.forward(torch.from_numpy(context))
        direct = config.transform.inverse(forecaster.network(u[None, ..., None])[0, ..., 0])
    assert np.allclose(forecaster.forecast(context, 3)[0], direct.numpy(), atol=1e-6)


def test_gaps_take_the_latest_earlier_value_else_the_next_later_one() -> None:
    nan = float("nan")
    u = torch.tensor([[nan, 1.0, nan], [2.0, nan, nan], [nan, nan, nan], [4.0, 5.0, nan]])[:, None]
    filled = fill_gaps(u)[:, 0].T
    assert filled.tolist() == [[2.0, 2.0, 2.0, 4.0], [1.0, 1.0, 1.0, 5.0], [0.0, 0.0, 0.0, 0.0]]


def test_networks_that_are_no_forecasters_are_refused() -> None:
    from models.earthformer.presets import preset_config

    config = preset_config("earthnet")
    with torch.device("meta"):
        network = build_network(config)
    with pytest.raises(ValueError, match="one channel without auxiliary inputs"):
        NetworkForecaster(config, network)
