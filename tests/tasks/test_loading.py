"""The training layout keeps every value, and the loader gives exactly the frames that were asked for."""

from __future__ import annotations

import pickle
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.archives import at, received, tiny_archive
from builders.training import drifting_rain, info, samples, write
from tasks.training.data import FrameBatch, block_wetness, frames_per_shard, open_training_data, write_training_data
from tasks.training.export_samples import export_samples
from tasks.training.loading import BatchPlan, HeldOutBatches, StepBatches, WindowReader, step_loader
from tasks.training.samples import SampleSource, SampleSpec, Window


def test_frames_come_back_as_they_were_written_with_gaps_in_value_and_time(tmp_path: Path) -> None:
    values = drifting_rain(160)
    slots = np.r_[0:100, 150:210]
    data = write(tmp_path / "data", values, slots)
    assert data.slots.tolist() == slots.tolist()
    source = SampleSource(data, SampleSpec(t_in=3, t_out=2, event_limit=timedelta(hours=1)))
    read = WindowReader(source).read([Window(70), Window(100)])
    np.testing.assert_array_equal(read[0], values[70:75])
    np.testing.assert_array_equal(read[1], values[100:105])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_how_frames_arrive_in_batches_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("batches")
    values = drifting_rain(sum(sizes))
    edges = np.cumsum([0, *sizes])
    parts = [FrameBatch(np.arange(a, b), values[a:b]) for a, b in pairwise(edges)]
    write_training_data(parts, info(), folder / "data")
    with xr.open_zarr(folder / "data", consolidated=False, chunks=None) as stored:
        np.testing.assert_allclose(stored["codes"].values, values, atol=1e-5)


def test_a_layout_that_exists_is_not_written_again(tmp_path: Path) -> None:
    first = write(tmp_path / "data", drifting_rain(20))
    second = write(tmp_path / "data", np.zeros((99, 16, 16), np.float32))
    assert len(second.slots) == len(first.slots) == 20


def test_a_layout_that_failed_half_way_is_never_seen(tmp_path: Path) -> None:
    def batches():
        yield FrameBatch(np.arange(80), drifting_rain(80))
        raise OSError("the archive went away")

    with pytest.raises(OSError, match="went away"):
        write_training_data(batches(), info(), tmp_path / "data")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        open_training_data(tmp_path / "data")


def test_frames_out_of_order_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ascending"):
        write(tmp_path / "data", drifting_rain(3), np.array([0, 2, 1]))


def test_wetness_counts_observed_cells_only() -> None:
    values = np.zeros((1, 16, 32), np.float32)
    values[0, :, 16:] = np.nan
    values[0, :8, :16] = 5.0
    blocks, whole = block_wetness(values, 0.5)
    assert whole.tolist() == [0.5]
    assert blocks.tolist() == [[[128, 0]]]


def test_a_shard_of_a_very_large_grid_holds_fewer_frames() -> None:
    assert frames_per_shard(info()) == 72
    assert frames_per_shard(info((3500, 7000))) == 12


def test_an_exported_snapshot_holds_exactly_the_frames_of_the_archive(tmp_path: Path) -> None:
    archive = tiny_archive(tmp_path / "archive")
    filled = [0, 1, 2, 5, 6, 200, 201]
    archive.write([received(at(slot), rain=1.0 + slot / 10) for slot in filled])
    data = export_samples(archive, tmp_path / "training")
    assert data.folder.name == archive.snapshot() == data.info.archive_snapshot
    assert data.slots.tolist() == filled
    assert [data.info.time(slot) for slot in data.slots] == [at(slot) for slot in filled]
    assert data.info.cell_size_m == pytest.approx(1000.0)
    with xr.open_zarr(data.folder, consolidated=False, chunks=None) as stored:
        expected = archive.read(at(0), at(201))["rainfall_rate"].values[filled]
        np.testing.assert_allclose(stored["codes"].values, expected, rtol=1e-6)
        assert np.isnan(stored["codes"].values[:, 0, 0]).all()
        assert (stored["codes"].values[:, 0, 1] == 0).all()


def test_an_export_of_a_period_has_its_own_name_and_an_old_snapshot_its_old_frames(tmp_path: Path) -> None:
    archive = tiny_archive(tmp_path / "archive")
    archive.write([received(at(slot)) for slot in range(4)])
    old = archive.snapshot()
    archive.write([received(at(slot)) for slot in range(4, 9)])
    assert export_samples(archive, tmp_path / "training", as_of=old).slots.tolist() == [0, 1, 2, 3]
    part = export_samples(archive, tmp_path / "training", start=at(2), end=at(5))
    assert part.slots.tolist() == [0, 1, 2, 3]
    assert part.info.time(0) == at(2)


def test_an_empty_archive_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="empty"):
        export_samples(tiny_archive(tmp_path / "archive"), tmp_path / "training")


def test_turning_and_mirroring_is_done_to_context_and_target_alike(tmp_path: Path) -> None:
    reader = WindowReader(samples(tmp_path / "data"))
    plain, turned, mirrored = reader.read([Window(10), Window(10, symmetry=1), Window(10, symmetry=4)])
    np.testing.assert_array_equal(turned, np.rot90(plain, 1, axes=(1, 2)))
    np.testing.assert_array_equal(mirrored, plain[..., ::-1])


def test_the_batch_of_all_processes_is_the_batch_of_one(tmp_path: Path) -> None:
    reader = WindowReader(samples(tmp_path / "data"))
    whole = StepBatches(reader, BatchPlan(seed=3, batch_size=8))[5]
    plans = [BatchPlan(seed=3, batch_size=8, parts=4, rank=rank, stride=2) for rank in range(2)]
    parts = [StepBatches(reader, plan)[5 * 2 + turn] for turn in range(2) for plan in plans]
    rows = {part.numpy().tobytes() for batch in parts for part in batch}
    assert rows == {window.numpy().tobytes() for window in whole}
    assert [len(part) for part in parts] == [2, 2, 2, 2]


def test_a_batch_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="divides"):
        StepBatches(WindowReader(samples(tmp_path / "data")), BatchPlan(seed=0, batch_size=9, parts=2))


def test_a_reader_travels_to_another_process_without_its_open_store(tmp_path: Path) -> None:
    reader = WindowReader(samples(tmp_path / "data"))
    expected = reader.read([Window(4)])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(reader)).read([Window(4)]), expected)


def test_held_out_batches_come_in_time_order(tmp_path: Path) -> None:
    source = samples(tmp_path / "data")
    windows = source.held_out("val", 5)
    batches = list(HeldOutBatches(WindowReader(source), windows, 2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    torch.testing.assert_close(torch.cat(batches), torch.from_numpy(WindowReader(source).read(windows)), equal_nan=True)


@pytest.mark.slow
def test_worker_processes_give_the_same_batches_in_the_same_order(tmp_path: Path) -> None:
    batches = StepBatches(WindowReader(samples(tmp_path / "data")), BatchPlan(seed=1, batch_size=4))
    batches[0]  # the parent has read before its workers start
    state = torch.get_rng_state()
    alone = list(step_loader(batches, 3, 9, workers=0))
    helped = list(step_loader(batches, 3, 9, workers=2))
    assert len(alone) == len(helped) == 6
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one.nan_to_num(-1), other.nan_to_num(-1))
    assert torch.equal(torch.get_rng_state(), state)
