"""Call the services with random and malicious fields."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.torture.house import DEVICE, DEVICE_ENTITY, S2_TOKEN, House, percentile, unclear
from tests.torture.neighbour import talking
from tests.torture.report import Outcome

TITLE = "Calls"
WHAT = (
    "All services are called with random fields, also such as JSON cannot carry: texts of a megabyte, "
    "numbers without end, NaN, deep nesting. Each call must return, or fail with a "
    "ServiceValidationError or HomeAssistantError of a short line, within two minutes; in the end a "
    "plan, a value and an S2 device must go through, and nothing may have failed unexpectedly."
)
CALLED = "Called battery"
MAX_SECONDS = 120
AT_ONCE = 4
REQUIRED = ("soc_at_start", "sensor_id", "values", "start", "control_type", "resource_id", "operation_mode")
EXPECTED = ("ServiceValidationError", "HomeAssistantError")
NOW = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)


def nested(depth: int) -> list[Any]:
    """Return lists in lists."""
    outer: list[Any] = []
    for _ in range(depth):
        outer = [outer]
    return outer


NASTY: tuple[object, ...] = (
    None,
    True,
    0,
    -1,
    0.1,
    1e308,
    -1e308,
    10**400,
    2**63,
    float("nan"),
    float("inf"),
    "",
    " ",
    "nan",
    "inf",
    "1e999",
    "None",
    "x" * 1_000_000,
    "\x00\x1b[31m\r\n2026-01-01 00:00:00.000 ERROR (MainThread) [root] forged",
    "💥" * 1000,
    "{{ states('sensor.time') }}",
    "'; DROP TABLE runs; --",
    "P9999999999999999999Y",
    "-PT1H",
    "PT0S",
    "0001-01-01T00:00:00+00:00",
    "9999-12-31T23:59:59+00:00",
    "2026-02-30",
    "sensor.flexmeasures_status",
    "sensor." + "x" * 300,
    [],
    {},
    [None] * 10_001,
    [float("nan")] * 3,
    ["x" * 10_000] * 10,
    list(range(20_000)),
    {"value": 1},
    {"start": {"start": {"start": None}}},
    {"x" * 5000: 1},
    nested(200),
    [{"value": 5, "datetime": "tomorrow"}] * 500,
)


def plausible(choose: random.Random, sensors: Sequence[int]) -> dict[str, dict[str, Callable[[], object]]]:
    """Return functions that make valid fields, by service and field."""

    def moment() -> str:
        return (NOW + timedelta(hours=choose.randint(-48, 48))).isoformat()

    def wish() -> list[dict[str, object]]:
        return [{"value": choose.choice([5, "50 %", 1e9]), "datetime": moment()}]

    device = choose.choice([CALLED, CALLED, "nobody"])
    return {
        "trigger_and_get_schedule": {
            "soc_at_start": lambda: choose.choice([4, "4 kWh", "50 %"]),
            "soc_targets": wish,
            "soc_minima": wish,
            "soc_maxima": wish,
            "start": moment,
            "duration": lambda: choose.choice(["PT1H", "PT2H"]),
            "flex_model": lambda: {"prefer-charging-sooner": False},
            "flex_context": lambda: {"site-power-capacity": "10 kW"},
        },
        "post_measurements": {
            "sensor_id": lambda: choose.choice(sensors),
            "values": lambda: [1, None, 2],
            "entity_id": lambda: "sensor.flexmeasures_schedule",
            "start": moment,
            "duration": lambda: "PT1H",
            "unit": lambda: choose.choice(["kW", "EUR/kWh", "parsec"]),
            "prior": moment,
            "positive": lambda: "production",
        },
        "get_measurements": {
            "sensor_id": lambda: choose.choice(sensors),
            "start": moment,
            "duration": lambda: "PT4H",
            "unit": lambda: "kW",
            "resolution": lambda: "PT15M",
            "source": lambda: 1,
        },
        "change_control_type": {
            "control_type": lambda: choose.choice(["FRBC", "PEBC", "NO_SELECTION"]),
            "resource_id": lambda: device,
        },
        "send_frbc_instruction": {
            "resource_id": lambda: device,
            "actuator_id": lambda: "inverter",
            "operation_mode": lambda: "charge",
            "operation_mode_factor": lambda: choose.random(),
            "execution_time": moment,
            "abnormal_condition": lambda: False,
            "id": lambda: "2fbe2bc1-c7b8-4c24-8d0b-9b969f01700d",
            "message_id": lambda: "7da886c7-9f1b-4cbd-9b5e-ea0431196df5",
        },
        "call_cem_trigger_schedule": {"resource_id": lambda: device},
    }


def random_call(choose: random.Random, sensors: Sequence[int]) -> tuple[str, dict[str, object]]:
    """Return a service and its fields: some left out, some valid, up to two nasty."""
    services = plausible(choose, sensors)
    service = choose.choice(list(services))
    fields = services[service]
    call = {
        name: make() for name, make in fields.items() if choose.random() < (0.9 if name in REQUIRED else 0.3)
    }
    names = [*fields, "unknown", "x" * 300]
    for name in choose.sample(names, min(choose.choice([0, 0, 1, 1, 2]), len(names))):
        call[name] = choose.choice(NASTY)
    return service, call


async def run(house: House, number: int) -> list[Outcome]:
    """Make a number of calls, and return the outcome."""
    choose = random.Random(number)
    await house.plan()
    await house.device_planned()
    sensors = [await asyncio.to_thread(house.server.add_sensor, "kW", 15), 999_999]
    calls = iter([random_call(choose, sensors) for _ in range(number)])
    failures: list[str] = []
    seconds: list[tuple[float, str]] = []
    ends: Counter[str] = Counter()
    began = time.time()

    async def caller() -> None:
        for service, call in calls:
            answer = await called(house, service, call)
            seconds.append((answer["seconds"], service))
            failures.extend(faults_of(service, call, answer, house.secrets))
            kinds = answer.get("kinds", ["returned"])
            ends[next((kind for kind in EXPECTED if kind in kinds), kinds[0])] += 1

    async with (
        talking(house.home_assistant, CALLED, S2_TOKEN),
        talking(house.home_assistant, "Well-behaved", S2_TOKEN) as device,
    ):
        await asyncio.gather(*[caller() for _ in range(AT_ONCE)])
        lags, collection = house.lags(began, time.time()), house.longest_collection(began, time.time())
    failures += [f"the device was cut off: {error}" for error in device.record.errors]
    failures += await goes_on(house)
    failures += house.log_faults()
    counts = ", ".join(f"{count} {end}" for end, count in ends.most_common())
    (slowest, service), trips = max(seconds), device.record.round_trips
    happened = f"{counts}; then a plan, a value and the device went through"
    trip = f"p99 {percentile(trips, 99):.0f} ms, at most {max(trips, default=0):.0f} ms"
    figure = (
        f"{slowest:.1f} s at most ({service}); the loop's lag p99 {percentile(lags, 99):.1f} ms, at most "
        f"{max(lags, default=0):.0f} ms (Python's garbage collection {collection:.0f} ms); a device's round "
        f"trip {trip}"
    )
    return [Outcome(f"{number} random calls, {AT_ONCE} at once", happened, figure, failures)]


async def called(house: House, service: str, call: dict[str, object]) -> dict[str, Any]:
    """Call a service from inside Home Assistant, and return the result or the error."""
    data = {"domain": "flexmeasures", "service": service, "data": json.dumps(call)}
    try:
        async with asyncio.timeout(MAX_SECONDS):
            answer = await house.home_assistant.call("torture", "call", data, return_response=True)
    except TimeoutError:
        return {"seconds": MAX_SECONDS, "kinds": ["TimeoutError"], "text": "it did not return"}
    return answer


def faults_of(service: str, call: dict[str, object], answer: dict[str, Any], secrets: list[str]) -> list[str]:
    """Return the faults of the end of a call."""
    if "kinds" not in answer:
        return []
    shown = f"{service} {json.dumps(call)[:200]}"
    faults = unclear(answer["text"], secrets)
    if not any(kind in EXPECTED for kind in answer["kinds"]):
        faults.append(f"{answer['kinds'][0]}: {answer['text'][:200]}")
    return [f"{shown}: {fault}" for fault in faults]


async def goes_on(house: House) -> list[str]:
    """Return what no longer works."""
    home_assistant = house.home_assistant
    call = {"control_type": "FRBC", "resource_id": DEVICE}
    try:
        async with house.device() as device:
            await home_assistant.wait_for_state(DEVICE_ENTITY, lambda state: state["state"] != "disconnected")
            await home_assistant.call("flexmeasures", "change_control_type", call)
            await asyncio.wait_for(device.active.wait(), 10)
            await home_assistant.wait_for_state(
                DEVICE_ENTITY, lambda state: state["attributes"].get("has_schedule") is True, 60
            )
        await house.plan()
        response = await house.ledger.post(home_assistant)
    except Exception as error:
        return [f"it does not go on: {type(error).__name__} {error}"]
    return await house.ledger_faults() if response["delivered"] else ["a value was not delivered"]
