"""Writes tests/goldens/quantized.safetensors: random weights as quantised Hugging Face folders have them, and what they
stand for.

    pip install torch numpy safetensors
    python tests/python/make_quantized.py
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

OUT = Path(__file__).resolve().parent.parent / "goldens" / "quantized.safetensors"
OUTPUTS = 48
random = np.random.default_rng(5)
tensors = {}


def put(case, **parts):
    for kind, value in parts.items():
        value = value if isinstance(value, torch.Tensor) else torch.from_numpy(value.copy())
        tensors[f"{case}.{kind}"] = value.contiguous()


def fp8(case, inputs, kind, scale, spread):
    """`spread` makes of scales one a weight."""
    weights = torch.from_numpy(random.normal(0, 40, (OUTPUTS, inputs)).astype(np.float32))
    weights = weights.to(torch.float8_e4m3fn)
    scale = torch.tensor(np.asarray(scale, np.float32) * np.float32(0.001))
    weight = weights.to(torch.float32) * spread(scale)
    put(case, weight=weights, **{kind: scale}, expected=weight.to(torch.bfloat16).to(torch.float32))


def blocks(scale):
    return scale.repeat_interleave(32, 0).repeat_interleave(16, 1)[:OUTPUTS, :64]


fp8("fp8-block", 64, "weight_scale_inv", random.uniform(1, 9, (2, 4)), blocks)
fp8("fp8-row", 64, "weight_scale", random.uniform(1, 9, (OUTPUTS, 1)), lambda scale: scale)
fp8("fp8-tensor", 32, "weight_scale", random.uniform(1, 9, ()), lambda scale: scale)


def words(codes, order):
    """Codes of 4 bits along the last axis, 8 a word; the lowest four bits have the code `order[0]` of the 8."""
    codes = codes.astype(np.uint32).reshape(*codes.shape[:-1], -1, 8)
    return sum(codes[..., place] << np.uint32(4 * at) for at, place in enumerate(order)).view(np.int32)


def packed(case, inputs, group, awq=False, less_one=1, shuffled=False):
    count = inputs // group
    index = np.arange(inputs) // group
    if shuffled:
        random.shuffle(index)
    codes = random.integers(0, 16, (inputs, OUTPUTS))
    zeros = random.integers(1, 16, (count, OUTPUTS))
    scales = random.uniform(0.001, 0.02, (count, OUTPUTS)).astype(np.float16)
    weights = (codes - zeros[index]) * scales[index].astype(np.float32)
    put(case, expected=weights.T.astype(np.float32), scales=scales)
    if awq:
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        put(case, qweight=words(codes, order), qzeros=words(zeros, order))
    else:
        put(case, qweight=words(codes.T, range(8)).T, qzeros=words(zeros - less_one, range(8)))
        put(case, g_idx=index.astype(np.int32))


packed("gptq", 64, 32)
packed("gptq-v2", 64, 64, less_one=0)
packed("gptq-order", 64, 32, shuffled=True)
packed("gptq-small", 32, 32)
packed("awq", 64, 32, awq=True)
packed("awq-small", 32, 32, awq=True)
save_file(tensors, OUT)
