"""A bit of the torture in each run, and a few cases of each part in the longer one: see `make torture`."""

import asyncio
import math
from itertools import chain

import pytest

from tests.torture import attacks, brief, calls, files, kills, load, proxy
from tests.torture.house import House

pytestmark = [pytest.mark.usefixtures("socket_enabled"), pytest.mark.xdist_group("torture")]


async def test_a_kill_faults_of_the_network_a_damaged_file_and_an_attack_break_nothing(
    flexmeasures_server, source
):
    async with House(flexmeasures_server, source) as house:
        outcomes = await brief.run(house)
    assert [failure for outcome in outcomes for failure in outcome.failures] == []


@pytest.mark.long
async def test_a_few_cases_of_each_torture_break_nothing(flexmeasures_server, source):
    async with House(flexmeasures_server, source) as house:
        outcomes = await kills.run(house, 2)
        beside = asyncio.gather(proxy.run(house, short=True), attacks.run(house, attacks.SHORT))
        outcomes += chain.from_iterable(await beside)
        beside = asyncio.gather(calls.run(house, 15), load.load(house, 10, 2, math.inf))
        outcomes += chain.from_iterable(await beside)
        outcomes += await load.reload(house, 10, reloads=1, apart=5)
        outcomes += await files.run(house, short=True)
    assert [failure for outcome in outcomes for failure in outcome.failures] == []
