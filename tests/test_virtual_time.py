"""Time passes at once, but never before what is on its way has arrived."""

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest


async def test_both_clocks_pass_together_and_nobody_waits(clock):
    loop = asyncio.get_running_loop()
    began, wall, monotonic = loop.time(), datetime.now(UTC), time.monotonic()
    await asyncio.sleep(86_400)
    assert loop.time() - began == pytest.approx(86_400, abs=0.01)
    assert (datetime.now(UTC) - wall) / timedelta(seconds=1) == pytest.approx(86_400, abs=0.01)
    assert time.monotonic() - monotonic == pytest.approx(86_400, abs=0.01)


async def test_timers_run_in_their_order(clock):
    order = []
    loop = asyncio.get_running_loop()
    for seconds in (600, 0.001, 60, 0):
        loop.call_later(seconds, order.append, seconds)
    await asyncio.sleep(601)
    assert order == [0, 0.001, 60, 600]


async def test_work_in_a_thread_takes_no_time_and_is_waited_for(clock):
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(1):
        assert await asyncio.to_thread(sum, range(3_000_000)) == 4_499_998_500_000
    assert loop.time() == began


async def test_what_was_sent_arrives_before_time_passes(clock, socket_enabled):
    async def echo(reader, writer):
        while line := await reader.readline():
            writer.write(line)
        writer.close()

    loop = asyncio.get_running_loop()
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    began = loop.time()
    for number in range(50):
        writer.write(b"%d\n" % number)
        async with asyncio.timeout(0.001):
            assert await reader.readline() == b"%d\n" % number
    assert loop.time() == began
    writer.close()
    server.close()
    await server.wait_closed()


async def test_the_clock_on_the_wall_can_be_set_alone(clock):
    loop = asyncio.get_running_loop()
    began = loop.time()
    clock.move_to("2030-01-01")
    assert datetime.now(UTC) == datetime(2030, 1, 1, tzinfo=UTC)
    assert loop.time() == began
