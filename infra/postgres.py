"""A private PostgreSQL cluster under the state folder, where a server binary is installed."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from infra.processes import privileges

ROLE = "squall"


@dataclass(frozen=True)
class Cluster:
    """One cluster, listening on 127.0.0.1 only, password-protected."""

    place: Path
    port: int
    password: str

    def command(self) -> tuple[str, ...]:
        """The server in the foreground, without Unix sockets."""
        return (
            _binary("postgres"), "-D", str(self.place), "-h", "127.0.0.1", "-p", str(self.port),
            "-c", "unix_socket_directories=", "-c", "fsync=on", "-c", "max_connections=100",
        )  # fmt: skip

    def create(self) -> None:
        """Initialise the cluster unless it exists.

        Raises:
            RuntimeError: initdb failed (the message carries its output).
        """
        if (self.place / "PG_VERSION").exists():
            return
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir(parents=True)
        user = account()
        with tempfile.NamedTemporaryFile("w", prefix="squall-") as secret:
            secret.write(self.password)
            secret.flush()
            if user is not None:
                shutil.chown(self.place, user)
                shutil.chown(secret.name, user)
            command = [
                _binary("initdb"), "-D", str(self.place), "-U", ROLE, "--auth=scram-sha-256",
                f"--pwfile={secret.name}", "--encoding=UTF8", "--locale=C",
            ]  # fmt: skip
            done = subprocess.run(command, cwd="/", text=True, capture_output=True, **privileges(user))
        if done.returncode != 0:
            shutil.rmtree(self.place, ignore_errors=True)
            raise RuntimeError(f"initdb failed: {(done.stderr or done.stdout).strip()[-800:]}")

    def accepts_connections(self) -> bool:
        """Whether the server answers."""
        command = [_binary("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port), "-t", "3"]
        return subprocess.run(command, capture_output=True).returncode == 0


def account() -> str | None:
    """Account the server runs as: None is the caller's. It refuses root: root borrows `postgres` or `nobody`."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in names), None)


def obstacle(place: Path) -> str | None:
    """Why no cluster can run in `place`, None when one can."""
    missing = [name for name in ("postgres", "initdb", "pg_isready") if not shutil.which(name, path=_search_path())]
    if missing:
        return f"no {', '.join(missing)} installed"
    if find_spec("asyncpg") is None:
        return "the Python package asyncpg is not installed (pip install 'squall[postgres]')"
    if os.geteuid() == 0:
        return _closed_to(account(), place)
    return None


def _closed_to(user: str | None, place: Path) -> str | None:
    if user is None:
        return "PostgreSQL refuses to run as root and there is no account postgres or nobody"
    existing = next(folder for folder in (place, *place.parents) if folder.exists())
    reach = ["/bin/sh", "-c", 'cd "$1"', "sh", str(existing)]
    reached = subprocess.run(reach, cwd="/", capture_output=True, **privileges(user))
    return (
        None if reached.returncode == 0 else f"{user} may not enter {existing}, and PostgreSQL refuses to run as root"
    )


def _search_path() -> str:
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return os.pathsep.join([*map(str, versions), os.environ.get("PATH", os.defpath)])


def _binary(name: str) -> str:
    found = shutil.which(name, path=_search_path())
    if found is None:
        raise FileNotFoundError(
            f"expected a PostgreSQL installation with {name}; none in /usr/lib/postgresql or on PATH"
        )
    return found
