"""Functional units of the machine."""
