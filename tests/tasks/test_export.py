"""An exported period: plain Zarr that says what is missing, never changes, and keeps the MLCast specification."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from builders.archives import STEP, at, frame, received, spec, tiny_archive
from builders.tiny_feed import tiny_domain
from infra.settings import Settings
from tasks.archive.archive import Archive
from tasks.archive.export import Credit, ExportExists, export_archive

CREATED = datetime(2026, 11, 20, 12, tzinfo=UTC)
CREDIT = Credit(
    created_by="Squall <squall@example.org>",
    created_with="https://github.com/mlcast-community/mlcast-dataset-fmi-composite@v0.1.0",
    version="0.1.0",
    country="FI",
    entity="FMI",
)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    archive = tiny_archive(tmp_path / "archive")
    archive.write([received(at(n, 7), 1.0 + n) for n in (1, 2, 5)])
    return archive


def test_frames_come_out_as_they_are_and_gaps_are_listed(archive: Archive, tmp_path: Path) -> None:
    export = export_archive(archive, str(tmp_path / "out.zarr"), at(0), at(9), created=CREATED)
    assert (export.frames, export.missing, export.snapshot) == (3, 2, archive.snapshot())
    data = xr.open_zarr(tmp_path / "out.zarr", consolidated=False)
    assert data.time.values.tolist() == [np.datetime64(at(n).replace(tzinfo=None), "ns").astype(int) for n in (1, 2, 5)]
    assert data.missing_times.size == 2
    assert np.array_equal(data.rainfall_rate.values[1], frame(at(2), 3.0).values, equal_nan=True)
    assert data.valid_time.values[0] == np.datetime64("2026-01-01T00:05:07", "ns")
    assert data.attrs["archive_snapshot"] == export.snapshot
    assert data.rainfall_rate.attrs["units"] == "kg m-2 h-1"


def test_an_export_is_repeated_harmlessly_and_never_overwritten(archive: Archive, tmp_path: Path) -> None:
    url = str(tmp_path / "out.zarr")
    first = export_archive(archive, url, at(0), at(9), created=CREATED)
    before = (tmp_path / "out.zarr" / "zarr.json").read_bytes()
    assert export_archive(archive, url, at(0), at(9), created=CREATED, as_of=first.snapshot) == first
    archive.write([received(at(6))])
    with pytest.raises(ExportExists):
        export_archive(archive, url, at(0), at(9), created=CREATED)
    assert (tmp_path / "out.zarr" / "zarr.json").read_bytes() == before


def test_an_export_that_died_is_begun_again(archive: Archive, tmp_path: Path) -> None:
    export_archive(archive, str(tmp_path / "out.zarr"), at(0), at(9), created=CREATED)
    (tmp_path / "out.zarr" / "zarr.json").unlink()
    (tmp_path / "out.zarr" / "stray").write_text("half a file")
    export_archive(archive, str(tmp_path / "out.zarr"), at(0), at(9), created=CREATED)
    assert not (tmp_path / "out.zarr" / "stray").exists()


def test_a_period_without_frames_is_an_error(archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there are none"):
        export_archive(archive, str(tmp_path / "out.zarr"), at(100), at(200), created=CREATED)


def failed_rules(url: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Rules of the community's validator that an export fails; its look at GitHub stays offline."""
    from loguru import logger

    logger.remove()
    from mlcast_dataset_validator.checks.global_attributes import mlcast_metadata
    from mlcast_dataset_validator.specs.source_data.radar_precipitation import validate_dataset

    def offline(org: str, repo: str) -> bool:
        raise mlcast_metadata.RequestException("offline")

    monkeypatch.setattr(mlcast_metadata, "github_repo_exists", offline)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the validator's own
        report, _ = validate_dataset(xr.open_zarr(url, consolidated=False))
    assert len(report.results) > 15
    return {item.requirement: item.detail for item in report.results if item.status == "FAIL"}


def test_the_community_validator_finds_nothing_but_the_short_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = frame(at(0), shape=(260, 270))
    archive = tiny_archive(tmp_path / "archive", y=wide.y.values, x=wide.x.values)
    archive.write([received(at(n), shape=(260, 270)) for n in (0, 1, 4)])
    export_archive(archive, str(tmp_path / "out.zarr"), at(0), at(9), created=CREATED, credit=CREDIT)
    assert list(failed_rules(str(tmp_path / "out.zarr"), monkeypatch)) == ["Minimum 3-year coverage"]


@pytest.mark.data
def test_finland_passes_the_community_validator_but_for_its_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.archive.ingestion import ingest
    from tasks.feeds import FeedSource, open_feed

    root = Settings().data / "radar" / "fmi_pgm"
    if not root.exists():
        pytest.skip(f"no real observations under {root.parent} (SQUALL_DATA)")
    feed = open_feed(FeedSource("fmi", str(root.resolve()), "rainfall_rate", STEP))
    start = datetime(2016, 9, 28, 14, 45, tzinfo=UTC)
    domain = tiny_domain(root, tmp_path / "archive", kind="fmi")
    ingest(feed, domain, start, start + 2 * STEP, CREATED, backfill=True)
    archive = Archive.open(domain.archive.url, {})
    export_archive(archive, str(tmp_path / "fmi.zarr"), start, start + 2 * STEP, created=CREATED, credit=CREDIT)
    assert list(failed_rules(str(tmp_path / "fmi.zarr"), monkeypatch)) == ["Minimum 3-year coverage"]


def test_reflectivity_keeps_its_name_and_its_no_echo(tmp_path: Path) -> None:
    from dataclasses import replace

    from tasks.feeds import Packing

    archive = tiny_archive(
        tmp_path / "archive",
        quantity="equivalent_reflectivity_factor",
        no_echo=-32.0,
        packing=Packing("uint8", 0.5, -32.0, 255),
        attrs={"units": "dBZ", "standard_name": "equivalent_reflectivity_factor", "long_name": "Reflectivity"},
    )
    dbz = frame(at(0), 20.0).rename("equivalent_reflectivity_factor").assign_attrs(units="dBZ", no_echo=-32.0)
    dbz[0, 1] = -32.0
    archive.write([replace(received(at(0)), frame=dbz)])
    export_archive(archive, str(tmp_path / "out.zarr"), at(0), at(0), created=CREATED)
    field = xr.open_zarr(tmp_path / "out.zarr", consolidated=False).equivalent_reflectivity_factor
    assert field.attrs["no_echo"] == -32.0
    assert field.values[0, 0, :3].tolist()[1:] == [-32.0, 20.0]
    assert spec().quantity != field.name
