"""Answers of any size and form end in a sentence, and hold up nothing."""

import json
import math
import threading
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest
from aiohttp import web

import flexmeasures_api.answer_shapes as answer_shapes
import flexmeasures_api.connection as connection
import flexmeasures_api.errors as errors
import flexmeasures_api.json_response as json_response
import flexmeasures_api.provisioning as provisioning
import flexmeasures_api.schedule_requests as schedule_requests
import flexmeasures_api.sensor_data as sensor_data
from flexmeasures_api.flexible_devices import Storage

NOON = datetime(2026, 1, 15, 12, tzinfo=UTC)
QUARTER = timedelta(minutes=15)
SERIES = {"values": [1.5, None], "unit": "kW", "start": "2026-01-15T12:00:00+00:00", "duration": "PT30M"}
ASSET = {"id": 3, "name": "x", "generic_asset_type_id": 1, "account_id": 1, "latitude": 1, "longitude": 1}


@pytest.fixture
async def link(aiohttp_server, socket_enabled):
    """Return a link whose `answers` has what is answered for the end of a path: text, or (status, text)."""
    answers = {}

    async def answer(request):
        given = next(given for end, given in answers.items() if request.path.endswith(end))
        status, text = given if isinstance(given, tuple) else (200, given)
        headers = {"FlexMeasures-Version": "1.0.1"}
        return web.Response(status=status, text=text, content_type="application/json", headers=headers)

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    server = await aiohttp_server(application)
    connector = aiohttp.TCPConnector()
    link = connection.connect(
        host=f"http://127.0.0.1:{server.port}",
        username="a@b.c",
        password="secret",
        connector=connector,
        logger_name="test",
    )
    link.client.access_token = "token"
    link.sensors[8] = connection.Sensor(
        id=8, unit="kW", resolution=QUARTER, timezone="Europe/Amsterdam", asset=3
    )
    link.answers = answers
    yield link
    link.close()
    await connector.close()


async def test_an_answer_beyond_the_limit_is_refused_without_being_kept(link):
    link.answers["/data"] = json.dumps(SERIES | {"x": "y" * 2**22})
    with pytest.raises(
        errors.FlexMeasuresError, match=r"GET /api/v3_0/sensors/8/data with more than 4 MiB: ask"
    ):
        await sensor_data.read(link, 8, NOON, QUARTER)


async def test_a_text_beyond_the_limit_is_refused_too(link):
    link.answers["/x"] = json.dumps("y" * 2**22)
    async with link.client.session.get(f"{link.host}/x", raise_for_status=False) as response:
        with pytest.raises(errors.FlexMeasuresError, match="more than 4 MiB"):
            await response.text()


async def test_an_answer_can_be_read_again_in_whatever_form(link):
    link.answers["/x"] = '{"a": 1}'
    async with link.client.session.get(f"{link.host}/x", raise_for_status=False) as response:
        assert await response.json() == {"a": 1}
        assert await response.text() == '{"a": 1}'
        assert await response.read() == b'{"a": 1}'
        assert await response.json() == {"a": 1}


@pytest.mark.parametrize(
    ("status", "kind"), [("INVALID_REPLACEMENT", "ConflictingValue"), ("INVALID_SENDER", "NoAccess")]
)
async def test_a_refused_correction_is_told_from_a_refused_user(link, status, kind):
    said = {"result": "Rejected", "status": status, "message": "Not INVALID_REPLACEMENT itself."}
    link.answers["/data"] = (403, json.dumps(said))
    with pytest.raises(errors.FlexMeasuresError) as caught:
        await sensor_data.post(link, sensor_data.SensorData(sensor=8, start=NOON, values=[1.0]))
    assert type(caught.value) is getattr(errors, kind)


async def test_a_long_answer_holds_up_nobody(link, monkeypatch):
    link.answers["/data"] = json.dumps(SERIES | {"values": [0.123456789] * 250_000})
    original_parse, has_shape, threads = json_response.parse, answer_shapes.has_shape, []

    def parse(text):
        threads.append(threading.get_ident())
        return original_parse(text)

    def check(*asked):
        threads.append(threading.get_ident())
        return has_shape(*asked)

    monkeypatch.setattr(json_response, "parse", parse)
    monkeypatch.setattr(answer_shapes, "has_shape", check)
    found = await sensor_data.read(link, 8, NOON, QUARTER)
    assert len(found["values"]) == 250_000
    assert len(threads) == 2
    assert threading.get_ident() not in threads


def test_a_long_answer_shows_in_short():
    short, long = (json_response.parse(json.dumps({"values": [1.5] * n}).encode()) for n in (3, 100_000))
    assert repr(short) == "{'values': [1.5, 1.5, 1.5]}"
    assert len(repr(long)) < 300
    assert f"{long}" == repr(long)
    assert long == {"values": [1.5] * 100_000}


async def test_a_value_that_is_no_number_is_a_gap(link):
    link.answers["/data"] = json.dumps(SERIES | {"values": [1.5, None, math.nan]})
    assert (await sensor_data.read(link, 8, NOON, QUARTER))["values"] == [-1.5, None, None]


BROKEN_GAPS = ["[NaN, ", "[NaN" + "[" * 100_000, '["NaN" 1]', "[nan]", "[NaN, 1e400]", "[NaN, Infinity]"]


@pytest.mark.parametrize("text", BROKEN_GAPS)
def test_what_is_broken_beside_a_gap_is_refused(text):
    with pytest.raises(ValueError):
        json_response.parse(text.encode())


@pytest.mark.parametrize("text", ["[" * 65 + "]" * 65, '{"a":' * 900 + "1" + "}" * 900, "[" * 100_000])
def test_what_is_nested_deeply_is_refused(text):
    with pytest.raises(ValueError):
        json_response.parse(text.encode())
    assert json_response.parse(b"[" * 64 + b"]" * 64)


ODD_SCHEDULES = [
    {"start": "soon"},
    {"unit": "furlongs"},
    {"duration": "PT0S", "values": [1.0]},
    {"scheduler_info": [1]},
    {"scheduler_info": {"commitment_costs": [1]}},
    {"scheduler_info": {"commitment_costs": {"x": "much"}}},
    {"values": [1e400, 2]},
]


@pytest.mark.parametrize("odd", ODD_SCHEDULES)
async def test_an_odd_schedule_is_one_sentence(link, odd):
    link.answers["/trigger"] = json.dumps({"job": "a-b"})
    link.answers["/jobs/a-b"] = json.dumps({"status": "FINISHED"})
    link.answers["/schedules/a-b"] = json.dumps(SERIES | odd)
    storage = Storage(power_sensor=8, soc_at_start=1, soc_min=0, soc_max=2)
    with pytest.raises(errors.FlexMeasuresError, match="answered") as caught:
        await schedule_requests.schedule_site(
            link,
            3,
            [storage],
            flex_context={},
            start=NOON,
            duration=QUARTER,
            resolution=QUARTER,
            now=NOON,
        )
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("odd", ["[1]", "7", '"x"', "{" * 2_000, "[" * 900 + "]" * 900])
async def test_an_odd_asset_is_one_sentence(link, odd):
    link.answers["/assets"] = json.dumps([ASSET | {"attributes": odd}])
    link.answers["/types"] = json.dumps([{"id": 1, "name": "battery"}])
    with pytest.raises(errors.FlexMeasuresError) as caught:
        await provisioning.provide(
            link, 3, resource_id="r", name="Battery", role="ENERGY_STORAGE", has_soc=False
        )
    assert "answered unexpectedly: see that its release is supported" in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("odd", [{"attributes": "[1]"}, {"event_resolution": "P1Y"}, {"timezone": "Mars"}])
async def test_an_odd_sensor_is_one_sentence(link, odd):
    sensor = {"id": 12, "unit": "kW", "event_resolution": "PT15M", "timezone": "UTC", "generic_asset_id": 3}
    link.answers["/sensors/12"] = json.dumps(sensor | odd)
    with pytest.raises(errors.FlexMeasuresError) as caught:
        await link.sensor(12)
    assert "see that its release is supported" in str(caught.value)
    assert len(str(caught.value)) < 300


async def test_odd_statistics_are_one_sentence(link):
    link.answers["/stats"] = json.dumps({"x": {"First event start": "then", "Last event end": 7}})
    with pytest.raises(errors.FlexMeasuresError, match="answered unexpectedly"):
        await sensor_data.recorded_spans(link, 8)
