"""The FlexMeasures server: the calls that are needed on flexmeasures-client, and its errors by meaning.

Power is in W, energy in Wh, consumption is positive and times are aware datetimes, unless a name says
otherwise.
"""
