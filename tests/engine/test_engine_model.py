"""The model against `transformers`, over families and layouts of ranks, and its numbers against its own company."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import asdict

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra: engine)")

from medley_engine.memory import wire  # noqa: E402
from medley_engine.memory.server import build_manager  # noqa: E402
from medley_engine.placement import Placement, initial  # noqa: E402
from medley_engine.runtime.collective import Collective  # noqa: E402
from medley_engine.runtime.devices import HostDevice  # noqa: E402
from medley_engine.runtime.model import MoeModel  # noqa: E402
from medley_engine.runtime.sampling import draw, uniform  # noqa: E402
from medley_engine.runtime.weights import AttachOptions, KvCache, attach  # noqa: E402
from medley_engine.scheduler import SamplingParams, Scheduler, Sequence  # noqa: E402
from medley_engine.topology import Topology  # noqa: E402

PROMPTS = [list(range(1, 40)), [5, 6, 7], list(range(100, 190))]
ME = wire.Peer(os.getpid(), os.getuid())


class Ranks:
    """All ranks of one instance as threads of this process, over the manager's pages."""

    def __init__(self, folder, tmp_path, topology, *, dtype="float64", placement=None, options=None):
        torch.set_num_threads(1)
        self.topology, self.tmp_path = topology, tmp_path
        self.manager = build_manager(folder, dtype, topology.tensor_parallel, 4096, block_tokens=8, blocks_per_rank=64)
        config = self.manager.store.layout.config
        self.placement = placement or initial(len(config.moe_layers), config.experts, topology.ranks)
        request = {"do": "prepare", "config": "a", "topology": asdict(topology), "placement": self.placement.layers}
        report, _ = self.manager.handle(request, ME)
        end = time.monotonic() + 30
        while report["state"] in ("planning", "copying"):
            assert time.monotonic() < end
            report, _ = self.manager.handle({"do": "progress", "config": "a"}, ME)
        assert report["state"] == "prepared", report
        self.options = options or AttachOptions()

    def generate(self, prompts, count):
        out, failures = {}, []

        def work(rank):
            try:
                self._rank(rank, prompts, count, out)
            except Exception as error:  # noqa: BLE001 - told to the test's thread
                failures.append(error)

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(self.topology.ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures, failures
        return [out[str(i)] for i in range(len(prompts))]

    def _rank(self, rank, prompts, count, out):
        layout, tp = self.manager.store.layout, self.topology.tensor_parallel
        where = self.tmp_path / f"ranks{id(self)}"
        comm = Collective(where, rank, self.topology.ranks, token="token", tensor_parallel=tp)
        request = {"do": "attach", "config": "a", "rank": rank, "holder": f"x/{rank}"}
        reply, fds = self.manager.handle(request, ME)
        device = HostDevice()
        weights = attach(layout, reply["items"], fds[1:], self.options, device)
        block_bytes = reply["blockBytes"]
        cache = KvCache(fds[0], reply["kvBytes"], layout, block_tokens=8, block_bytes=block_bytes, device=device)
        model = MoeModel(layout.config, weights, cache, self.placement, comm)
        scheduler = Scheduler(block_tokens=8, chunk_tokens=16, budget_tokens=64, max_running=8)
        group = rank // tp
        scheduler.free = list(range(group * 64, group * 64 + 64))
        for number, prompt in enumerate(prompts):
            if number % self.topology.data_parallel == group:
                scheduler.add(Sequence(str(number), tuple(prompt), SamplingParams(count)))
        while any(row[0] for row in comm.gather([int(scheduler.busy)])):
            batch = scheduler.schedule()
            logits = model.forward(batch)
            asked = [piece for piece in batch if piece.sample]
            tokens = {piece.id: draw(logits[row], SamplingParams(1), 0) for row, piece in enumerate(asked)}
            for sequence, reason in scheduler.complete(batch, tokens):
                if reason and rank % tp == 0:
                    out[sequence.id] = list(sequence.generated)
        del model
        weights.close()
        cache.close()
        comm.close()


@pytest.mark.parametrize(
    ("family", "data", "tensor"),
    [
        ("qwen3_moe", 1, 1),
        ("mixtral", 2, 1),
        ("olmoe", 3, 1),
        ("deepseek_v2", 2, 1),
        ("qwen3_moe", 2, 2),
        ("mixtral", 1, 2),
        ("deepseek_v2", 1, 2),
    ],
)
def test_tokens_are_those_of_transformers(checkpoint, reference, tmp_path, family, data, tensor):
    folder = checkpoint(family)
    got = Ranks(folder, tmp_path, Topology(data, tensor)).generate(PROMPTS, 10)
    assert got == [reference(folder, prompt, 10) for prompt in PROMPTS]


YARN = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0,
    "beta_fast": 32, "beta_slow": 1,
}  # fmt: skip
GROUPS = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}


@pytest.mark.parametrize(
    ("family", "extra"),
    [
        ("qwen3_moe", {"mlp_only_layers": [1], "intermediate_size": 96}),
        ("mixtral", {"sliding_window": 24}),
        ("qwen3_moe", {"rope_parameters": YARN}),
        ("deepseek_v2", {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.9}, "q_lora_rank": None}),
        ("deepseek_v2", {**GROUPS, "first_k_dense_replace": 0}),
    ],
    ids=["a dense layer", "a sliding window", "yarn", "deepseek with yarn", "deepseek with groups"],
)
def test_variants_of_the_family_too(checkpoint, reference, tmp_path, family, extra):
    folder = checkpoint(family, **extra)
    got = Ranks(folder, tmp_path, Topology(2)).generate(PROMPTS, 6)
    assert got == [reference(folder, prompt, 6) for prompt in PROMPTS]


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v2"])
def test_float32_tokens_do_not_depend_on_company_ranks_or_placement(checkpoint, tmp_path, family):
    """The same bits alone and in a batch, on one, two and three ranks, with copies of experts and without remapping."""
    folder = checkpoint(family, dtype="float32", hidden=128, heads=8)
    alone = [Ranks(folder, tmp_path, Topology(1), dtype="float32").generate([p], 16)[0] for p in PROMPTS]
    together = Ranks(folder, tmp_path, Topology(1), dtype="float32").generate(PROMPTS, 16)
    spread = Ranks(folder, tmp_path, Topology(3), dtype="float32").generate(PROMPTS, 16)
    slots = ((0, 1, 2, 3, 7), (3, 4, 5, 6, 7))
    copies = Placement((slots,) * (3 if family == "qwen3_moe" else 2))
    copied = Ranks(
        folder, tmp_path, Topology(2), dtype="float32", placement=copies, options=AttachOptions(page_remap=False)
    ).generate(PROMPTS, 16)
    assert alone == together == spread == copied


def test_draws_repeat_and_follow_the_distribution():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    params = SamplingParams(1, temperature=1.0, seed=3)
    drawn = [draw(logits, params, position) for position in range(4000)]
    assert drawn == [draw(logits, params, position) for position in range(4000)]
    shares = [drawn.count(token) / len(drawn) for token in range(4)]
    assert shares == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)
    for changes, allowed in (({"top_k": 2}, {0, 1}), ({"top_p": 0.79}, {0, 1}), ({"top_p": 0.01}, {0})):
        narrow = SamplingParams(1, temperature=1.0, seed=3, **changes)
        assert {draw(logits, narrow, position) for position in range(300)} == allowed
    assert draw(logits, SamplingParams(1), 0) == 0
    assert all(0 <= uniform(-5, position) < 1 for position in range(100))
