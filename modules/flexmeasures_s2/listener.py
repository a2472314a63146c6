"""The websocket server that Resource Managers connect to."""

import asyncio
import ipaddress
import logging
import math
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSMsgType, web
from aiohttp.http_exceptions import HttpProcessingError

import flexmeasures_s2.access as access
import flexmeasures_s2.errors as errors
import flexmeasures_s2.handshake as handshake
from flexmeasures_s2.session import DETAILS, GOING_AWAY, HANDSHAKE, LARGE_CHARACTERS, Events, Session
from flexmeasures_s2.texts import quoted
from flexmeasures_s2.transport import WebsocketTransport

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures.s2")
UNSUPPORTED_DATA, POLICY_VIOLATION = 1003, 1008
"""Status codes that a websocket is closed with (RFC 6455, 7.4.1)."""
CLOSING_SECONDS = 2
"""How long Resource Managers have to close their connections when the listener stops."""
BACKLOG = 100
"""Connections that wait to be accepted."""
MAX_WARNINGS, SECONDS_BETWEEN_WARNINGS = 100, 60.0
"""Warnings of refused requests in all, and the time between those of one address."""
TURN_SECONDS = 0.002
"""How long one Resource Manager may keep the event loop to itself."""
RATE_SECONDS = 60
"""The rate of messages is averaged over this long."""
CHARACTERS_PER_MESSAGE = 4096
"""A longer message counts as several in the rate."""
RESERVED: dict[tuple[str, int], socket.socket] = {}
"""Sockets by (host, port), at which connections wait for a listener that is about to start."""


@dataclass(kw_only=True)
class _Limits:
    """What one Resource Manager, and all together, may ask of the CEM."""

    connections: int = 256
    """Connections at a time."""
    message: int = 2**20
    """Bytes of a message."""
    depth: int = 64
    """Nesting of a message's JSON."""
    rate: float = 5000
    """Messages per second, averaged over a minute, above which a Resource Manager is read more slowly."""
    heartbeat: float = 30
    """Seconds between pings."""
    confirmation: float = 10
    """Seconds within which a message is to be confirmed."""
    handshake: float = 30
    """Seconds within which a session is to be established."""
    reading: float = 20
    """Seconds within which what the CEM sends is to be read."""


Limits = _Limits


@dataclass(kw_only=True)
class _TokenBucket:
    """Limits messages to a rate (per second), averaged over a minute; `at` is a monotonic time (s)."""

    rate: float
    tokens: float
    at: float

    @pyscript_compile
    def pause_after(self, characters: int, now: float) -> float:
        """Take a message of so many characters out; return how long to wait (s), so that the rate is kept."""
        refill = (now - self.at) * self.rate
        self.tokens = min(RATE_SECONDS * self.rate, self.tokens + refill)
        self.at = now
        self.tokens -= 1 + characters // CHARACTERS_PER_MESSAGE
        return max(0.0, -self.tokens / self.rate)


TokenBucket = _TokenBucket


@dataclass(eq=False, repr=False, kw_only=True)
class _Listener:
    """A websocket server for S2 at host:port/path."""

    host: str
    port: int
    path: str
    events: Events
    ended: Callable[[Session], None]
    """Called when a session has ended."""
    token: str | None = None
    """The token that lets any Resource Manager in, or None where none is needed."""
    tokens: dict[str, str] = field(default_factory=dict)
    """Tokens of single resources, by name or resource_id."""
    certificate: str | None = None
    """The PEM file of the certificate, or None without TLS."""
    key: str | None = None
    """The PEM file of the certificate's key, or None if it is in the same file."""
    limits: Limits = field(default_factory=Limits)

    sessions: set[Session] = field(default_factory=set)
    """The sessions that have not ended."""
    idle: dict[asyncio.BaseProtocol, asyncio.TimerHandle] = field(default_factory=dict)
    """Connections without a request, the oldest first, each with the timer that closes it."""
    runner: web.AppRunner | None = None
    server: asyncio.Server | None = None
    warned: set[tuple[str | None, str]] = field(default_factory=set)
    """Addresses and reasons of refused requests that the log has a warning of."""
    warned_at: dict[str | None, float] = field(default_factory=dict)
    """When that was, by address (monotonic s)."""

    @pyscript_compile
    async def start(self) -> None:
        """Listen; raise CannotListen, which names the setting."""
        context = await self.tls_context()
        runner = web.AppRunner(
            self.application(),
            access_log=None,
            logger=http_logger(self),
            shutdown_timeout=CLOSING_SECONDS,
            keepalive_timeout=self.limits.handshake,
        )
        await runner.setup()
        reserved = RESERVED.pop((self.host, self.port), None)
        address: dict[str, Any] = {"sock": reserved} if reserved else {"host": self.host, "port": self.port}
        try:
            self.server = await asyncio.get_running_loop().create_server(
                lambda: self.accept(runner),
                **address,
                backlog=BACKLOG,
                ssl=context,
                ssl_handshake_timeout=self.limits.handshake if context else None,
            )
        except (OSError, ValueError) as error:
            await runner.cleanup()
            where, why = f"{self.host}:{self.port}", getattr(error, "strerror", None) or error
            raise errors.CannotListen(f"host, port: cannot listen on {where} ({why})") from error
        self.runner = runner

    @pyscript_compile
    async def tls_context(self) -> ssl.SSLContext | None:
        """Return the TLS context of the certificate, or None without one; raise CannotListen."""
        if not self.certificate:
            return None
        try:
            return await asyncio.to_thread(tls_context, self.certificate, self.key)
        except (OSError, ValueError) as error:
            files = " and ".join(file for file in (self.certificate, self.key) if file)
            raise errors.CannotListen(
                f"certificate, key: {files} cannot be used ({error}): give a PEM file each, or one with both"
            ) from error

    @pyscript_compile
    def application(self) -> web.Application:
        """Return an application that serves S2 at the path and at any path below it."""
        application = web.Application()
        base = self.path.rstrip("/")
        for path in [*([base] if base else []), f"{base}/{{below:.*}}"]:
            application.router.add_get(path, self.handle_request)
        application.router.add_route("*", "/{path:.*}", self.handle_unknown_path)
        return application

    @pyscript_compile
    def accept(self, runner: web.AppRunner) -> asyncio.BaseProtocol:
        """Return the protocol of a new connection, which is closed if it sends no request in time.

        If too many have sent none, the oldest is closed.
        """
        if runner.server is None:
            raise ConnectionAbortedError("the listener has stopped")
        protocol = runner.server()
        if len(self.idle) >= self.limits.connections:
            self.close_idle(next(iter(self.idle)))
        loop = asyncio.get_running_loop()
        self.idle[protocol] = loop.call_later(self.limits.handshake, self.close_idle, protocol)
        return protocol

    @pyscript_compile
    def close_idle(self, protocol: Any) -> None:
        """Close a connection that has sent no request."""
        self.idle.pop(protocol).cancel()
        protocol.force_close()

    @pyscript_compile
    async def stop(self) -> None:
        """Close all sessions with 1001, so that they reconnect, and free the port."""
        if self.runner is None:
            return
        runner, self.runner = self.runner, None
        if self.server is not None:
            self.server.close()
        for timer in self.idle.values():
            timer.cancel()
        self.idle.clear()
        why = "Home Assistant stops, or reloads the scripts"
        requests = [
            session.send_session_request(why, GOING_AWAY, reconnect=True) for session in list(self.sessions)
        ]
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*requests, return_exceptions=True), CLOSING_SECONDS)
        await runner.cleanup()

    # Requests

    @pyscript_compile
    async def handle_unknown_path(self, request: web.Request) -> web.Response:
        """Answer a request for another path."""
        self.warn_of_request(request, f"it asked for {request.raw_path[:80]}, and S2 is at {self.path}")
        response = web.Response(status=404, text=f"S2 is at {self.path}")
        response.force_close()
        return response

    @pyscript_compile
    async def handle_request(self, request: web.Request) -> web.StreamResponse:
        """Serve a Resource Manager until the connection ends, or reject it."""
        if timer := self.idle.pop(request.protocol, None):
            timer.cancel()
        rejection = self.rejection(request)
        if rejection is not None:
            rejection.force_close()
            return rejection
        limits = self.limits
        websocket = web.WebSocketResponse(
            timeout=CLOSING_SECONDS,
            heartbeat=limits.heartbeat,
            max_msg_size=limits.message,
            compress=False,
            autoclose=False,
        )
        transport = WebsocketTransport(request=request, websocket=websocket, reading_seconds=limits.reading)
        session = self.new_session(request, transport)
        self.sessions.add(session)
        why = "the connection was lost"
        try:
            await websocket.prepare(request)
            await handshake.begin(session)
            why = await serve(session, websocket, limits.rate)
        finally:
            transport.flush()
            self.sessions.discard(session)
            session.end(why)
            LOGGER.info("%s: disconnected: %s", session.log_name, session.why_ended)
            session.notify(self.ended)
        return websocket

    @pyscript_compile
    def rejection(self, request: web.Request) -> web.Response | None:
        """Return the response to a request that is rejected, or None."""
        if self.token:
            given = token_of(request)
            is_right = access.is_token(given, self.token)
            if not (is_right or access.holder_of(given, self.tokens)):
                self.warn_of_request(request, "its token is missing or wrong")
                headers = {"WWW-Authenticate": "Bearer"}
                return web.Response(status=401, headers=headers, text="The token is missing or wrong")
        elif access.is_cross_origin(request.headers.get("Origin"), request.host):
            self.warn_of_request(request, "a web page may connect only with a token")
            return web.Response(status=403, text="A web page may connect only with a token")
        if not web.WebSocketResponse().can_prepare(request):
            headers = {"Upgrade": "websocket"}
            return web.Response(status=426, headers=headers, text="Connect with a websocket that speaks S2")
        if len(self.sessions) >= self.limits.connections:
            self.warn_of_request(request, f"there are {self.limits.connections} connections")
            return web.Response(status=503, headers={"Retry-After": "60"}, text="Too many connections")
        return None

    @pyscript_compile
    def new_session(self, request: web.Request, transport: WebsocketTransport) -> Session:
        """Return a session over a websocket, which is closed if it is not established in time."""
        session = Session(
            peer=peer_of(request),
            transport=transport,
            events=self.events,
            token_holder=access.holder_of(token_of(request), self.tokens),
            max_depth=self.limits.depth,
            confirmation_seconds=self.limits.confirmation,
        )
        session.spawn(close_unless_established(session, self.limits.handshake))
        return session

    @pyscript_compile
    def warn_of_request(self, request: web.Request, why: str) -> None:
        """Log why a request is rejected; see `warn_of`."""
        self.warn_of(request.remote, why)

    @pyscript_compile
    def warn_of(self, address: str | None, why: str) -> None:
        """Log why a request is rejected: as a warning once for each reason, and once a minute."""
        now, key = time.monotonic(), (address, why)
        is_repeated = key in self.warned or len(self.warned) >= MAX_WARNINGS
        is_soon = now - self.warned_at.get(address, -math.inf) < SECONDS_BETWEEN_WARNINGS
        if not (is_repeated or is_soon):
            self.warned.add(key)
            self.warned_at[address] = now
        level = logging.DEBUG if is_repeated or is_soon else logging.WARNING
        LOGGER.log(level, "%s was refused: %s", address, quoted(why))


Listener = _Listener


@pyscript_compile
def reserve(host: str, port: int) -> None:
    """Have connections wait for a listener that is about to start, if the host is an IP address.

    What is wrong with host or port is raised when the listener starts.
    """
    release()
    with suppress(OSError, ValueError):
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
        RESERVED[host, port] = socket.create_server((host, port), family=family, backlog=BACKLOG)


@pyscript_compile
def release() -> None:
    """Refuse the connections that wait for a listener which has not started."""
    while RESERVED:
        RESERVED.popitem()[1].close()


@pyscript_compile
def tls_context(certificate: str, key: str | None) -> ssl.SSLContext:
    """Return the TLS context of PEM files; it reads them, so it belongs in a thread."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key, password=lambda: "")
    return context


@pyscript_compile
def http_logger(listener: Listener) -> logging.Logger:
    """Return a logger for aiohttp, which logs a traceback for each request that it cannot read."""

    class ToListener(logging.Handler):
        """Warns of requests that cannot be read, in one line, and logs all else as a fault of this CEM."""

        def emit(self, record: logging.LogRecord) -> None:
            """Log a record of aiohttp."""
            error = record.exc_info and record.exc_info[1]
            if isinstance(error, HttpProcessingError):
                address = record.args[0] if isinstance(record.args, tuple) and record.args else None
                why = f"its request cannot be read ({type(error).__name__})"
                listener.warn_of(None if address is None else str(address), why)
            else:
                LOGGER.error("%s: please report this", record.getMessage(), exc_info=record.exc_info)

    logger = logging.Logger("flexmeasures.s2.http", logging.ERROR)
    logger.addHandler(ToListener())
    return logger


@pyscript_compile
def token_of(request: web.Request) -> bytes:
    """Return the token of a request, or b"" if it has none."""
    return access.token_in(request.headers.get("Authorization", ""))


@pyscript_compile
def peer_of(request: web.Request) -> str:
    """Return the address and port of the peer."""
    peer = request.transport.get_extra_info("peername") if request.transport else None
    return f"{peer[0]}:{peer[1]}" if peer else "unknown peer"


@pyscript_compile
async def close_unless_established(session: Session, seconds: float) -> None:
    """Close a session that is not established within some seconds."""
    await asyncio.sleep(seconds)
    if session.stage in (HANDSHAKE, DETAILS):
        missing = "Handshake" if session.stage == HANDSHAKE else "ResourceManagerDetails"
        await session.close(POLICY_VIOLATION, f"no {missing} within {seconds:g} s")


@pyscript_compile
async def serve(session: Session, websocket: web.WebSocketResponse, rate: float) -> str:
    """Handle one message after the other, until the connection ends; return why it ended.

    A burst of messages is not read faster than it is handled, and the event loop gets a turn after
    TURN_SECONDS of it, or after a large message for as long as that took.
    """
    now = time.monotonic()
    bucket = TokenBucket(rate=rate, tokens=RATE_SECONDS * rate, at=now)
    turn_ends = now + TURN_SECONDS
    async for frame in websocket:
        if frame.type is WSMsgType.ERROR:
            break
        if frame.type is not WSMsgType.TEXT:
            await session.close(UNSUPPORTED_DATA, "a binary frame: S2 is text")
            break
        began = time.monotonic()
        if began > now + TURN_SECONDS:  # the event loop has had turns since the message before
            turn_ends = began + TURN_SECONDS
        await session.receive(frame.data)
        now = time.monotonic()
        pause = bucket.pause_after(len(frame.data), now)
        if len(frame.data) > LARGE_CHARACTERS:
            pause = max(pause, now - began)
        if pause or now > turn_ends:
            await asyncio.sleep(pause)
            now = time.monotonic()
            turn_ends = now + TURN_SECONDS
    if session.why_ended:
        return session.why_ended
    code = websocket.close_code
    if websocket.exception() is not None:
        return f"{websocket.exception()} ({code})"
    return f"closed by the Resource Manager ({code})" if code else "the connection was lost"
