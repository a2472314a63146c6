"""The control types that can be planned: a module each, all with the same public names."""

import flexmeasures_cem.ddbc as ddbc
import flexmeasures_cem.frbc as frbc
import flexmeasures_cem.models.ddbc as ddbc_model
import flexmeasures_cem.models.frbc as frbc_model
import flexmeasures_cem.models.ombc as ombc_model
import flexmeasures_cem.models.pebc as pebc_model
import flexmeasures_cem.models.ppbc as ppbc_model
import flexmeasures_cem.ombc as ombc
import flexmeasures_cem.pebc as pebc
import flexmeasures_cem.ppbc as ppbc

MODELS = {
    frbc.CONTROL_TYPE: frbc_model,
    ombc.CONTROL_TYPE: ombc_model,
    ddbc.CONTROL_TYPE: ddbc_model,
    ppbc.CONTROL_TYPE: ppbc_model,
    pebc.CONTROL_TYPE: pebc_model,
}
"""What of each control type is part of the site model."""
MODULES = {each.CONTROL_TYPE: each for each in (frbc, ombc, ddbc, ppbc, pebc)}
"""The module of each control type."""
PLANNED_HERE = (ombc, ddbc, ppbc)
"""Those that FlexMeasures is never asked about."""
WITH_COMMODITIES = (ombc, ddbc)
"""Those whose devices may take other commodities than electricity, which are paid by their tariffs."""
BY_MODES = (frbc, ombc, ddbc)
"""Those whose devices stay in the operation mode that they were told, until they are told another."""
SENT_WHEN_PLANNED = (ppbc, pebc)
"""Those whose instructions are sent as soon as they are planned: a start, or an envelope over time."""
LEAST_FLEXIBLE_FIRST = [each.CONTROL_TYPE for each in (ppbc, ddbc, ombc, pebc, frbc)]
"""In which order choices are made here: each takes those before it as given."""
