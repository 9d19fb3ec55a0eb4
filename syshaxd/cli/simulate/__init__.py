"""`syshax simulate`: the daemon's own decisions against a trace, on units that obey a step-time law."""
