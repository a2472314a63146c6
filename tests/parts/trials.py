"""How many examples a property is tried on: a share of them in every run, all with `--long`."""

from collections.abc import Callable

from hypothesis import settings

QUICK_SHARE = 5
"""Which part of the examples every run tries: one in so many."""
is_long = False


def trials(examples: int, *, quick: int | None = None, **options: object) -> Callable:
    """Return a decorator for a property: the examples that a long run tries, or a quick one.

    A quick run tries the same ones each time, so that its result depends on the code alone.
    """
    tried = examples if is_long else quick or max(1, examples // QUICK_SHARE)
    return settings(max_examples=tried, derandomize=not is_long, deadline=None, **options)
