"""The rain over Finland on 2016-09-28: a nowcast along the motion beats persistence, as scored from the store."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from builders.issued_products import issue_at
from infra.objects import ObjectStore
from infra.settings import RegionSettings, Settings, load_domain
from tasks.archive.archive import Archive
from tasks.archive.ingestion import ingest
from tasks.feeds import FeedSource, open_feed
from tasks.verification.scoring import verify_products
from tasks.verification.skill_table import summarise

FIRST, LAST = datetime(2016, 9, 28, 14, 45, tzinfo=UTC), datetime(2016, 9, 28, 18, tzinfo=UTC)


@pytest.mark.data
@pytest.mark.slow
def test_real_rain_is_forecast_better_along_its_motion(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, store=str(tmp_path / "store"))
    domain = load_domain("finland", settings).model_copy(update={"region": RegionSettings(coarsen=4)})
    if not Path(domain.feed.url).is_dir():
        pytest.skip("the FMI composites are not here (SQUALL_DATA)")
    feed = open_feed(FeedSource("fmi", domain.feed.url, "rainfall_rate", domain.feed.cadence))
    ingest(feed, domain, FIRST, LAST, LAST, backfill=True)
    archive, store = Archive.open(domain.archive.url, {}), ObjectStore(domain.product.url)
    for minutes in (60, 90):
        issue_at(store, domain, archive, FIRST + timedelta(minutes=minutes, seconds=90))
    report = verify_products(store, archive, domain, LAST)
    assert (report.scored, report.rows, report.skipped) == (2, 2 * 3 * 12, ())
    table = summarise(store, domain, FIRST, LAST)
    csi = {source: sums.contingency.csi for source, sums in table.sums["wet"].items()}
    assert table.wet_products == 2
    assert (csi["product"][:, :2] > csi["persistence"][:, :2]).all()
    assert (csi["product"][0] > csi["product"][-1]).all()
