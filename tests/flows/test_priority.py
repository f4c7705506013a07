"""On a shared machine, nowcasts come first: what the server starts beside them gives way, what a command starts not."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from prefect import Flow

from flows.ingest import ingest
from flows.nowcast import nowcast
from flows.train import train
from flows.train_prediff import train_prediff
from flows.verify import verify

AUTOGROUP = Path("/proc/self/autogroup")
GIVE_WAY = """
import os, threading
from pathlib import Path
from infra.processes import lower_priority
lower_priority(10)
lower_priority(5)
child = threading.Thread(target=lambda: print(os.getpriority(os.PRIO_PROCESS, 0)))
child.start()
child.join()
print(Path("/proc/self/autogroup").read_text() if Path("/proc/self/autogroup").exists() else "none")
"""


def priority_lost(flow: Flow[..., Any]) -> int:
    """By how much a run of the flow lowers the priority of its thread (one of its own: ours keeps what it has)."""

    def run() -> int:
        before = os.getpriority(os.PRIO_PROCESS, 0)
        with suppress(ValueError):  # no such domain
            flow.fn("no-such-domain", *(["prediff/small-64"] if flow is train_prediff else []))
        return os.getpriority(os.PRIO_PROCESS, 0) - before

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run).result()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priority of their own")
@pytest.mark.parametrize("flow", [verify, train, train_prediff, nowcast, ingest], ids=lambda flow: str(flow.name))
def test_deployed_verifications_and_trainings_give_way_and_nothing_else_does(
    flow: Flow[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert priority_lost(flow) == 0
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "a-deployment")
    monkeypatch.setenv("SQUALL_NICE", "0")
    assert priority_lost(flow) == 0
    monkeypatch.setenv("SQUALL_NICE", "12")
    assert (priority_lost(flow) > 0) == (flow in (verify, train, train_prediff))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priority of their own")
def test_giving_way_holds_for_threads_and_for_the_session_s_share_of_the_processor() -> None:
    told = subprocess.run(
        [sys.executable, "-c", GIVE_WAY], start_new_session=True, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert told[0] == "10"
    assert told[1] == "none" or told[1].endswith("nice 10")
