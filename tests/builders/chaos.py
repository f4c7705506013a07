"""A domain to be ill-treated: simulated frames in the stack's store, what they must become, a reader that polls."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import icechunk
import numpy as np
import psutil
import xarray as xr
from botocore.exceptions import BotoCoreError

from builders.stack import eventually
from infra.attachment import environment
from infra.clock import Clock
from infra.objects import ObjectStore
from infra.settings import Domain, Settings, load_domain
from tasks.archive.archive import ArchiveMissing
from tasks.cycle import ingest_frames, open_archive, product_store
from tasks.feeds.simulated import simulated_objects
from tasks.products.index import list_products
from tasks.products.manifest import verify_product
from tasks.products.publishing import read_latest
from tasks.training.resumption import training_folder

START = datetime(2026, 6, 1, 12, tzinfo=UTC)
CADENCE = timedelta(minutes=5)
FRAMES = 96
END = START + (FRAMES - 1) * CADENCE
WEIGHTS = "model.safetensors"
_SLICE_S = 0.2

# What a reader may meet while the store is away. Anything else is a finding.
UNREACHABLE = (OSError, BotoCoreError, icechunk.IcechunkError)

_DOMAIN = """
title = "Simulated rain, ill-treated"
[feed]
kind = "simulated"
url = "{store}/feeds/chaos"
cadence = "5min"
tolerance = "90s"
quantity = "rainfall_rate"
[clock]
latency = "0s"
[archive]
url = "{store}/archives/%(name)s"
[context]
frames = 4
[forecast]
lead_times = 6
ladder = ["extrapolation", "persistence"]
[product]
url = "{store}/%(name)s"
[training]
batch_size = 1
checkpoint_every = 2
split = [0.5, 0.25, 0.25]
event_limit = "150min"
guard = "0s"
"""


def declare(folder: Path, name: str) -> None:
    """Write the domain file `name`.toml; `folder` has to be SQUALL_DOMAINS."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.toml").write_text(_DOMAIN % {"name": name})


def fill(settings: Settings, domain: Domain) -> None:
    """Put the frames where the domains to be ill-treated find them (one place for all)."""
    store = ObjectStore(domain.feed.url, settings.storage_options(domain.feed.url))
    for _, key, data in simulated_objects(START, FRAMES, CADENCE, shape=(96, 96), cell_size_m=2000.0, seed=7):
        store.write(key, data)


def squall(settings: Settings, *words: str) -> psutil.Popen:
    """A `squall` command against the running stack, as a process of its own (group leader)."""
    home = Settings(home=settings.root, domains=settings.domains, _env_file=None)
    return psutil.Popen(
        [sys.executable, "-m", "flows", *words],
        env={**os.environ, **environment(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def ingest_everything(settings: Settings, name: str) -> psutil.Popen:
    """The ingest of all frames, under way."""
    return squall(settings, "ingest", name, "--from", START.isoformat(), "--to", END.isoformat(), "--json")


def nowcast_at_the_end(settings: Settings, name: str) -> psutil.Popen:
    """The nowcast from the newest frames, under way."""
    return squall(settings, "nowcast", name, "--at", END.isoformat(), "--json")


def listed(domain: Domain, settings: Settings, prefix: str) -> int:
    """Objects under a prefix of the domain's part of the store."""
    store = ObjectStore(domain.product.url.rpartition("/")[0], settings.storage_options(domain.product.url))
    return len(store.list(prefix))


def kill_when(process: psutil.Popen, moment: Callable[[], bool], after: float = 0.0) -> bool:
    """SIGKILL the process and its children `after` seconds past the moment; whether it was still running."""
    while process.poll() is None and not moment():
        time.sleep(0.01)
    time.sleep(after)
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return alive


@contextmanager
def stopped_at(moments: Mapping[psutil.Process, Callable[[], bool]], within: float) -> Iterator[Callable[[], None]]:
    """Stop each process at its moment (SIGSTOP); gives what lets all of them go on, as leaving the block does.

    They run in slices and stand still while the moment is looked for, so that none is over before the look is.
    """
    deadline, stopped = time.monotonic() + within, list[psutil.Process]()

    def go_on() -> None:
        while stopped:
            with suppress(psutil.NoSuchProcess):
                stopped.pop().resume()

    try:
        while waiting := [process for process in moments if process not in stopped]:
            assert time.monotonic() < deadline, f"not at their moment within {within:.0f} s: {waiting}"
            time.sleep(_SLICE_S)
            for process in waiting:
                process.suspend()
                stopped.append(process)
                if not moments[process]():
                    stopped.remove(process)
                    process.resume()
                assert process.status() != psutil.STATUS_ZOMBIE, f"ended before its moment: {said_by(process)}"
        yield go_on
    finally:
        go_on()


def said_by(process: psutil.Process) -> str:
    """What an ended process printed, where it is a command of ours."""
    if not isinstance(process, psutil.Popen):
        return str(process)
    return f"exit code {process.wait()}: {process.communicate()[0].decode(errors='replace')[-3000:]}"


def outcome(process: psutil.Popen, within: float = 400.0) -> str:
    """What a command printed; it has to succeed."""
    text = process.communicate(timeout=within)[0].decode(errors="replace")
    assert process.returncode == 0, text[-3000:]
    return text


def archived(domain: Domain, settings: Settings) -> xr.Dataset:
    """Everything the archive holds of the period."""
    return open_archive(domain, settings).read(START, END)


def truth(tmp: Path) -> xr.Dataset:
    """What an undisturbed ingest on a local path makes of the same frames."""
    declare(tmp / "domains", "calm")
    settings = Settings(home=tmp, domains=tmp / "domains", _env_file=None)
    domain = load_domain("calm", settings)
    fill(settings, domain)
    ingest_frames(domain, settings, Clock(), START, END)
    return archived(domain, settings)


def assert_same_frames(seen: xr.Dataset, expected: xr.Dataset) -> None:
    """Every frame there, once, with the values and the source it should have."""
    np.testing.assert_array_equal(seen["rainfall_rate"], expected["rainfall_rate"])
    np.testing.assert_array_equal(seen["status"], expected["status"])
    np.testing.assert_array_equal(seen["source_key"], expected["source_key"])


def complete_products(domain: Domain, settings: Settings) -> list[str]:
    """Paths of the products that have a manifest."""
    return [folder.path for folder in list_products(product_store(domain, settings), domain.name)]


def parameters(settings: Settings, run_id: str) -> dict[str, bytes]:
    """What a training came to, to the bit."""
    return {name: (training_folder(settings, run_id) / name / WEIGHTS).read_bytes() for name in ("best", "last")}


@dataclass(frozen=True)
class Training:
    """A training under way: its domain, its Prefect run and its MLflow run."""

    settings: Settings
    name: str
    run: Any
    run_id: str

    def step(self) -> int:
        """The newest step from which it can go on; 0 while there is none."""
        found = training_folder(self.settings, self.run_id).glob("states/step-*")
        return max((int(path.name[5:]) for path in found if path.name[5:].isdigit()), default=0)

    def reaches(self, step: int) -> None:
        """Wait until it can go on from there."""
        eventually(lambda: self.step() >= step, 400, f"step {step}")


@dataclass
class Reader:
    """Polls archive and pointer in a thread, as a user would; keeps what it saw and every fault."""

    domain: Domain
    settings: Settings
    expected: xr.Dataset
    faults: list[str] = field(default_factory=list)
    looks: int = 0
    unreachable: int = 0
    frames_seen: set[int] = field(default_factory=set)
    products_seen: set[str] = field(default_factory=set)

    def __enter__(self) -> Reader:
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._poll)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(120)

    def _poll(self) -> None:
        while not self._done.wait(0.1):
            try:
                self._look_at_archive()
                self._look_at_product()
                self.looks += 1
            except UNREACHABLE:
                self.unreachable += 1

    def _look_at_archive(self) -> None:
        try:
            seen = archived(self.domain, self.settings)
        except ArchiveMissing:
            return
        filled = np.flatnonzero(np.isfinite(seen["rainfall_rate"]).any(("y", "x")))
        self.frames_seen.add(filled.size)
        expected = self.expected["rainfall_rate"].values[filled]
        if not np.array_equal(seen["rainfall_rate"].values[filled], expected, equal_nan=True):
            self.faults.append(f"frames differ from what was sent, {filled.size} present")

    def _look_at_product(self) -> None:
        store = product_store(self.domain, self.settings)
        latest = read_latest(store, self.domain.name)
        if latest is None:
            return
        self.products_seen.add(latest.path)
        self.faults += verify_product(store, latest.path)
