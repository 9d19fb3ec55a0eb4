"""Which CPUs and memory nodes each unit gets: planned from the topology, checked, explained."""
