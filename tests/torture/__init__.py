"""What a home does to the scripts at its worst, done on purpose: `make torture` runs it.

Each scenario has an invariant that can fail, and figures. All of it is real (Home Assistant as a process with
pyscript, FlexMeasures with its database, S2 over websockets), and on the loopback address.
"""
