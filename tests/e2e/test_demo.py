"""`make demo` draws the schedule, connects S2 devices that are planned, and stops at Ctrl-C."""

import asyncio
import re
import signal
import sys
from pathlib import Path

import pytest

from tests.parts.s2_catalogue import DEVICES

ROOT = Path(__file__).parents[2]


NOW = r"(does nothing|is at work) now( until \w{3} \d\d:\d\d)?"
AT = r"\w{3} \d\d:\d\d:\d\d"


async def shown_by_the_demo(*choice: str) -> str:
    """Run the demo until it is complete and a little longer, stop it with Ctrl-C, and return its output."""
    demo = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.demo",
        *choice,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    shown = ""
    try:
        async with asyncio.timeout(180):
            while "Press Ctrl-C" not in shown:
                line = (await demo.stdout.readline()).decode()
                assert line, shown
                shown += line
        await asyncio.sleep(3)
        demo.send_signal(signal.SIGINT)
        rest, _ = await asyncio.wait_for(demo.communicate(), 60)
    finally:
        if demo.returncode is None:
            demo.kill()
            await demo.wait()
    shown = re.sub(r"\x1b\[[0-9;]*m", "", shown + rest.decode())
    assert demo.returncode == 0, shown
    assert shown.split()[-4:] == ["Stopping", "Everything", "is", "stopped."]
    return shown


@pytest.mark.usefixtures("socket_enabled")
async def test_the_demo_plans_measures_and_instructs_until_ctrl_c(source):
    shown = await shown_by_the_demo()
    assert source.description in " ".join(shown.split())
    for title in (
        "Price, EUR/kWh",
        "Power, kW",
        "State of charge, kWh",
        "Forecast of Kitchen meter",
        "Home battery: planned power, kW",
        "Electric vehicle: planned power, kW",
    ):
        assert title in shown
    assert "Missed targets: none." in shown
    words = " ".join(shown.split())
    assert "Kitchen meter is connected. Home Assistant selected NOT_CONTROLABLE." in words
    assert "sensor.flexmeasures_s2_kitchen_meter is NOT_CONTROLABLE." in words
    assert re.search(r"it got asset \d+ \(Kitchen meter\) with sensor \d+ \(power, kW\)", words)
    assert re.search(r"FlexMeasures has 9[56] values of the forecast", words)
    assert int(re.search(r"Kitchen meter measured (\d+) times; it disconnects", words)[1]) > 3
    for name, mode in (("Home battery", "(?:dis)?charge|idle"), ("Electric vehicle", "charge|off")):
        assert f"{name} is connected. Home Assistant selected FILL_RATE_BASED_CONTROL." in words
        assert re.search(rf"\d\d:\d\d:\d\d {name}: \d+ instructions came", words)
        assert re.search(rf"{name}: \d+ of \d+ instructions", words)
        assert re.search(
            rf"By its plan {name} {NOW}: (to )?({mode}), (factor \d\.\d\d, )?-?\d+ W, level \d+\.\d\d %",
            words,
        )
        entity = f"sensor.flexmeasures_s2_{name.lower().replace(' ', '_')}"
        assert re.search(
            rf"{entity} is FILL_RATE_BASED_CONTROL\. Instruction in force: .*? Next instruction: ({mode}), "
            rf"factor \d\.\d\d, -?\d+ W, from {AT} Planned until \w{{3}} \d\d:\d\d, "
            r"missed targets: ",
            words,
        )
        did = re.search(
            rf"{name} received (\d+) instructions \(\d+ revoked since\), rejected 0; at last: ", words
        )
        assert int(did[1]) > 0
    assert re.search(r"│ \w{3} \d\d:\d\d:\d\d │ charge +│ +[01]\.\d\d │ +\d+ W │", shown)
    assert max(map(len, shown.splitlines())) <= 100


@pytest.mark.long
@pytest.mark.usefixtures("socket_enabled")
async def test_the_demo_shows_devices_of_each_control_type(source):
    shown = await shown_by_the_demo("pv, heat-pump washing-machine", "hybrid-heat-pump")
    words = " ".join(shown.split())
    assert "Kitchen meter" not in words
    assert "Home battery" not in words
    for name, control_type, row in (
        ("Solar panels", "POWER_ENVELOPE_BASED_CONTROL", r"-?\d+ W +│ +-?\d+ W │ +-?\d+ W"),
        ("Heat pump", "OPERATION_MODE_BASED_CONTROL", r"(on|off) +│ +(\d+ W)?"),
        ("Washing machine", "POWER_PROFILE_BASED_CONTROL", r"laundry: (eco|quick) │ start +│ +\d+ W"),
        ("Hybrid heat pump", "DEMAND_DRIVEN_BASED_CONTROL", r"heat pump +│ (on|off) +│ +\d\.\d\d │ +\d+ W"),
    ):
        assert f"{name} is connected. Home Assistant selected {control_type}." in words
        title = rf"{name}: \d+ of \d+ (instructions|limits)"
        assert re.search(rf"{title}(?:(?!\d of \d).)*│ +{AT} │ +{row} │", shown, re.DOTALL), name
        assert re.search(rf"By its plan {name} {NOW}: .*?\d+ W", words)
        entity = f"sensor.flexmeasures_s2_{name.lower().replace(' ', '_')}"
        assert re.search(rf"{entity} is {control_type}\. Instruction in force: .*? Next instruction: ", words)
        assert re.search(rf"{name} received [1-9]\d* instructions \(\d+ revoked since\), rejected 0;", words)
    for name in ("Heat pump", "Washing machine", "Hybrid heat pump"):
        assert f"{name}: planned power, kW" in shown
    assert re.search(r"it is done at \w{3} \d\d:\d\d, in time for \w{3} 07:00", words)
    assert max(map(len, shown.splitlines())) <= 100


@pytest.mark.parametrize(
    ("choice", "status", "begins"),
    [("pv, toaster", 2, "DEVICES: there is no toaster; choose of\n"), ("list", 0, "")],
)
async def test_the_demo_says_which_devices_there_are_and_starts_nothing(choice, status, begins):
    demo = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.demo",
        choice,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    shown = (await demo.communicate())[0].decode()
    assert demo.returncode == status
    lines = [f"  {name:<18}{entry.what}\n" for name, entry in DEVICES.items()]
    assert shown == begins + "".join(lines) + "  all               all of these\n"
