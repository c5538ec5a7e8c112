"""Writes tests/goldens/gguf-types.safetensors: random blocks of GGUF's types that are decoded as they are read, and
the weights that the `gguf` package finds in them.

    pip install gguf safetensors
    python tests/python/make_gguf_types.py
"""

from pathlib import Path

import gguf
import numpy as np
from gguf.quants import dequantize
from safetensors.numpy import save_file

OUT = Path(__file__).resolve().parent.parent / "goldens" / "gguf-types.safetensors"
ROWS = 4
# Where a block has its scales of f16.
SCALES = {"Q2_K": (80, 82), "Q3_K": (108,), "IQ4_NL": (0,), "IQ4_XS": (0,)}
# Scales of MXFP4: the usual ones, the largest that f16 and codes of 8 bits hold, and ones too small for f16.
EXPONENTS = [128, 120, 121, 119, 117, 125, 104, 105, 143, 144, 145, 146, 103, 102, 100, 0]

random = np.random.default_rng(7)
tensors = {}
for name in ["Q2_K", "Q3_K", "IQ4_NL", "IQ4_XS", "MXFP4"]:
    kind = gguf.GGMLQuantizationType[name]
    weights, size = gguf.GGML_QUANT_SIZES[kind]
    count = ROWS * 256 // weights
    blocks = random.integers(0, 256, (count, size), dtype=np.uint8)
    for at in SCALES.get(name, ()):
        scales = random.normal(0, 0.02, (count, 1)).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8)
    if name == "MXFP4":
        blocks[:, 0] = np.resize(EXPONENTS, count)
    tensors[f"{name}.bytes"] = blocks.reshape(ROWS, -1)
    tensors[f"{name}.weights"] = dequantize(blocks.reshape(ROWS, -1), kind).astype(np.float32)
    assert tensors[f"{name}.weights"].shape == (ROWS, 256)
save_file(tensors, OUT)
