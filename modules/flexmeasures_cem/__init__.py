"""The Customer Energy Manager: which Resource Managers there are, and how each is controlled."""
