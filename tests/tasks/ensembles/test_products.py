"""What a product of members holds and shows."""

from __future__ import annotations

import io
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from builders.ensembles import drawn, drawn_rung
from infra.clock import Clock
from infra.objects import ObjectStore
from infra.settings import Domain, Settings
from tasks.cycle import make_forecast, publish_forecast
from tasks.forecasting.context import Context
from tasks.products.dataset import build_product
from tasks.products.exceedance import member_quantiles
from tasks.products.quicklook import draw_quicklooks
from tasks.products.report import read_report, show_product

HOUR = timedelta(hours=1)


def test_quantiles_are_linear_between_members_and_nan_where_one_is() -> None:
    values = np.array([[[3.0, 5.0]], [[1.0, np.nan]], [[2.0, 5.0]]], np.float32)
    found = member_quantiles(values, [0.0, 0.25, 0.5, 0.9, 1.0])
    assert found[:, 0, 0] == pytest.approx([1.0, 1.5, 2.0, 2.8, 3.0])
    assert np.isnan(found[:, 0, 1]).all()
    draws = np.random.default_rng(0).gamma(0.5, 4.0, (9, 5, 6)).astype(np.float32)
    assert np.allclose(member_quantiles(draws, [0.1, 0.9]), np.quantile(draws, [0.1, 0.9], axis=0), rtol=1e-5)


def test_a_product_of_members_holds_their_mean_quantiles_and_probabilities(
    domain: Domain, settings: Settings, context: Context
) -> None:
    forecast = make_forecast(domain, settings, context, model=None, members=4, deadline=HOUR, seed=2)
    published = publish_forecast(domain, settings, Clock(), context, forecast)
    store = ObjectStore(domain.product.url)
    import xarray as xr

    product = xr.open_zarr(Path(domain.product.url) / published.path / "forecast.zarr")
    values = product["rainfall_rate"].values
    assert values.shape == (4, 3, 20, 26)
    assert np.allclose(product["rainfall_rate_mean"].values, values.mean(axis=0), rtol=4e-3, equal_nan=True)
    quantile = product["rainfall_rate_quantile"]
    assert quantile.dims == ("quantile", "lead_time", "y", "x")
    assert product["quantile"].values.tolist() == [0.1, 0.5, 0.9]
    assert np.allclose(
        quantile.values, np.quantile(values, [0.1, 0.5, 0.9], axis=0), rtol=4e-3, atol=1e-6, equal_nan=True
    )
    share = np.where(np.isfinite(values).all(axis=0), (values >= 5).mean(axis=0), np.nan)
    found = product["probability_above_threshold"].sel(threshold=5).values
    assert np.allclose(found, share, atol=3e-3, equal_nan=True)
    assert len(np.unique(found[np.isfinite(found)].round(2))) > 2
    report = read_report(store, published.path)
    assert report.ensemble is not None
    assert (report.members, report.ensemble.members_asked, report.ensemble.steps) == (4, 4, 4)
    assert (report.ensemble.sampler, report.ensemble.intensity) == ("dpmpp2m", None)
    assert {
        name: product.attrs[name] for name in ("members_asked", "sampler", "sampling_steps", "ensemble_choice")
    } == {
        "members_asked": 4,
        "sampler": "dpmpp2m",
        "sampling_steps": 4,
        "ensemble_choice": "full",
    }
    assert "average_intensity" not in product.attrs
    assert "4 of 4 members, 4 of 4 steps of dpmpp2m (full" in show_product(store, published.path)
    keys = {item.key.rpartition("/")[2] for item in store.list(f"{published.path}/quicklook")}
    leads = ("005min.png", "010min.png", "015min.png")
    assert keys == {f"{kind}_{lead}" for kind in ("lead", "probability", "members") for lead in leads} | {
        "animation.gif"
    }


def test_the_same_members_give_the_same_product(domain: Domain, settings: Settings, context: Context) -> None:
    first, second = (
        publish_forecast(
            domain,
            settings,
            Clock(),
            context,
            make_forecast(domain, settings, context, model=None, members=2, deadline=deadline, seed=2),
        )
        for deadline in (HOUR, 2 * HOUR)
    )
    assert (second.path, second.already) == (first.path, True)


def test_pictures_show_members_probabilities_and_what_is_unknown(domain: Domain, context: Context) -> None:
    from PIL import Image

    product = build_product(drawn(context, domain, drawn_rung()), context, domain)
    pictures = draw_quicklooks(product, "rainfall_rate")
    for name in ("probability_005min", "members_010min", "lead_015min"):
        page = np.asarray(Image.open(io.BytesIO(pictures[f"quicklook/{name}.png"])))
        assert {11, 12} <= set(np.unique(page)), name  # grey and hatched
        assert (page == 10).any(), name  # the top of the scale: chances of 0.9, rain of 100 mm h-1 in the legend
    one = build_product(drawn(context, domain, drawn_rung(), members=1), context, domain)
    assert "rainfall_rate_quantile" not in one
    assert not any("probability" in name for name in draw_quicklooks(one, "rainfall_rate"))
