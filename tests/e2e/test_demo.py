"""`make demo` draws the schedule, connects a meter over S2, says what it runs on, and stops at Ctrl-C."""

import asyncio
import re
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.usefixtures("socket_enabled")
async def test_the_demo_plans_and_measures_until_ctrl_c(source):
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
    for title in ("Price, EUR/kWh", "Power, kW", "State of charge, kWh", "Forecast of Kitchen meter"):
        assert title in shown
    assert "Missed targets: none." in shown
    words = " ".join(shown.split())
    assert "Kitchen meter is connected. Home Assistant selected NOT_CONTROLABLE." in words
    assert "sensor.flexmeasures_s2_kitchen_meter is NOT_CONTROLABLE." in words
    assert re.search(r"it got asset \d+ \(Kitchen meter\) with sensor \d+ \(power, kW\)", words)
    assert re.search(r"FlexMeasures has 9[56] values of the forecast", words)
    assert int(re.search(r"Kitchen meter measured (\d+) times; it disconnects", words)[1]) > 3
    assert words.endswith("Stopping Everything is stopped.")
    assert max(map(len, shown.splitlines())) <= 100
