"""A unit that computes nothing: it speaks the contract of docs/kv-handoff.md and misbehaves on request.

The next token is a function of the context alone, so whatever continues a text anywhere can be checked for equality.
"""
