"""The server says how often it may be asked."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace

import flexmeasures_api.connection as connection
import flexmeasures_api.rate_limit as rate_limits
from flexmeasures_api.rate_limit import RateLimit


def test_a_server_says_how_long_to_wait_in_seconds_or_by_a_date():
    assert rate_limits.retry_after({"Retry-After": "90"}) == 90
    soon = datetime.now(UTC) + timedelta(seconds=60)
    assert 58 <= rate_limits.retry_after({"Retry-After": format_datetime(soon, usegmt=True)}) <= 60
    assert rate_limits.retry_after({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert rate_limits.retry_after({"Retry-After": "soon"}) is None
    assert rate_limits.retry_after({"Retry-After": "²"}) is None
    assert rate_limits.retry_after({"Retry-After": "0090"}) == 90
    assert rate_limits.retry_after({"Retry-After": "9" * 5000}) == 86_400
    assert rate_limits.retry_after({"Retry-After": "Wed, 21 Oct 9999 07:28:00 GMT"}) == 86_400
    assert rate_limits.retry_after({}) is None


def answer(path="/api/v3_0/assets/1/schedules/trigger", **headers):
    """Return an answer of FlexMeasures' with headers."""
    named = {k.replace("_", "-"): v for k, v in headers.items()} | {"Content-Type": "application/json"}
    url = SimpleNamespace(path=path)

    async def json():
        return {"job": "7", "status": "PROCESSED"}

    return SimpleNamespace(status=202, method="POST", url=url, headers=named, json=json)


async def test_the_answer_to_a_trigger_tells_how_many_more_are_taken():
    limit, before = RateLimit(), datetime.now(UTC)
    server = before + timedelta(hours=1)
    told = {"X_RateLimit_Limit": "60", "X_RateLimit_Remaining": "59"}
    reset = {"X_RateLimit_Reset": str(int(server.timestamp()) + 200), "Date": format_datetime(server, True)}
    await connection.check_response(limit, answer("/api/v3_0/sensors/1/data", **told, **reset))
    assert limit.limit is None
    await connection.check_response(limit, answer(**told))
    assert limit.limit is None
    await connection.check_response(limit, answer(**told, **reset))
    assert (limit.limit, limit.remaining, limit.reset_seconds) == (60, 59, 200)
    assert before.timestamp() + 199 < limit.resets_at < before.timestamp() + 210
    await connection.check_response(limit, answer())
    assert limit.limit == 60
    await connection.check_response(limit, answer(**told, X_RateLimit_Reset="9" * 5000))
    assert limit.reset_seconds == 86_400
