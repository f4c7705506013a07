"""Samples after a change of grid or cadence: the newest run of epochs that share both, and nothing of the others."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from builders.archives import STEP, at, frame, received, spec, tiny_archive
from tasks.archive.archive import Archive, EpochMismatch
from tasks.training.export_samples import export_samples

MINUTE = timedelta(minutes=1)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """Four frames of the old grid."""
    archive = tiny_archive(tmp_path / "archive")
    archive.write([received(at(slot)) for slot in range(4)])
    return archive


def open_finer(archive: Archive) -> None:
    """An epoch of half the cell size, from slot 10 on."""
    fine = frame(at(10), cell=500.0)
    archive.open_epoch(spec(start=at(10), y=fine.y.values, x=fine.x.values))


def test_after_a_change_of_grid_only_what_came_since_is_exported(archive: Archive, tmp_path: Path) -> None:
    open_finer(archive)
    archive.write([received(at(slot), rain=slot, cell=500.0) for slot in (11, 12, 15)])
    data = export_samples(archive, tmp_path / "training")
    assert [data.info.time(slot) for slot in data.slots] == [at(11), at(12), at(15)]
    assert data.info.cell_size_m == pytest.approx(500.0, rel=0.01)
    with xr.open_zarr(data.folder, consolidated=False, chunks=None) as stored:
        np.testing.assert_allclose(stored["codes"].values[:, 1, 1], [11, 12, 15], rtol=1e-6)


def test_after_a_change_of_cadence_only_what_came_since_is_exported(archive: Archive, tmp_path: Path) -> None:
    archive.open_epoch(spec(start=at(10), cadence=MINUTE, tolerance=timedelta(seconds=20)))
    archive.write([received(at(10) + n * MINUTE) for n in range(3)])
    data = export_samples(archive, tmp_path / "training")
    assert (data.info.cadence_s, data.slots.tolist()) == (60, [0, 1, 2])
    assert data.info.time(0) == at(10)


def test_an_epoch_in_front_with_the_same_grid_belongs_to_the_run(archive: Archive, tmp_path: Path) -> None:
    archive.write([received(at(-2))])
    assert len(archive.epochs()) == 2
    data = export_samples(archive, tmp_path / "training")
    assert [data.info.time(slot) for slot in data.slots] == [at(slot) for slot in (-2, 0, 1, 2, 3)]


def test_an_epoch_without_a_frame_and_an_old_snapshot_leave_the_old_grid(archive: Archive, tmp_path: Path) -> None:
    old = archive.snapshot()
    open_finer(archive)
    empty = export_samples(archive, tmp_path / "training")
    archive.write([received(at(10), cell=500.0)])
    past = export_samples(archive, tmp_path / "training", as_of=old)
    for data in (empty, past):
        assert [data.info.time(slot) for slot in data.slots] == [at(slot) for slot in range(4)]
        assert data.info.cell_size_m == pytest.approx(1000.0, rel=0.01)


def test_a_period_of_ones_own_that_spans_grids_is_refused(archive: Archive, tmp_path: Path) -> None:
    open_finer(archive)
    archive.write([received(at(10), cell=500.0)])
    with pytest.raises(EpochMismatch):
        export_samples(archive, tmp_path / "training", start=at(2), end=at(10) + STEP)
