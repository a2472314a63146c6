"""The site model: one mixed-integer linear program over all devices of a site, solved by HiGHS.

It knows nothing of S2, FlexMeasures or Home Assistant. Moments are seconds since 1970. Within a program
powers are kW, energies kWh, times hours and prices currency per kWh, so that its numbers are of one order;
power is positive where it is consumed.
"""
