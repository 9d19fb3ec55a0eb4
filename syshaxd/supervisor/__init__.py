"""Keeps every unit as the configuration wants it: starts, probes, restarts, replaces, stops."""
