"""Python binding of the sysHAX native core: CPU kernels and the KV handoff pool (kernels/include/syshax)."""
