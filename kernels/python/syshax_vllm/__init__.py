"""The plugin that makes stock vLLM a unit of sysHAX: KV handoff through the pool (docs/kv-handoff.md, docs/vllm.md).

vLLM loads `SyshaxConnector` by the module path `syshax_vllm.connector`. Python 3.10 and later.
"""
