"""Frozen values that the parts of the daemon exchange. No I/O, no clock, no logging."""
