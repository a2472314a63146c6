"""Power profile based control (PPBC): programmes of which each part may start within some time."""
