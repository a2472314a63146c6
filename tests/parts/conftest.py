"""A small CEM, and a clock that is moved by hand."""

import asyncio
import time

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from freezegun import freeze_time

from tests.parts.s2_cem import Cem
from tests.parts.s2_messages import NOW


@pytest.fixture
async def cem(socket_enabled):
    """Run a CEM, and look at the end whether all it received is valid."""
    cem = Cem()
    app = web.Application()
    app.router.add_get("/", cem.session)
    async with TestServer(app) as server:
        cem.url = str(server.make_url("/")).replace("http", "ws", 1)
        yield cem
    assert cem.invalid == []


@pytest.fixture
async def clock(monkeypatch):
    """Stop the clock at NOW, but not that of asyncio."""
    monkeypatch.setattr(asyncio.get_running_loop(), "time", time.monotonic)
    with freeze_time(NOW) as clock:
        yield clock
