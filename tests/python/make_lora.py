"""Writes tests/goldens/lora: random adapters of the small models beside it, as `peft` saves them, and the logits that
`peft` computes with them.

    pip install torch transformers peft safetensors
    python tests/python/make_lora.py
"""

import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

GOLDENS = Path(__file__).resolve().parent.parent / "goldens"
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
# By the model's name.
ADAPTERS = {
    "llama-tied": LoraConfig(r=4, lora_alpha=6, target_modules=ATTENTION + MLP),
    "qwen3": LoraConfig(
        r=4,
        lora_alpha=8,
        use_rslora=True,
        target_modules=["q_proj", "v_proj", "up_proj", "down_proj"],
        rank_pattern={"v_proj": 2, "^model.layers.1.self_attn.q_proj": 6},
        alpha_pattern={"up_proj": 3, "layers.0.self_attn.v_proj": 5},
        layers_to_transform=[0, 1],
    ),
    "gemma2": LoraConfig(r=3, lora_alpha=4, target_modules=["o_proj", "gate_proj", "down_proj"]),
}

for name, config in ADAPTERS.items():
    torch.manual_seed(len(name))
    model = AutoModelForCausalLM.from_pretrained(
        GOLDENS / name, dtype=torch.float32, attn_implementation="eager"
    )
    config.task_type = "CAUSAL_LM"
    model = get_peft_model(model, config).eval()
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            parameter.data = 0.2 * torch.randn_like(parameter)
    folder = GOLDENS / "lora" / name
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    path = folder / "adapter_config.json"
    saved = {**json.loads(path.read_text()), "base_model_name_or_path": name}
    path.write_text(json.dumps(saved, indent=1, sort_keys=True) + "\n")
    tokens = torch.randint(0, model.config.vocab_size, (1, 40))
    with torch.no_grad():
        logits = model(tokens).logits[0]
        with model.disable_adapter():
            plain = model(tokens).logits[0]
    save_file(
        {"tokens": tokens[0].to(torch.int32), "logits": logits.contiguous()},
        folder / "golden.safetensors",
    )
    print(name, ((logits - plain).norm() / plain.norm()).item())
