"""Between Home Assistant and FlexMeasures, something else answers for a while."""

import asyncio
from datetime import UTC, datetime

import aiohttp
import pytest
from aiohttp import web

START = datetime(2026, 11, 20, 9, tzinfo=UTC)


@pytest.fixture
async def portal(flexmeasures_server, aiohttp_server, socket_enabled):
    """Return a proxy that leaves out the server's headers; its `answer` prevails while there is one."""

    class Portal:
        answer: web.Response | None = None
        url = ""

    async def handle(request):
        if Portal.answer is not None:
            return web.Response(**Portal.answer)
        headers = {
            name: request.headers[name]
            for name in ("Authorization", "Content-Type")
            if name in request.headers
        }
        async with (
            aiohttp.ClientSession() as session,
            session.request(
                request.method,
                f"{flexmeasures_server.url}{request.path_qs}",
                data=await request.read(),
                headers=headers,
            ) as reply,
        ):
            return web.Response(status=reply.status, body=await reply.read(), content_type=reply.content_type)

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handle)
    server = await aiohttp_server(application)
    Portal.url = f"http://127.0.0.1:{server.port}"
    return Portal


async def test_what_a_proxy_answers_stores_nothing_and_makes_no_plan(
    start, app_config, flexmeasures_server, portal
):
    sensor = await asyncio.to_thread(flexmeasures_server.add_sensor, "kW", 15)
    home = await start(app_config | {"host": portal.url})
    await home.call("post_measurements", sensor_id=sensor, values=1, start=START.isoformat())
    for number, text in enumerate(("[]", "null", "{}", '{"status": "ok"}'), 2):
        portal.answer = {"text": text, "content_type": "application/json"}
        call = {"sensor_id": sensor, "values": number, "start": START.replace(hour=9 + number).isoformat()}
        assert (await home.call("post_measurements", **call))["delivered"] is False
        with pytest.raises(Exception, match="There is no FlexMeasures server at"):
            await home.plan(soc_at_start=4, duration="PT2H")
        assert home.status().state == "unreachable"
    portal.answer = None
    await home.plan(soc_at_start=4, duration="PT2H")
    await home.until(lambda: home.status().attributes["outbox"] == 0)
    stored = await asyncio.to_thread(flexmeasures_server.beliefs, sensor)
    assert [value for _start, value in stored] == [1, 2, 3, 4, 5]


async def test_a_plan_that_the_server_failed_over_is_no_fault_any_more_once_the_server_does_something(
    start, app_config, flexmeasures_server, portal
):
    home = await start(app_config | {"host": portal.url})
    await home.until(lambda: home.device.server_check.done())
    portal.answer = {"text": '{"message": "oops"}', "status": 500, "content_type": "application/json"}
    with pytest.raises(Exception, match="FlexMeasures answered 500"):
        await home.plan(soc_at_start=4, duration="PT2H")
    assert home.status().state == "error"
    portal.answer = None
    sensor = app_config["power_sensor"]
    await home.call("get_measurements", sensor_id=sensor, start=START.isoformat(), duration="PT1H")
    assert (home.status().state, home.status().attributes["last_error"]) == ("ok", None)
