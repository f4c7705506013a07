"""Where many small pieces of work are done: a thread pool here, or a Dask cluster by the address of its scheduler."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any, Protocol, TypeVar

from infra.settings import Settings

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_CONNECT_WITHIN = 5.0


class Mapper(Protocol):
    """`map` that works in parallel: results in the order of the items, few of them in flight at a time."""

    def __call__(self, function: Callable[[_Item], _Result], items: Iterable[_Item], /) -> Iterator[_Result]:
        """Apply `function` to every item; an error keeps its type and is noted with the item it came from."""
        ...


class _Pending(Protocol):
    def result(self) -> Any: ...

    def cancel(self) -> Any: ...


_Submit = Callable[[Callable[[Any], Any], Any], _Pending]


@contextmanager
def mapper(
    settings: Settings,
    *,
    description: str | None = None,
    total: int | None = None,
    name: Callable[[Any], str] | None = None,
) -> Iterator[Mapper]:
    """A parallel map: `settings.threads` threads, or the cluster at `settings.dask_address`.

    At most four items per thread are in flight, so that a long list of frames never fills the memory. On a cluster,
    `function` and its arguments are sent to the workers: it has to be importable there.

    Args:
        settings: Where to compute.
        description: Label of a progress bar on a terminal's stderr; None shows nothing.
        total: Number of items, where it is known and `items` has no length.
        name: What an item is called in the note of an error; default: its `key` attribute, else its repr.

    Raises:
        ConnectionError: no scheduler answers at the address.
    """
    with _submitter(settings) as (submit, width), _progress(description) as advance:

        def run(function: Callable[[Any], Any], items: Iterable[Any], /) -> Iterator[Any]:
            known = len(items) if total is None and isinstance(items, Sized) else total
            return _ordered(submit, function, items, 4 * width, name or _name, lambda: advance(known))

        yield run


def _ordered(
    submit: _Submit,
    function: Callable[[Any], Any],
    items: Iterable[Any],
    window: int,
    name: Callable[[Any], str],
    advance: Callable[[], None],
) -> Iterator[Any]:
    source = iter(items)
    pending: deque[tuple[Any, _Pending]] = deque()
    try:
        pending.extend((item, submit(function, item)) for item in islice(source, window))
        while pending:
            item, future = pending.popleft()
            try:
                result = future.result()
            except BaseException as error:
                error.add_note(f"while processing {name(item)}")
                raise
            del future
            pending.extend((following, submit(function, following)) for following in islice(source, 1))
            advance()
            yield result
    finally:
        for _, future in pending:
            future.cancel()


@contextmanager
def _submitter(settings: Settings) -> Iterator[tuple[_Submit, int]]:
    if settings.dask_address is None:
        with ThreadPoolExecutor(settings.threads, thread_name_prefix="squall") as pool:
            yield lambda function, item: _local(pool, function, item), settings.threads
        return
    with _client(settings.dask_address) as client:
        width = max(1, sum(client.nthreads().values()))
        yield lambda function, item: client.submit(function, item, pure=False), width


def _local(pool: ThreadPoolExecutor, function: Callable[[Any], Any], item: Any) -> Future[Any]:
    return pool.submit(function, item)


@contextmanager
def _client(address: str) -> Iterator[Any]:
    from distributed import Client

    try:
        client = Client(address, timeout=_CONNECT_WITHIN, set_as_default=False)
    except OSError as error:
        raise ConnectionError(f"expected a Dask scheduler at {address} (SQUALL_DASK_ADDRESS): {error}") from error
    with client:
        yield client


@contextmanager
def _progress(description: str | None) -> Iterator[Callable[[int | None], None]]:
    if description is None or not sys.stderr.isatty():
        yield lambda total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=None)
        yield lambda total: bar.update(task, total=total, advance=1)


def _name(item: object) -> str:
    return str(getattr(item, "key", None) or repr(item))[:300]
