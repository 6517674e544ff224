"""Write a Llama of random weights with a tokenizer of one word per token, for servers that need a model to load.

    python benchmarks/conformance/tiny_model.py FOLDER

Runs in an environment with vLLM. Nothing is downloaded.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

CARD: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "vocab_size": 8192,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}


def shapes() -> dict[str, tuple[int, ...]]:
    """Return the weights of ``CARD`` under the names of a checkpoint."""
    hidden, inner, vocabulary = CARD["hidden_size"], CARD["intermediate_size"], CARD["vocab_size"]
    keys = hidden * CARD["num_key_value_heads"] // CARD["num_attention_heads"]
    found: dict[str, tuple[int, ...]] = {
        f"{name}.weight": (vocabulary, hidden) for name in ("model.embed_tokens", "lm_head")
    }
    layer = {
        **{
            f"self_attn.{name}_proj": (out, hidden)
            for name, out in {"q": hidden, "k": keys, "v": keys, "o": hidden}.items()
        },
        **{f"mlp.{name}_proj": (inner, hidden) for name in ("gate", "up")},
        "mlp.down_proj": (hidden, inner),
        **dict.fromkeys(("input_layernorm", "post_attention_layernorm"), (hidden,)),
    }
    for i in range(CARD["num_hidden_layers"]):
        found |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    return found | {"model.norm.weight": (hidden,)}


def write(folder: Path) -> None:
    """Write the checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    random = torch.Generator().manual_seed(0)
    weights = {
        name: torch.ones(shape) if len(shape) == 1 else 0.02 * torch.randn(shape, generator=random)
        for name, shape in shapes().items()
    }
    save_file({name: weight.to(torch.bfloat16) for name, weight in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CARD))
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(CARD["vocab_size"])}, unk_token="w2"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "w0", "eos_token": "w1"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
