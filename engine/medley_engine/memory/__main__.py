"""Entry point of the manager process: ``python -m medley_engine.memory SETTINGS``, started by the supervisor."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from medley_engine.memory.cuda import CudaMemory
from medley_engine.memory.host import HostMemory
from medley_engine.memory.peer import DirectTransport, GlooTransport
from medley_engine.memory.server import build_manager, serve
from medley_engine.serving.keeping import SupervisorKeeper
from medley_engine.serving.settings import Settings
from medley_engine.serving.supervisor import TOKEN_VARIABLE


def main() -> None:
    """Take over what a predecessor left, then serve."""
    settings = Settings.load(sys.argv[1])
    token = os.environ[TOKEN_VARIABLE]
    keeper = SupervisorKeeper(settings.run_path, token)
    manager = build_manager(
        Path(settings.model),
        settings.dtype,
        settings.tensor_parallel,
        settings.item_page_bytes,
        block_tokens=settings.block_tokens,
        blocks_per_rank=settings.blocks_per_rank,
        kept=keeper.take(),
        keeper=keeper,
        transport=GlooTransport() if settings.transport == "gloo" else DirectTransport(),
        memory=CudaMemory if settings.device == "cuda" else HostMemory,
    )
    serve(manager, settings.run_path / "hmm.sock", token)


if __name__ == "__main__":
    main()
