"""Settings from the environment."""

from __future__ import annotations

import pytest

from medley_operator.settings import Settings, SettingsError


def test_defaults_and_overrides() -> None:
    made = Settings.from_environment(
        {
            "MEDLEY_PLAN_INTERVAL_SECONDS": "5",
            "MEDLEY_LOG_LEVEL": "DEBUG",
            "MEDLEY_POD_NAME": "p",
            "MEDLEY_MAX_COST_PER_HOUR": "1e+06",
        }
    )
    assert made.max_cost_per_hour == 1e6
    assert (made.plan_interval_s, made.log_level, made.pod_name, made.metrics_port) == (5.0, "debug", "p", 8080)
    assert Settings.from_environment({}).pod_name


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MEDLEY_LOG_LEVEL", "loud"),
        ("MEDLEY_LOG_FORMAT", "xml"),
        ("MEDLEY_PLAN_INTERVAL_SECONDS", "soon"),
        ("MEDLEY_PLAN_INTERVAL_SECONDS", "0"),
        ("MEDLEY_MAX_COST_PER_HOUR", "-1"),
        ("MEDLEY_LEASE_DURATION_SECONDS", "nan"),
        ("MEDLEY_RENEW_DEADLINE_SECONDS", "15"),
        ("MEDLEY_RETRY_PERIOD_SECONDS", "9"),
        ("MEDLEY_METRICS_PORT", "-1"),
        ("MEDLEY_HEALTH_PORT", "70000"),
    ],
)
def test_errors_name_the_variable(variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=variable):
        Settings.from_environment({variable: value})
