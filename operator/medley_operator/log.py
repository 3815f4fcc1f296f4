"""Structured logs: one line of JSON per message, or coloured lines for people.

Values are names, counts and times, never secrets.
"""

from __future__ import annotations

import logging
import sys

import structlog

QUIET = {
    "aiohttp.access": logging.WARNING,
    "asyncio": logging.WARNING,
    "kopf": logging.WARNING,
    "kopf._cogs.clients": logging.CRITICAL,  # every attempt of every watch while the API server is away
    "kopf._core.reactor.running": logging.ERROR,  # that it does not handle signals, which is wanted
}
"""Loggers of libraries, and how severe a message of theirs must be to be of interest here."""


def configure(level: str, log_format: str) -> None:
    """Send our own logs and those of libraries to standard error, in one format."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(threshold)
    for name, least in QUIET.items():
        logging.getLogger(name).setLevel(max(threshold, least))


def logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a part of the operator."""
    bound: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(f"medley.{name}")
    return bound
