"""`make test-vllm-breadth`: the connector between vLLM engines of other shapes. Not in CI."""
