"""Operation mode based control (OMBC): a device that is in one of several modes."""
