"""Operation modes and transitions, which FRBC, OMBC and DDBC have in common."""
