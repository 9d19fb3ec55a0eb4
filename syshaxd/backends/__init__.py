"""How a unit is run: as a child process, in a container, or by somebody else."""
