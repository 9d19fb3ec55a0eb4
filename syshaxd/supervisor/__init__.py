"""Unit state machines, reconcile, health, CPU binding."""
