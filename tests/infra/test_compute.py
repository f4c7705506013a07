"""Parallel maps: order, bounded work in flight, errors that name their item; in threads and on a cluster."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.compute import mapper
from infra.settings import Settings


def settings_with(**values: Any) -> Settings:
    return Settings(_env_file=None, **values)


@dataclass(frozen=True)
class Piece:
    key: str


@given(items=st.lists(st.integers(), max_size=40), threads=st.integers(1, 5))
def test_a_map_in_threads_is_a_map(items: list[int], threads: int) -> None:
    with mapper(settings_with(threads=threads)) as parallel:
        assert list(parallel(abs, items)) == [abs(item) for item in items]


def test_nothing_gives_nothing() -> None:
    with mapper(settings_with()) as parallel:
        assert list(parallel(abs, [])) == []


def test_the_threads_really_work_at_the_same_time() -> None:
    meeting = threading.Barrier(3, timeout=10)
    with mapper(settings_with(threads=3)) as parallel:
        assert sorted(parallel(lambda number: meeting.wait(), range(3))) == [0, 1, 2]


def test_items_are_taken_only_as_fast_as_results_are_used() -> None:
    taken: list[int] = []

    def source() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    with mapper(settings_with(threads=2)) as parallel:
        results = parallel(abs, source())
        assert next(results) == 0
        assert len(taken) <= 9


def test_an_error_keeps_its_type_and_names_the_item_it_came_from() -> None:
    def decode(piece: Piece) -> int:
        if piece.key == "frames/0905.gz":
            raise KeyError("DBZH")
        return 1

    pieces = [Piece("frames/0900.gz"), Piece("frames/0905.gz"), Piece("frames/0910.gz")]
    with mapper(settings_with()) as parallel:
        results = parallel(decode, pieces)
        assert next(results) == 1
        with pytest.raises(KeyError, match="DBZH") as caught:
            next(results)
    assert caught.value.__notes__ == ["while processing frames/0905.gz"]


def test_what_an_item_is_called_can_be_chosen() -> None:
    with (
        mapper(settings_with(), name=lambda number: f"slot {number}") as parallel,
        pytest.raises(ZeroDivisionError) as caught,
    ):
        list(parallel(lambda number: 1 // number, [1, 0]))
    assert caught.value.__notes__ == ["while processing slot 0"]


@pytest.mark.slow
def test_an_absent_scheduler_is_named() -> None:
    with (
        pytest.raises(ConnectionError, match=r"tcp://127.0.0.1:9 \(SQUALL_DASK_ADDRESS\)"),
        mapper(settings_with(dask_address="tcp://127.0.0.1:9")),
    ):
        pass


@pytest.fixture(scope="module")
def scheduler_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1",
        local_directory=str(tmp_path_factory.mktemp("dask")),
    ) as cluster:  # fmt: skip
        yield cluster.scheduler_address


@pytest.mark.slow
def test_a_cluster_of_processes_gives_the_same_results_in_the_same_order(scheduler_address: str) -> None:
    with mapper(settings_with(dask_address=scheduler_address)) as parallel:
        assert list(parallel(divmod_by_seven, range(50))) == [divmod(number, 7) for number in range(50)]


@pytest.mark.slow
def test_the_cluster_works_outside_this_process(scheduler_address: str) -> None:
    import os

    with mapper(settings_with(dask_address=scheduler_address)) as parallel:
        numbers = set(parallel(process_number, range(20)))
    assert os.getpid() not in numbers


@pytest.mark.slow
def test_an_error_on_the_cluster_keeps_its_type_and_names_its_item(scheduler_address: str) -> None:
    with mapper(settings_with(dask_address=scheduler_address)) as parallel, pytest.raises(FileNotFoundError) as caught:
        list(parallel(Path.read_bytes, [Path("/there/is/no/such/frame.gz")]))
    assert caught.value.__notes__ == ["while processing PosixPath('/there/is/no/such/frame.gz')"]


def divmod_by_seven(number: int) -> tuple[int, int]:
    return divmod(number, 7)


def process_number(number: int) -> int:
    import os
    import time

    time.sleep(0.01)
    return os.getpid()
