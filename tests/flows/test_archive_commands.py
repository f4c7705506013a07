"""Commands on an archive with turned-away objects, and on a store that is away."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from builders.nowcasts import moving_rain, slot_time, small_domain, write_archive
from builders.unreachable import store_away
from flows import __main__ as squall
from tasks.archive.archive import Rejection

_DOMAIN = """
title = "A meadow"
[feed]
kind = "fmi"
url = "{home}"
cadence = "5min"
tolerance = "90s"
[archive]
url = "{home}/archive"
[product]
url = "s3://bucket/store"
"""
AHEAD = slot_time(3) + timedelta(days=3650)
TURNED_AWAY = (
    Rejection("first.pgm", "e1", slot_time(5), "truncated", "expected 100 bytes; got 7"),
    Rejection("second.pgm", "e1", slot_time(30), "corrupt", "expected a PGM; got an apology"),
    Rejection("third.pgm", "e1", AHEAD, "future", "expected a time of today"),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, own_environment: None) -> Iterator[Path]:
    """A state folder with one domain whose archive has turned three objects away."""
    root = tmp_path_factory.mktemp("home")
    archive = write_archive(small_domain(root), moving_rain(4, (16, 16)))
    for item in TURNED_AWAY:
        archive.write((), [item])
    (root / "domains").mkdir()
    (root / "domains" / "meadow.toml").write_text(_DOMAIN)
    os.environ.update(SQUALL_HOME=str(root), SQUALL_DOMAINS=str(root / "domains"))
    os.environ.pop("SQUALL_TRACEBACK", None)
    return root


def run(*words: str) -> str:
    """What a command that succeeds prints."""
    result = CliRunner().invoke(squall.app, list(words), env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    assert result.exit_code == 0
    return result.output


def test_rejections_are_listed_in_order_of_arrival_with_their_reasons(home: Path) -> None:
    found = json.loads(run("archive", "rejections", "meadow", "--json"))
    assert found == [
        {"time": str(item.time), "key": item.source_key, "reason": item.reason, "message": item.message}
        for item in TURNED_AWAY
    ]
    table = run("archive", "rejections", "meadow")
    assert all(word in table for item in TURNED_AWAY for word in (item.source_key, item.reason, item.message))


def test_rejections_of_a_period_are_those_with_a_time_in_it(home: Path) -> None:
    period = ("--from", slot_time(6).isoformat(), "--to", slot_time(40).isoformat())
    found = json.loads(run("archive", "rejections", "meadow", *period, "--json"))
    assert [item["key"] for item in found] == ["second.pgm"]


def test_a_store_that_is_away_is_one_line(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = store_away(monkeypatch)
    for name, option in (("ENDPOINT", "endpoint_url"), ("KEY", "key"), ("SECRET", "secret")):
        monkeypatch.setenv(f"SQUALL_S3_{name}", str(options[option]))
    monkeypatch.setattr("sys.argv", ["squall", "product", "show", "meadow"])
    with pytest.raises(SystemExit) as ended:
        squall.main()
    assert ended.value.code == 1
    line = capsys.readouterr().err
    assert line.startswith("squall: expected an answer of the object store; got: Could not connect")
    assert line.count("\n") == 1
