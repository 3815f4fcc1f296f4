"""The operator's settings, from the environment: one variable each, checked at the start, errors name the variable."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

PREFIX = "MEDLEY_"
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("json", "console")


class SettingsError(ValueError):
    """A variable of the environment makes no sense; the message names it."""


@dataclass(frozen=True)
class Settings:
    """How this operator process runs.

    Args:
        log_level: Least severe messages to log (MEDLEY_LOG_LEVEL).
        log_format: `json`, or `console` for people (MEDLEY_LOG_FORMAT).
        plan_interval_s: Longest time between two looks at everything (MEDLEY_PLAN_INTERVAL_SECONDS).
        max_cost_per_hour: Price cap for all services together (MEDLEY_MAX_COST_PER_HOUR); 0 is no cap.
        lease_namespace: Where the Lease is (MEDLEY_LEASE_NAMESPACE).
        lease_name: Its name (MEDLEY_LEASE_NAME).
        lease_duration_s: A leader that did not renew for so long is replaced (MEDLEY_LEASE_DURATION_SECONDS).
        renew_deadline_s: A leader that could not renew for so long stops acting (MEDLEY_RENEW_DEADLINE_SECONDS).
        retry_period_s: Time between attempts to renew or to acquire (MEDLEY_RETRY_PERIOD_SECONDS).
        pod_name: This process's identity, unique among replicas (MEDLEY_POD_NAME).
        metrics_port: TCP port of /metrics (MEDLEY_METRICS_PORT); 0 is any free one.
        health_port: TCP port of /healthz and /readyz (MEDLEY_HEALTH_PORT); 0 is any free one.
    """

    log_level: str = "info"
    log_format: str = "json"
    plan_interval_s: float = 60.0
    max_cost_per_hour: float = 0.0
    lease_namespace: str = "medley-system"
    lease_name: str = "medley-operator"
    lease_duration_s: float = 15.0
    renew_deadline_s: float = 10.0
    retry_period_s: float = 2.0
    pod_name: str = ""
    metrics_port: int = 8080
    health_port: int = 8081

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """The settings that an environment says, defaults for what it does not.

        Raises:
            SettingsError: A variable makes no sense.
        """
        read = _Reader(os.environ if environment is None else environment)
        defaults = cls()
        settings = cls(
            log_level=read.choice("LOG_LEVEL", LOG_LEVELS, defaults.log_level),
            log_format=read.choice("LOG_FORMAT", LOG_FORMATS, defaults.log_format),
            plan_interval_s=read.number("PLAN_INTERVAL_SECONDS", defaults.plan_interval_s, low=1, high=86_400),
            max_cost_per_hour=read.number("MAX_COST_PER_HOUR", defaults.max_cost_per_hour, low=0, high=1e9),
            lease_namespace=read.text("LEASE_NAMESPACE", defaults.lease_namespace),
            lease_name=read.text("LEASE_NAME", defaults.lease_name),
            lease_duration_s=read.number("LEASE_DURATION_SECONDS", defaults.lease_duration_s, low=1, high=3600),
            renew_deadline_s=read.number("RENEW_DEADLINE_SECONDS", defaults.renew_deadline_s, low=0.5, high=3600),
            retry_period_s=read.number("RETRY_PERIOD_SECONDS", defaults.retry_period_s, low=0.1, high=600),
            pod_name=read.text("POD_NAME", "") or f"{socket.gethostname()}-{os.getpid()}",
            metrics_port=read.port("METRICS_PORT", defaults.metrics_port),
            health_port=read.port("HEALTH_PORT", defaults.health_port),
        )
        _check_ordered(settings)
        return settings


def _check_ordered(settings: Settings) -> None:
    """Leadership is exclusive only where the leader gives up before others take over,
    and tries more than once before it does.
    """
    if settings.renew_deadline_s >= settings.lease_duration_s:
        raise SettingsError(f"{PREFIX}RENEW_DEADLINE_SECONDS must be less than {PREFIX}LEASE_DURATION_SECONDS")
    if settings.retry_period_s * 2 > settings.renew_deadline_s:
        raise SettingsError(f"{PREFIX}RETRY_PERIOD_SECONDS must be at most half of {PREFIX}RENEW_DEADLINE_SECONDS")


class _Reader:
    """Reads variables by their name without the prefix; an empty variable counts as one that is not set."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def text(self, name: str, default: str) -> str:
        return self._environment.get(PREFIX + name, "").strip() or default

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        value = self.text(name, default).lower()
        if value not in choices:
            raise SettingsError(f"{PREFIX}{name} is {value!r}, must be one of {', '.join(choices)}")
        return value

    def number(self, name: str, default: float, *, low: float, high: float) -> float:
        text = self.text(name, str(default))
        try:
            value = float(text)
        except ValueError:
            raise SettingsError(f"{PREFIX}{name} is {text!r}, must be a number") from None
        if not low <= value <= high:
            raise SettingsError(f"{PREFIX}{name} is {text}, must be between {low:g} and {high:g}")
        return value

    def port(self, name: str, default: int) -> int:
        text = self.text(name, str(default))
        if not text.isdecimal() or int(text) > 65_535:
            raise SettingsError(f"{PREFIX}{name} is {text!r}, must be a TCP port")
        return int(text)
