"""Writes tests/goldens/sentencepiece: a small SentencePiece model as a GGUF tokenizer, and the tokens that
the `sentencepiece` package itself gives for some texts.

    pip install sentencepiece gguf
    python tests/python/make_sentencepiece.py
"""

import json
import tempfile
from pathlib import Path

import gguf
import numpy as np
import sentencepiece as spm

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "goldens" / "sentencepiece"
TEXTS = [
    "It is a truth universally acknowledged",
    "  two spaces, then\nlines\n\n\nand\ttabs ",
    "naïve café – 東京 🌳",
    "",
    " ",
    "x",
    "Mr. Bennet replied that he had not.",
    "1234567890 + 0.5 = ?",
]

with tempfile.TemporaryDirectory() as folder:
    spm.SentencePieceTrainer.train(
        input=str(ROOT / "data" / "pride.txt"),
        model_prefix=f"{folder}/m",
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        max_sentence_length=100_000,
    )
    model = spm.SentencePieceProcessor(model_file=f"{folder}/m.model")

OUT.mkdir(exist_ok=True)
kind = lambda i: (
    2 if model.IsUnknown(i) else 3 if model.IsControl(i) else 6 if model.IsByte(i) else 1
)
ids = range(model.vocab_size())
writer = gguf.GGUFWriter(OUT / "model.gguf", "llama")
writer.add_context_length(64)
writer.add_embedding_length(32)
writer.add_feed_forward_length(32)
writer.add_block_count(1)
writer.add_head_count(1)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_tokenizer_model("llama")
writer.add_token_list([model.IdToPiece(i) for i in ids])
writer.add_token_scores([model.GetScore(i) for i in ids])
writer.add_token_types([kind(i) for i in ids])
writer.add_bos_token_id(model.bos_id())
writer.add_eos_token_id(model.eos_id())
writer.add_unk_token_id(model.unk_id())
writer.add_add_bos_token(True)
writer.add_tensor("token_embd.weight", np.zeros((model.vocab_size(), 32), np.float16))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
texts = [{"text": t, "ids": [model.bos_id(), *model.Encode(t)]} for t in TEXTS]
(OUT / "texts.json").write_text(json.dumps(texts, ensure_ascii=False, indent=1) + "\n")
