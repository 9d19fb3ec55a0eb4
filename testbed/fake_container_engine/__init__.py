"""A container engine that runs containers as plain child processes and misbehaves on demand."""
