"""The clock of a sensor: where its intervals begin, in the sensor's own time zone.

The time zone matters for resolutions of 30 or 60 minutes where the offset from UTC is not whole hours.
"""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pyscript_compile
def ceil(moment: datetime, resolution: timedelta, timezone: str) -> datetime:
    """Return the first start of an interval that is not before the moment, in UTC."""
    start = floor(moment, resolution, timezone)
    return start if start == moment else start + resolution


@pyscript_compile
def floor(moment: datetime, resolution: timedelta, timezone: str) -> datetime:
    """Return the last start of an interval that is not after the moment, in UTC."""
    offset = moment.astimezone(ZoneInfo(timezone)).utcoffset() or timedelta(0)
    local = moment.astimezone(UTC) - EPOCH + offset
    return EPOCH + local // resolution * resolution - offset
