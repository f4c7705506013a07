"""Products: CF variables, probabilities worked out by hand, and a round trip through Zarr."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pyproj
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from builders.ensembles import drawn_rung
from builders.nowcasts import moving_rain, newest_context, slot_time, small_domain, write_archive
from infra.objects import ObjectStore
from tasks.feeds.frames import build_frame
from tasks.forecasting.context import Context, Verdict
from tasks.forecasting.ladder import Forecast, baseline_rung, run_ladder
from tasks.products.dataset import bitround, build_product
from tasks.products.encoding import encode_product, open_product
from tasks.products.exceedance import exceedance, neighbourhood_half_width_m
from tasks.products.manifest import write_all
from tasks.products.quicklook import draw_quicklooks


def make(root: Path, members: int = 1, lead_times: int = 12) -> tuple[xr.Dataset, Context, Forecast]:
    """A product of moving rain with its context and forecast."""
    domain = small_domain(root, lead_times=lead_times)
    rain = moving_rain(10)
    rain[:, :4] = np.nan
    context = newest_context(domain, write_archive(domain, rain), 9)
    rung = baseline_rung("extrapolation", context, domain) if members == 1 else drawn_rung()
    forecast = run_ladder(context, [rung], domain, deadline=timedelta(minutes=10), seed=5, members=members)
    return build_product(forecast, context, domain), context, forecast


def stored(root: Path, product: xr.Dataset) -> xr.Dataset:
    """The product after a round trip through a local store."""
    store = ObjectStore(str(root / "store"))
    write_all(store, "p", encode_product(product))
    return open_product(store, "p")


def test_a_product_has_the_promised_variables_coordinates_and_attributes(tmp_path: Path) -> None:
    product, context, _ = make(tmp_path)
    assert {str(name): value.dims for name, value in product.data_vars.items()} == {
        "rainfall_rate": ("member", "lead_time", "y", "x"),
        "rainfall_rate_mean": ("lead_time", "y", "x"),
        "probability_above_threshold": ("threshold", "lead_time", "y", "x"),
        "rainfall_amount_1h": ("member", "accumulation_lead_time", "y", "x"),
        "observed": ("y", "x"),
    }
    names = {str(name): value.attrs.get("standard_name") for name, value in product.coords.items()}
    assert names["member"] == "realization"
    assert names["lead_time"] == "forecast_period"
    assert names["init_time"] == "forecast_reference_time"
    assert names["time"] == "time"
    assert (names["lat"], names["lon"]) == ("latitude", "longitude")
    assert product["spatial_ref"].attrs["crs_wkt"]
    assert product["threshold"].attrs["units"] == product["rainfall_rate"].attrs["units"] == "mm h-1"
    assert all(value.attrs["grid_mapping"] == "spatial_ref" for value in product.data_vars.values())
    assert product.attrs["Conventions"] == "CF-1.11"
    assert product.attrs["license"] == "CC-BY-4.0"
    assert product.attrs["archive_snapshot"] == context.snapshot
    assert product["init_time"].values == np.datetime64(slot_time(9).replace(tzinfo=None), "ns")


def test_what_was_not_observed_is_nan_in_every_variable(tmp_path: Path) -> None:
    product, context, _ = make(tmp_path)
    outside = ~context.observed.values
    assert outside.sum() == 4 * 72
    for name in ("rainfall_rate", "rainfall_rate_mean", "probability_above_threshold", "rainfall_amount_1h"):
        assert np.isnan(product[name].values[..., outside]).all()
    assert np.array_equal(product["observed"].values, (~outside).astype(np.uint8))


def test_a_round_trip_through_zarr_gives_the_same_values_and_opens_with_xarray_alone(tmp_path: Path) -> None:
    product, _, _ = make(tmp_path)
    opened = stored(tmp_path, product)
    for name in ("rainfall_rate", "rainfall_rate_mean", "rainfall_amount_1h", "lat", "lon", "observed", "y", "x"):
        assert np.array_equal(opened[name].values, product[name].values, equal_nan=True), name
    assert opened["rainfall_rate"].dtype == np.float32
    probability = opened["probability_above_threshold"]
    assert np.array_equal(np.isnan(probability.values), np.isnan(product["probability_above_threshold"].values))
    assert np.nanmax(np.abs(probability.values - product["probability_above_threshold"].values)) < 0.0026
    alone = xr.open_zarr(tmp_path / "store" / "p" / "forecast.zarr")
    assert alone["lead_time"].values[0] == np.timedelta64(5, "m")
    assert alone["time"].values[-1] == product["time"].values[-1]
    assert alone["init_time"].values == product["init_time"].values
    assert alone.attrs == product.attrs


def test_a_reflectivity_product_on_a_latitude_longitude_grid(tmp_path: Path) -> None:
    dbz = np.where(moving_rain(6) > 0.05, 10 * np.log10(1 + 200 * moving_rain(6) ** 1.6), -33.0).astype(np.float32)
    frames = [
        build_frame(
            field,
            quantity="equivalent_reflectivity_factor",
            time=slot_time(step),
            crs=pyproj.CRS.from_epsg(4326),
            x=np.linspace(230.0, 230.71, 72),
            y=np.linspace(50.0, 49.37, 64),
            no_echo=-33.0,
        )
        for step, field in enumerate(dbz)
    ]
    stack = xr.concat([frame.drop_vars(["lead_time", "member"]) for frame in frames], "time", join="exact")
    domain = small_domain(tmp_path)
    domain = domain.model_copy(update={"product": domain.product.model_copy(update={"thresholds": (20.0, 40.0)})})
    known = xr.DataArray(np.ones(stack.shape[1:], bool), dims=("y", "x"))
    context = Context(
        frames=stack,
        verdict=Verdict.COMPLETE,
        reasons=(),
        at=slot_time(5),
        init_time=slot_time(5),
        slots=(),
        observed=known,
        snapshot="S",
        rule="received_at",
        latency=timedelta(0),
    )
    rung = drawn_rung(lambda values: np.maximum(values, np.float32(-33)))
    forecast = run_ladder(context, [rung], domain, deadline=timedelta(minutes=10), seed=0, members=3)
    opened = stored(tmp_path, build_product(forecast, context, domain))
    assert "rainfall_amount_1h" not in opened
    assert (opened["lat"].dims, opened["lon"].dims) == (("y",), ("x",))
    mean = opened["equivalent_reflectivity_factor_mean"]
    assert mean.attrs["units"] == "dBZ"
    assert float(mean.min()) == -33.0
    assert float(mean.max()) > 40
    picture = draw_quicklooks(opened, "equivalent_reflectivity_factor")["quicklook/lead_005min.png"]
    assert picture.startswith(b"\x89PNG")


def test_a_lost_chunk_reads_as_not_forecast(tmp_path: Path) -> None:
    product, _, _ = make(tmp_path)
    stored(tmp_path, product)
    group = tmp_path / "store" / "p" / "forecast.zarr"
    for name in ("rainfall_rate/c/0/0/0/0", "probability_above_threshold/c/0/0/0/0"):
        (group / name).unlink()
    opened = xr.open_zarr(group)
    assert np.isnan(opened["rainfall_rate"].values[0, 0]).all()
    assert np.isnan(opened["probability_above_threshold"].values[:, 0]).all()


def test_equal_products_give_equal_bytes(tmp_path: Path) -> None:
    product, context, forecast = make(tmp_path)
    again = build_product(forecast, context, small_domain(tmp_path))
    assert encode_product(product) == encode_product(again)


def test_the_hour_s_rain_is_the_sum_of_its_rates(tmp_path: Path) -> None:
    product, _, _ = make(tmp_path)
    expected = product["rainfall_rate"].values[0].sum(axis=0, dtype=np.float64) / 12
    found = product["rainfall_amount_1h"].values[0, 0]
    assert np.allclose(found, expected, rtol=2e-3, equal_nan=True)
    assert product["accumulation_lead_time"].values[0] == np.timedelta64(60, "m")


def test_less_than_an_hour_of_leads_gives_no_hourly_sum(tmp_path: Path) -> None:
    assert "rainfall_amount_1h" not in make(tmp_path, lead_times=11)[0]


def test_members_give_their_mean_and_their_share_above_a_threshold(tmp_path: Path) -> None:
    product, _, _ = make(tmp_path, members=4)
    values = product["rainfall_rate"].values
    assert np.allclose(product["rainfall_rate_mean"].values, values.mean(axis=0), rtol=3e-3, equal_nan=True)
    share = np.where(np.isfinite(values).all(axis=0), (values >= 1).mean(axis=0), np.nan)
    assert np.allclose(product["probability_above_threshold"].values[1], share, equal_nan=True)


def test_one_member_s_probability_is_the_share_of_known_neighbours() -> None:
    field = np.zeros((1, 5, 5), np.float32)
    field[0, 2, 2] = 3.0
    field[0, 0, 0] = np.nan
    found = exceedance(field, [1.0, 3.0, 3.5], 300.0, 2000.0)  # 2 km at five minutes: one cell
    assert neighbourhood_half_width_m(300.0) == 2000.0
    assert found[0, 2, 2] == pytest.approx(1 / 9)
    assert found[0, 1, 1] == pytest.approx(1 / 8)  # one of the nine is unknown
    assert found[0, 4, 4] == 0
    assert np.isnan(found[:, 0, 0]).all()
    assert np.array_equal(found[0], found[1], equal_nan=True)
    assert np.nanmax(found[2]) == 0


def test_the_neighbourhood_grows_with_lead_time_from_one_kilometre() -> None:
    assert [neighbourhood_half_width_m(60 * minutes) for minutes in (1, 5, 30, 60)] == [1000, 2000, 12000, 24000]


@given(stn.arrays(np.float32, (3, 6, 7), elements=st.floats(0, 200, width=32) | st.just(float("nan"))))
def test_probabilities_fall_with_the_threshold_and_stay_within_0_and_1(values: np.ndarray) -> None:
    for members in (values, values[:1]):
        found = exceedance(members, [0.5, 5, 50], 1800.0, 3000.0)
        known = np.isfinite(members).all(axis=0)
        assert np.array_equal(np.isfinite(found), np.broadcast_to(known, found.shape))
        assert ((found[:, known] >= 0) & (found[:, known] <= 1 + 1e-6)).all()
        assert (np.diff(found[:, known], axis=0) <= 1e-6).all()


@given(stn.arrays(np.float32, 20, elements=st.floats(0, 1000, width=32, allow_subnormal=False) | st.just(float("nan"))))
def test_rounding_keeps_wet_wet_dry_dry_and_unknown_unknown(values: np.ndarray) -> None:
    rounded = bitround(values)
    assert np.array_equal(np.isnan(rounded), np.isnan(values))
    assert np.array_equal(rounded == 0, values == 0)
    assert np.allclose(rounded, values, rtol=2**-9, atol=1e-37, equal_nan=True)


def test_quicklooks_are_pictures_of_every_lead_and_one_animation(tmp_path: Path) -> None:
    import io

    from PIL import Image

    product, _, _ = make(tmp_path)
    pictures = draw_quicklooks(product, "rainfall_rate")
    assert sorted(pictures)[:2] == ["quicklook/animation.gif", "quicklook/lead_005min.png"]
    assert len(pictures) == 13
    animation = Image.open(io.BytesIO(pictures["quicklook/animation.gif"]))
    assert animation.n_frames == 12  # type: ignore[attr-defined]
    page = np.asarray(Image.open(io.BytesIO(pictures["quicklook/lead_005min.png"])))
    assert {11, 12} <= set(np.unique(page))  # unknown cells are grey and hatched
    assert (page == 7).any()  # and there is rain above 10 mm h-1
    assert draw_quicklooks(product, "rainfall_rate") == pictures
