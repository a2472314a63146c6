"""Power envelope based control (PEBC): a device that stays within limits of power."""
