"""A store that is away is an OSError, whatever was asked of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from builders.unreachable import store_away
from infra.objects import ObjectStore, preflight

ASKED: dict[str, Callable[[ObjectStore], object]] = {
    "read": lambda store: store.read("key"),
    "exists": lambda store: store.exists("key"),
    "etag": lambda store: store.etag("key"),
    "list": lambda store: store.list("folder"),
    "write": lambda store: store.write("key", b"x"),
    "put_if_absent": lambda store: store.put_if_absent("key", b"x"),
    "replace": lambda store: store.replace("key", b"x", if_match="0" * 32),
    "delete": lambda store: store.delete("folder"),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_a_store_that_is_away_is_an_os_error(
    ask: Callable[[ObjectStore], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore("s3://bucket/folder", store_away(monkeypatch))
    with pytest.raises(OSError, match="expected an answer of the object store; got: Could not connect"):
        ask(store)


def test_the_preflight_of_a_store_that_is_away_is_an_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="expected an answer of the object store"):
        preflight("s3://bucket/folder", store_away(monkeypatch))
