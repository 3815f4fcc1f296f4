"""OpenAI's request and response bodies: strict reading, plain writing. Every refusal names the field."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medley_engine.scheduler import SamplingParams


class BadRequestError(ValueError):
    """The body is not what the API takes; ``param`` is the field."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True)
class Wish:
    """What a client asked for, apart from the prompt. ``stops`` are strings that end the text and are not sent."""

    model: str
    params: SamplingParams
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool
    echo: bool


_UNSUPPORTED = {
    "logprobs", "top_logprobs", "logit_bias", "tools", "tool_choice", "functions", "response_format", "min_tokens",
    "guided_json",
}  # fmt: skip


def _number(body: Mapping[str, Any], name: str, low: float, high: float, default: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise BadRequestError(name, f"{name} must be a number from {low} to {high}")
    return float(value)


def _integer(body: Mapping[str, Any], name: str, low: int, high: int, default: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadRequestError(name, f"{name} must be an integer from {low} to {high}")
    return value


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise BadRequestError(name, f"{name} must be true or false")
    return value


def _strings(body: Mapping[str, Any], name: str, most: int) -> tuple[str, ...]:
    value = body.get(name)
    if value is None:
        return ()
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or len(found) > most or not all(isinstance(s, str) and s for s in found):
        raise BadRequestError(name, f"{name} must be a string or a list of at most {most} strings")
    return tuple(found)


def _token_ids(body: Mapping[str, Any], name: str, vocab_size: int) -> tuple[int, ...]:
    value = body.get(name)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(_is_token(t, vocab_size) for t in value):
        raise BadRequestError(name, f"{name} must be a list of token ids below {vocab_size}")
    return tuple(value)


def _is_token(value: Any, vocab_size: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < vocab_size


def read_wish(body: Any, *, eos: tuple[int, ...], vocab_size: int, room: int, default_tokens: int) -> Wish:
    """Read the parameters that completions and chat share.

    Args:
        body: the parsed JSON.
        eos: end-of-sequence tokens of the model.
        vocab_size: token ids are below this.
        room: tokens that fit after the prompt.
        default_tokens: ``max_tokens`` where none is given.

    Raises:
        BadRequestError: with the field.
    """
    if not isinstance(body, dict):
        raise BadRequestError("", "the body must be a JSON object")
    for name in sorted(_UNSUPPORTED & set(body)):
        if body[name] not in (None, False, [], {}, 0):
            raise BadRequestError(name, f"{name} is not supported")
    if body.get("n") not in (None, 1) or body.get("best_of") not in (None, 1):
        raise BadRequestError("n", "n and best_of must be 1")
    for name in ("presence_penalty", "frequency_penalty"):
        if body.get(name) not in (None, 0, 0.0):
            raise BadRequestError(name, f"{name} is not supported")
    if not isinstance(body.get("model"), str):
        raise BadRequestError("model", "model must be a string")
    most = body.get("max_completion_tokens") is not None
    tokens = _integer(
        body, "max_completion_tokens" if most else "max_tokens", 1, 1 << 30, min(default_tokens, max(room, 1))
    )
    if room < 1 or tokens > room:
        raise BadRequestError(
            "max_tokens", f"prompt and max_tokens exceed the model's context: {max(room, 0)} tokens are left"
        )
    ends = () if _flag(body, "ignore_eos") else eos
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise BadRequestError("stream_options", "stream_options must be an object")
    return Wish(
        model=str(body["model"]),
        params=SamplingParams(
            max_tokens=tokens,
            temperature=_number(body, "temperature", 0.0, 2.0, 1.0),
            top_p=_number(body, "top_p", 1e-6, 1.0, 1.0),
            top_k=max(0, _integer(body, "top_k", -1, vocab_size, 0)),
            seed=_integer(body, "seed", -(1 << 63), (1 << 63) - 1, secrets.randbits(62)),
            stop_token_ids=(*ends, *_token_ids(body, "stop_token_ids", vocab_size)),
        ),
        stops=_strings(body, "stop", 4),
        stream=_flag(body, "stream"),
        include_usage=_flag(options, "include_usage"),
        echo=_flag(body, "echo"),
    )


def read_prompt(body: Mapping[str, Any], vocab_size: int) -> str | tuple[int, ...]:
    """The prompt of a completion: text, or token ids."""
    prompt = body.get("prompt") if isinstance(body, dict) else None
    if isinstance(prompt, str) and prompt:
        return prompt
    if isinstance(prompt, list) and prompt and all(_is_token(t, vocab_size) for t in prompt):
        return tuple(prompt)
    if isinstance(prompt, list) and len(prompt) == 1:
        return read_prompt({"prompt": prompt[0]}, vocab_size)
    raise BadRequestError("prompt", f"prompt must be a string or a list of token ids below {vocab_size}, and not empty")


def read_messages(body: Any) -> list[dict[str, str]]:
    """The messages of a chat, contents as plain text."""
    messages = body.get("messages") if isinstance(body, dict) else None
    if not isinstance(messages, list) or not messages:
        raise BadRequestError("messages", "messages must be a list that is not empty")
    read = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict) or message.get("role") not in (
            "system",
            "developer",
            "user",
            "assistant",
            "tool",
        ):
            raise BadRequestError(f"{where}.role", f"{where}.role must be system, developer, user, assistant or tool")
        content = message.get("content")
        if isinstance(content, list):
            parts = [p.get("text") if isinstance(p, dict) and p.get("type") == "text" else None for p in content]
            content = (
                "".join(p for p in parts if isinstance(p, str)) if all(isinstance(p, str) for p in parts) else None
            )
        if not isinstance(content, str):
            raise BadRequestError(f"{where}.content", f"{where}.content must be text")
        read.append({"role": str(message["role"]), "content": content})
    return read


def error_body(message: str, kind: str, param: str | None = None, code: str | int | None = None) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": kind, "param": param or None, "code": code}}


def usage(prompt: int, generated: int) -> dict[str, int]:
    """OpenAI's usage object."""
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


@dataclass(frozen=True, slots=True)
class Writer:
    """Bodies of one response."""

    id: str
    model: str
    created: int
    chat: bool

    def chunk(self, text: str, reason: str | None, *, first: bool = False) -> dict[str, Any]:
        """One part of a stream."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason}
        if self.chat:
            delta = {"role": "assistant"} if first else {}
            choice["delta"] = {**delta, "content": text} if text or first else delta
        else:
            choice |= {"text": text, "logprobs": None}
        return self._head("chat.completion.chunk" if self.chat else "text_completion", [choice])

    def usage_chunk(self, counts: dict[str, int]) -> dict[str, Any]:
        """The last part of a stream that asked for usage."""
        return {**self._head("chat.completion.chunk" if self.chat else "text_completion", []), "usage": counts}

    def whole(self, text: str, reason: str | None, counts: dict[str, int]) -> dict[str, Any]:
        """A response that is not streamed."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason}
        if self.chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice |= {"text": text, "logprobs": None}
        return {**self._head("chat.completion" if self.chat else "text_completion", [choice]), "usage": counts}

    def _head(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}
