"""A few cases of each torture, on one home: `make torture` runs all of them."""

import pytest

from tests.torture import attacks, calls, files, kills, load, proxy
from tests.torture.house import House

pytestmark = pytest.mark.usefixtures("socket_enabled")


@pytest.mark.xdist_group("torture")
async def test_a_few_cases_of_each_torture_break_nothing(flexmeasures_server, source):
    async with House(flexmeasures_server, source) as house:
        outcomes = await kills.run(house, 2)
        outcomes += await files.run(house, short=True)
        outcomes += await proxy.run(house, short=True)
        outcomes += await attacks.run(house, short=True)
        outcomes += await calls.run(house, 25)
        outcomes += await load.load(house, 10, 3)
        outcomes += await load.reload(house, 10, reloads=1)
    assert [failure for outcome in outcomes for failure in outcome.failures] == []
