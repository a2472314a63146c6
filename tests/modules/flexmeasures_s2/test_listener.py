"""Who is let in, what a connection may do to us, and how it ends."""

import asyncio
import base64
import ipaddress
import json
import socket
import ssl
import struct
from asyncio import selector_events
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pytest_homeassistant_custom_component import plugins

import flexmeasures_s2.access as access
import flexmeasures_s2.listener as listeners
from flexmeasures_s2.errors import CannotListen
from tests.modules.flexmeasures_s2.conftest import connected, until
from tests.parts.resource_manager import ResourceManager
from tests.parts.s2_messages import example

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


def frame(text):
    """Return a websocket frame as a client sends it, with a mask of zeros."""
    data = text.encode()
    return struct.pack("!BBH4x", 0x81, 0x80 | 126, len(data)) + data


async def status_of(url, **headers):
    """Return the HTTP status that a GET gets."""
    async with aiohttp.ClientSession() as client, client.get(url, headers=headers) as response:
        return response.status


async def refusal_of(url, **headers):
    """Return the HTTP status with which a websocket is refused."""
    async with aiohttp.ClientSession() as client:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await client.ws_connect(url, headers=headers)
    return refused.value.status


async def exchange(rm):
    """Send a valid message and see it confirmed."""
    assert (await rm.ask(example("PowerMeasurement")))["status"] == "OK"


@pytest.fixture
def real_names(monkeypatch):
    """Have names looked up: newer test helpers of Home Assistant do not let that happen."""
    if real := getattr(plugins, "_real_getaddrinfo", None):
        monkeypatch.setattr(socket, "getaddrinfo", real)


@pytest.fixture
async def mute(socket_enabled):
    """Return a function that connects, and sends more than it reads the answers to."""
    writers = []

    async def connect(port):
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.setblocking(False)
        await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=raw, limit=1024)
        writers.append(writer)
        writer.write(UPGRADE)
        assert b"101" in await reader.readline()
        writer.write(frame('{"message_id": "%s"}' % ("m" * 3000)) * 5_000)
        return writer

    yield connect
    for writer in writers:
        writer.transport.abort()


@pytest.fixture
def certificate(tmp_path):
    """Return the files of a certificate that is signed by itself, and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CEM")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "certificate.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return {"certificate": str(tmp_path / "certificate.pem"), "key": str(tmp_path / "key.pem")}


# Who is let in


def basic(user_and_password):
    """Return a header of Basic authorization."""
    return f"Basic {base64.b64encode(user_and_password.encode()).decode()}"


@pytest.mark.parametrize(
    "given",
    [
        None,
        "Bearer wrong",
        "Bearer ",
        "bearer Secret",
        "secret",
        "Bearersecret",
        "Bearer secrét",
        "Token secret",
        "Basic",
        "Basic secret",
        "Basic !",
        basic("secret"),
        basic("secret:"),
        basic("user:wrong"),
        basic("user:secret:"),
    ],
)
async def test_without_the_token_it_is_refused_before_the_upgrade(serve, given):
    cem = await serve(token="secret")
    assert await refusal_of(cem.url, **({"Authorization": given} if given else {})) == 401
    assert cem.changes == []


async def test_with_the_token_it_is_let_in(serve):
    cem = await serve(token="secret")
    async with connected(cem, token="secret") as rm:
        await exchange(rm)


@pytest.mark.parametrize("token", ["secret", "se:cr:et", "zo\u00eb =="])
async def test_the_scheme_is_compared_without_case_and_basic_has_the_token_as_password(serve, token):
    cem = await serve(token=token)
    for given in (
        f"bearer {token}",
        f"BEARER  {token}",
        basic(f"s2:{token}"),
        basic(f":{token}").replace("Basic", "basic"),
    ):
        headers = {"Authorization": given}
        async with aiohttp.ClientSession() as client, client.ws_connect(cem.url, headers=headers) as socket:
            assert (await socket.receive_json())["message_type"] == "Handshake"


async def test_a_wrong_token_is_compared_in_constant_time(serve, monkeypatch):
    compared = []

    def compare(given, wanted):
        compared.append((given, wanted))
        return given == wanted

    monkeypatch.setattr(access.hmac, "compare_digest", compare)
    cem = await serve(token="secret")
    for given in ("Bearer wrong", basic("user:wrong"), "wrong"):
        assert await refusal_of(cem.url, Authorization=given) == 401
    assert compared == [(b"wrong", b"secret"), (b"wrong", b"secret"), (b"", b"secret")]


async def test_a_token_is_not_shown(serve):
    assert "secret" not in repr((await serve(token="secret")).listener)


async def test_a_web_page_is_let_in_with_a_token_only(serve):
    assert await refusal_of((await serve()).url, Origin="http://evil.example") == 403
    cem = await serve(token="secret")
    headers = {"Origin": "http://good.example", "Authorization": "Bearer secret"}
    async with aiohttp.ClientSession() as client, client.ws_connect(cem.url, headers=headers) as websocket:
        assert (await websocket.receive_json())["message_type"] == "Handshake"


async def test_plain_http_is_told_to_upgrade(cem):
    assert await status_of(cem.url.replace("ws:", "http:")) == 426


@pytest.mark.parametrize("path", ["/", "/s3", "/s22", "/other/s2", "/S2/battery", "//s2"])
async def test_another_path_is_not_found(serve, path):
    cem = await serve(path="/s2")
    assert await status_of(f"http://127.0.0.1:{cem.port}{path}") == 404


@pytest.mark.parametrize("path", ["/", "/s2", "/s2/"])
@pytest.mark.parametrize("below", ["battery-1", "rm/battery%201/", "battery?version=1", "a/b/c"])
async def test_any_path_below_it_works_too(serve, path, below):
    cem = await serve(path=path)
    async with ResourceManager(f"{cem.url.rstrip('/')}/{below}") as rm:
        await rm.establish()
        await exchange(rm)


@pytest.mark.parametrize("path", ["/", "/s2", "/s2/"])
async def test_the_path_works_with_and_without_a_slash_at_its_end(serve, path):
    cem = await serve(path=path)
    for address in {cem.url, cem.url.rstrip("/"), cem.url.rstrip("/") + "/"}:
        async with ResourceManager(address) as rm:
            await rm.next("Handshake")


async def test_there_is_room_for_so_many_and_again_when_one_leaves(serve):
    cem = await serve(limits={"connections": 1})
    async with connected(cem):
        assert await refusal_of(cem.url) == 503
    await until(lambda: not cem.listener.sessions)
    async with connected(cem) as rm:
        await exchange(rm)


async def test_it_serves_over_tls(serve, certificate, monkeypatch):
    cem = await serve(scheme="wss", **certificate)
    trusting = ssl.create_default_context(cafile=certificate["certificate"])
    client = aiohttp.ClientSession
    monkeypatch.setattr(
        aiohttp,
        "ClientSession",
        lambda: client(connector=aiohttp.TCPConnector(ssl=trusting)),
    )
    async with connected(cem) as rm:
        await exchange(rm)
    with pytest.raises(aiohttp.ClientError):
        await status_of(cem.url.replace("wss:", "http:"))


@pytest.fixture
def reserved(socket_enabled):
    """Return a port of this machine at which connections wait."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    listeners.reserve("127.0.0.1", port)
    yield port
    listeners.release()


async def test_who_comes_before_the_listener_starts_is_served_when_it_does(serve, reserved):
    early = ResourceManager(f"ws://127.0.0.1:{reserved}/")
    connecting = asyncio.create_task(early.__aenter__())
    await asyncio.sleep(0.05)
    assert not connecting.done()
    await serve(port=reserved)
    async with asyncio.timeout(5):
        await connecting
    await early.establish()
    await exchange(early)
    await early.__aexit__(None, None, None)


async def test_without_a_listener_who_waits_is_refused(reserved):
    connecting = asyncio.create_task(ResourceManager(f"ws://127.0.0.1:{reserved}/").__aenter__())
    await asyncio.sleep(0.05)
    listeners.release()
    with pytest.raises(aiohttp.ClientError):
        await connecting


@pytest.mark.parametrize(("host", "port"), [("no.such.host", 1), ("", 1), ("192.0.2.1", 1), ("127.0.0.1", 1)])
def test_what_cannot_be_reserved_is_left_to_the_listener(socket_enabled, host, port):
    if (host, port) == ("127.0.0.1", 1):
        with socket.socket() as taken:
            taken.bind((host, 0))
            taken.listen()
            listeners.reserve(host, taken.getsockname()[1])
    else:
        listeners.reserve(host, port)
    assert listeners.RESERVED == {}


async def test_a_port_in_use_is_named(cem, serve):
    with pytest.raises(CannotListen, match=f"127.0.0.1:{cem.port}"):
        await serve(port=cem.port)
    async with connected(cem) as rm:
        await exchange(rm)


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
async def test_a_host_that_is_not_ours_is_named(serve, real_names, host):
    with pytest.raises(CannotListen, match=host):
        await serve(host=host)


@pytest.mark.parametrize("content", [None, "nonsense"])
async def test_a_certificate_that_cannot_be_used_is_named(serve, tmp_path, content):
    file = tmp_path / "certificate.pem"
    if content:
        file.write_text(content)
    with pytest.raises(CannotListen, match="certificate"):
        await serve(certificate=str(file))


async def test_a_key_of_another_certificate_is_named(serve, certificate, tmp_path):
    key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "other.pem").write_bytes(key)
    with pytest.raises(CannotListen, match="key"):
        await serve(**certificate | {"key": str(tmp_path / "other.pem")})


# What a connection may not do to us


async def test_a_binary_frame_closes_the_connection(cem):
    async with connected(cem) as rm:
        await rm.send(b"\x00\x01")
        assert await rm.closed() == 1003


async def test_a_frame_over_the_limit_closes_the_connection(serve):
    cem = await serve(limits={"message": 5000})
    async with connected(cem) as rm:
        await rm.send("x" * 4000)
        assert (await rm.next("ReceptionStatus"))["status"] == "INVALID_DATA"
        await rm.send("x" * 6000)
        assert await rm.closed() == 1009
    await until(lambda: not cem.listener.sessions)


async def test_frames_of_one_message_over_the_limit_together_close_the_connection(serve):
    cem = await serve(limits={"message": 5000})
    reader, writer = await asyncio.open_connection("127.0.0.1", cem.port)
    writer.write(UPGRADE)
    for first in (0x01, 0x00, 0x00):
        writer.write(bytes([first]) + frame("x" * 2000)[1:])
    async with asyncio.timeout(5):
        assert struct.pack("!H", 1009) in await reader.read()
    writer.close()


async def test_a_message_in_several_frames_is_taken(cem):
    reader, writer = await asyncio.open_connection("127.0.0.1", cem.port)
    text = json.dumps(example("Handshake", message_id="handshake:1"))
    writer.write(UPGRADE + b"\x01" + frame(text[:9])[1:] + b"\x80" + frame(text[9:])[1:])
    async with asyncio.timeout(5):
        answer = (await reader.readuntil(b"handshake:1")) + (await reader.readuntil(b"HandshakeResponse"))
    assert b"OK" in answer
    writer.close()


async def test_a_message_as_large_as_allowed_is_taken(cem):
    async with connected(cem) as rm:
        message = rm.details | {"message_id": "again", "model": "m" * (2**20 - 2000)}
        assert (await rm.ask(message))["status"] == "OK"
        await exchange(rm)


async def test_text_that_is_no_unicode_closes_the_connection(cem):
    reader, writer = await asyncio.open_connection("127.0.0.1", cem.port)
    writer.write(UPGRADE + struct.pack("!BB4x", 0x81, 0x80 | 2) + b"\xff\xfe")
    async with asyncio.timeout(5):
        assert struct.pack("!H", 1007) in await reader.read()
    writer.close()
    await until(lambda: not cem.listener.sessions)


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n", UPGRADE[:-4]])
async def test_who_connects_and_asks_for_nothing_is_sent_away(serve, sent):
    cem = await serve(limits={"handshake": 0.2})
    reader, writer = await asyncio.open_connection("127.0.0.1", cem.port)
    writer.write(sent)
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()


async def test_who_asks_for_nothing_is_sent_away_from_a_tls_port_too(serve, certificate):
    cem = await serve(limits={"handshake": 0.2}, **certificate)
    reader, writer = await asyncio.open_connection("127.0.0.1", cem.port)
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()


async def test_connections_without_a_request_take_nobodys_place(serve):
    cem = await serve(limits={"connections": 2})
    for _ in range(5):
        _, writer = await asyncio.open_connection("127.0.0.1", cem.port)
        writer.close()
        await writer.wait_closed()
    async with connected(cem) as rm:
        await exchange(rm)


async def test_refused_requests_take_nobodys_place(serve):
    cem = await serve(limits={"connections": 2})
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=False)) as client:
        for _ in range(5):
            async with client.get(cem.url.replace("ws:", "http:")) as response:
                assert response.status == 426
        async with connected(cem) as rm:
            await exchange(rm)


async def test_of_too_many_that_say_nothing_the_oldest_are_closed(serve):
    cem = await serve(limits={"connections": 2})
    waiting = [await asyncio.open_connection("127.0.0.1", cem.port) for _ in range(4)]
    async with asyncio.timeout(5):
        assert [await reader.read() for reader, _ in waiting[:2]] == [b"", b""]
    async with connected(cem) as rm:
        await exchange(rm)
    for _, writer in waiting:
        writer.close()


async def test_those_who_are_refused_keep_nobody_out(serve):
    cem = await serve(token="right", limits={"connections": 2})
    async with aiohttp.ClientSession() as session:
        for _ in range(5):
            async with session.get(f"http://127.0.0.1:{cem.port}/") as answer:
                assert answer.status == 401
        async with connected(cem, token="right") as rm:
            await exchange(rm)


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        ("http://127.0.0.1:{port}", "127.0.0.1:{port}", 101),
        ("http://localhost:{port}", "localhost:{port}", 101),
        ("http://127.0.0.1:1", "127.0.0.1:{port}", 403),
        ("http://evil.example:{port}", "evil.example:{port}", 403),
        ("null", "127.0.0.1:{port}", 403),
        ("http://[", "127.0.0.1:{port}", 403),
    ],
)
async def test_a_page_of_another_site_is_kept_out_and_ones_own_address_is_not(serve, origin, host, status):
    cem = await serve()
    headers = {"Origin": origin.format(port=cem.port), "Host": host.format(port=cem.port)}
    async with aiohttp.ClientSession() as session:
        try:
            async with session.ws_connect(f"http://127.0.0.1:{cem.port}/", headers=headers) as websocket:
                assert (await websocket.receive_json())["message_type"] == "Handshake"
                assert status == 101
        except aiohttp.WSServerHandshakeError as error:
            assert error.status == status


async def test_a_host_that_cannot_be_one_is_told(serve, real_names):
    with pytest.raises(Exception, match=r"host, port: cannot listen on a\.\.b"):
        await serve(host="a..b")


async def test_who_does_not_read_is_dropped_and_nobody_else_waits_for_it(serve, mute):
    cem = await serve(limits={"reading": 0.5})
    async with connected(cem) as rm:
        await mute(cem.port)
        await until(lambda: len(cem.listener.sessions) == 2)
        while len(cem.listener.sessions) == 2:
            await exchange(rm)
        await exchange(rm)


async def test_who_does_not_read_does_not_hold_up_the_stop(serve, mute):
    cem = await serve()
    await mute(cem.port)
    await until(lambda: cem.listener.sessions)
    await asyncio.sleep(0.3)
    async with asyncio.timeout(8):
        await cem.listener.stop()
    assert not cem.listener.sessions


async def test_who_does_not_answer_pings_is_dropped(serve):
    cem = await serve(limits={"heartbeat": 0.4})
    async with connected(cem) as rm, aiohttp.ClientSession() as client:
        websocket = await client.ws_connect(cem.url, autoping=False)
        kinds = [frame.type async for frame in websocket]
        assert aiohttp.WSMsgType.PING in kinds
        await until(lambda: len(cem.listener.sessions) == 1)
        await exchange(rm)


async def test_a_burst_is_slowed_down_and_never_refused(serve):
    cem = await serve(limits={"rate": 33})
    async with connected(cem) as rm:
        messages = [example("PowerMeasurement") for _ in range(2000)]
        for message in messages:
            await rm.send(message)
        await until(lambda: rm.statuses(messages[-1]["message_id"]))
        answers = {each["subject_message_id"]: each["status"] for each in rm.received if "status" in each}
        assert [answers[message["message_id"]] for message in messages] == ["OK"] * len(messages)
        await exchange(rm)


def test_above_the_rate_each_message_waits():
    bucket = listeners.TokenBucket(rate=10, tokens=600, at=0)
    pauses = [bucket.pause_after(100, 0) for _ in range(603)]
    assert pauses[:600] == [0] * 600
    assert pauses[600:] == pytest.approx([0.1, 0.2, 0.3])
    assert bucket.pause_after(100, 10) == 0
    assert bucket.pause_after(1000 * listeners.CHARACTERS_PER_MESSAGE, 10) > 90


async def test_a_burst_leaves_room_for_others(cem):
    async with connected(cem) as busy, connected(cem) as rm:
        last = example("PowerMeasurement")
        for message in [*[example("PowerForecast") for _ in range(500)], last]:
            await busy.send(message)
        await exchange(rm)
        assert not busy.statuses(last["message_id"])
        await until(lambda: busy.statuses(last["message_id"]))


@asynccontextmanager
async def raw_session(cem):
    """Give the streams of a session that is established, whose frames are the test's own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", cem.port)
    details = example("ResourceManagerDetails", available_control_types=["NOT_CONTROLABLE"])
    writer.write(UPGRADE + b"".join(frame(json.dumps(each)) for each in (example("Handshake"), details)))
    await reader.readuntil(details["message_id"].encode())
    yield reader, writer
    writer.close()


def measurements(number):
    """Return measurements: their ids, and their frames together."""
    made = [example("PowerMeasurement") for _ in range(number)]
    return [each["message_id"].encode() for each in made], b"".join(frame(json.dumps(each)) for each in made)


async def test_a_burst_is_confirmed_by_few_writes(cem, monkeypatch):
    monkeypatch.setattr(listeners, "TURN_SECONDS", 10)
    real, written = selector_events._SelectorSocketTransport.write, []

    def write(transport, data):
        written.append(bytes(data))
        real(transport, data)

    ids, frames = measurements(100)
    async with raw_session(cem) as (reader, writer):
        monkeypatch.setattr(selector_events._SelectorSocketTransport, "write", write)
        writer.write(frames)
        await reader.readuntil(ids[-1])
    assert len([each for each in written if b"ReceptionStatus" in each]) < 10
    confirmed = b"".join(written[1:])
    assert sorted(ids, key=confirmed.index) == ids


# How it ends


@pytest.mark.parametrize("code", [b"", b"\x03\xe8"])
async def test_what_comes_right_before_the_close_is_confirmed_before_it(cem, code):
    ids, frames = measurements(3)
    async with raw_session(cem) as (reader, writer):
        writer.write(frames + bytes((0x88, 0x80 | len(code))) + bytes(4) + code)
        async with asyncio.timeout(5):
            answers = await reader.read()
    assert all(each in answers for each in ids)
    assert answers[-4:] == b"\x88\x02\x03\xe8"


async def test_stop_asks_to_reconnect_and_frees_the_port_at_once(serve):
    cem = await serve()
    async with connected(cem) as first, ResourceManager(cem.url) as second:
        await second.next("Handshake")
        await cem.listener.stop()
        again = await serve(port=cem.port)
        assert (await first.next("SessionRequest"))["request"] == "RECONNECT"
        assert [await first.closed(), await second.closed()] == [1001, 1001]
        assert not [each for each in second.received if each["message_type"] == "SessionRequest"]
        assert not cem.listener.sessions
        async with connected(again) as rm:
            await exchange(rm)


async def test_stop_may_come_twice(cem):
    await cem.listener.stop()
    await cem.listener.stop()


async def test_stop_leaves_nothing_of_who_never_asked(serve):
    cem = await serve()
    reader, writer = await asyncio.open_connection("127.0.0.1", cem.port)
    await until(lambda: cem.listener.idle)
    await cem.listener.stop()
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()
    assert not cem.listener.idle


async def test_an_end_in_the_middle_of_a_message_is_the_end_of_one_session(cem):
    async with connected(cem) as rm:
        _, writer = await asyncio.open_connection("127.0.0.1", cem.port)
        writer.write(UPGRADE + frame('{"message_type": "Handshake"')[:-5])
        await until(lambda: len(cem.listener.sessions) == 2)
        writer.transport.abort()
        await until(lambda: len(cem.listener.sessions) == 1)
        await exchange(rm)


async def test_a_name_can_forge_no_lines_of_the_log_and_not_fill_it(cem, caplog):
    async with connected(cem, name="Battery\nERROR forged" + "x" * 100_000) as rm:
        await rm.ask(example("PowerMeasurement", values=[]))
        await rm.ask(example("SessionRequest"))
        await rm.closed()
    told = [each.getMessage() for each in caplog.records if each.levelname != "DEBUG"]
    assert [each[:200] for each in told if "\n" in each or len(each) > 1000] == []


async def test_a_lost_connection_is_told(cem):
    async with connected(cem, name="Battery") as rm:
        rm._socket._response.connection.transport.abort()
        await until(lambda: cem.changes[-1] == ("Battery", False, None))
    assert not cem.listener.sessions


@pytest.fixture
async def owned(serve):
    """Run a CEM with a token for all, and one of the battery's own."""
    cem = await serve(token="secret", tokens={"Battery": "its own"})
    cem.cem.with_token = frozenset({"Battery"})
    return cem


async def test_a_resource_with_a_token_of_its_own_is_let_in_with_that(owned):
    async with connected(owned, token="its own", name="Battery") as rm:
        await exchange(rm)


@pytest.mark.parametrize(
    ("token", "name", "told"),
    [
        ("secret", "Battery", "Battery has a token of its own"),
        ("its own", "Boiler", "the token that was given is that of Battery"),
    ],
)
async def test_a_token_lets_in_nobody_elses_resource(owned, token, name, told):
    async with ResourceManager(owned.url, token=token, name=name) as rm:
        status = await details_status(rm)
        assert (status["status"], told in status["diagnostic_label"]) == ("INVALID_CONTENT", True)
    assert owned.changes == []


async def test_nobody_takes_the_place_of_a_resource_with_a_token_under_another_name(owned):
    async with connected(owned, token="its own", name="Battery") as rm:
        thief = ResourceManager(
            owned.url, token="secret", name="Boiler", resource_id=rm.details["resource_id"]
        )
        async with thief:
            assert (await details_status(thief))["status"] == "INVALID_CONTENT"
        await exchange(rm)


async def details_status(rm) -> dict:
    """Go through the handshake, and return how the details are answered."""
    await rm.next("Handshake")
    await rm.ask(example("Handshake", supported_protocol_versions=rm.versions))
    await rm.next("HandshakeResponse")
    return await rm.ask(rm.details)


async def test_what_an_unknown_peer_does_costs_a_line_a_minute(serve, caplog):
    cem = await serve(token="secret", path="/s2")
    base = cem.url.replace("ws://", "http://").removesuffix("/s2")
    for number in range(20):
        assert await status_of(f"{base}/elsewhere/{number}\u202e") == 404
    assert await refusal_of(cem.url, Authorization="Bearer wrong") == 401
    for _time in range(3):
        _reader, writer = await asyncio.open_connection("127.0.0.1", cem.port)
        writer.write(b"GET /s2 HTTP/1.1\r\nX: " + b"y" * 100_000 + b"\r\n\r\n")
        await asyncio.wait_for(_reader.read(), 5)
        writer.close()
    told = [each for each in caplog.records if each.levelname not in ("DEBUG", "INFO")]
    assert len(told) == 1
    assert "127.0.0.1 was refused: it asked for /elsewhere/0" in told[0].getMessage()
    assert not any(each.exc_info for each in told)


async def test_a_request_that_cannot_be_read_is_one_line(cem, caplog):
    reader, writer = await asyncio.open_connection("127.0.0.1", cem.port)
    writer.write(b"GET / HTTP/1.1\r\nX: " + b"y" * 100_000 + b"\r\n\r\n")
    assert b" 400 " in await asyncio.wait_for(reader.readline(), 5)
    writer.close()
    [told] = [each for each in caplog.records if each.levelname == "WARNING"]
    assert told.getMessage() == "127.0.0.1 was refused: its request cannot be read (LineTooLong)"
    assert told.exc_info is None


@pytest.mark.parametrize("resource_id", ["a\nb", "\x1b[31m", "nul\0", "  "])
async def test_a_resource_id_that_cannot_be_printed_is_refused(cem, resource_id):
    async with ResourceManager(cem.url, resource_id=resource_id) as rm:
        assert (await details_status(rm))["status"] in ("INVALID_CONTENT", "INVALID_MESSAGE")
    assert cem.changes == []


async def test_a_name_has_nothing_that_cannot_be_printed(cem):
    async with connected(cem, name="Home\0 \x1b[31m\u202e battery"):
        assert cem.changes[0][0] == "Home [31m battery"
