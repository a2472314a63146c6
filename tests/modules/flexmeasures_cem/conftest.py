"""The same CEM as that of the S2 tests, and a site whose devices it plans."""

from tests.modules.flexmeasures_cem.site_parts import site  # noqa: F401
from tests.modules.flexmeasures_s2.conftest import cem, expected_lingering_timers, serve  # noqa: F401
