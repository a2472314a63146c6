"""The FlexMeasures server that the end-to-end tests and the demo use."""

import urllib.error
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flexmeasures_client import FlexMeasuresClient

from tests.parts.flexmeasures_server import Account, FlexMeasuresServer

pytestmark = pytest.mark.usefixtures("socket_enabled")
BATTERY = {
    "soc-at-start": "10 kWh",
    "soc-min": "2 kWh",
    "soc-max": "20 kWh",
    "power-capacity": "5 kW",
    "roundtrip-efficiency": "90 %",
}


def trigger(server: FlexMeasuresServer, account: Account, price_sensor: int) -> tuple[int, Any]:
    """Trigger a schedule for an account's battery."""
    body = {
        "start": datetime.now(UTC).isoformat(),
        "duration": "PT6H",
        "flex-model": [{"sensor": account.power_sensor} | BATTERY],
        "flex-context": {"consumption-price": {"sensor": price_sensor}},
        "force-new-job-creation": True,
    }
    path = f"/api/v3_0/assets/{account.site}/schedules/trigger"
    return server.request("POST", path, body, server.token(account))


async def test_plans_the_battery_by_the_prices(flexmeasures_server: FlexMeasuresServer) -> None:
    ids = flexmeasures_server.ids
    client = FlexMeasuresClient(
        host=f"127.0.0.1:{flexmeasures_server.port}",
        email=flexmeasures_server.username,
        password=flexmeasures_server.password,
        job_polling_interval=0.2,
    )
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    try:
        schedule = await client.trigger_and_get_schedule(
            sensor_id=ids.power_sensor,
            start=now.isoformat(),
            duration="PT24H",
            flex_model=BATTERY,
            flex_context={"consumption-price": {"sensor": ids.price_sensor}},
            unit="kW",
        )
        prices = await client.get_sensor_data(
            sensor_id=ids.price_sensor,
            start=now.isoformat(),
            duration="PT24H",
            unit="EUR/kWh",
            resolution="PT15M",
        )
    finally:
        await client.close()

    assert datetime.fromisoformat(schedule["start"]) == now
    assert schedule["unit"] == "kW"
    assert len(schedule["values"]) == len(prices["values"]) == 96
    assert max(schedule["values"]) == 5
    assert min(schedule["values"]) == -5
    assert sum(power * price for power, price in zip(schedule["values"], prices["values"], strict=True)) < 0


def test_refuses_the_sensor_of_another_account(flexmeasures_server: FlexMeasuresServer) -> None:
    ids, foreign = flexmeasures_server.ids, flexmeasures_server.foreign

    status, reply = trigger(flexmeasures_server, ids, foreign.price_sensor)

    assert status == 403
    assert "a sensor you cannot read" in reply["message"]


def test_limits_the_rate_of_an_account_with_such_a_plan(flexmeasures_server: FlexMeasuresServer) -> None:
    limited = flexmeasures_server.limited

    statuses = [trigger(flexmeasures_server, limited, limited.price_sensor)[0] for _ in range(3)]

    assert statuses[-1] == 429
    assert set(statuses[:-1]) <= {202, 429}


def test_limits_no_other_account(flexmeasures_server: FlexMeasuresServer) -> None:
    ids = flexmeasures_server.ids

    statuses = [trigger(flexmeasures_server, ids, ids.price_sensor)[0] for _ in range(12)]

    assert set(statuses) == {202}


def test_answers_again_on_the_same_port_after_its_web_server_was_stopped(
    flexmeasures_server: FlexMeasuresServer,
) -> None:
    flexmeasures_server.stop_web()
    with pytest.raises(urllib.error.URLError, match="refused"):
        flexmeasures_server.request("GET", "/api/v3_0")

    flexmeasures_server.start_web()

    assert flexmeasures_server.request("GET", "/api/v3_0")[0] == 200


def test_keeps_its_data_over_a_restart(flexmeasures_server: FlexMeasuresServer) -> None:
    ids = flexmeasures_server.ids
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)

    flexmeasures_server.stop()
    flexmeasures_server.start()

    status, reply = flexmeasures_server.request(
        "GET",
        f"/api/v3_0/sensors/{ids.price_sensor}/data"
        f"?start={start:%Y-%m-%dT%H:%M:%SZ}&duration=PT4H&unit=EUR/kWh",
        token=flexmeasures_server.token(),
    )
    assert status == 200
    assert None not in reply["values"]
    assert len(reply["values"]) == 4
