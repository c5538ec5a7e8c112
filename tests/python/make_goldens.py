"""Writes tests/goldens: small random models of every family with the logits `transformers` computes,
and reference logits of the default model.

    pip install torch transformers accelerate gguf safetensors
    python tests/python/make_goldens.py [SmolLM2-135M-Instruct.Q4_1.gguf]
    python tests/python/make_goldens.py --only gemma2 gemma3
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

OUT = Path(__file__).resolve().parent.parent / "goldens"
SIZE = dict(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
    attn_implementation="eager",
)


def rope(kind, **more):
    return dict(rope_type=kind, rope_theta=10000.0, **more)


MODELS = {
    "llama-tied": (LlamaConfig(**SIZE, tie_word_embeddings=True), torch.float32, None),
    "llama-bf16": (LlamaConfig(**SIZE, head_dim=12, attention_bias=True), torch.bfloat16, None),
    "llama3-rope": (
        LlamaConfig(
            **{**SIZE, "max_position_embeddings": 256},
            rope_parameters=rope(
                "llama3",
                factor=4.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=32,
            ),
        ),
        torch.float16,
        None,
    ),
    "llama-linear": (
        LlamaConfig(**SIZE, rope_parameters=rope("linear", factor=2.0)),
        torch.float32,
        None,
    ),
    "llama-yarn": (
        LlamaConfig(
            **{**SIZE, "max_position_embeddings": 256},
            rope_parameters=rope("yarn", factor=8.0, original_max_position_embeddings=32),
        ),
        torch.float32,
        None,
    ),
    "mistral-window": (MistralConfig(**SIZE, sliding_window=7), torch.float32, None),
    "qwen2-sharded": (Qwen2Config(**SIZE, tie_word_embeddings=False), torch.float32, "20KB"),
    "qwen2-window": (
        Qwen2Config(**SIZE, use_sliding_window=True, sliding_window=5, max_window_layers=1),
        torch.float32,
        None,
    ),
    "qwen3": (Qwen3Config(**SIZE, head_dim=16, tie_word_embeddings=True), torch.float32, None),
    "llama-biases": (
        LlamaConfig(**SIZE, attention_bias=True, mlp_bias=True),
        torch.float32,
        None,
    ),
    "smollm3": (
        SmolLM3Config(**{**SIZE, "num_hidden_layers": 3}, no_rope_layers=[1, 0, 1], pad_token_id=0),
        torch.float32,
        None,
    ),
    "phi3": (
        Phi3Config(
            **SIZE,
            pad_token_id=0,
            original_max_position_embeddings=32,
            sliding_window=30,
            rope_parameters=rope(
                "longrope",
                partial_rotary_factor=0.5,
                short_factor=[1.0, 1.1],
                long_factor=[1.5, 3.0],
                original_max_position_embeddings=32,
            ),
        ),
        torch.float32,
        None,
    ),
    "gemma2": (
        Gemma2Config(
            **{**SIZE, "num_hidden_layers": 3},
            head_dim=16,
            query_pre_attn_scalar=24,
            sliding_window=6,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        ),
        torch.float32,
        None,
    ),
    "gemma3": (
        Gemma3TextConfig(
            **{**SIZE, "num_hidden_layers": 4, "num_key_value_heads": 1},
            head_dim=16,
            query_pre_attn_scalar=24,
            sliding_window=7,
            layer_types=[
                "sliding_attention",
                "sliding_attention",
                "full_attention",
                "sliding_attention",
            ],
            rope_parameters={
                "full_attention": dict(rope_type="linear", rope_theta=100000.0, factor=4.0),
                "sliding_attention": dict(rope_type="default", rope_theta=1000.0),
            },
        ),
        torch.float32,
        None,
    ),
}


def write(name, config, dtype, shard):
    torch.manual_seed(len(name))
    model = AutoModelForCausalLM.from_config(config)
    for key, parameter in model.named_parameters():
        noise = torch.randn_like(parameter)
        # Gemma's norms multiply by one more than their weights.
        centre = 0 if config.model_type.startswith("gemma") else 1
        parameter.data = centre + 0.2 * noise if "norm" in key else 0.25 * noise
    folder = OUT / name
    model.to(dtype).save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    # The weights as the file has them, the arithmetic in f32.
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokens = torch.randint(0, config.vocab_size, (1, 40))
    with torch.no_grad():
        logits = model(tokens).logits[0]
    save_file(
        {"tokens": tokens[0].to(torch.int32), "logits": logits.contiguous()},
        folder / "golden.safetensors",
    )
    print(name, logits.abs().mean().item())


def write_default(path):
    path = Path(path)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    text = (OUT.parent / "data" / "pride.txt").read_text()[:1500]
    chat = [{"role": "user", "content": "Why is the sky blue?\n1234 été  🌲"}]
    ids = tokenizer(text, add_special_tokens=False).input_ids[:256]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    rows = list(range(0, len(ids), 8))
    columns = list(range(0, logits.shape[1], 509))
    folder = OUT / "smollm2-135m-instruct"
    folder.mkdir(exist_ok=True)
    save_file(
        {
            "tokens": torch.tensor(ids, dtype=torch.int32),
            "rows": torch.tensor(rows, dtype=torch.int32),
            "columns": torch.tensor(columns, dtype=torch.int32),
            "logits": logits[rows][:, columns].contiguous(),
            "log_sum_exp": torch.logsumexp(logits[rows], -1),
            "best": logits[rows].argmax(-1).to(torch.int32),
        },
        folder / "golden.safetensors",
    )
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    (folder / "chat.json").write_text(
        json.dumps(
            {
                "messages": chat,
                "prompt": rendered,
                "tokens": tokenizer(rendered, add_special_tokens=False).input_ids,
            },
            indent=1,
        )
        + "\n"
    )


OUT.mkdir(exist_ok=True)
only = sys.argv[2:] if sys.argv[1:2] == ["--only"] else None
for name, (config, dtype, shard) in MODELS.items():
    if only is None or name in only:
        write(name, config, dtype, shard)
if only is None and len(sys.argv) > 1:
    write_default(sys.argv[1])
