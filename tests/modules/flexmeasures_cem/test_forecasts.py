"""What a Resource Manager forecasts of its own power."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import flexmeasures_cem.forecasts as forecasts
import flexmeasures_s2.messages as messages
from tests.modules.flexmeasures_cem.pebc_cases import ALL, HOUR, L1, L2, NOW, forecast
from tests.parts.s2_messages import example
from tests.parts.trials import trials


def parse(message):
    """Read a message."""
    return messages.parse(json.dumps(message))


def of(duration, **powers) -> dict:
    """Return an element of powers by their quantities."""
    names = {"all": ALL, "l1": L1, "l2": L2, "heat": "HEAT.THERMAL_POWER"}
    values = [{"value_expected": power, "commodity_quantity": names[name]} for name, power in powers.items()]
    return {"duration": duration, "power_values": values}


def test_takes_the_official_example():
    message = parse(example("PowerForecast"))
    assert forecasts.pieces(message) == [
        (NOW, NOW + 900, 2500),
        (NOW + 900, NOW + 2700, 1200),
        (NOW + 2700, NOW + 9900, 0),
    ]


def test_means_the_power_over_a_time():
    message = parse(forecast([-1000, -3000]))
    assert forecasts.power(message, NOW, NOW + 2 * HOUR) == -2000
    assert forecasts.power(message, NOW + HOUR / 2, NOW + 1.25 * HOUR) == pytest.approx(-5000 / 3)


def test_expects_nothing_where_it_says_nothing():
    message = parse(forecast([-1000, -3000]))
    assert forecasts.power(message, NOW - HOUR, NOW) == 0
    assert forecasts.power(message, NOW - HOUR, NOW + HOUR) == -500
    assert forecasts.power(message, NOW + 2 * HOUR, NOW + 3 * HOUR) == 0
    assert forecasts.power(message, NOW, NOW) == 0


def test_adds_the_phases_but_takes_all_of_them_where_that_is_told():
    elements = [of(1000, l1=100, l2=200), of(1000, l1=100, all=450, l2=100), of(1000, heat=5000), of(0, l1=7)]
    found = forecasts.pieces(parse(example("PowerForecast", elements=elements)))
    assert found == [(NOW, NOW + 1, 300), (NOW + 1, NOW + 2, 450)]


def test_takes_no_absurd_power_and_no_endless_element():
    elements = [of(1000, l1=1e15), of(10**18, l1=-50)]
    [(start, end, power)] = forecasts.pieces(parse(example("PowerForecast", elements=elements)))
    assert (start, power) == (NOW + 1, -50)
    assert end - start == forecasts.MAX_SECONDS


@trials(100, quick=100)
@given(
    st.lists(st.tuples(st.integers(0, 5000), st.integers(-9000, 9000)), min_size=1, max_size=8),
    st.integers(-3000, 20_000),
    st.integers(1, 20_000),
)
def test_is_the_mean_of_each_second(elements, start, length):
    made = example("PowerForecast", elements=[of(seconds * 1000, l1=power) for seconds, power in elements])
    line = [power for seconds, power in elements for _ in range(seconds)]
    inside = [line[each] for each in range(start, start + length) if 0 <= each < len(line)]
    found = forecasts.power(messages.parse(json.dumps(made)), NOW + start, NOW + start + length)
    assert found == pytest.approx(sum(inside) / length, abs=1e-3)
