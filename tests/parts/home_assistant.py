"""A real Home Assistant as a process, with pyscript and our scripts installed as by a user."""

import asyncio
import contextlib
import ctypes
import json
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Literal, overload

import aiohttp
import yaml

from tests.parts.pyscript_source import Source

REPOSITORY = Path(__file__).parents[2]
OLD_NAMES = Path(__file__).with_name("old_names.py")
NAME = PASSWORD = "demo"

SECTIONS = {
    "homeassistant": {
        "name": "FlexMeasures",
        "time_zone": "Europe/Amsterdam",
        "country": "NL",
        "currency": "EUR",
        "unit_system": "metric",
        "latitude": 52.37,
        "longitude": 4.9,
        "elevation": 0,
    },
    "logger": {
        "default": "warning",
        "logs": {
            "custom_components.pyscript": "info",
            "homeassistant.components.camera.img_util": "critical",
        },
    },
    "api": {},
    "automation": {},
    "config": {},
    "frontend": {},
    "history": {},
    "logbook": {},
    "persistent_notification": {},
    "recorder": {},
    "script": {},
    "websocket_api": {},
}


class ServiceFailed(Exception):
    """A call that Home Assistant refused, with the text that its user would see."""

    def __init__(self, code: str, message: str) -> None:
        """Keep Home Assistant's error code and message."""
        super().__init__(message)
        self.code = code
        self.message = message


def install(config: Path, source: Source, *, repository: Path = REPOSITORY) -> None:
    """Install pyscript and our scripts into a configuration folder as docs/install.md says."""
    _copy(source.path, config / "custom_components" / "pyscript", ignored=())
    _copy(repository / "pyscript", config / "pyscript")
    _copy(repository / "modules", config / "pyscript" / "modules")
    for folder in ("dashboards", "blueprints"):
        if (repository / folder).is_dir():
            _copy(repository / folder, config / folder, replace=False)
    if (repository / "requirements.txt").is_file():
        shutil.copy(repository / "requirements.txt", config / "pyscript")


def _copy(
    source: Path, target: Path, *, replace: bool = True, ignored: tuple[str, ...] = ("__pycache__",)
) -> None:
    if replace:
        shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*ignored), dirs_exist_ok=True)


def write_configuration(config: Path, sections: dict[str, Any]) -> None:
    """Write configuration.yaml."""
    config.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(sections, sort_keys=False, allow_unicode=True)
    (config / "configuration.yaml").write_text(text, encoding="utf-8")


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class HomeAssistant:
    """Home Assistant on the loopback address, as one process that ends with ours."""

    def __init__(
        self,
        config: Path,
        app_config: dict[str, Any],
        *,
        port: int | None = None,
        sections: dict[str, Any] | None = None,
        python: str | Path = sys.executable,
    ) -> None:
        """Take an installed configuration folder, the app's YAML, and further or replaced sections."""
        self.config = config
        self.app_config = app_config
        self.sections = sections or {}
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.s2_port = app_config.get("s2", {}).get("port") or free_port()
        self.python = python
        self.process: subprocess.Popen[bytes] | None = None
        self.token: str | None = None

    @property
    def s2_url(self) -> str:
        """Return where Resource Managers connect."""
        return f"ws://127.0.0.1:{self.s2_port}/s2"

    @property
    def log(self) -> str:
        """Return the log since the last start."""
        path = self.config / "home-assistant.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    async def __aenter__(self) -> "HomeAssistant":
        """Start."""
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop."""
        await self.stop()

    async def start(self, *, entity: str = "sensor.flexmeasures_status", within: float = 180) -> None:
        """Start, and wait until our app has created its entity."""
        self._configure()
        self._spawn()
        try:
            async with asyncio.timeout(within):
                await self._until_answering()
                self.token = await self._log_in()
                await self.wait_for_state(entity, lambda _state: True, within=None)
        except BaseException as error:
            self.kill()
            if isinstance(error, TimeoutError):
                raise self._failure(f"was not ready within {within:.0f} s") from error
            raise

    async def stop(self, *, within: float = 60) -> int | None:
        """Stop as a user does, and return the exit code."""
        if self.process is None:
            return None
        self.process.send_signal(signal.SIGTERM)
        try:
            return await asyncio.to_thread(self.process.wait, within)
        except subprocess.TimeoutExpired:
            raise self._failure(f"did not stop within {within:.0f} s") from None
        finally:
            self.kill()

    def kill(self) -> None:
        """End at once, as when the power fails."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    async def restart(self) -> None:
        """Stop and start."""
        await self.stop()
        await self.start()

    async def wait_for_s2(self, *, within: float = 30) -> None:
        """Wait until Resource Managers can connect."""
        async with asyncio.timeout(within):
            while True:
                with contextlib.suppress(OSError):
                    _reader, writer = await asyncio.open_connection("127.0.0.1", self.s2_port)
                    writer.close()
                    return
                await asyncio.sleep(0.05)

    @overload
    async def call(
        self, domain: str, service: str, data: dict[str, Any] | None = None, *, return_response: Literal[True]
    ) -> dict[str, Any]: ...

    @overload
    async def call(
        self,
        domain: str,
        service: str,
        data: dict[str, Any] | None = None,
        *,
        return_response: Literal[False] = False,
    ) -> None: ...

    async def call(
        self, domain: str, service: str, data: dict[str, Any] | None = None, *, return_response: bool = False
    ) -> dict[str, Any] | None:
        """Call a service, and return its response if asked for. Raise ServiceFailed with the error's text."""
        answer = await self._ask(
            "call_service",
            domain=domain,
            service=service,
            service_data=data or {},
            return_response=return_response,
        )
        response: dict[str, Any] | None = answer.get("response")
        return response

    async def reload_scripts(self, **data: Any) -> None:
        """Call `pyscript.reload`."""
        await self.call("pyscript", "reload", data)

    def change_sections(self, **sections: object) -> None:
        """Replace sections of the configuration, for a reload of what they configure."""
        self.sections |= sections
        self._configure()

    async def state(self, entity_id: str) -> dict[str, Any] | None:
        """Return an entity's state with its attributes."""
        return _find(await self.states(), entity_id)

    async def states(self) -> list[dict[str, Any]]:
        """Return all states."""
        states: list[dict[str, Any]] = await self._ask("get_states")
        return states

    async def set_state(self, entity_id: str, state: str, **attributes: Any) -> None:
        """Set a state, as a device's integration does."""
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {self.token}"}) as session:
            body = {"state": state, "attributes": attributes}
            async with session.post(f"{self.url}/api/states/{entity_id}", json=body) as answer:
                answer.raise_for_status()

    async def wait_for_state(
        self, entity_id: str, predicate: Callable[[dict[str, Any]], bool], within: float | None = 30
    ) -> dict[str, Any]:
        """Wait until the present or a later state satisfies the predicate, and return it."""
        seen = None
        try:
            async with asyncio.timeout(within), self._connect() as connection:
                await connection.ask("subscribe_events", event_type="state_changed")
                seen = _find(await connection.ask("get_states"), entity_id)
                while seen is None or not predicate(seen):
                    changed = (await connection.event())["data"]
                    if changed["entity_id"] == entity_id:
                        seen = changed["new_state"]
        except TimeoutError:
            raise TimeoutError(f"{entity_id} stayed at {seen}") from None
        return seen

    @contextlib.asynccontextmanager
    async def events(self, event_type: str) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """Subscribe to events: `async with ha.events("x") as events: async for event in events`."""
        async with self._connect() as connection:
            await connection.ask("subscribe_events", event_type=event_type)
            yield connection.events()

    async def notifications(self) -> list[dict[str, Any]]:
        """Return the persistent notifications."""
        notifications: list[dict[str, Any]] = await self._ask("persistent_notification/get")
        return notifications

    async def services(self) -> dict[str, Any]:
        """Return Home Assistant's descriptions of all services, by domain and name."""
        services: dict[str, Any] = await self._ask("get_services")
        return services

    async def render(self, template: str) -> str:
        """Render a template."""
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {self.token}"}) as session,
            session.post(f"{self.url}/api/template", json={"template": template}) as answer,
        ):
            return await answer.text()

    def _configure(self) -> None:
        """Write the configuration; a new one asks for nothing but a log-in in the browser."""
        dashboards = {
            f"dashboard-{path.stem}": {
                "mode": "yaml",
                "title": path.stem.replace("_", " ").capitalize(),
                "icon": "mdi:home-battery",
                "filename": f"dashboards/{path.name}",
            }
            for path in sorted((self.config / "dashboards").glob("*.yaml"))
        }
        http = {"server_host": "127.0.0.1", "server_port": self.port}
        s2 = {"port": self.s2_port} | self.app_config.get("s2", {})
        scripts = {"allow_all_imports": True, "apps": {"flexmeasures": self.app_config | {"s2": s2}}}
        own = {"http": http, "lovelace": {"dashboards": dashboards}, "pyscript": scripts}
        write_configuration(self.config, SECTIONS | own | self.sections)

        # Home Assistant saves users after minutes: if it is killed before, there are none. The onboarding
        # steps after the user's are marked as done: one sets up integrations that need the internet.
        storage = self.config / ".storage"
        if not (storage / "auth").exists():
            storage.mkdir(exist_ok=True)
            (storage / "auth_provider.homeassistant").unlink(missing_ok=True)
            done = {"done": ["core_config", "analytics", "integration"]}
            content = {"version": 4, "minor_version": 1, "key": "onboarding", "data": done}
            (storage / "onboarding").write_text(json.dumps(content))

    def _spawn(self) -> None:
        # Home Assistant's own integrations install nothing: the environment has what they need. Pyscript
        # installs our requirements.txt all the same, as for a user.
        pyscript = self.config / "custom_components" / "pyscript"
        command = [self.python, OLD_NAMES, pyscript, "-c", self.config, "--skip-pip"]
        with (self.config / "console.log").open("wb") as console:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )

    async def _until_answering(self) -> None:
        process = self.process
        assert process is not None
        async with aiohttp.ClientSession() as session:
            while True:
                if process.poll() is not None:
                    raise self._failure(f"ended with exit code {process.returncode}")
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"{self.url}/manifest.json") as response:
                        if response.status == 200:
                            return
                await asyncio.sleep(0.1)

    async def _log_in(self) -> str:
        """Create the first user, or log in as it, and return a long-lived access token."""
        client = {"client_id": f"{self.url}/"}
        user = {"username": NAME, "password": PASSWORD}
        async with aiohttp.ClientSession(self.url, raise_for_status=True) as session:

            async def post(path: str, **options: Any) -> dict[str, Any]:
                async with session.post(path, **options) as response:
                    reply: dict[str, Any] = await response.json()
                    return reply

            async with session.get("/api/onboarding", raise_for_status=False) as response:
                steps = await response.json() if response.status == 200 else []
            if any(step["step"] == "user" and not step["done"] for step in steps):
                answer = await post(
                    "/api/onboarding/users",
                    json={**client, **user, "name": NAME, "language": "en"},
                )
                code = answer["auth_code"]
            else:
                flow = await post(
                    "/auth/login_flow",
                    json={
                        **client,
                        "handler": ["homeassistant", None],
                        "redirect_uri": f"{self.url}/",
                    },
                )
                answer = await post(f"/auth/login_flow/{flow['flow_id']}", json={**client, **user})
                code = answer["result"]
            grant = {**client, "grant_type": "authorization_code", "code": code}
            self.token = (await post("/auth/token", data=grant))["access_token"]
        token: str = await self._ask(
            "auth/long_lived_access_token", client_name=f"tests {uuid.uuid4()}", lifespan=365
        )
        return token

    async def _ask(self, command: str, **fields: Any) -> Any:
        """Send a command of the websocket API on a new connection, and return its result."""
        async with self._connect() as connection:
            return await connection.ask(command, **fields)

    @contextlib.asynccontextmanager
    async def _connect(self) -> AsyncIterator["_Connection"]:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{self.url}/api/websocket", max_msg_size=0) as websocket,
        ):
            await websocket.receive_json()
            await websocket.send_json({"type": "auth", "access_token": self.token})
            if (await websocket.receive_json())["type"] != "auth_ok":
                raise PermissionError("Home Assistant refused the access token")
            yield _Connection(websocket)

    def _failure(self, what: str) -> RuntimeError:
        console = (self.config / "console.log").read_text(encoding="utf-8", errors="replace")
        return RuntimeError(f"Home Assistant {what}:\n{console[-4000:]}")


class _Connection:
    """One connection to the websocket API."""

    def __init__(self, websocket: aiohttp.ClientWebSocketResponse) -> None:
        self._websocket = websocket
        self._id = 0
        self._events: list[dict[str, Any]] = []

    async def ask(self, command: str, **fields: Any) -> Any:
        """Send a command and return its result; keep the events that arrive before it."""
        self._id += 1
        await self._websocket.send_json({"id": self._id, "type": command, **fields})
        while (answer := await self._websocket.receive_json())["type"] != "result":
            self._events.append(answer["event"])
        if not answer["success"]:
            raise ServiceFailed(answer["error"]["code"], answer["error"]["message"])
        return answer["result"]

    async def event(self) -> dict[str, Any]:
        """Return the next event."""
        if self._events:
            return self._events.pop(0)
        event: dict[str, Any] = (await self._websocket.receive_json())["event"]
        return event

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yield events as they arrive."""
        while True:
            yield await self.event()


def _find(states: list[dict[str, Any]], entity_id: str) -> dict[str, Any] | None:
    return next((state for state in states if state["entity_id"] == entity_id), None)


_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """Have the kernel stop this child process when its parent ends in any way (Linux only)."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
