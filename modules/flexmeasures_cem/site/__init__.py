"""When the devices of a site are planned, with what, and what of it is put in force and sent."""
