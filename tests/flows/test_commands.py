"""The `squall` command: help with examples, one clear line for a mistake, JSON for programs, exit codes for scripts."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer
import xarray as xr
from typer.testing import CliRunner, Result

from builders.nowcasts import moving_rain, newest_context, small_domain, write_archive
from flows import __main__ as squall
from infra.objects import ObjectStore
from infra.settings import Settings, domain_files
from tasks.forecasting.ladder import baseline_rung, run_ladder
from tasks.products.dataset import build_product
from tasks.products.publishing import publish

GOLDEN = Path(__file__).parents[1] / "golden" / "earthformer"
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
url = "{home}/store"
"""


def commands_of(app: typer.Typer, prefix: str = "") -> list[str]:
    """Every command there is, in words."""
    own = [f"{prefix}{one.name or (one.callback and one.callback.__name__)}" for one in app.registered_commands]
    groups = [(group.typer_instance, group.name) for group in app.registered_groups if group.typer_instance]
    return own + [name for group, word in groups for name in commands_of(group, f"{prefix}{word} ")]


COMMANDS = commands_of(squall.app)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, own_environment: None) -> Iterator[Path]:
    """A state folder with one domain, its archive of ten frames with a gap, and one product."""
    root = tmp_path_factory.mktemp("home")
    domain = small_domain(root, lead_times=3)
    rain = dict(enumerate(moving_rain(10, (32, 32))))
    del rain[2]
    context = newest_context(domain, write_archive(domain, rain), 9)
    forecast = run_ladder(
        context, [baseline_rung("persistence", context, domain)], domain, deadline=timedelta(minutes=1), seed=0
    )
    product = build_product(forecast, context, domain)
    publish(ObjectStore(domain.product.url), product, context, forecast, domain, now=datetime.now(UTC))
    (root / "domains").mkdir()
    (root / "domains" / "meadow.toml").write_text(_DOMAIN)
    os.environ.update(SQUALL_HOME=str(root), SQUALL_DOMAINS=str(root / "domains"))
    os.environ.pop("SQUALL_TRACEBACK", None)
    return root


def run(*words: str) -> Result:
    """A command inside this process, as far as typer goes."""
    return CliRunner().invoke(squall.app, list(words), env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})


def complaint(words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What a failing command writes to standard error, by way of the entry point; it has to exit with 1."""
    monkeypatch.setattr("sys.argv", ["squall", *words.split()])
    with pytest.raises(SystemExit) as ended:
        squall.main()
    assert ended.value.code == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str) -> None:
    result = run(*command.split(), "--help")
    assert result.exit_code == 0
    assert f"Usage: squall {command}" in result.output
    text = " ".join(result.output.split())
    assert f"Example: squall {command}" in text


def test_help_of_the_whole_names_every_command() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for command in COMMANDS:
        assert command.split()[0] in result.output


@pytest.mark.parametrize("command", ["archive info", "archive gaps", "archive snapshots"])
def test_an_unknown_domain_is_one_line_that_names_the_known_ones(
    home: Path, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = complaint(f"{command} atlantis", capsys, monkeypatch)
    known = ", ".join(sorted(domain_files(Settings(_env_file=None))))
    assert line == f"squall: expected a domain of {known}; got 'atlantis'\n"


def test_a_bad_time_is_one_line_that_shows_a_good_one(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = complaint("archive gaps meadow --from yesterday", capsys, monkeypatch)
    assert line == "squall: expected a time such as 2016-09-28T14:45Z; got 'yesterday'\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ingest atlantis", "got 'atlantis'"),
        ("nowcast atlantis", "got 'atlantis'"),
        ("train atlantis", "got 'atlantis'"),
        ("verify atlantis", "got 'atlantis'"),
        ("ingest meadow --from yesterday", "expected a time such as 2016-09-28T14:45Z; got 'yesterday'"),
        ("nowcast meadow --at 25:00", "expected a time such as 2016-09-28T14:45Z; got '25:00'"),
        ("nowcast meadow --at 2016-09-28T15:47Z --deadline soon", "expected a duration such as 90s"),
        ("nowcast meadow --at 2016-09-28T15:47Z --intensity strong", "such as +2sigma or -1.5; got 'strong'"),
        ("benchmark alignment meadow --intensities 0,strong", "such as +2sigma or -1.5; got 'strong'"),
        ("nowcast meadow --at 2016-09-28T15:47Z --intensity -1sigma", "persistence: Unsteerable: "),
        ("nowcast meadow --at 2016-09-28T17:00Z", "context refused: "),
        ("train meadow --preset huge", "expected a preset of "),
        ("train meadow --stage denoiser", "expected --stage with --model prediff and its --preset; got 'denoiser'"),
        ("train meadow --denoiser a@b", "expected --denoiser with --model prediff and its --preset; got 'a@b'"),
        ("train meadow --resume nobody", "expected a training of "),
        ("train meadow --preset prediff/tiny --window 4:3:16x16", "expected no --window with prediff/tiny, "),
        ("train meadow --preset prediff/tiny --from-model hill-earthformer@champion", "expected no from_model with"),
    ],
)
def test_a_flow_that_fails_says_why_in_one_line(
    home: Path,
    prefect_server: None,
    words: str,
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = complaint(words, capsys, monkeypatch)
    assert error.startswith("squall: ")
    assert expected in error
    assert error.count("\n") == 1


def test_an_error_keeps_its_traceback_where_that_is_wanted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUALL_TRACEBACK", "1")
    monkeypatch.setattr("sys.argv", ["squall", "archive", "info", "atlantis"])
    with pytest.raises(ValueError, match="atlantis"):
        squall.main()


def test_a_replay_without_a_stack_says_what_to_start(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "replay meadow --from 2016-09-28T15:00Z --to 2016-09-28T16:00Z"
    assert complaint(words, capsys, monkeypatch).rstrip().endswith("start it with `squall up`")


def test_an_option_that_is_none_is_a_mistake_of_use(home: Path) -> None:
    assert run("archive", "info", "meadow", "--jason").exit_code == 2


def test_json_is_json_and_nothing_else(home: Path) -> None:
    info = json.loads(run("archive", "info", "meadow", "--json").output)
    (gap,) = json.loads(run("archive", "gaps", "meadow", "--from", "2016-09-28T15:00Z", "--json").output)
    snapshots = json.loads(run("archive", "snapshots", "meadow", "--json").output)
    assert info["gaps"][-1] == list(gap.values())
    assert (gap["first"], gap["last"]) == ("2016-09-28 15:10:00+00:00", "2016-09-28 15:10:00+00:00")
    assert {"id", "written_at", "message"} == snapshots[0].keys()
    assert json.loads(run("status", "--json").output) == []


def test_tables_for_people_say_the_same(home: Path) -> None:
    assert "15:10" in run("archive", "gaps", "meadow", "--from", "2016-09-28T15:00Z").output
    assert run("status").output == "no stack; start one with `squall up`\n"


@pytest.mark.slow
def test_models_are_listed_as_json_with_their_presets(home: Path) -> None:
    found = json.loads(run("model", "list", "--json").output)
    assert "earthformer/sevir" in {one["preset"] for one in found["presets"]}
    assert found["models"] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "model show meadow-earthformer",
        "model promote meadow-earthformer 3 --reason better",
        "model rollback meadow-earthformer --reason worse",
        "model history meadow-earthformer",
    ],
)
def test_a_model_nobody_registered_is_one_line(
    home: Path, words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = complaint(words, capsys, monkeypatch)
    assert line.startswith("squall: ")
    assert "meadow-earthformer" in line
    assert line.count("\n") == 1


def test_an_archive_before_its_first_ingest_is_one_line(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = complaint("archive info simulated", capsys, monkeypatch)
    assert line.startswith("squall: ")
    assert line.count("\n") == 1


def test_an_archive_is_exported_for_xarray_alone(home: Path, tmp_path: Path) -> None:
    result = run("archive", "export", "meadow", "--out", str(tmp_path / "meadow.zarr"))
    assert (result.exit_code, result.output.strip()) == (0, str(tmp_path / "meadow.zarr"))
    assert xr.open_zarr(tmp_path / "meadow.zarr").sizes["time"] >= 9


def test_a_product_is_told_in_words_by_folder_or_by_domain(home: Path) -> None:
    (folder,) = (path.parent for path in home.rglob("manifest.json"))
    by_domain, by_folder = run("product", "show", "meadow"), run("product", "show", str(folder))
    assert by_domain.exit_code == by_folder.exit_code == 0
    assert by_domain.output == by_folder.output
    assert "persistence" in by_domain.output


def test_a_whole_product_verifies_and_a_damaged_one_does_not(home: Path, tmp_path: Path) -> None:
    (folder,) = (path.parent for path in home.rglob("manifest.json"))
    assert run("product", "verify", str(folder)).exit_code == 0
    copy = tmp_path / folder.relative_to(home / "store")
    shutil.copytree(folder, copy)
    chunk = max((path for path in copy.rglob("c/**/*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    result = run("product", "verify", str(copy))
    assert result.exit_code == 1
    assert f"{chunk.relative_to(copy)} differs" in result.output
    chunk.unlink()
    assert f"{chunk.relative_to(copy)} is missing" in run("product", "verify", str(copy)).output


def test_a_product_that_is_not_there_is_one_line(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = complaint("product show atlantis", capsys, monkeypatch)
    assert line.startswith("squall: expected a product's folder")
    assert line.endswith("got 'atlantis'\n")
    assert "none yet" in complaint("product show simulated", capsys, monkeypatch)


def golden_case(folder: Path, name: str) -> None:
    for path in (GOLDEN / "layers").glob(f"{name}.*"):
        shutil.copy(path, folder)


def test_golden_numbers_that_agree_give_success(tmp_path: Path) -> None:
    golden_case(tmp_path, "ffn_gated")
    result = run("golden", str(tmp_path))
    assert result.exit_code == 0
    assert result.output.splitlines()[-1] == "1 passed, 0 failed"
    (case,) = json.loads(run("golden", str(tmp_path), "--json").output)
    assert case["ok"]
    assert case["worst"] <= case["tolerance"]


def test_a_golden_file_that_nothing_can_check_gives_failure(tmp_path: Path) -> None:
    golden_case(tmp_path, "ffn_gated")
    (tmp_path / "stray.json").write_text("{}")
    result = run("golden", str(tmp_path))
    assert result.exit_code == 1
    assert result.output.splitlines()[-1] == "1 passed, 1 failed"
    assert "no loader claims this file" in result.output
