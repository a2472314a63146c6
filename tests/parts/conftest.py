"""Fixtures: a minimal CEM, and a clock that tests move."""

from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from freezegun.api import FrozenDateTimeFactory

from tests.parts.s2_cem import Cem
from tests.parts.s2_messages import NOW
from tests.parts.virtual_time import moved_by_hand


@pytest.fixture
async def cem(socket_enabled: None) -> AsyncIterator[Cem]:
    """Run a CEM, and assert at the end that all received messages are valid."""
    cem = Cem()
    app = web.Application()
    app.router.add_get("/", cem.session)
    async with TestServer(app) as server:
        cem.url = str(server.make_url("/")).replace("http", "ws", 1)
        yield cem
    assert cem.invalid == []


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FrozenDateTimeFactory]:
    """Stop the clock at NOW, but not that of asyncio."""
    with moved_by_hand(monkeypatch, NOW) as clock:
        yield clock
