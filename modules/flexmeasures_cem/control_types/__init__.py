"""The control types of S2: what each needs, how its devices are planned, instructed and watched."""
