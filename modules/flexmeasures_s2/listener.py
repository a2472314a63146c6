"""The websocket server that Resource Managers connect to."""

import asyncio
import base64
import hmac
import ipaddress
import logging
import math
import socket
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from aiohttp import WSMsgType, web
from aiohttp.http_exceptions import HttpProcessingError

import flexmeasures_s2.errors as errors
import flexmeasures_s2.handshake as handshake
import flexmeasures_s2.session as sessions
from flexmeasures_s2.texts import quoted

LOGGER = logging.getLogger("custom_components.pyscript.flexmeasures.s2")
UNSUPPORTED_DATA, POLICY_VIOLATION = 1003, 1008
LONGEST_REASON = 123
"""Bytes that a websocket's close frame has room for."""
CLOSING_SECONDS = 2
MOST_WARNED_OF = 100
SECONDS_BETWEEN_WARNINGS = 60.0
"""How often the log is told of one who is not let in."""
BACKLOG = 100
RESERVED = {}
"""Sockets by (host, port) at which connections wait for a listener that is yet to start."""
AT_ONCE = 4096
"""A shorter text never waits for the other side to read, where nothing else does."""
TEXT_FRAME, LONGER_FRAME = 0x81, 126
"""What the frame of a whole text begins with, and of one whose length has two bytes of its own."""
TURN_SECONDS = 0.002
"""How long one Resource Manager may keep the event loop to itself."""
BYTES_OF_A_MESSAGE = 4096
"""A longer message counts as several against the rate."""


@pyscript_compile
def records():
    """Define the records: natively, so that compiled code can make them."""

    @dataclass
    class Limits:
        """What one Resource Manager, and all together, may ask of us.

        `connections` at a time; `message` in bytes, `depth` of its JSON; `rate` in messages per second,
        averaged over a minute, above which it is read more slowly; seconds between heartbeats, for a
        confirmation, to be established by, and for reading what we send.
        """

        connections: int = 256
        message: int = 2**20
        depth: int = 64
        rate: float = 5000
        heartbeat: float = 30
        confirmation: float = 10
        handshake: float = 30
        reading: float = 20

    @dataclass(repr=False)
    class Listener:
        """Where it listens, whom it lets in, and who is connected, or has yet to ask for that.

        `tokens` are those of single resources, by name or resource_id. `events` are told of each session, and
        `ended` of its end. `refused` has what the log was told of whom, and `warned_at` when (monotonic s).
        """

        host: str
        port: int
        path: str
        events: Any
        ended: Any
        token: str | None = field(default=None, repr=False)
        tokens: dict[str, str] = field(default_factory=dict, repr=False)
        certificate: str | None = None
        key: str | None = None
        limits: Limits = field(default_factory=Limits)
        runner: Any = None
        server: Any = None
        sessions: set = field(default_factory=set)
        asking: dict = field(default_factory=dict)
        refused: set = field(default_factory=set)
        warned_at: dict[str, float] = field(default_factory=dict)

    @dataclass
    class Bucket:
        """A minute's worth of messages, that fills up with time."""

        rate: float
        tokens: float
        at: float

    @dataclass(eq=False, repr=False)
    class Outgoing:
        """Frames to one Resource Manager, which are written together once the event loop has its next turn.

        To write takes longer than all else that is done about a message.
        """

        request: Any
        websocket: Any
        frames: list[bytes] = field(default_factory=list)

    return Limits, Listener, Bucket, Outgoing


Limits, Listener, Bucket, Outgoing = records()


@pyscript_compile
def tls(certificate, key):
    """Return the TLS context of a certificate and its key (in the same file if None); it reads files."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key, password=lambda: "")
    return context


@pyscript_compile
def reserve(host: str, port: int) -> None:
    """Have connections wait for the listener that starts shortly, where the host is an IP address.

    What is wrong with either is told when the listener starts.
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
async def start(listener):
    """Listen; raise CannotListen, which names the setting."""
    context = None
    if listener.certificate:
        try:
            context = await asyncio.to_thread(tls, listener.certificate, listener.key)
        except (OSError, ValueError) as error:
            files = " and ".join(each for each in (listener.certificate, listener.key) if each)
            raise errors.CannotListen(
                f"certificate, key: {files} cannot be used ({error}): give a PEM file each, or one with both"
            ) from error
    app = web.Application()

    async def accept_request(request):
        return await accept(listener, request)

    plain = listener.path.rstrip("/")
    for path in [*([plain] if plain else []), f"{plain}/{{below:.*}}"]:
        app.router.add_get(path, accept_request)

    async def elsewhere(request):
        complain(listener, request, f"it asked for {request.raw_path[:80]}, and S2 is at {listener.path}")
        answer = web.Response(status=404, text=f"S2 is at {listener.path}")
        answer.force_close()
        return answer

    app.router.add_route("*", "/{path:.*}", elsewhere)
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=unreadable_requests(listener),
        shutdown_timeout=CLOSING_SECONDS,
        keepalive_timeout=listener.limits.handshake,
    )
    await runner.setup()
    loop = asyncio.get_running_loop()

    def connected():
        handler, limits = runner.server(), listener.limits
        if len(listener.asking) >= limits.connections:
            give_up(listener, next(iter(listener.asking)))
        listener.asking[handler] = loop.call_later(limits.handshake, give_up, listener, handler)
        return handler

    reserved = RESERVED.pop((listener.host, listener.port), None)
    place = {"sock": reserved} if reserved else {"host": listener.host, "port": listener.port}
    try:
        listener.server = await loop.create_server(
            connected,
            **place,
            backlog=BACKLOG,
            ssl=context,
            ssl_handshake_timeout=listener.limits.handshake if context else None,
        )
    except (OSError, ValueError) as error:
        await runner.cleanup()
        where, why = f"{listener.host}:{listener.port}", getattr(error, "strerror", None) or error
        raise errors.CannotListen(f"host, port: cannot listen on {where} ({why})") from error
    listener.runner = runner


@pyscript_compile
def give_up(listener, handler):
    """Close a connection that did not ask for anything in time, or the oldest where there are too many."""
    listener.asking.pop(handler).cancel()
    handler.force_close()


@pyscript_compile
async def stop(listener):
    """Close all sessions with 1001, and free the port."""
    if listener.runner is None:
        return
    runner, listener.runner = listener.runner, None
    listener.server.close()
    for timer in listener.asking.values():
        timer.cancel()
    listener.asking.clear()
    why = "Home Assistant stops, or reloads the scripts"
    farewells = [
        sessions.bid_farewell(session, why, sessions.GOING_AWAY, reconnect=True)
        for session in list(listener.sessions)
    ]
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.gather(*farewells, return_exceptions=True), CLOSING_SECONDS)
    await runner.cleanup()


@pyscript_compile
def complain(listener, request, why):
    """Warn of who is refused."""
    warn_of(listener, request.remote, why)


@pyscript_compile
def warn_of(listener: Any, remote: str | None, why: str) -> None:
    """Warn of what an unknown peer does: of each thing once, and of one a minute, lest it fill the log."""
    now, key = time.monotonic(), (remote, why)
    is_known = key in listener.refused or len(listener.refused) >= MOST_WARNED_OF
    is_soon = now - listener.warned_at.get(remote, -math.inf) < SECONDS_BETWEEN_WARNINGS
    if not (is_known or is_soon):
        listener.refused.add(key)
        listener.warned_at[remote] = now
    LOGGER.log(
        logging.DEBUG if is_known or is_soon else logging.WARNING, "%s was refused: %s", remote, quoted(why)
    )


@pyscript_compile
def unreadable_requests(listener: Any) -> logging.Logger:
    """Return a logger for aiohttp, whose tracebacks of requests that it cannot read become one warning."""

    class ToUs(logging.Handler):
        """Pass on what is wrong, and with whom."""

        def emit(self, record: logging.LogRecord) -> None:
            """Warn of a request that cannot be read; what else goes wrong is a fault of ours."""
            error = record.exc_info and record.exc_info[1]
            if isinstance(error, HttpProcessingError):
                remote = record.args[0] if record.args else None
                warn_of(listener, remote, f"its request cannot be read ({type(error).__name__})")
            else:
                LOGGER.error("%s: please report this", record.getMessage(), exc_info=record.exc_info)

    logger = logging.Logger("flexmeasures.s2.http", logging.ERROR)
    logger.addHandler(ToUs())
    return logger


@pyscript_compile
def refusal(listener, request):
    """Return the HTTP answer to who is not let in, or None."""
    if listener.token:
        given = token_in(request.headers.get("Authorization", ""))
        is_right = hmac.compare_digest(given, listener.token.encode())
        if not (holder_of(listener, request) or is_right):
            complain(listener, request, "its token is missing or wrong")
            return web.Response(
                status=401, headers={"WWW-Authenticate": "Bearer"}, text="The token is missing or wrong"
            )
    elif comes_from_elsewhere(request):
        complain(listener, request, "a web page may connect only with a token")
        return web.Response(status=403, text="A web page may connect only with a token")
    if not web.WebSocketResponse().can_prepare(request):
        return web.Response(
            status=426, headers={"Upgrade": "websocket"}, text="Connect with a websocket that speaks S2"
        )
    if len(listener.sessions) >= listener.limits.connections:
        complain(listener, request, f"there are {listener.limits.connections} connections")
        return web.Response(status=503, headers={"Retry-After": "60"}, text="Too many connections")
    return None


@pyscript_compile
def holder_of(listener: Any, request: Any) -> str | None:
    """Return the name or resource_id of the resource whose own token was given, or None."""
    given = token_in(request.headers.get("Authorization", ""))
    matches = [name for name, token in listener.tokens.items() if hmac.compare_digest(given, token.encode())]
    return matches[0] if matches else None


@pyscript_compile
def token_in(authorization: str) -> bytes:
    """Return the token in an Authorization header: a bearer token, or the password of Basic (RFC 7617).

    The scheme is compared without case. Empty where there is none.
    """
    scheme, _space, credentials = authorization.encode(errors="replace").strip().partition(b" ")
    if scheme.lower() == b"bearer":
        return credentials.strip()
    if scheme.lower() != b"basic":
        return b""
    try:
        _user, _colon, password = base64.b64decode(credentials.strip(), validate=True).partition(b":")
    except ValueError:
        return b""
    return password


@pyscript_compile
def comes_from_elsewhere(request):
    """Tell whether a web page of another site connects; some websocket clients name their own address.

    An address by name is not trusted to be ours: whoever owns the name says where it leads.
    """
    origin = request.headers.get("Origin")
    if origin is None:
        return False
    try:
        parts = urlsplit(origin)
        is_ours = parts.hostname == "localhost" or bool(ipaddress.ip_address(parts.hostname or ""))
    except ValueError:
        return True
    return not is_ours or parts.netloc != request.host


@pyscript_compile
async def accept(listener, request):
    """Let a Resource Manager in, and serve it until the connection ends."""
    if timer := listener.asking.pop(request.protocol, None):
        timer.cancel()
    refused = refusal(listener, request)
    if refused is not None:
        refused.force_close()
        return refused
    limits = listener.limits
    websocket = web.WebSocketResponse(
        timeout=CLOSING_SECONDS,
        heartbeat=limits.heartbeat,
        max_msg_size=limits.message,
        compress=False,
        autoclose=False,
    )
    outgoing = Outgoing(request, websocket)
    session = new_session(listener, outgoing)
    listener.sessions.add(session)
    why = "the connection was lost"
    try:
        await websocket.prepare(request)
        await handshake.enter(session)
        why = await serve(session, websocket, limits)
    finally:
        flush(outgoing)
        listener.sessions.discard(session)
        sessions.end(session, why)
        LOGGER.info("%s: disconnected: %s", sessions.name_of(session), session.why_ended)
        sessions.tell(session, listener.ended)
        session.send_text = session.close_transport = None
    return websocket


@pyscript_compile
def new_session(listener: Any, outgoing: Any) -> Any:
    """Return a session over a websocket; who does not establish it in time is sent away."""
    limits, request, websocket = listener.limits, outgoing.request, outgoing.websocket
    loop = asyncio.get_running_loop()

    async def send_text(text):
        transport = request.transport
        if len(text) < AT_ONCE and may_write(websocket, transport) and not transport.get_write_buffer_size():
            if not outgoing.frames:
                loop.call_soon(flush, outgoing)
            outgoing.frames.append(framed(text.encode()))
            return
        flush(outgoing)
        try:
            async with asyncio.timeout(limits.reading):
                await websocket.send_str(text)
        except TimeoutError:
            if request.transport:
                request.transport.abort()
            raise ConnectionResetError(f"it read nothing for {limits.reading:g} s") from None

    async def close_transport(code, why):
        flush(outgoing)
        reason = why.encode()[:LONGEST_REASON].decode(errors="ignore").encode()
        await websocket.close(code=code, message=reason)

    async def send_away_unless_established():
        await asyncio.sleep(limits.handshake)
        if session.stage in (sessions.HANDSHAKE, sessions.DETAILS):
            awaited = "Handshake" if session.stage == sessions.HANDSHAKE else "ResourceManagerDetails"
            why = f"no {awaited} within {limits.handshake:g} s"
            await sessions.close(session, POLICY_VIOLATION, why)

    session = sessions.Session(
        peer=peer_of(request),
        send_text=send_text,
        close_transport=close_transport,
        events=listener.events,
        deepest=limits.depth,
        confirmation_seconds=limits.confirmation,
        holder=holder_of(listener, request),
    )
    sessions.spawn(session, send_away_unless_established())
    return session


@pyscript_compile
def may_write(websocket: Any, transport: Any) -> bool:
    """Return whether a websocket is open, as far as is known."""
    return transport is not None and not (transport.is_closing() or websocket.closed)


@pyscript_compile
def flush(outgoing: Any) -> None:
    """Write the frames that wait, unless the connection is over."""
    frames, transport = outgoing.frames, outgoing.request.transport
    if frames and may_write(outgoing.websocket, transport):
        transport.write(b"".join(frames))
    frames.clear()


@pyscript_compile
def framed(payload: bytes) -> bytes:
    """Return the frame of a server's text of less than 65,536 bytes, which has no mask (RFC 6455, 5.2)."""
    length = len(payload)
    if length < LONGER_FRAME:
        return bytes((TEXT_FRAME, length)) + payload
    return bytes((TEXT_FRAME, LONGER_FRAME)) + length.to_bytes(2) + payload


@pyscript_compile
def peer_of(request):
    """Return the address and port of who connects."""
    peer = request.transport.get_extra_info("peername") if request.transport else None
    return f"{peer[0]}:{peer[1]}" if peer else "unknown peer"


@pyscript_compile
async def serve(session, websocket, limits):
    """Deal with each message in turn, until the connection ends; return why it did.

    A burst is read no faster than it can be dealt with, and leaves room for everybody else; so does a
    large message, after which as much time is left to others as it took. One that comes after a pause begins
    another turn.
    """
    now = time.monotonic()
    bucket, turn_ends = Bucket(limits.rate, 60 * limits.rate, now), now + TURN_SECONDS
    async for frame in websocket:
        if frame.type is WSMsgType.ERROR:
            break
        if frame.type is not WSMsgType.TEXT:
            await sessions.close(session, UNSUPPORTED_DATA, "a binary frame: S2 is text")
            break
        began = time.monotonic()
        if began > now + TURN_SECONDS:
            turn_ends = began + TURN_SECONDS
        await sessions.receive(session, frame.data)
        now = time.monotonic()
        pause = pause_after(bucket, len(frame.data), now)
        if len(frame.data) > sessions.LARGE:
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


@pyscript_compile
def pause_after(bucket, size, now):
    """Return how many seconds to wait after a message of that size, so that the rate is kept."""
    bucket.tokens = min(60 * bucket.rate, bucket.tokens + (now - bucket.at) * bucket.rate)
    bucket.at = now
    bucket.tokens -= 1 + size // BYTES_OF_A_MESSAGE
    return max(0.0, -bucket.tokens / bucket.rate)
