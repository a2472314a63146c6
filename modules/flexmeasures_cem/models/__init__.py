"""What a device can do under each control type, as a part of the site model, and a solution as its Plan."""
