"""Text in, tokens out, and back: tokenizer, chat template, and decoding of a stream that may break inside a
character.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

_REPLACEMENT = "\ufffd"


class NoChatTemplateError(ValueError):
    """The checkpoint brings no chat template."""


class TextCodec:
    """Tokenizer and chat template of a checkpoint folder. Without ``tokenizer.json`` only token ids are served."""

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        self._tokenizer = Tokenizer.from_file(str(path)) if path.exists() else None
        config_path = folder / "tokenizer_config.json"
        self._config: dict[str, Any] = json.loads(config_path.read_text()) if config_path.exists() else {}
        template_path = folder / "chat_template.jinja"
        self._template = template_path.read_text() if template_path.exists() else self._config.get("chat_template")

    def encode(self, text: str, *, special: bool = True) -> tuple[int, ...]:
        """Tokens of a text.

        Raises:
            ValueError: the checkpoint has no tokenizer.
        """
        if self._tokenizer is None:
            raise ValueError("this checkpoint has no tokenizer.json: send token ids")
        return tuple(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def decode(self, tokens: list[int]) -> str:
        """Text of tokens; empty without a tokenizer."""
        return "" if self._tokenizer is None else str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def render_chat(self, messages: list[dict[str, str]]) -> tuple[int, ...]:
        """Tokens of a conversation, ready for the assistant's turn.

        Raises:
            NoChatTemplateError: there is no template, or it refuses these messages.
        """
        if not isinstance(self._template, str):
            raise NoChatTemplateError("this checkpoint has no chat template: use /v1/completions")
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        special = {
            name: value["content"] if isinstance(value, dict) else value
            for name in ("bos_token", "eos_token", "pad_token", "unk_token")
            if (value := self._config.get(name)) is not None
        }
        try:
            text = environment.from_string(self._template).render(
                messages=messages, add_generation_prompt=True, **special
            )
        except jinja2.TemplateError as error:
            raise NoChatTemplateError(f"the chat template refuses these messages: {error}") from error
        return self.encode(text, special=False)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


class StreamDecoder:
    """Turns tokens into text as they come, holding back what may change or may begin a stop string.

    Decoding only the tokens since the last boundary is wrong for tokenizers that look at neighbours, so two
    overlapping windows are decoded and their common prefix is cut away (the method of vLLM and
    text-generation-inference).
    """

    def __init__(self, codec: TextCodec, stops: tuple[str, ...] = ()) -> None:
        self._codec, self._stops = codec, stops
        self._tokens: list[int] = []
        self._prefix = self._read = 0
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Text that is certain now. :attr:`stopped` turns True at a stop string, which is not part of it."""
        self._tokens.append(token)
        before = self._codec.decode(self._tokens[self._prefix : self._read])
        after = self._codec.decode(self._tokens[self._prefix :])
        if len(after) <= len(before) or after.endswith(_REPLACEMENT):
            return ""
        self._prefix, self._read = self._read, len(self._tokens)
        return self._release(after[len(before) :])

    def finish(self) -> str:
        """What was held back, once no token follows."""
        before = self._codec.decode(self._tokens[self._prefix : self._read])
        rest = self._codec.decode(self._tokens[self._prefix :])[len(before) :]
        text = self._release(rest)
        if self.stopped:
            return text
        held, self._held = self._held, ""
        return text + held

    def _release(self, fresh: str) -> str:
        text = self._held + fresh
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
