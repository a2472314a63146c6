"""A CEM that listens on a port of this machine, and resource managers that are connected to it."""

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

import flexmeasures_cem.cem as cems
import flexmeasures_s2.listener as listeners
from tests.parts.resource_manager import ResourceManager

WITHIN = 10


async def until(happened):
    """Wait until something is true, and return it."""
    async with asyncio.timeout(WITHIN):
        while not (found := happened()):
            await asyncio.sleep(0.005)
    return found


@asynccontextmanager
async def connected(cem, **options):
    """Give a resource manager whose session is established; `selected` is what the CEM selected."""
    async with ResourceManager(cem.url, **options) as rm:
        rm.selected = await rm.establish()
        yield rm


@asynccontextmanager
async def running(preferred=None, scheme="ws", limits=(), **options):
    """Run the real listener and CEM on a free port, and record what they tell."""
    made = SimpleNamespace(changes=[], received=[])

    def changed(resource):
        made.changes.append((resource.name, bool(resource.session), cems.control_type(resource)))

    def received(resource, message):
        made.received.append((resource.name, message))

    made.cem = cems.Cem(changed, received, preferred)
    settings = {"host": "127.0.0.1", "port": 0, "path": "/"} | options
    made.listener = listeners.Listener(
        **settings,
        events=cems.events(made.cem),
        ended=lambda session: cems.ended(made.cem, session),
        limits=listeners.Limits(**dict(limits)),
    )
    await made.listener.start()
    made.port = made.listener.server.sockets[0].getsockname()[1]
    made.url = f"{scheme}://127.0.0.1:{made.port}{made.listener.path}"
    try:
        yield made
    finally:
        await made.listener.stop()
        await asyncio.get_running_loop().shutdown_default_executor()


@pytest.fixture
def expected_lingering_timers() -> bool:
    """Take no offence at aiohttp, which leaves a heartbeat's timer behind a closed connection."""
    return True


@pytest.fixture
async def serve(socket_enabled):
    """Return a function that runs a CEM with settings and limits of a test's own."""
    stack = []

    async def start(**settings):
        context = running(**settings)
        stack.append(context)
        return await context.__aenter__()

    yield start
    for context in reversed(stack):
        await context.__aexit__(None, None, None)


@pytest.fixture
async def cem(serve):
    """Run a CEM."""
    return await serve()
