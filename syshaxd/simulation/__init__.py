"""The daemon's own decisions played against a trace, on units that obey a step-time law: `syshax simulate`, bench/."""
