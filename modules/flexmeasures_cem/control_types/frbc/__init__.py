"""Fill rate based control (FRBC): a storage, and actuators that fill and empty it."""
