"""The control types that can be planned: a module each, all with the same public names."""

import flexmeasures_cem.ddbc as ddbc
import flexmeasures_cem.frbc as frbc
import flexmeasures_cem.ombc as ombc
import flexmeasures_cem.pebc as pebc
import flexmeasures_cem.ppbc as ppbc

MODULES = {each.CONTROL_TYPE: each for each in (frbc, ombc, ddbc, ppbc, pebc)}
"""The module of each control type."""
PLANNED_HERE = (ombc, ddbc, ppbc)
"""Those that FlexMeasures is never asked about, so that they are planned without a sensor too."""
BY_MODES = (frbc, ombc, ddbc)
"""Those whose devices stay in the operation mode that they were told, until they are told another."""
SENT_WHEN_PLANNED = (ppbc, pebc)
"""Those whose instructions are sent as soon as they are planned: a start, or an envelope over time."""
LEAST_FLEXIBLE_FIRST = [each.CONTROL_TYPE for each in (ppbc, ddbc, ombc, pebc, frbc)]
"""In which order choices are made here: each takes those before it as given."""
