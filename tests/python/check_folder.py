"""Loads a folder written by `pleach-tools prune` or `train` with `transformers` and lets it answer.

    pip install torch transformers safetensors
    python tests/python/check_folder.py FOLDER
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = sys.argv[1]
model, loading = AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, output_loading_info=True
)
assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
tokenizer = AutoTokenizer.from_pretrained(folder)
prompt = tokenizer.apply_chat_template(
    [{"role": "user", "content": "Why is the sky blue?"}],
    add_generation_prompt=True,
    return_tensors="pt",
    return_dict=True,
)
answer = model.generate(**prompt, max_new_tokens=24, do_sample=False)
print(model.config.num_hidden_layers, "blocks:")
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :]))
