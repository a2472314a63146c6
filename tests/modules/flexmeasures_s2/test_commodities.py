"""Powers by their commodity quantity."""

import pytest

import flexmeasures_s2.commodities as commodities

L1, L2, L3 = (f"ELECTRIC.POWER.L{phase}" for phase in (1, 2, 3))
ALL = "ELECTRIC.POWER.3_PHASE_SYMMETRIC"


@pytest.mark.parametrize(
    ("powers", "electric"),
    [
        ({L1: 1000.0}, 1000.0),
        ({L1: 1000.0, L2: -200.0, L3: 50.0}, 850.0),
        ({ALL: 9000.0}, 9000.0),
        ({ALL: 9000.0, L1: 3000.0}, 9000.0),
        ({L1: 1000.0, "NATURAL_GAS.FLOW_RATE": 2.0}, 1000.0),
        ({"HEAT.THERMAL_POWER": 500.0}, None),
    ],
)
def test_the_electric_power_is_that_of_all_phases(powers, electric):
    assert commodities.electric(powers) == electric


@pytest.mark.parametrize(
    ("quantity", "commodity"),
    [(L1, "ELECTRICITY"), (ALL, "ELECTRICITY"), ("NATURAL_GAS.FLOW_RATE", "GAS"), ("HEAT.FLOW_RATE", "HEAT")],
)
def test_a_quantity_is_of_a_commodity(quantity, commodity):
    assert commodities.commodity_of(quantity) == commodity
