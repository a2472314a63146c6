"""The Home Assistant side: fields of calls, schedules and failures as states, the app's life."""
