"""The OpenAI server in front of the engine."""
