"""Settings and domains: what an operator writes, and what they are told when it is wrong."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from infra.settings import Settings, domain_files, load_domain, parse_duration

MINIMAL = """
[feed]
kind = "fmi"
url = "{home}/frames"
cadence = "5min"
tolerance = "90s"
[archive]
url = "{store}/archives/here"
[product]
url = "{store}"
"""


def settings_with(tmp_path: Path, text: str) -> Settings:
    folder = tmp_path / "domains"
    folder.mkdir()
    (folder / "here.toml").write_text(text)
    return Settings(home=tmp_path / "state", domains=folder, _env_file=None)


def test_every_domain_we_ship_loads(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, _env_file=None)
    for name in domain_files(settings):
        domain = load_domain(name, settings)
        assert domain.feed.tolerance < domain.feed.cadence / 2, name


def test_durations_are_written_with_their_unit() -> None:
    assert parse_duration("90s") == timedelta(seconds=90)
    assert parse_duration("7d") == timedelta(days=7)
    with pytest.raises(ValueError, match="expected a duration such as 90s"):
        parse_duration("5 minutes")


def test_places_in_urls_are_filled_from_the_settings(tmp_path: Path) -> None:
    domain = load_domain("here", settings_with(tmp_path, MINIMAL))
    assert domain.feed.url == f"{tmp_path}/state/frames"
    assert domain.archive.url == f"{tmp_path}/state/store/archives/here"


def test_the_store_of_a_running_stack_replaces_the_local_one(tmp_path: Path) -> None:
    settings = settings_with(tmp_path, MINIMAL).model_copy(update={"store": "s3://squall"})
    assert load_domain("here", settings).archive.url == "s3://squall/archives/here"


def test_a_misspelt_field_names_the_file_and_the_field(tmp_path: Path) -> None:
    settings = settings_with(tmp_path, MINIMAL.replace("tolerance", "tolerence"))
    with pytest.raises(ValueError, match=r"(?s)here\.toml.*tolerence"):
        load_domain("here", settings)


def test_an_unknown_domain_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="finland"):
        load_domain("atlantis", Settings(home=tmp_path, _env_file=None))


def test_secrets_do_not_show_when_settings_are_printed(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, s3_key="visible-key", s3_secret="hidden-secret", _env_file=None)
    assert "hidden-secret" not in repr(settings)


def test_keys_and_region_count_without_an_endpoint_and_what_is_not_set_is_left_out(tmp_path: Path) -> None:
    own = Settings(home=tmp_path, s3_key="key", s3_secret="secret", s3_region="eu-north-1", _env_file=None)
    assert own.storage_options("s3://mine/store") == {
        "key": "key",
        "secret": "secret",
        "client_kwargs": {"region_name": "eu-north-1"},
    }
    assert Settings(home=tmp_path, _env_file=None).storage_options("s3://mine/store") == {}
    assert own.storage_options(str(tmp_path)) == {}


def test_an_endpoint_comes_with_the_default_region(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, s3_endpoint="http://127.0.0.1:9000", _env_file=None)
    assert settings.storage_options("s3://mine") == {
        "endpoint_url": "http://127.0.0.1:9000",
        "client_kwargs": {"region_name": "us-east-1"},
    }
