"""Metrics under vLLM's names, so that its dashboards, and Medley, read this engine as they read that one."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_LATENCY = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
)
_PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


class Metrics:
    """One registry per coordinator; every series carries ``model_name``."""

    def __init__(self, model_name: str) -> None:
        self.registry = CollectorRegistry()
        self._model = model_name
        label = ["model_name"]

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, label, registry=self.registry).labels(model_name)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, label, registry=self.registry).labels(model_name)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, label, registry=self.registry, buckets=buckets).labels(model_name)

        self.running = gauge("vllm:num_requests_running", "Requests being computed")
        self.waiting = gauge("vllm:num_requests_waiting", "Requests queued")
        self.kv_usage = gauge("vllm:kv_cache_usage_perc", "Share of KV blocks in use, 1 is all")
        self.sleep_state = Gauge(
            "vllm:engine_sleep_state",
            "1 for the state the engine is in",
            ["model_name", "sleep_state"],
            registry=self.registry,
        )
        for state, value in (("awake", 1), ("weights_offloaded", 0), ("discard_all", 0)):
            self.sleep_state.labels(model_name, state).set(value)
        self.preemptions = counter("vllm:num_preemptions", "Sequences that lost their KV blocks and start anew")
        self.prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens of accepted requests")
        self.generation_tokens = counter("vllm:generation_tokens", "Tokens generated")
        self.success = Counter(
            "vllm:request_success", "Finished requests", ["model_name", "finished_reason"], registry=self.registry
        )
        self.request_prompt_tokens = histogram("vllm:request_prompt_tokens", "Prompt tokens per request", _TOKENS)
        self.request_generation_tokens = histogram(
            "vllm:request_generation_tokens", "Tokens generated per request", _TOKENS
        )
        self.ttft = histogram("vllm:time_to_first_token_seconds", "Time to first token", _LATENCY)
        self.inter_token = histogram("vllm:inter_token_latency_seconds", "Time between tokens", _PER_TOKEN)
        self.per_output_token = histogram(
            "vllm:request_time_per_output_token_seconds", "Mean time per output token of a request", _PER_TOKEN
        )
        self.e2e = histogram("vllm:e2e_request_latency_seconds", "Whole time of a request", _LATENCY)
        self.queue_time = histogram(
            "vllm:request_queue_time_seconds", "Time until a rank was given the request", _LATENCY
        )
        self.cache_config = Gauge(
            "vllm:cache_config_info", "Facts of the KV cache", ["model_name", "block_size", "num_gpu_blocks"],
            registry=self.registry,
        )  # fmt: skip
        self.data_parallel = gauge("medley_engine:data_parallel_size", "Data-parallel groups in force")
        self.refused = Counter(
            "medley_engine:requests_refused", "Requests turned away", ["model_name", "reason"], registry=self.registry
        )
        self.operations = Counter(
            "medley_engine:scale_operations", "Scaling operations", ["model_name", "result"], registry=self.registry
        )
        self.phase_seconds = Histogram(
            "medley_engine:scale_phase_seconds", "Time in each phase of scaling operations", ["model_name", "phase"],
            registry=self.registry, buckets=_LATENCY,
        )  # fmt: skip

    def finished(self, reason: str) -> None:
        """Count a request's end."""
        self.success.labels(self._model, reason).inc()

    def refuse(self, reason: str) -> None:
        """Count a request that was turned away."""
        self.refused.labels(self._model, reason).inc()

    def operation(self, result: str, seconds: dict[str, float]) -> None:
        """Count a scaling operation's end and time its phases."""
        self.operations.labels(self._model, result).inc()
        for phase, value in seconds.items():
            self.phase_seconds.labels(self._model, phase).observe(value)

    def cache_info(self, block_tokens: int, blocks: int) -> None:
        """Say how large the KV cache is now."""
        self.cache_config.clear()
        self.cache_config.labels(self._model, str(block_tokens), str(blocks)).set(1)

    def render(self) -> bytes:
        """The text format."""
        return generate_latest(self.registry)
