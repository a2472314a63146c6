"""The same CEM as that of the S2 tests."""

from tests.modules.flexmeasures_s2.conftest import cem, expected_lingering_timers, serve  # noqa: F401
