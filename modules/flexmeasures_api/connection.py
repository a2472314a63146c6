"""One flexmeasures-client for the life of an app: the path of every request."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import isodate
from aiohttp import BaseConnector, ClientResponse, ClientSession
from aiohttp.hdrs import USER_AGENT
from flexmeasures_client import FlexMeasuresClient
from homeassistant.helpers.aiohttp_client import SERVER_SOFTWARE

import flexmeasures_api.error_mapping as error_mapping
import flexmeasures_api.errors as errors
import flexmeasures_api.json_response as json_response
import flexmeasures_api.rate_limit as rate_limits
import flexmeasures_api.redaction as redaction

LOCAL_HOSTS = ("localhost", "127.0.0.1")
REQUEST_SECONDS = 30
RETRY_SECONDS = 90
"""The client's own limits for one attempt, and for all attempts of a request."""
MAX_POLL_SECONDS = 4
"""A job is polled for at growing intervals, up to this one."""
TRIGGER = "/trigger"
"""The end of the paths that the RateLimit is for: other answers state that of all requests."""


@dataclass(frozen=True, kw_only=True)
class _Sensor:
    """A FlexMeasures sensor; `resolution` is 0 for an instantaneous one.

    `sign` is that of consumption in its data: 1, or -1 where production is positive.
    """

    id: int
    unit: str
    resolution: timedelta
    timezone: str
    asset: int
    sign: int = -1


Sensor = _Sensor


@dataclass(kw_only=True)
class _Connection:
    """A client, whose own repr has the password, and what was learnt of the server.

    `host` is the URL of the server, `sensors` has those that were read, by id, and `redact` takes secrets out
    of a text.
    """

    host: str
    client: Any = field(repr=False)
    sensors: dict[int, Sensor] = field(default_factory=dict)
    rate_limit: rate_limits.RateLimit = field(default_factory=rate_limits.RateLimit)
    redact: Callable[[str], str] = field(default=str, repr=False)
    loggers: list[logging.Logger] = field(default_factory=list)
    log_filter: Callable[[logging.LogRecord], bool] | None = field(default=None, repr=False)

    @pyscript_compile
    async def request(self, call: Awaitable[Any]) -> Any:
        """Await a call of the client; raise only FlexMeasuresErrors."""
        try:
            return await call
        except errors.FlexMeasuresError:
            raise
        except Exception as error:
            raise error_mapping.from_exception(self.host, error) from error

    @pyscript_compile
    async def wait_for_job(self, job: str, *, seconds: float, first_poll_seconds: float) -> None:
        """Wait until a job is finished; raise a FlexMeasuresError if it fails or takes longer."""
        await self.request(
            self.client.wait_for_job(
                job,
                timeout=seconds,
                polling_interval=first_poll_seconds,
                max_polling_interval=MAX_POLL_SECONDS,
            )
        )

    @pyscript_compile
    async def sensor(self, sensor_id: int) -> Sensor:
        """Return a sensor, which is read from the server once; raise a FlexMeasuresError."""
        if sensor_id not in self.sensors:
            answer = await self.request(self.client.get_sensor(sensor_id, parse_json_fields=True))
            with error_mapping.reading_answer(self.host):
                attributes = answer.get("attributes") or {}
                self.sensors[sensor_id] = Sensor(
                    id=sensor_id,
                    unit=answer["unit"],
                    resolution=isodate.parse_duration(answer["event_resolution"]),
                    timezone=answer["timezone"],
                    asset=answer["generic_asset_id"],
                    sign=1 if attributes.get("consumption_is_positive") else -1,
                )
        return self.sensors[sensor_id]

    @pyscript_compile
    async def asset(self, asset_id: int) -> dict[str, Any]:
        """Return an asset as it is now, with its stored flex-model; raise a FlexMeasuresError."""
        asset: dict[str, Any] = await self.request(self.client.get_asset(asset_id, parse_json_fields=True))
        return asset

    @pyscript_compile
    def close(self) -> None:
        """Give up the session, whose connector is Home Assistant's, and the log filter."""
        if self.log_filter is not None:
            for logger in self.loggers:
                logger.removeFilter(self.log_filter)
        self.client.session.detach()


Connection = _Connection


@pyscript_compile
def parse_host(host: object) -> tuple[str, str, int | None]:
    """Return (scheme, host name, port or None) of a host as a user writes it.

    Without a scheme it is https, and http for localhost. Raise ValueError where it is not an address.
    """
    text = str(host).strip()
    if "://" not in text:
        name = text.split("/")[0].rsplit(":", 1)[0]
        text = f"{'http' if name in LOCAL_HOSTS else 'https'}://{text}"
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or " " in text:
        raise ValueError("expected an address such as flexmeasures.io or http://localhost:5000")
    if parts.path.strip("/") or parts.query or parts.username:
        raise ValueError("expected only a host and port, without a path, user or query")
    if ":" in parts.hostname:
        raise ValueError("expected a host name or an IPv4 address")
    return parts.scheme, parts.hostname, parts.port


@pyscript_compile
def connect(
    *,
    host: str,
    username: str,
    password: str,
    connector: BaseConnector | None,
    logger_name: str,
    secrets: tuple[str | None, ...] = (),
    other_loggers: tuple[str, ...] = (),
) -> Connection:
    """Return a connection over Home Assistant's `connector`. Nothing is sent yet.

    The client logs to `logger_name`. This logger and the others are kept free of the password and of
    `secrets`.
    """
    scheme, name, port = parse_host(host)
    rate_limit = rate_limits.RateLimit()
    loggers = list(map(logging.getLogger, (logger_name, *other_loggers)))
    redact = redaction.redactor(lambda: (password, client.access_token, *secrets))
    log_filter = redaction.log_filter(redact)
    for logger in loggers:
        logger.addFilter(log_filter)
    client = FlexMeasuresClient(
        email=username,
        password=password,
        host=name,
        port=port,
        ssl=scheme == "https",
        session=new_session(connector, rate_limit),
        logger=loggers[0],
        request_timeout=REQUEST_SECONDS,
        request_retry_timeout=RETRY_SECONDS,
        request_retry_interval=1,
    )
    return Connection(
        host=f"{scheme}://{name}{f':{port}' if port else ''}",
        client=client,
        rate_limit=rate_limit,
        redact=redact,
        loggers=loggers,
        log_filter=log_filter,
    )


@pyscript_compile
def new_session(connector: BaseConnector | None, rate_limit: rate_limits.RateLimit) -> ClientSession:
    """Return a session whose answers are limited in size, and which raises what they mean."""
    return ClientSession(
        connector=connector,
        connector_owner=False,
        response_class=json_response.LimitedResponse,
        raise_for_status=partial(check_response, rate_limit),
        headers={USER_AGENT: SERVER_SOFTWARE},
    )


@pyscript_compile
async def check_response(rate_limit: rate_limits.RateLimit, response: ClientResponse) -> None:
    """Take over the RateLimit of an answer to a trigger, and raise what the answer means."""
    if response.url.path.endswith(TRIGGER):
        rate_limit.update(response.headers)
    await error_mapping.raise_for_response(response)
