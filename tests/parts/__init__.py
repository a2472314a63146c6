"""The real parts that the end-to-end tests and the demo put together, and what they run in."""
