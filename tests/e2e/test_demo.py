"""`make demo` gets to the chart, says what it runs on, and stops at Ctrl-C."""

import asyncio
import re
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.usefixtures("socket_enabled")
async def test_the_demo_draws_the_schedule_and_stops_at_ctrl_c(source):
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
        demo.send_signal(signal.SIGINT)
        rest, _ = await asyncio.wait_for(demo.communicate(), 60)
    finally:
        if demo.returncode is None:
            demo.kill()
            await demo.wait()
    shown = re.sub(r"\x1b\[[0-9;]*m", "", shown + rest.decode())
    assert demo.returncode == 0
    assert source.description in " ".join(shown.split())
    for title in ("Price, EUR/kWh", "Power, kW", "State of charge, kWh"):
        assert title in shown
    assert "Missed targets: none." in shown
    assert "Everything is stopped." in shown
    assert max(map(len, shown.splitlines())) <= 100
