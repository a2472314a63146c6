"""The number of examples that a property is tried on: a share of them in every run, all with `--long`."""

from typing import Any

from hypothesis import settings

QUICK_SHARE = 5
"""Every run tries one in this many examples."""
is_long = False


def trials(examples: int, *, quick: int | None = None, **options: Any) -> settings:
    """Return a decorator for a property, with the number of examples of a long run, or of a quick one.

    A quick run always tries the same ones, so that its result depends on the code alone.
    """
    count = examples if is_long else quick or max(1, examples // QUICK_SHARE)
    return settings(max_examples=count, derandomize=not is_long, deadline=None, **options)
