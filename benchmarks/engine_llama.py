"""The same weights in llama.cpp: a Qwen3-MoE checkpoint written as GGUF, and greedy decoding of several sequences.

    python benchmarks/engine_llama.py CHECKPOINT GGUF PROMPTS COUNT THREADS

runs it and prints one line of JSON. It needs the packages `gguf` and `llama-cpp-py-sync` (llama.cpp built for CPUs,
loaded through cffi; its library asks for glibc 2.38); :func:`measure` tells what is missing. llama.cpp keeps its KV
cache in float16 unless told otherwise; here it is told float32, as ours is.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))

from medley_engine.memory.checkpoint import Checkpoint

_NAMES = {
    "input_layernorm.weight": "attn_norm", "self_attn.q_proj.weight": "attn_q", "self_attn.k_proj.weight": "attn_k",
    "self_attn.v_proj.weight": "attn_v", "self_attn.o_proj.weight": "attn_output",
    "self_attn.q_norm.weight": "attn_q_norm", "self_attn.k_norm.weight": "attn_k_norm",
    "post_attention_layernorm.weight": "ffn_norm", "mlp.gate.weight": "ffn_gate_inp",
}  # fmt: skip
_GGML_TYPE_F32 = 0


def _array(checkpoint: Checkpoint, name: str) -> np.ndarray:
    entry = checkpoint.tensors[name]
    return np.memmap(entry.file, "<f4", "r", entry.offset, entry.shape)


def convert(folder: Path, target: Path) -> None:
    """Write a float32 Qwen3-MoE checkpoint as GGUF, without a vocabulary (prompts are token ids)."""
    import gguf  # noqa: PLC0415 - it may be missing

    checkpoint = Checkpoint(folder)
    config = checkpoint.raw_config
    writer = gguf.GGUFWriter(str(target), "qwen3moe")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_expert_count(config["num_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for source, name in (
        ("model.embed_tokens.weight", "token_embd"), ("model.norm.weight", "output_norm"), ("lm_head.weight", "output"),
    ):  # fmt: skip
        writer.add_tensor(f"{name}.weight", np.ascontiguousarray(_array(checkpoint, source)))
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for source, name in _NAMES.items():
            data = np.ascontiguousarray(_array(checkpoint, prefix + source))
            writer.add_tensor(f"blk.{layer}.{name}.weight", data)
        for part in ("gate", "up", "down"):
            experts = (f"{prefix}mlp.experts.{e}.{part}_proj.weight" for e in range(config["num_experts"]))
            writer.add_tensor(f"blk.{layer}.ffn_{part}_exps.weight", np.stack([_array(checkpoint, e) for e in experts]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Decoder:
    """Greedy decoding of several sequences in one llama.cpp context."""

    def __init__(self, path: Path, threads: int, sequences: int, context: int = 512) -> None:
        from llama_cpp_py_sync import Llama  # noqa: PLC0415 - it may be missing

        self._llm = Llama(
            str(path), n_ctx=context * sequences, n_batch=512, n_threads=threads, n_seq_max=sequences, type_k="f32",
            type_v="f32",
        )  # fmt: skip
        self._lib, self._ffi, self._ctx = self._llm._lib, self._llm._ffi, self._llm._ctx
        self._vocab = self._llm.n_vocab

    def _step(self, rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """Compute (token, position, sequence, wants a token) rows; the chosen tokens, in order."""
        batch = self._lib.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for at, (token, position, sequence, wants) in enumerate(rows):
            batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, position, 1
            batch.seq_id[at][0], batch.logits[at] = sequence, int(wants)
        status = self._lib.llama_decode(self._ctx, batch)
        if status:
            raise RuntimeError(f"llama_decode: {status}")
        chosen = []
        for at, row in enumerate(rows):
            if row[3]:
                logits = self._lib.llama_get_logits_ith(self._ctx, at)
                chosen.append(int(np.frombuffer(self._ffi.buffer(logits, 4 * self._vocab), np.float32).argmax()))
        self._lib.llama_batch_free(batch)
        return chosen

    def generate(self, prompts: list[list[int]], count: int) -> tuple[list[float], list[list[int]]]:
        """Time of each step's end (the first is the start), and each prompt's tokens."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._ctx), True)
        times = [time.monotonic()]
        rows = [
            (token, position, sequence, position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        tokens = [[token] for token in self._step(rows)]
        times.append(time.monotonic())
        for step in range(1, count):
            rows = [(tokens[s][-1], len(prompt) + step - 1, s, True) for s, prompt in enumerate(prompts)]
            for sequence, token in enumerate(self._step(rows)):
                tokens[sequence].append(token)
            times.append(time.monotonic())
        return times, tokens


def measure(folder: Path, prompts: list[list[int]], count: int, threads: int) -> dict[str, Any]:
    """Tokens per second, TTFT and TPOT in a process of its own; ``error`` where it cannot be run."""
    missing = [name for name in ("gguf", "llama_cpp_py_sync") if importlib.util.find_spec(name) is None]
    if missing:
        return {"error": f"not installed: {', '.join(missing)}"}
    target = folder.with_suffix(".gguf")
    done = subprocess.run(
        [sys.executable, __file__, str(folder), str(target), json.dumps(prompts), str(count), str(threads)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    for line in done.stdout.splitlines():
        if line.startswith("RESULT"):
            return dict(json.loads(line.removeprefix("RESULT")))
    return {"error": done.stderr[-500:]}


def main() -> None:
    folder, target, prompts = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    count, threads = int(sys.argv[4]), int(sys.argv[5])
    if not target.exists():
        convert(folder, target)
    decoder = Decoder(target, threads, len(prompts))
    decoder.generate(prompts[:1], 2)
    times, tokens = decoder.generate(prompts[:1], count)
    one = {
        "ttft_s": times[1] - times[0],
        "tpot_s": (times[-1] - times[1]) / (count - 1),
        "tokens_per_s": count / (times[-1] - times[0]),
    }
    times, _ = decoder.generate(prompts, count)
    many = {"tokens_per_s": count * len(prompts) / (times[-1] - times[0]), "batch": len(prompts)}
    print("RESULT" + json.dumps({"one": one, "many": many, "tokens": tokens[0]}))


if __name__ == "__main__":
    main()
