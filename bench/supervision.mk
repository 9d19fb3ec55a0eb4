# Time to READY over adopted containers, and what supervising four idle units costs. Needs root, podman and docker.
bench-supervision: $(TEST_STAMP) native  ## READY with adopted containers, cost of four idle units, on both engines
	$(PY) -m bench.supervision
.PHONY: bench-supervision
