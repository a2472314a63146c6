"""The control types that can be planned."""

import flexmeasures_cem.control_types.base as base
import flexmeasures_cem.control_types.ddbc.control_type as ddbc
import flexmeasures_cem.control_types.frbc.control_type as frbc
import flexmeasures_cem.control_types.ombc.control_type as ombc
import flexmeasures_cem.control_types.pebc.control_type as pebc
import flexmeasures_cem.control_types.ppbc.control_type as ppbc

FRBC, OMBC, DDBC, PPBC, PEBC = frbc.FRBC, ombc.OMBC, ddbc.DDBC, ppbc.PPBC, pebc.PEBC
ALL: tuple[base.ControlType, ...] = (FRBC, OMBC, DDBC, PPBC, PEBC)
BY_NAME = {control_type.name: control_type for control_type in ALL}
"""The control types by their names in S2."""
