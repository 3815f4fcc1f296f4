"""Every tensor of a step is made where the rank computes. Without a GPU that is shown with torch's device `meta`, which
computes shapes only, and refuses to mix with tensors of the processor as a GPU does.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra: engine)")

from medley_engine import random_checkpoint  # noqa: E402
from medley_engine.config import parse_model_config  # noqa: E402
from medley_engine.layout import Layout  # noqa: E402
from medley_engine.placement import initial  # noqa: E402
from medley_engine.runtime.collective import Collective  # noqa: E402
from medley_engine.runtime.model import MoeModel  # noqa: E402
from medley_engine.runtime.weights import Weights  # noqa: E402
from medley_engine.scheduler import Slice  # noqa: E402

ELSEWHERE = torch.device("meta")
BLOCK_TOKENS = 8


def model_of(raw, device):
    """A model whose weights and cache lie on a device, with nothing in them."""
    config = parse_model_config(raw)
    layout = Layout(config, "float32", 1, 4096)
    weights = Weights()
    for item in layout.items.values():
        for piece in item.pieces if item.expert is None else ():
            parts = piece.tensor.split(".")
            short = ".".join(parts[3:]) if parts[1] == "layers" else piece.tensor
            weights.tensors[item.layer, short] = torch.empty(piece.shape, device=device)
    sides, heads, size = config.kv_shape(1)
    blocks = torch.empty((16, config.layers, sides, BLOCK_TOKENS, heads, size), device=device)
    cache = SimpleNamespace(block_tokens=BLOCK_TOKENS, blocks=blocks)
    placement = initial(len(config.moe_layers), config.experts, 1)
    return MoeModel(config, weights, cache, placement, Collective(None, 0, 1, token=""), device=device)


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v2"])
@pytest.mark.parametrize("mixed", [False, True], ids=["all there", "one forgotten"])
def test_a_step_of_dense_layers_touches_one_device_only(family, mixed):
    raw = random_checkpoint.model_config(family, layers=2)
    raw |= {"mlp_only_layers": [0, 1]} if family == "qwen3_moe" else {"first_k_dense_replace": 2}
    model = model_of(raw, ELSEWHERE)
    if mixed:
        model._device = torch.device("cpu")
    batch = [
        Slice("prompt", 0, tuple(range(10)), (0, 1), sample=True, decoding=False),
        Slice("first", 12, (3,), (2, 3), sample=True, decoding=True),
        Slice("second", 3, (4,), (4,), sample=True, decoding=True),
    ]
    if mixed:
        with pytest.raises(RuntimeError, match="not on the expected device"):
            model.forward(batch)
    else:
        logits = model.forward(batch)
        assert logits.device == ELSEWHERE
        assert logits.shape == (3, raw["vocab_size"])


def test_routing_touches_one_device_only():
    raw = random_checkpoint.model_config("deepseek_v2", layers=2)
    model = model_of(raw, ELSEWHERE)
    layer = model.experts._c.moe_layers[0]
    hidden = torch.empty((3, raw["hidden_size"]), device=ELSEWHERE)
    step = model._step([Slice("a", 0, (1, 2, 3), (0,), sample=True, decoding=False)], torch.float32)
    scores, chosen = model.experts.route(layer, hidden, step.products)
    assert {scores.device, chosen.device, model.experts.tokens.device} == {ELSEWHERE}
    assert {to.device for to in model.experts._targets.values()} == {ELSEWHERE}
