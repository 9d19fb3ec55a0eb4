"""One side of the KV handoff, for any engine (docs/kv-handoff.md; DESIGN.md beside this file says how it is cut)."""
