"""Demand driven based control (DDBC): actuators whose supply meets a demand."""
