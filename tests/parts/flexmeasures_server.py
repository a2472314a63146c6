"""A real FlexMeasures server with PostgreSQL, Redis and workers, all of it this project's own.

`python -m tests.parts.flexmeasures_server` serves one until Ctrl-C.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any, Self
from zoneinfo import ZoneInfo

from tests.parts import cache, environments
from tests.parts.home_assistant import free_port

HOST = Path(__file__).parent / "flexmeasures_host"
AMSTERDAM = ZoneInfo("Europe/Amsterdam")
DAY_AHEAD = (
    *(0.11, 0.10, 0.09, 0.09, 0.10, 0.14, 0.22, 0.29, 0.27, 0.20, 0.14, 0.09),
    *(0.06, 0.05, 0.07, 0.12, 0.20, 0.31, 0.36, 0.33, 0.26, 0.21, 0.16, 0.13),
)  # EUR/kWh by the hour of the day


@dataclass(frozen=True)
class Account:
    """An account's user, and the ids of its site, batteries and sensors."""

    username: str
    password: str
    account: int
    site: int
    battery: int
    power_sensor: int
    power_sensor_5min: int
    power_sensor_60min: int
    soc_sensor: int
    price_sensor: int
    empty_price_sensor: int


class FlexMeasuresServer:
    """A server with its own run folder, which exists until `close`.

    `ids` is the main account, `foreign` another one, and `limited` may trigger twice an hour.
    """

    def __init__(self) -> None:
        template = _template()
        self.port = free_port()
        self.run = Path(tempfile.mkdtemp(prefix="flexmeasures-", dir=_temporary_folder()))
        self.log = self.run / "server.log"
        shutil.copytree(template / "run", self.run, dirs_exist_ok=True)
        accounts = json.loads((self.run / "accounts.json").read_text())
        self.ids = Account(**accounts["home"])
        self.foreign = Account(**accounts["foreign"])
        self.limited = Account(**accounts["limited"])
        self._host: subprocess.Popen[str] | None = None
        self._fresh = True
        self._tokens: dict[str, str] = {}

    @property
    def url(self) -> str:
        """Return the server's address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def username(self) -> str:
        """Return the main account's user."""
        return self.ids.username

    @property
    def password(self) -> str:
        """Return the main account's password."""
        return self.ids.password

    def start(self) -> None:
        """Start the server with its data; the first time, post prices from today on."""
        cache.progress("Starting FlexMeasures (waiting for its web server, some 8 seconds)")
        python = environments.python(environments.flexmeasures())
        with self.log.open("ab") as log:
            self._host = subprocess.Popen(
                [python, HOST / "serve.py", self.run, str(self.port)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env=_variables(self.run), start_new_session=True,
            )  # fmt: skip
        self._expect("serving")
        if self._fresh:
            self.post_prices(datetime.now(AMSTERDAM))
            self._fresh = False

    def stop(self) -> None:
        """Stop the server, and keep its data."""
        if not (host := self._host):
            return
        stdin, stdout = self._pipes()
        self._host = None
        try:
            stdin.write("stop\n")
            stdin.close()
            host.wait(30)
        except BrokenPipeError:
            host.wait()
        except subprocess.TimeoutExpired:
            os.killpg(host.pid, signal.SIGKILL)
            host.wait()
        stdout.close()

    def stop_web(self) -> None:
        """Stop answering requests; the workers keep running."""
        self._command("stop web")

    def start_web(self) -> None:
        """Answer requests again, at once and on the same port."""
        self._command("start web")

    def close(self) -> None:
        """Stop the server, and remove its data."""
        self.stop()
        shutil.rmtree(self.run, ignore_errors=True)

    def __enter__(self) -> Self:
        """Start the server."""
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the server."""
        self.close()

    def token(self, account: Account | None = None) -> str:
        """Return a token of an account's user, by default the main one's."""
        account = account or self.ids
        if account.username not in self._tokens:
            credentials = {"email": account.username, "password": account.password}
            reply = self.request("POST", "/api/requestAuthToken", credentials)[1]
            self._tokens[account.username] = reply["auth_token"]
        return self._tokens[account.username]

    def request(
        self, method: str, path: str, body: dict[str, Any] | None = None, token: str = ""
    ) -> tuple[int, Any]:
        """Send a request, and return the status and the JSON of the reply."""
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"} | ({"Authorization": token} if token else {}),
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.status, json.loads(reply.read() or "null")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def post_prices(
        self,
        now: datetime,
        hours: int = 72,
        account: Account | None = None,
        *,
        prices: tuple[float, ...] = DAY_AHEAD,
        prior: datetime | None = None,
    ) -> None:
        """Post prices by the hour of the day from the start of today on, and wait until they are stored.

        `prior` is when they became known, by default at noon of the day before.
        """
        start = now.astimezone(AMSTERDAM).replace(hour=0, minute=0, second=0, microsecond=0)
        times = [start.timestamp() + 3600 * hour for hour in range(hours)]
        values = [prices[datetime.fromtimestamp(t, AMSTERDAM).hour] for t in times]
        known_at = prior or start - timedelta(hours=12)
        self.post_hours((account or self.ids).price_sensor, start, values, "EUR/kWh", known_at, account)

    def post_hours(
        self,
        sensor: int,
        start: datetime,
        values: Sequence[float | None],
        unit: str,
        prior: datetime,
        account: Account | None = None,
    ) -> None:
        """Post hourly values from a start on, known since `prior`, and wait until they are stored."""
        token = self.token(account)
        status, reply = self.request(
            "POST",
            f"/api/v3_0/sensors/{sensor}/data",
            {
                "values": list(values),
                "start": start.isoformat(),
                "duration": f"PT{len(values)}H",
                "unit": unit,
                "prior": prior.isoformat(),
            },
            token,
        )
        job = reply.get("job")
        while status == 202:
            time.sleep(0.1)
            status, reply = self.request("GET", f"/api/v3_0/jobs/{job}", token=token)
        if status != 200:
            raise RuntimeError(f"The values were refused: {status} {reply}")

    def add_sensor(self, unit: str, minutes: int, consumption_is_positive: bool = True) -> int:
        """Add a sensor of a resolution to the main account's battery, and return its id."""
        sensor = {
            "name": f"{unit} {time.time_ns()}",
            "unit": unit,
            "event_resolution": f"PT{minutes}M",
            "generic_asset_id": self.ids.battery,
            "timezone": str(AMSTERDAM),
            "attributes": json.dumps({"consumption_is_positive": True} if consumption_is_positive else {}),
        }
        status, reply = self.request("POST", "/api/v3_0/sensors", sensor, self.token())
        if status != 201:
            raise RuntimeError(f"The sensor was refused: {status} {reply}")
        sensor_id: int = reply["id"]
        return sensor_id

    def forget(self, *sensors: int) -> None:
        """Delete the data of sensors of the main account: comparing with earlier plans is half of a job."""
        token = self.token()
        for sensor in sensors:
            status, reply = self.request("DELETE", f"/api/v3_0/sensors/{sensor}/data", token=token)
            if status != 204:
                raise RuntimeError(f"The data of sensor {sensor} were not deleted: {status} {reply}")

    def beliefs(self, sensor: int) -> list[tuple[datetime, float]]:
        """Return the stored beliefs about a sensor as (start of the event, value), in order."""
        path = f"/api/dev/sensor/{sensor}/chart_data?most_recent_beliefs_only=false"
        _status, reply = self.request("GET", path, token=self.token())
        return sorted(
            (datetime.fromtimestamp(belief["event_start"] / 1000, UTC), belief["event_value"])
            for belief in reply
        )

    def _command(self, command: str) -> None:
        """Send a command to the host, and wait until it is done."""
        stdin, _ = self._pipes()
        stdin.write(f"{command}\n")
        stdin.flush()
        self._expect("done")

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        """Return the host's stdin and stdout."""
        if not (self._host and self._host.stdin and self._host.stdout):
            raise RuntimeError("FlexMeasures is not running: call start() first")
        return self._host.stdin, self._host.stdout

    def _expect(self, word: str, seconds: float = 120) -> None:
        """Wait until the host prints a word."""
        _, stdout = self._pipes()
        readable, _, _ = select.select([stdout], [], [], seconds)
        if not readable or stdout.readline().strip() != word:
            lines = self.log.read_text(errors="replace").splitlines()[-20:]
            raise RuntimeError("FlexMeasures did not start:\n" + "\n".join(lines))


def _template() -> Path:
    """Return the folder with the data of a new server, which is built once."""
    environment = environments.flexmeasures()
    sources = [path.read_text() for path in sorted(HOST.glob("*.py")) if path.stem != "serve"]

    def build(path: Path) -> None:
        cache.progress("Creating the FlexMeasures database (some 20 seconds, once)")
        with tempfile.TemporaryDirectory(prefix="flexmeasures-", dir=_temporary_folder()) as run:
            process = subprocess.run(
                [environments.python(environment), HOST / "seed.py", run], env=_variables(Path(run)),
                text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            if process.returncode:
                raise environments.SetupError(f"Creating the database failed:\n{process.stdout}")
            ignored = shutil.ignore_patterns("programs", "*.sql", "*.log", "*.cfg")
            shutil.copytree(run, path / "run", ignore=ignored)

    return cache.built("flexmeasures-data", [environment.name, *sources], build)


def _variables(run: Path) -> dict[str, str]:
    """Return the host's environment variables, without the user's settings."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TZ") if name in os.environ}
    return kept | {"HOME": str(run), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}


def _temporary_folder() -> str | None:
    """Return the parent of run folders: as root, one that PostgreSQL's other user can access."""
    return "/tmp" if os.geteuid() == 0 else None


def main() -> None:
    """Serve until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt), FlexMeasuresServer() as server:
        print(f"FlexMeasures is at {server.url}, its log in {server.log}")
        for account in (server.ids, server.foreign, server.limited):
            print(account)
        signal.pause()


if __name__ == "__main__":
    main()
