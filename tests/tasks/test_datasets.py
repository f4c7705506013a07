"""Published datasets: splits, windows and scalings as in the papers, one read per event, errors that name the file."""

from __future__ import annotations

import gzip
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

from builders.datasets import RANDOM, STORMS, codes, tiny_nbody, write_digits, write_enso, write_sevir
from models.transform import Transform
from tasks.training.datasets import DatasetError, open_dataset
from tasks.training.datasets.enso import Enso, fold_rows, target_index, window_months
from tasks.training.datasets.nbody import NBody, Physics, crop, random_launch, trajectory
from tasks.training.datasets.sampling import DatasetSamples
from tasks.training.datasets.sevir import Sevir, published_order, reduce_resolution
from tasks.training.samples import SampleSpec, Window

PAPER = SampleSpec(t_in=13, t_out=12)


@pytest.fixture
def sevir(tmp_path: Path) -> Path:
    return write_sevir(tmp_path / "sevir")


def names(dataset: Sevir, split: str) -> list[str]:
    return [dataset.name(int(number)) for number in dataset.splits[split]]


def test_sevir_splits_by_time_and_leaves_out_incomplete_and_repeated_events(sevir: Path) -> None:
    dataset = Sevir(str(sevir))
    assert names(dataset, "train") == ["S1", "S2"]  # up to and including 2019-01-01 00:00, ordered by id
    assert names(dataset, "val") == ["R1"]
    assert names(dataset, "test") == ["R2", "R3"]
    assert dataset.info.quantity == "vil_code"
    assert (dataset.info.cadence_s, dataset.info.cell_size_m, dataset.info.shape) == (300, 1000.0, (16, 16))


def test_sevir_windows_are_25_frames_12_apart_scaled_by_255(sevir: Path) -> None:
    samples = DatasetSamples(open_dataset("sevir", str(sevir)), PAPER)
    windows = samples.held_out("test")
    assert [samples.event(window) for window in windows] == ["R2"] * 3 + ["R3"] * 3
    fields = samples.reader().read(windows)
    event = np.moveaxis(codes(3, (16, 16, 49)), -1, 0)
    np.testing.assert_array_equal(fields[1], event[12:37].astype(np.float32))
    scaled = Transform.of_quantity(samples.info.quantity).forward(fields[1])
    np.testing.assert_array_equal(scaled, event[12:37].astype(np.float32) / np.float32(255))
    # The catalogue's time is the middle of the event, two hours in; window 1 starts at frame 12, context ends at 24.
    assert samples.init_time(windows[1]) == np.datetime64("2019-06-01T00:05", "ns")


def test_sevir_lr_is_every_second_frame_and_the_maximum_of_nine_cells(tmp_path: Path) -> None:
    folder = write_sevir(tmp_path, (12, 9, 49))
    samples = DatasetSamples(open_dataset("sevir-lr", str(folder)), SampleSpec(t_in=7, t_out=6))
    assert samples.info.shape == (4, 3)
    assert (samples.info.cadence_s, samples.info.cell_size_m) == (600, 3000.0)
    assert samples.describe()["windows"] == {"train": 6, "val": 3, "test": 6}
    event = codes(2, (12, 9, 49))
    (first, second, _) = samples.held_out("val")
    fields = samples.reader().read([first, second])
    assert fields[1, 0, 2, 1] == event[6:9, 3:6, 12].max()
    np.testing.assert_array_equal(fields[0, 6:], fields[1, :7])


def test_files_already_reduced_are_taken_as_they_are(tmp_path: Path) -> None:
    full, small = write_sevir(tmp_path / "full", (12, 12, 49)), tmp_path / "lr"
    write_sevir(small, (4, 4, 25))
    for file in (STORMS, RANDOM):
        with h5py.File(full / "data" / file) as source, h5py.File(small / "data" / file, "r+") as target:
            for row in range(len(source["vil"])):
                target["vil"][row] = np.moveaxis(reduce_resolution(np.moveaxis(source["vil"][row], -1, 0)), 0, -1)
    one, other = (open_dataset("sevir-lr", str(folder)) for folder in (full, small))
    np.testing.assert_array_equal(one.read(3), other.read(3))
    assert one.info == other.info


def test_an_epoch_deals_every_window_once_and_reads_every_event_once(sevir: Path) -> None:
    samples = DatasetSamples(open_dataset("sevir", str(sevir)), PAPER)
    reader = samples.reader()
    drawn: list[Window] = []
    for step in range(4):  # six windows in batches of three: two epochs
        batch = samples.draw(5, step, 3)
        reader.read(batch)
        drawn += batch
    assert Counter(w.frame for w in drawn[:6]) == Counter(samples.windows("train").tolist())
    assert sorted(w.frame for w in drawn[6:]) == samples.windows("train").tolist()
    assert reader.reads == 2
    assert samples.draw(5, 2, 3) == drawn[6:9]
    assert [w.frame for w in drawn[:6]] != [w.frame for w in drawn[6:]]


def test_windows_of_a_block_are_all_dealt_before_the_next_block_is_read(sevir: Path) -> None:
    samples = DatasetSamples(open_dataset("sevir", str(sevir)), PAPER)
    samples.__dict__["block"] = 1
    order = samples.sequence_of(samples.epoch(0, 0))
    assert np.count_nonzero(np.diff(order)) == 1
    reader = samples.reader()
    for frame in samples.epoch(0, 0):
        reader.read([Window(int(frame))])
    assert reader.reads == 2


def test_the_published_order_permutes_twice() -> None:
    assert published_order(5).tolist() == [4, 1, 3, 2, 0]


def test_a_crop_and_a_turn_are_the_same_for_context_and_target(sevir: Path) -> None:
    samples = DatasetSamples(open_dataset("sevir", str(sevir)), SampleSpec(t_in=13, t_out=12, crop=8))
    plain = samples.reader().read([Window(0, 3, 5)])[0]
    turned = samples.reader().read([Window(0, 3, 5, 5)])[0]
    np.testing.assert_array_equal(turned, np.rot90(plain[..., ::-1], 1, axes=(-2, -1)))
    assert {(w.y, w.x) for step in range(9) for w in samples.draw(0, step, 6)} != {(0, 0)}
    assert [(w.y, w.x) for w in samples.held_out("val")] == [(4, 4)] * 3


def test_a_dataset_travels_to_another_process_without_open_files(sevir: Path) -> None:
    samples = DatasetSamples(open_dataset("sevir", str(sevir)), PAPER)
    reader = samples.reader()
    wanted = reader.read(samples.draw(1, 0, 2))
    copied = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(copied.read(copied.samples.draw(1, 0, 2)), wanted)


def test_a_dataset_in_a_bucket_is_read_where_it_lies(sevir: Path) -> None:
    import fsspec

    bucket = fsspec.filesystem("memory")
    bucket.put(str(sevir), "/sevir", recursive=True)
    local, remote = (DatasetSamples(open_dataset("sevir", url), PAPER) for url in (str(sevir), "memory://sevir"))
    assert remote.info == local.info
    windows = remote.held_out("test")
    np.testing.assert_array_equal(remote.reader().read(windows), local.reader().read(windows))
    bucket.rm("/sevir", recursive=True)
    with pytest.raises(DatasetError, match=r"CATALOG\.csv under memory://sevir"):
        open_dataset("sevir", "memory://sevir")


def test_a_missing_catalogue_and_a_missing_column_are_named(tmp_path: Path, sevir: Path) -> None:
    with pytest.raises(DatasetError, match=r"CATALOG\.csv"):
        Sevir(str(tmp_path / "nowhere"))
    catalogue = sevir / "CATALOG.csv"
    catalogue.write_text(catalogue.read_text().replace("pct_missing", "missing"))
    with pytest.raises(DatasetError, match=r"CATALOG\.csv; missing pct_missing"):
        Sevir(str(sevir))


def test_a_damaged_entry_of_the_catalogue_is_named(sevir: Path) -> None:
    catalogue = sevir / "CATALOG.csv"
    catalogue.write_text(catalogue.read_text().replace("2019-06-01 00:05:00", "yesterday"))
    with pytest.raises(DatasetError, match=r"CATALOG\.csv.*yesterday"):
        Sevir(str(sevir))


def test_damaged_files_of_events_are_named_with_their_key(sevir: Path) -> None:
    dataset = Sevir(str(sevir))
    path = sevir / "data" / STORMS
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3])
    with pytest.raises(DatasetError, match=r"'vil' of data/vil/2018/STORMS_2018\.h5"):
        dataset.read(3)
    path.unlink()
    with pytest.raises(DatasetError, match=r"STORMS_2018\.h5"):
        dataset.read(3)


def test_another_event_in_a_row_and_a_missing_array_are_named(sevir: Path) -> None:
    path = sevir / "data" / RANDOM
    with h5py.File(path, "r+") as store:
        store["id"][1] = b"R9"
    with pytest.raises(DatasetError, match=r"expected event R2 at row 1 of 'id' in .*RANDOM_2019\.h5; got 'R9'"):
        Sevir(str(sevir)).read(1)
    with h5py.File(path, "r+") as store:
        store.move("vil", "VIL")
    with pytest.raises(DatasetError, match=r"array 'vil' in .*RANDOM_2019\.h5; it has \['VIL', 'id'\]"):
        Sevir(str(sevir))


def test_enso_rows_fold_to_unbroken_months(tmp_path: Path) -> None:
    dataset = Enso(str(write_enso(tmp_path)), models=(2, 4), years=(3, 2))
    assert [one.name for one in dataset.series] == ["CMIP6-0", "CMIP6-1", "CMIP5-0", "CMIP5-1", "CMIP5-2", "CMIP5-3"]
    assert dataset.lengths.tolist() == [60, 60, 48, 48, 48, 48]
    assert dataset.info.shape == (24, 48)
    np.testing.assert_allclose(dataset.series[1].nino, (1000 + np.arange(60)) / 100)
    np.testing.assert_allclose(dataset.series[3].sst[:, 2, 7], (3000 + np.arange(48)) / 100 + 0.002, rtol=1e-6)
    assert {split: numbers.tolist() for split, numbers in dataset.splits.items()} == {
        "train": [0, 1, 2, 3],
        "val": [4],
        "test": [5],
    }


@pytest.mark.parametrize(
    ("protocol", "t_out", "expected"),
    [
        ("released", 14, {"train": 2 * 35 + 2 * 23, "val": 23, "test": 23}),
        ("paper", 26, {"train": 10, "val": 3, "test": 11}),
    ],
)
def test_enso_windows_are_as_far_apart_as_the_protocol_says(
    tmp_path: Path, protocol: str, t_out: int, expected: dict[str, int]
) -> None:
    dataset = Enso(str(write_enso(tmp_path)), models=(2, 4), years=(3, 2), protocol=protocol)
    samples = DatasetSamples(dataset, SampleSpec(t_in=12, t_out=t_out))
    assert samples.describe()["windows"] == expected


def test_enso_files_of_the_classic_form_are_read_alike(tmp_path: Path) -> None:
    folder, classic = write_enso(tmp_path / "new"), tmp_path / "classic"
    classic.mkdir()
    for path in folder.glob("CMIP_*.nc"):
        with xr.open_dataset(path, engine="h5netcdf") as content:
            content.to_netcdf(classic / path.name, engine="scipy")
    one, other = (Enso(str(place), models=(2, 4), years=(3, 2)) for place in (folder, classic))
    np.testing.assert_array_equal(one.read(3), other.read(3))


def test_enso_can_be_tested_on_the_reanalysis(tmp_path: Path) -> None:
    dataset = Enso(str(write_enso(tmp_path)), models=(2, 4), years=(3, 2), test="soda")
    samples = DatasetSamples(dataset, SampleSpec(t_in=12, t_out=14))
    assert {samples.event(window) for window in samples.held_out("test")} == {"SODA-0"}
    assert samples.describe()["windows"]["test"] == 72 - 25


def test_the_papers_counts_of_enso_windows_follow() -> None:
    cmip6, cmip5 = (1836, 1704)
    assert 15 * len(window_months(cmip6, 12, 14)) + 15 * len(window_months(cmip5, 12, 14)) == 52_350
    paper = 15 * len(window_months(cmip6, 12, 26, gap=10)) + 15 * len(window_months(cmip5, 12, 26, gap=10))
    assert paper == 5205
    assert (len(window_months(cmip5, 12, 26, gap=5)), len(window_months(cmip5, 12, 26))) == (334, 1667)


def test_the_target_index_leaves_out_the_two_last_months() -> None:
    nino = np.arange(40, dtype=np.float32)
    index = target_index(nino, window_months(40, 12, 14), 12)
    assert index.shape == (15, 12)
    assert index[3].tolist() == list(range(15, 27))


def test_enso_files_that_lack_something_are_named(tmp_path: Path) -> None:
    folder = write_enso(tmp_path)
    with pytest.raises(DatasetError, match=r"'sst' of CMIP_train\.nc with \(year, month\) of \(4645, 36\)"):
        Enso(str(folder))
    xr.Dataset({"nina": (("year", "month"), np.zeros((14, 36)))}).to_netcdf(folder / "CMIP_label.nc", engine="h5netcdf")
    with pytest.raises(DatasetError, match=r"'nino' .* in CMIP_label\.nc"):
        Enso(str(folder), models=(2, 4), years=(3, 2))
    nino = np.zeros((14, 36))
    nino[3, 3] = np.nan
    xr.Dataset({"nino": (("year", "month"), nino)}).to_netcdf(folder / "CMIP_label.nc", engine="h5netcdf")
    with pytest.raises(DatasetError, match=r"no NaN in 'nino' of CMIP_label\.nc; got 1"):
        Enso(str(folder), models=(2, 4), years=(3, 2))
    (folder / "CMIP_label.nc").write_bytes(b"not a netCDF file")
    with pytest.raises(DatasetError, match=r"CMIP_label\.nc"):
        Enso(str(folder), models=(2, 4), years=(3, 2))


def test_rows_of_another_length_cannot_be_folded() -> None:
    with pytest.raises(ValueError, match="36 months"):
        fold_rows(np.zeros((3, 24)))


def test_an_nbody_sequence_is_a_function_of_seed_and_number(tmp_path: Path) -> None:
    one, other, another = (tiny_nbody(tmp_path, seed=seed) for seed in (1, 1, 2))
    frames = one.read(5)
    assert frames.shape == (20, 64, 64)
    assert frames.dtype == np.float32
    assert frames.min() >= 0
    assert 0.4 < frames.max() <= 1
    np.testing.assert_array_equal(frames, other.read(5))
    assert not np.array_equal(frames, another.read(5))
    assert not np.array_equal(frames, one.read(4))


def test_bodies_attract_each_other_and_stay_inside(tmp_path: Path) -> None:
    physics = Physics()
    sizes = np.full((3, 2), 12.0)
    path = trajectory(random_launch(0, 0, 12, physics), sizes, 500, physics) + sizes / 2
    assert path[1:].min() >= 10 - 1e-4  # the first corner is anywhere on the canvas
    assert path.max() <= 118 + 1e-4
    still = replace(random_launch(0, 0, 12, physics), speed=np.zeros(3))
    first = trajectory(still, sizes, 2, physics)
    towards = (first[0].mean(axis=0) - first[0]) * (first[1] - first[0])
    assert (towards.sum(axis=1) > 0).all()


def test_digits_are_read_from_idx_gzip_and_numpy(tmp_path: Path) -> None:
    plain = write_digits(tmp_path)
    packed, array = tmp_path / "digits.gz", tmp_path / "digits.npy"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    images = NBody(str(plain)).images
    np.save(array, images)
    for path in (packed, array):
        np.testing.assert_array_equal(NBody(str(path)).images, images)
    assert crop(images[3]).shape == (9, 9)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"\0\0\x08\x01" + bytes(40), "magic"),
        (b"\0\0\x08\x03" + bytes(12), "in every image"),
        (b"\0\0\x08\x03" + bytes([0, 0, 0, 1] * 3) + b"12", "bytes of images"),
        (b"", "magic"),
    ],
)
def test_a_file_that_holds_no_digits_is_named(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "digits"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=complaint):
        NBody(str(path))
    with pytest.raises(DatasetError, match=r"nothing\.gz"):
        NBody(str(tmp_path / "nothing.gz"))


def test_an_unknown_dataset_and_windows_that_do_not_fit_are_refused(sevir: Path) -> None:
    with pytest.raises(ValueError, match="sevir-lr"):
        open_dataset("sevire", str(sevir))
    with pytest.raises(ValueError, match="longest of 49"):
        DatasetSamples(open_dataset("sevir", str(sevir)), SampleSpec(t_in=40, t_out=12))
    with pytest.raises(ValueError, match="at most 16"):
        DatasetSamples(open_dataset("sevir", str(sevir)), SampleSpec(crop=17))
