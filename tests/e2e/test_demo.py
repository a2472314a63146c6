"""`make demo` draws the schedule, connects S2 devices that are planned, and stops at Ctrl-C."""

import asyncio
import re
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.usefixtures("socket_enabled")
async def test_the_demo_plans_measures_and_instructs_until_ctrl_c(source):
    demo = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.demo",
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
    assert demo.returncode == 0
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
            rf"By its plan {name} (does nothing|is at work) now( until \w{{3}} \d\d:\d\d)?: ({mode}), factor",
            words,
        )
        entity = f"sensor.flexmeasures_s2_{name.lower().replace(' ', '_')}"
        assert re.search(
            rf"{entity} is FILL_RATE_BASED_CONTROL\. Instruction in force: .*? Next instruction: ({mode}), "
            r"factor \d\.\d\d, -?\d+ W, from \w{3} \d\d:\d\d:\d\d Planned until \w{3} \d\d:\d\d, "
            r"missed targets: ",
            words,
        )
        did = re.search(
            rf"{name} received (\d+) instructions \(\d+ revoked since\), rejected 0; its level is \d+", words
        )
        assert int(did[1]) > 0
    assert re.search(r"│ \w{3} \d\d:\d\d:\d\d │ charge +│ +[01]\.\d\d │ +\d+ W │", shown)
    assert words.endswith("Stopping Everything is stopped.")
    assert max(map(len, shown.splitlines())) <= 100
