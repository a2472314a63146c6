"""Only FlexMeasures' own answer counts: what a proxy or a login page answers is nobody's."""

import json
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest
from aiohttp import web

import flexmeasures_api.answer_shapes as answer_shapes
import flexmeasures_api.connection as connection
import flexmeasures_api.errors as errors
import flexmeasures_api.provisioning as provisioning
import flexmeasures_api.schedule_requests as schedule_requests
import flexmeasures_api.sensor_data as sensor_data

NOON = datetime(2026, 1, 15, 12, tzinfo=UTC)
QUARTER = timedelta(minutes=15)
OWN = {"FlexMeasures-Version": "1.0.1"}
API = "/api/v3_0"
SENSOR = {
    "id": 12,
    "name": "power",
    "unit": "kW",
    "event_resolution": "PT15M",
    "timezone": "Europe/Amsterdam",
    "generic_asset_id": 3,
}
SERIES = {"values": [1.5, None], "unit": "kW"}
SCHEDULE = SERIES | {"start": "2026-01-15T12:00:00+00:00", "duration": "PT30M"}


@pytest.mark.parametrize(
    ("method", "path", "payload"),
    [
        ("POST", "/api/requestAuthToken", {"auth_token": "x", "user_id": 1}),
        ("GET", "/api/", {"versions": ["v3_0"]}),
        ("GET", f"{API}/sensors/12", SENSOR),
        ("GET", f"{API}/sensors/12/data", SERIES),
        ("GET", f"{API}/sensors/12/data", SERIES | {"unit": ""}),
        ("POST", f"{API}/sensors/12/data", {"status": "PROCESSED", "message": "x"}),
        ("POST", f"{API}/sensors/12/data", {"status": "ALREADY_RECEIVED_AND_SUCCESSFULLY_PROCESSED"}),
        ("POST", f"{API}/sensors/12/data", {"status": "ACCEPTED", "job": "a-b"}),
        ("GET", f"{API}/sensors/12/stats", {"a (ID: 1)": {"First event start": "x"}, "total": 7}),
        ("GET", f"{API}/sensors/12/schedules/a-b", SCHEDULE),
        ("POST", f"{API}/assets/3/schedules/trigger", {"job": "a-b"}),
        ("POST", f"{API}/assets/3/schedules/trigger", {"schedule": "a-b"}),
        ("GET", f"{API}/jobs/a-b", {"status": "FINISHED"}),
        ("GET", f"{API}/assets/3", {"id": 3, "name": "x"}),
        ("GET", f"{API}/assets", [{"id": 3, "name": "x"}]),
        ("GET", f"{API}/assets/types", [{"id": 3, "name": "x"}]),
        ("GET", f"{API}/sensors", [{"id": 3, "name": "x"}]),
        ("POST", f"{API}/assets", {"id": 3, "name": "x"}),
        ("POST", f"{API}/sensors", {"id": 3, "name": "x"}),
    ],
)
def test_each_answer_has_a_form(method, path, payload):
    assert answer_shapes.has_shape(method, path, payload)
    for other in (None, 1, "ok", [7], {}, {"status": "ok"}, {"id": "x"}, {"values": 1}, {"id": True}):
        if not (path.endswith("stats") and other == {}):
            assert not answer_shapes.has_shape(method, path, other)


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": 13},
        {"unit": None},
        {"event_resolution": "long"},
        {"event_resolution": 15},
        {"timezone": "Mars/Olympus"},
        {"timezone": 1},
        {"generic_asset_id": "3"},
    ],
)
def test_a_sensor_with_anything_wrong_is_none(wrong):
    assert not answer_shapes.has_shape("GET", f"{API}/sensors/12", SENSOR | wrong)


@pytest.mark.parametrize(
    ("payload", "headers", "expected"),
    [
        ({"message": "no", "status": "INVALID_SENDER"}, {}, True),
        ({"message": {"json": {}}, "result": "Rejected"}, {}, True),
        ({"errors": ["User password does not match."]}, {}, True),
        ({"x": 1}, OWN, True),
        ({"message": "Forbidden"}, {}, False),
        ({"error": "blocked"}, {}, False),
        ([], {}, False),
        (None, {}, False),
    ],
)
def test_a_refusal_of_anybody_else_is_none(payload, headers, expected):
    assert answer_shapes.is_refusal(headers, payload) is expected


CALLS = {
    "sensor": lambda link: link.sensor(12),
    "asset": lambda link: link.asset(3),
    "post": lambda link: sensor_data.post(link, sensor_data.SensorData(sensor=8, start=NOON, values=[1.0])),
    "stored": lambda link: sensor_data.wait_until_stored(link, "a-b"),
    "read": lambda link: sensor_data.read(link, 8, NOON, QUARTER),
    "spans": lambda link: sensor_data.recorded_spans(link, 8),
    "trigger": lambda link: schedule_requests.trigger(link, 3, {}),
    "fetch": lambda link: schedule_requests.fetch(link, "a-b", 8, QUARTER, "kW"),
    "provide": lambda link: provisioning.provide(
        link, 3, resource_id="r", name="Battery", role="ENERGY_STORAGE", has_soc=True
    ),
    "new sensor": lambda link: provisioning.new_sensor(link, 3, "power", provisioning.POWER_SENSOR),
}
FOREIGN = {
    "a list": (200, "[]", "application/json"),
    "null": (200, "null", "application/json"),
    "an object": (200, "{}", "application/json"),
    "another object": (200, '{"status": "ok", "id": 1, "job": null}', "application/json"),
    "accepted": (202, "{}", "application/json"),
    "a text": (200, '"ok"', "application/json"),
    "broken": (200, '{"status": "PROC', "application/json"),
    "no JSON": (200, "<html>Log in</html>", "text/html"),
    "a redirect": (302, "", "text/html"),
    "another redirect": (303, "{}", "application/json"),
    "an error": (403, '{"error": "blocked"}', "application/json"),
    "a refusal": (422, '{"message": "no"}', "application/json"),
    "no login": (401, '{"error": "no"}', "application/json"),
    "nothing there": (404, "null", "application/json"),
}


@pytest.fixture
async def serving(aiohttp_server, socket_enabled):
    """Return a function that answers all requests in one way, and returns a link that is logged in."""
    opened = []

    async def serving(status, text, content_type, headers=None):
        async def answer(_request):
            named = {"Location": "http://elsewhere.example/x"} | (headers or {})
            return web.Response(status=status, text=text, content_type=content_type, headers=named)

        application = web.Application()
        application.router.add_route("*", "/{path:.*}", answer)
        server = await aiohttp_server(application)
        connector = aiohttp.TCPConnector()
        link = connection.connect(
            host=f"http://127.0.0.1:{server.port}",
            username="a@b.c",
            password="secret",
            connector=connector,
            logger_name="test.answers",
        )
        opened.append((link, connector))
        link.client.access_token = "token"
        link.sensors[8] = connection.Sensor(
            id=8, unit="kW", resolution=QUARTER, timezone="Europe/Amsterdam", asset=3
        )
        return link

    yield serving
    for link, connector in opened:
        link.close()
        await connector.close()


@pytest.mark.parametrize("foreign", FOREIGN)
async def test_no_call_believes_what_is_not_from_flexmeasures(serving, foreign):
    link = await serving(*FOREIGN[foreign])
    for name, call in CALLS.items():
        with pytest.raises(errors.Unreachable) as caught:
            await call(link)
        assert "There is no FlexMeasures server at" in str(caught.value), name
        assert len(str(caught.value)) < 600


async def test_an_odd_answer_of_flexmeasures_is_told_as_such(serving):
    link = await serving(200, json.dumps({"x": "y" * 1000}), "application/json", OWN)
    for name, call in CALLS.items():
        with pytest.raises(errors.FlexMeasuresError) as caught:
            await call(link)
        assert "in an unknown form" in str(caught.value), name
        assert len(str(caught.value)) < 400


async def test_a_schedule_that_flexmeasures_refers_to_by_another_scheme_is_told_as_such(serving):
    moved = {"Location": "https://127.0.0.1/api/v3_0/sensors/8/schedules/c-d"}
    link = await serving(303, "{}", "application/json", OWN | moved)
    with pytest.raises(errors.FlexMeasuresError, match=r"X-Forwarded-Proto.*ProxyFix") as caught:
        await CALLS["fetch"](link)
    assert type(caught.value) is errors.FlexMeasuresError
    assert "refers to https://127.0.0.1 for a schedule" in str(caught.value)


async def test_an_empty_list_of_flexmeasures_is_believed(serving):
    assert await (await serving(200, "[]", "application/json", OWN)).client.get_asset_types() == []
    assert await sensor_data.recorded_spans(await serving(200, "{}", "application/json", OWN), 8) == []
