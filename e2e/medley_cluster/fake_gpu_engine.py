"""A fake inference engine that answers for every simulated pod: one server, told apart by the address that was called.

Simulated pods have no process. Their addresses are routed to one network namespace where this server listens on all of
them, with vLLM's paths and metric names, so that an operator can probe, scrape and drain them as it does real engines.
What the metrics say is set per pod through the control port: a test can hold a drain open.
Run as `python -m medley_cluster.fake_gpu_engine --ports 8000 --control 127.0.0.1:9000`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

MODEL = "simulated"
LARGEST_BODY_BYTES = 4 * 1024 * 1024


@dataclass
class PodState:
    """What one simulated pod says about itself."""

    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0
    healthy: bool = True
    served: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    model: str = MODEL
    in_flight: int = field(default=0, compare=False)


class FakeEngine:
    """The state of all simulated pods, and the answers to requests."""

    def __init__(self) -> None:
        self.pods: dict[str, PodState] = {}

    def pod(self, address: str) -> PodState:
        """The state of the pod with this address."""
        return self.pods.setdefault(address, PodState())

    def answer(self, address: str, method: str, path: str, body: bytes) -> tuple[int, str, bytes]:
        """Status, content type and body for a request to a pod."""
        pod = self.pod(address)
        if path == "/metrics":
            return 200, "text/plain; version=0.0.4", self.metrics(pod).encode()
        if path in ("/health", "/health/ready", "/ping", "/version"):
            content = b'{"version":"fake"}' if path == "/version" else b""
            return (200 if pod.healthy else 503), "application/json", content
        if path == "/v1/models":
            model = {"id": pod.model, "object": "model", "created": 0, "owned_by": "medley-fake-engine"}
            return _json(200, {"object": "list", "data": [model]})
        if path in ("/v1/completions", "/v1/chat/completions") and method == "POST":
            return self._complete(pod, path, body)
        return _json(404, {"error": {"message": f"the fake engine has no {method} {path}", "code": 404}})

    def _complete(self, pod: PodState, path: str, body: bytes) -> tuple[int, str, bytes]:
        try:
            request: Any = json.loads(body or b"{}")
        except json.JSONDecodeError as error:
            return _json(400, {"error": {"message": f"not JSON: {error}", "code": 400}})
        if not pod.healthy:
            return _json(503, {"error": {"message": "unhealthy", "code": 503}})
        pod.served += 1
        pod.prompt_tokens += 1
        pod.generation_tokens += 1
        chat = path.endswith("/chat/completions")
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        choice |= {"message": {"role": "assistant", "content": "ok"}} if chat else {"text": "ok"}
        answer = {
            "id": f"fake-{pod.served}",
            "object": "chat.completion" if chat else "text_completion",
            "created": int(time.time()),
            "model": request.get("model", pod.model) if isinstance(request, dict) else pod.model,
            "choices": [choice],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }
        if isinstance(request, dict) and request.get("stream"):
            if chat:
                choice["delta"] = choice.pop("message")
                answer["object"] = "chat.completion.chunk"
            return 200, "text/event-stream", f"data: {json.dumps(answer)}\n\ndata: [DONE]\n\n".encode()
        return _json(200, answer)

    def metrics(self, pod: PodState) -> str:
        """A pod's metrics in Prometheus' text format."""
        label = f'{{model_name="{pod.model}",engine="0"}}'
        finished = f'{{model_name="{pod.model}",engine="0",finished_reason="stop"}}'
        values = (
            ("vllm:num_requests_running", "gauge", label, pod.running + pod.in_flight),
            ("vllm:num_requests_waiting", "gauge", label, pod.waiting),
            ("vllm:kv_cache_usage_perc", "gauge", label, pod.kv_cache_usage),
            ("vllm:request_success_total", "counter", finished, pod.served),
            ("vllm:prompt_tokens_total", "counter", label, pod.prompt_tokens),
            ("vllm:generation_tokens_total", "counter", label, pod.generation_tokens),
        )
        return "".join(f"# TYPE {name} {kind}\n{name}{labels} {value}\n" for name, kind, labels, value in values)

    def control(self, method: str, path: str, body: bytes) -> tuple[int, str, bytes]:
        """GET /pods/ADDRESS reads, PATCH /pods/ADDRESS sets some fields, DELETE /pods[/ADDRESS] forgets."""
        parts = [part for part in path.split("/") if part]
        if not parts or parts[0] != "pods":
            return _json(404, {"error": "want /pods or /pods/ADDRESS"})
        if method == "DELETE":
            for address in parts[1:] or list(self.pods):
                self.pods.pop(address, None)
            return _json(200, {})
        if method == "PATCH" and len(parts) == 2:
            pod = self.pod(parts[1])
            changes = json.loads(body)
            unknown = set(changes) - set(vars(pod))
            if unknown:
                return _json(400, {"error": f"unknown fields {sorted(unknown)}: want some of {sorted(vars(pod))}"})
            for name, value in changes.items():
                setattr(pod, name, value)
            return _json(200, vars(pod))
        if len(parts) == 2:
            return _json(200, vars(self.pod(parts[1])))
        return _json(200, {address: vars(pod) for address, pod in sorted(self.pods.items())})


def _json(status: int, content: object) -> tuple[int, str, bytes]:
    return status, "application/json", json.dumps(content).encode()


async def _serve_connection(
    engine: FakeEngine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, control: bool
) -> None:
    address = writer.get_extra_info("sockname")[0]
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            request_line, _, rest = head.partition("\r\n")
            method, target, _ = request_line.split(" ", 2)
            pairs = (line.partition(":") for line in rest.splitlines() if line)
            headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
            length = int(headers.get("content-length", "0"))
            if length > LARGEST_BODY_BYTES:
                break
            body = await reader.readexactly(length)
            path = target.partition("?")[0]
            if control:
                status, kind, content = engine.control(method, path, body)
            else:
                status, kind, content = engine.answer(address, method, path, body)
            keep = headers.get("connection", "").lower() != "close"
            reply = f"HTTP/1.1 {status} {'OK' if status < 400 else 'Error'}\r\ncontent-type: {kind}\r\n"
            reply += f"content-length: {len(content)}\r\nconnection: {'keep-alive' if keep else 'close'}\r\n\r\n"
            writer.write(reply.encode() + content)
            await writer.drain()
            if not keep:
                break
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, ValueError):
        pass  # The client went away or spoke something else than HTTP: there is nobody to answer.
    finally:
        writer.close()


async def serve(bind: str, ports: list[int], control_host: str, control_port: int) -> None:
    """Serve until cancelled."""
    engine = FakeEngine()

    async def pods(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _serve_connection(engine, reader, writer, control=False)

    async def control(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _serve_connection(engine, reader, writer, control=True)

    for port in ports:
        await asyncio.start_server(pods, bind, port, backlog=512)
    await asyncio.start_server(control, control_host, control_port)
    await asyncio.Event().wait()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bind", default="0.0.0.0")
    parser.add_argument("--ports", default="8000", help="comma-separated")
    parser.add_argument("--control", default="127.0.0.1:9000", help="HOST:PORT")
    arguments = parser.parse_args()
    host, _, port = arguments.control.rpartition(":")
    asyncio.run(serve(arguments.bind, [int(one) for one in arguments.ports.split(",")], host, int(port)))


if __name__ == "__main__":
    main()
