"""`syshax doctor`: what on this host keeps the configured units from running, and what to do about it."""
