"""Markets for tests."""

from dataclasses import replace


def starting_at(market, begin) -> list:
    """Return the intervals from a moment on; the one it is in begins then."""
    return [replace(each, start=max(each.start, begin)) for each in market if each.end > begin]
