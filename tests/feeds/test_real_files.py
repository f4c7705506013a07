"""Real files of the national feeds and data sets against an independent decode: values, times and slots, one by one."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
from PIL import Image

from infra.settings import Settings
from tasks.feeds import Feed, FeedSource, FrameObject, open_feed

pytestmark = pytest.mark.data

Values = npt.NDArray[np.float32]
FIVE = timedelta(minutes=5)
AGES = datetime(2000, 1, 1, tzinfo=UTC), datetime(2030, 1, 1, tzinfo=UTC)


def folder(name: str) -> Path:
    root = Settings().data / "radar" / name
    if not root.is_dir():
        pytest.skip(f"no real data at {root} (SQUALL_DATA)")
    return root


def decoded(
    kind: str, root: Path, quantity: str = "rainfall_rate", cadence: timedelta = FIVE
) -> Iterator[tuple[FrameObject, list[xr.DataArray]]]:
    """Every object of a folder with its frames, in the order of the listing."""
    feed = open_feed(FeedSource(kind, str(root), quantity, cadence))
    for item in feed.list(*AGES):
        yield item, feed.decode(feed.read(item), item.key)


def stamp(frame: xr.DataArray) -> datetime:
    return datetime.fromtimestamp(int(frame["time"].values.astype("datetime64[s]").astype(int)), UTC)


def slots(times: list[datetime], cadence: timedelta) -> tuple[int, int]:
    """Present and missing slots between the first and the last frame."""
    assert times == sorted(set(times))
    whole = round((times[-1] - times[0]) / cadence) + 1
    return len(times), whole - len(times)


def assert_equal(frame: xr.DataArray, expected: npt.NDArray[np.floating]) -> None:
    np.testing.assert_array_equal(frame.values, expected.astype(np.float32))


def test_finland_is_forty_composites_that_equal_an_independent_decode() -> None:
    times = []
    root = folder("fmi_pgm/20160928")
    for item, (frame,) in decoded("fmi", root):
        header, body = gzip.decompress((root / item.key).read_bytes()).split(b"\n760 1226\n255\n")
        code = np.frombuffer(body, np.uint8).reshape(1226, 760).astype(float)
        rain = (10.0 ** ((code / 2.0 - 32.0) / 10.0) / 223.0) ** (1.0 / 1.53)
        assert_equal(frame, np.where(code == 255, np.nan, np.where(code == 0, 0.0, rain)))
        assert stamp(frame).strftime("%Y%m%d%H%M").encode() in header
        assert stamp(frame) == item.time
        assert np.isnan(frame.values).mean() == pytest.approx(0.243, abs=5e-4)
        times.append(item.time)
    assert slots(times, FIVE) == (40, 0)
    assert times[0] == datetime(2016, 9, 28, 14, 45, tzinfo=UTC)


def test_finland_lies_where_its_header_says() -> None:
    _, (frame,) = next(decoded("fmi", folder("fmi_pgm/20160928"), "equivalent_reflectivity_factor"))
    assert frame["x"].values[1] - frame["x"].values[0] == pytest.approx(999.674053, abs=1e-5)
    assert frame["y"].values[0] - frame["y"].values[1] == pytest.approx(999.62859, abs=1e-5)
    assert float(np.nanmin(frame)) == -32.0


@pytest.mark.parametrize(
    ("day", "first"),
    [("20150515", datetime(2015, 5, 15, 15, 45, tzinfo=UTC)), ("20160711", datetime(2016, 7, 11, 20, 45, tzinfo=UTC))],
)
def test_switzerland_is_forty_frames_an_event_and_crosses_midnight(day: str, first: datetime) -> None:
    times = []
    root = folder(f"mch_gif/{day}")
    for item, (frame,) in decoded("mch", root):
        with Image.open(root / item.key) as image:
            index = np.array(image).astype(float)
        rain = (10.0 ** ((index - 71.5) / 20.0) / 316.0) ** (1.0 / 1.5) * 12.0
        rain[(index < 2) | ((index > 250) & (index < 255))] = 0.0
        rain[index == 255] = np.nan
        assert_equal(frame, rain)
        assert f"{stamp(frame):%y%j%H%M}" in item.key
        times.append(stamp(frame))
    assert slots(times, FIVE) == (40, 0)
    assert times[0] == first


def test_the_netherlands_are_ninety_two_depths() -> None:
    times = []
    root = folder("knmi_h5/20100826")
    for item, (frame,) in decoded("knmi", root):
        with h5py.File(root / item.key) as file:
            code = file["image1/image_data"][:]
            end = file["overview"].attrs["product_datetime_end"][0].decode()
        assert_equal(frame, np.where(code == 65535, np.nan, code * 0.12))
        assert end.title().startswith(f"{stamp(frame):%d-%b-%Y;%H:%M}")
        assert np.isnan(frame.values).mean() == pytest.approx(0.74, abs=5e-3)
        times.append(stamp(frame))
    assert slots(times, FIVE) == (92, 0)
    assert (float(frame["x"][0]), float(frame["y"][0])) == (500.0, -3_650_500.0)


def test_australia_is_a_day_of_depths_whose_negative_codes_are_no_observations() -> None:
    times, missing, negative = [], 0, 0
    root = folder("bom_nc/66_20201031")
    ten = timedelta(minutes=10)
    for item, (frame,) in decoded("bom", root, cadence=ten):
        with h5py.File(root / item.key) as file:
            code = file["precipitation"][:]
            assert stamp(frame).timestamp() == file["valid_time"][()]
            np.testing.assert_allclose(frame["y"].values, file["y"][:] * 1000.0)
        assert_equal(frame, np.where(code < 0, np.nan, code * 0.3))
        counted = json.loads(frame.attrs["quality"])["negative_cells"]
        assert counted == np.count_nonzero(code < -1)
        missing, negative = missing + np.count_nonzero(code == -1), negative + counted
        times.append(stamp(frame))
    assert slots(times, ten) == (144, 0)
    assert (missing, negative) == (65, 17)


def test_meteonet_is_forty_five_frames_and_three_thousand_listed_gaps() -> None:
    root = folder("meteonet")
    ((item, frames),) = decoded("meteonet", root)
    with np.load(root / item.key, allow_pickle=True) as file:
        codes, dates, gaps = file["data"], list(file["dates"]), list(file["miss_dates"])
    assert [stamp(frame).replace(tzinfo=None) for frame in frames] == dates
    for frame, code in zip(frames, codes, strict=True):
        assert_equal(frame, np.where(code == -1, np.nan, code * 0.12))
    assert (len(frames), len(gaps)) == (45, 3123)
    assert not set(dates) & set(gaps)
    assert len(dates) + len(gaps) == 11 * 288
    with np.load(root / "radar_coords_NW.npz") as cells:
        np.testing.assert_array_equal(frames[0]["y"].values, cells["lats"][:, 0])
        np.testing.assert_array_equal(frames[0]["x"].values, cells["lons"][0])


@pytest.fixture(scope="module")
def trentino() -> tuple[Feed, list[FrameObject], list[datetime]]:
    """The feed of all sheets, its listing, and the dates of all frames."""
    root = folder("taasrad19_thumbs")
    feed = open_feed(FeedSource("taasrad19", str(root), "equivalent_reflectivity_factor", FIVE))
    texts = json.loads((root / "umap_train_dates.json").read_text())
    return feed, feed.list(*AGES), [datetime.fromisoformat(text).replace(tzinfo=UTC) for text in texts]


def test_trentino_is_thirty_one_sheets_of_distinct_times(
    trentino: tuple[Feed, list[FrameObject], list[datetime]],
) -> None:
    _, items, dates = trentino
    assert dates == sorted(set(dates))
    assert len(dates) == 50_000
    sheets = [int(re.findall(r"\d+", item.key)[-1]) for item in items]
    assert sheets == [0, 1, *range(3, 32)]
    assert [item.time for item in items] == [dates[sheet * 1024 + 1023] for sheet in sheets]
    times = [time for sheet in sheets for time in dates[sheet * 1024 : sheet * 1024 + 1024]]
    assert slots(times, FIVE) == (31_744, 54_914)


@pytest.mark.slow
@pytest.mark.parametrize("sheet", [0, 1, 9, 17, 24, 31])
def test_trentinos_frames_are_the_tiles_of_a_sheet_with_a_blind_rim(
    trentino: tuple[Feed, list[FrameObject], list[datetime]], sheet: int
) -> None:
    feed, items, dates = trentino
    (item,) = (item for item in items if item.key.endswith(f"_{sheet}.png"))
    with Image.open(Path(feed.source.url) / item.key) as image:
        red = np.array(image.getchannel("R"))
    tiles = np.stack([red[64 * (i // 32) :, 64 * (i % 32) :][:64, :64] for i in range(1024)])
    rows, columns = np.mgrid[:64, :64]
    rim = np.hypot(rows - 31.5, columns - 31.5) * 3.75 > 120.5
    assert not tiles[:, rim].any()
    assert tiles[:, ~rim].any(axis=0).mean() > 0.99
    frames = feed.decode(feed.read(item), item.key)
    assert [stamp(frame) for frame in frames] == dates[sheet * 1024 : sheet * 1024 + 1024]
    values = np.stack([frame.values for frame in frames])
    np.testing.assert_array_equal(values, np.where(rim, np.nan, tiles * 52.5 / 255.0).astype(np.float32))
