"""The process in which aiconfigurator-core runs: questions in, answers out, one JSON object a line.

It is run by its path, by whatever interpreter has the package, and imports nothing of Medley's. The package loads
tables of hundreds of megabytes, logs as it likes, and asks a hub for models that it does not know; none of that is let
out of here: logging goes to standard error, and any attempt to reach another host ends with an error.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
from typing import Any

VERSION = "0.12.0"
NO_LIMIT_MS = 1e9


class NetworkForbiddenError(OSError):
    """Something in this process tried to reach another host."""


def main() -> int:
    """Answer until the questions end; the first line says whether this is the right version."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    sys.addaudithook(_forbid_network)
    installed = importlib.metadata.version("aiconfigurator-core")
    _say(answers, {"version": installed})
    if installed != VERSION:
        return 1
    tables = Tables()
    for line in sys.stdin:
        _say(answers, tables.answer(json.loads(line)))
    return 0


class Tables:
    """The package's tables and models, each loaded once."""

    def __init__(self) -> None:
        self._sdk = {
            name: importlib.import_module(f"aiconfigurator_core.sdk.{name}")
            for name in ("backends.factory", "common", "config", "models", "perf_database")
        }
        self._databases: dict[tuple[str, str], Any] = {}

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """The best point within the objectives for each size, None where there is none; or an error.

        Args:
            question: `folder` with the model's config.json, `system`, `engine`, `tensor`, `pipeline`, `data`,
                `moe` (whether it has experts), `quantisation` (of products, "" for the model's own), `max_batch`,
                `time_to_first_token_ms`, `time_per_output_token_ms` (None for no objective) and `sizes`.
        """
        try:
            model = self._model(question)
            database = self._database(question["system"], question["engine"])
            return {"points": [self._point(model, database, question, *size) for size in question["sizes"]]}
        except NetworkForbiddenError:
            raise
        except Exception as error:  # noqa: BLE001 - the package raises bare exceptions for what its tables lack
            return {"error": f"{type(error).__name__}: {error}"[:500]}

    def _database(self, system: str, engine: str) -> Any:
        key = (system, engine)
        if key not in self._databases:
            database = self._sdk["perf_database"].get_database(system, engine, "current")
            if database is None:
                raise LookupError(f"no tables of {engine} on {system}")
            self._databases[key] = database
        return self._databases[key]

    def _model(self, question: dict[str, Any]) -> Any:
        common, config = self._sdk["common"], self._sdk["config"]
        tensor, data = question["tensor"], question["data"]
        sizes: dict[str, Any] = {"tp_size": tensor, "pp_size": question["pipeline"], "attention_dp_size": data}
        if question["moe"]:
            sizes |= (
                {"moe_tp_size": 1, "moe_ep_size": tensor * data}
                if data > 1
                else {"moe_tp_size": tensor, "moe_ep_size": 1}
            )
        else:
            sizes |= {"moe_tp_size": tensor, "moe_ep_size": 1}
        if question["quantisation"]:
            sizes["gemm_quant_mode"] = common.GEMMQuantMode[question["quantisation"]]
            sizes["moe_quant_mode"] = common.MoEQuantMode[question["quantisation"]]
        get_model = self._sdk["models"].get_model
        return get_model(question["folder"], config.ModelConfig(**sizes), question["engine"])

    def _point(
        self, model: Any, database: Any, question: dict[str, Any], input_tokens: int, output_tokens: int
    ) -> dict[str, float] | None:
        backend = self._sdk["backends.factory"].get_backend(question["engine"])
        wanted = self._sdk["config"].RuntimeConfig(
            isl=input_tokens,
            osl=output_tokens,
            ttft=question["time_to_first_token_ms"] or NO_LIMIT_MS,
            tpot=question["time_per_output_token_ms"] or NO_LIMIT_MS,
        )
        found = backend.find_best_agg_result_under_constraints(
            model, database, wanted, top_k=1, max_batch_size=question["max_batch"]
        ).get_summary_df()
        if found is None or len(found) == 0:
            return None
        best = found.iloc[0]
        return {
            "requests_per_second": float(best["seq/s"]),
            "concurrency": float(best["concurrency"]),
            "time_to_first_token_s": float(best["ttft"]) / 1000,
            "time_per_output_token_s": float(best["tpot"]) / 1000,
        }


def _say(answers: Any, value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


def _forbid_network(event: str, arguments: tuple[Any, ...]) -> None:
    if event in {"socket.connect", "socket.getaddrinfo", "socket.sendto"}:
        raise NetworkForbiddenError(f"{event} {arguments[-1:]}")


if __name__ == "__main__":
    sys.exit(main())
