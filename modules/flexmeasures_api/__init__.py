"""The FlexMeasures side: the calls we need on flexmeasures-client, and its errors by meaning.

Inside, power is in W, energy in Wh, consumption is positive and times are aware datetimes.
"""
