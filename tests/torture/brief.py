"""Some of every scenario on one home, in a fraction of a minute, for every run of the tests."""

import asyncio

from tests.parts import misbehaving_proxy
from tests.torture import attacks, files, kills, proxy
from tests.torture.house import House, posting
from tests.torture.report import Outcome

ACCEPTED_BEFORE_THE_KILL = 3
FAULTS = ("reset in mid-reply", "200 with `[]`")
ATTACKS = ("impostors", "namesakes")
DAMAGED = files.Case({"measurements": "cut in half"})
WITHIN_SECONDS = 120
"""The time limit of every step, on a machine that is busy with other tests."""


async def run(house: House) -> list[Outcome]:
    """Try faults of the network, and attacks; then kill while the server is away, and damage a file."""
    await house.plan(duration="PT1H")
    first, second = [fault for fault in misbehaving_proxy.FAULTS if fault.name in FAULTS]
    outcomes = [await proxy.one(house, first, lasting=0)]
    last, attacked = await asyncio.gather(proxy.one(house, second, lasting=0), attacks.run(house, ATTACKS))
    return [*outcomes, last, *attacked, await killed(house)]


async def killed(house: House) -> Outcome:
    """Kill Home Assistant while values wait and a device talks, and damage a file before it starts again."""
    home_assistant, failures = house.home_assistant, []
    accepted_before = len(house.ledger.accepted)
    await home_assistant.wait_for_s2()
    await house.proxy.begin(files.REFUSED)
    async with asyncio.timeout(WITHIN_SECONDS), house.device() as device, posting(house, kills.WRITERS):
        await device.active.wait()
        while len(house.ledger.accepted) < accepted_before + ACCEPTED_BEFORE_THE_KILL:
            await asyncio.sleep(0.05)
        failures += house.log_faults()
        home_assistant.kill()
    for name, way in DAMAGED.ways.items():
        await asyncio.to_thread(files.DAMAGES[way], house.storage / f"{files.PREFIX}{name}")
    await home_assistant.start()
    failures += await files.reporting_faults_in_time(house, DAMAGED, WITHIN_SECONDS)
    waited = (await house.status())["attributes"]["outbox"]
    if waited < (accepted := len(house.ledger.accepted) - accepted_before):
        failures.append(f"{waited} values wait, but {accepted} were accepted")
    await house.proxy.end()
    try:
        await house.device_instructed(WITHIN_SECONDS)
        await house.until_none_waits(WITHIN_SECONDS)
    except (TimeoutError, OSError) as error:
        failures.append(f"after the kill: {error}")
    failures += await house.ledger_faults_in_the_end() + house.log_faults()
    happened = f"{waited} values waited over a kill, and are on the server once; the device was told its plan"
    return Outcome(f"a kill without the server, and {DAMAGED}", happened, "", failures)
