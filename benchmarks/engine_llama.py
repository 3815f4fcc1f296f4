"""The same weights in llama.cpp: a Qwen3-MoE checkpoint written as GGUF, and greedy decoding of several streams.

    python benchmarks/engine_llama.py GGUF THREADS STREAMS

serves a GGUF file until its input ends and prints its address. It needs the packages `gguf` (which writes the file,
llama.cpp's own writer) and `xllamacpp` (llama.cpp and its HTTP server, built for CPUs); :func:`measure` tells what is
missing. llama.cpp keeps its KV cache in float16 unless told otherwise; here it is told float32, as ours is.
"""

from __future__ import annotations

import concurrent.futures
import importlib.util
import json
import subprocess
import sys
import time
import urllib.request
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
    """Write a float32 Qwen3-MoE checkpoint as GGUF. Prompts are token ids, so the words of its vocabulary mean nothing;
    the server asks for some.
    """
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
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"w{number}" for number in range(config["vocab_size"])])
    writer.add_token_types([gguf.TokenType.NORMAL] * config["vocab_size"])
    writer.add_token_merges(["w 0"])
    writer.add_eos_token_id(0)
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


def _stream(address: str, prompt: list[int], count: int) -> tuple[list[float], list[int]]:
    """One greedy stream: when it was sent and when each token came; the tokens."""
    body = {
        "prompt": prompt, "n_predict": count, "temperature": 0, "top_k": 1, "stream": True, "ignore_eos": True,
        "cache_prompt": False, "return_tokens": True,
    }  # fmt: skip
    request = urllib.request.Request(
        f"{address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    times, tokens = [time.monotonic()], []
    with urllib.request.urlopen(request, timeout=600) as response:
        for line in response:
            if line.startswith(b"data: {"):
                for token in json.loads(line.removeprefix(b"data: ")).get("tokens", ()):
                    times.append(time.monotonic())
                    tokens.append(token)
    if len(tokens) != count:
        raise RuntimeError(f"{len(tokens)} tokens instead of {count}")
    return times, tokens


def _measure(address: str, prompts: list[list[int]], count: int) -> dict[str, Any]:
    _stream(address, prompts[0], 2)
    times, tokens = _stream(address, prompts[0], count)
    one = {
        "ttft_s": times[1] - times[0],
        "tpot_s": (times[-1] - times[1]) / (count - 1),
        "tokens_per_s": count / (times[-1] - times[0]),
    }
    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
        done = list(pool.map(lambda prompt: _stream(address, prompt, count), prompts))
    took = time.monotonic() - start
    many = {"tokens_per_s": count * len(done) / took, "batch": len(prompts)}
    return {"one": one, "many": many, "tokens": tokens}


def measure(folder: Path, prompts: list[list[int]], count: int, threads: int) -> dict[str, Any]:
    """Tokens per second, TTFT and TPOT of a server in a process of its own; ``error`` where it cannot be run."""
    missing = [name for name in ("gguf", "xllamacpp") if importlib.util.find_spec(name) is None]
    if missing:
        return {"error": f"not installed: {', '.join(missing)}"}
    target = folder.with_suffix(".vocabulary.gguf")
    if not target.exists():
        convert(folder, target)
    arguments = [sys.executable, __file__, str(target), str(threads), str(len(prompts))]
    server = subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert server.stdout is not None
        for line in server.stdout:
            if line.startswith("ADDRESS "):
                return _measure(line.split()[1], prompts, count)
        return {"error": f"the server ended with status {server.wait()}"}
    except (OSError, RuntimeError) as error:
        return {"error": repr(error)}
    finally:
        server.kill()
        server.wait()


def main() -> None:
    import xllamacpp  # noqa: PLC0415 - it may be missing

    path, threads, streams = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    parameters = xllamacpp.CommonParams()
    parameters.model.path = path
    parameters.n_parallel = streams
    parameters.n_ctx = 512 * streams
    parameters.n_gpu_layers = 0
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(parameters)
    print("ADDRESS", server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
