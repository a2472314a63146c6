"""Pauses between tries that fail: each is twice as long as the one before, up to a maximum."""

from dataclasses import dataclass, field


@dataclass
class _Backoff:
    """The pause before the next try, `seconds`, from `first_seconds` to `max_seconds`."""

    first_seconds: float
    max_seconds: float
    seconds: float = field(init=False)

    @pyscript_compile
    def __post_init__(self) -> None:
        self.reset()

    @pyscript_compile
    def reset(self) -> None:
        """Begin again with the first pause."""
        self.seconds = self.first_seconds

    @pyscript_compile
    def grow(self) -> None:
        """Double the pause, up to the maximum."""
        self.seconds = min(2 * self.seconds, self.max_seconds)


Backoff = _Backoff
