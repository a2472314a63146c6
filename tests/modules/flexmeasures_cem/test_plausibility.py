"""Which readings of a storage are believed: at once, after a minute, or not at all."""

import pytest

from flexmeasures_cem.plausibility import BelievedLevel, change_is_explainable

PERCENT_PER_SECOND = 100 / 3600
"""A battery that fills in an hour."""


@pytest.fixture
def level() -> BelievedLevel:
    """Return the level (%) of a battery that fills or empties in an hour, told to be 55 at 0 s."""
    level = BelievedLevel(5.0, PERCENT_PER_SECOND, PERCENT_PER_SECOND)
    assert level.update(55.0, 0.0)
    return level


@pytest.mark.parametrize(
    ("change", "seconds", "is_explainable"),
    [(15, 10, True), (15.1, 10, False), (-25, 10, True), (-25.1, 10, False), (5, -10, True), (6, -10, False)],
)
def test_a_change_is_explained_by_time_at_the_greatest_rate_and_the_tolerance(
    change, seconds, is_explainable
):
    explained = change_is_explainable(change, seconds, tolerance=5, greatest_rise=1, greatest_fall=2)
    assert explained is is_explainable


def test_the_first_reading_is_believed():
    level = BelievedLevel(5.0, PERCENT_PER_SECOND, PERCENT_PER_SECOND)
    assert (level.value, level.is_suspect, level.believed_from) == (None, False, None)
    assert level.update(0.0, 0.0)
    assert (level.value, level.is_suspect) == (0.0, False)


def test_without_bounds_every_reading_is_believed():
    level = BelievedLevel()
    assert level.update(55.0, 0.0)
    assert level.update(0.0, 0.0)
    assert level.value == 0.0


def test_one_odd_reading_is_not_believed(level):
    assert not level.update(0.0, 10.0)
    assert (level.value, level.is_suspect, level.believed_from) == (55.0, True, 70.0)
    assert level.update(55.0, 20.0)
    assert (level.value, level.is_suspect, level.believed_from) == (55.0, False, None)
    assert not level.settle(1000.0)
    assert level.value == 55.0


def test_what_lasts_for_a_minute_is_believed_without_another_reading(level):
    level.update(0.0, 10.0)
    assert not level.settle(69.0)
    assert level.settle(70.0)
    assert (level.value, level.is_suspect) == (0.0, False)
    assert level.update(0.5, 71.0)


def test_what_is_still_told_a_minute_later_is_believed(level):
    assert [level.update(0.0, moment) for moment in (10.0, 30.0, 69.0, 70.0)] == [False, False, False, True]
    assert level.value == 0.0


def test_what_moves_on_from_the_suspect_reading_as_it_can_is_believed_too(level):
    level.update(10.0, 10.0)
    assert not level.update(11.0, 46.0)
    assert level.update(12.0, 82.0)
    assert level.value == 12.0


def test_another_suspect_reading_has_to_last_for_a_minute_itself(level):
    level.update(0.0, 10.0)
    level.update(90.0, 60.0)
    assert level.believed_from == 120.0
    assert not level.settle(70.0)
    assert level.settle(120.0)
    assert level.value == 90.0


def test_readings_that_never_agree_are_not_doubted_for_ever(level):
    believed = [level.update(100.0 if number % 2 else 0.0, 10.0 * number) for number in range(1, 40)]
    assert believed.index(True) == 30


def test_a_fast_fall_that_nothing_describes_is_believed_in_the_end(level):
    for minute in range(1, 6):
        level.update(55.0 - 10 * minute, 60.0 * minute)
    assert level.settle(360.0)
    assert level.value == 5.0


def test_a_device_that_was_silent_may_have_changed_as_far_as_its_power_goes(level):
    assert level.update(90.0, 1800.0)


def test_after_forget_the_next_reading_is_believed(level):
    level.update(0.0, 10.0)
    level.forget()
    assert (level.value, level.is_suspect) == (None, False)
    assert level.update(0.3, 11.0)


def test_a_clock_that_is_set_back_keeps_nothing_from_being_believed(level):
    level.update(55.0, 100_000.0)
    level.update(0.0, 100_010.0)
    assert not level.update(0.0, 1000.0)
    assert level.believed_from <= 1060.0
    assert level.settle(1060.0)
