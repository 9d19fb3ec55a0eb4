"""Whether a request is served at all: every refusal and the daemon's queue. Pure; time enters as an argument."""
