"""What the daemon and its units agree on, each fact once. Imports the standard library only, and nothing of either."""
