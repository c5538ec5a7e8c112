"""usage: roofline.py [--check README]

Bytes, operations and the least time of every kernel for Llama-3.1-8B, and the speed-up of a round that follows.
`--check` compares with the part of README between the markers.
"""

import sys

HIDDEN, LAYERS, HEADS, KV_HEADS, DIM, INNER, VOCAB = 4096, 32, 32, 8, 128, 14336, 128256
CONTEXT = 4096
GPUS = {"H100": (3.35e12, 989e12), "H200": (4.8e12, 989e12)}  # SXM: bytes/s, dense bf16 operations/s
BITS = {"bf16": 16.0, "4 bit": 4.0 + 16 / 32 + 32 / 256}  # Q4_K packed: 2 bytes a group, 4 bytes per 256
ROWS = (1, 4, 8, 32)
Q, KV = HEADS * DIM, KV_HEADS * DIM
MATRICES = {"qkv": (Q + 2 * KV, HIDDEN), "output": (HIDDEN, Q), "gate, up": (2 * INNER, HIDDEN), "down": (HIDDEN, INNER)}
DRAFT_LAYERS, DRAFT_VOCAB = 8, 32768  # the draft of the predictions
SPLIT = 256


def matrix(outputs, inputs, rows, bits):
    return outputs * inputs * bits / 8 + rows * (inputs + outputs) * 2, 2 * rows * outputs * inputs


def head(vocab, rows, bits):
    size, operations = matrix(vocab, HIDDEN, rows, bits)
    return size + rows * vocab * 2, operations  # logits are f32


def attention(rows, head_bytes):
    """That of one layer, where keys of a head of a position, and values, take so many bytes."""
    splits = -(-CONTEXT // SPLIT)
    partial = rows * HEADS * splits * (DIM + 2) * 4
    return CONTEXT * 2 * KV_HEADS * head_bytes + 2 * rows * Q * 2 + 2 * partial, 4 * rows * CONTEXT * Q


def kernels(rows, weights, layers=LAYERS, vocab=VOCAB, head_bytes=DIM * 2):
    """(bytes, operations) of each kernel in one pass over `rows` rows of one sequence at the end of CONTEXT."""
    bits = BITS[weights]
    scale = lambda cost: tuple(layers * part for part in cost)
    table = {f"matmul {name}": scale(matrix(*shape, rows, bits)) for name, shape in MATRICES.items()}
    table["matmul head"] = head(vocab, rows, bits)
    table["attention"] = scale(attention(rows, head_bytes))
    # Residual in and out in f32, the addition and the result in 16 bits; twice a layer and once at the end.
    norm = rows * HIDDEN * (4 + 4 + 2 + 2)
    table["add_rms_norm"] = ((2 * layers + 1) * norm, (2 * layers + 1) * rows * HIDDEN * 5)
    table["qkv_rope_write"] = scale((rows * (Q + 2 * KV) * 4 + rows * DIM * 4, 4 * rows * (Q + KV)))
    table["gate_mul"] = scale((rows * 3 * INNER * 2, 20 * rows * INNER))
    table["embed"] = (rows * HIDDEN * (bits / 8 + 4), rows * HIDDEN)
    # Logits three times, draft probabilities twice; top-k and top-p add four passes each, from the L2 cache.
    table["verify"] = (rows * vocab * 4 * 5, rows * vocab * 100)
    return table


def seconds(cost, gpu):
    bandwidth, operations = GPUS[gpu]
    return max(cost[0] / bandwidth, cost[1] / operations)


def step(rows, weights, gpu, **shape):
    return sum(seconds(cost, gpu) for cost in kernels(rows, weights, **shape).values())


def speed_up(alpha, weights, gpu):
    """The best (speed-up, draft length), by (1 - alpha^(n+1)) / (1 - alpha) / (n c + v(n+1))."""
    one = step(1, weights, gpu)
    cost = step(1, weights, gpu, layers=DRAFT_LAYERS, vocab=DRAFT_VOCAB) / one
    gain = lambda n: (1 - alpha ** (n + 1)) / (1 - alpha) / (n * cost + step(n + 1, weights, gpu) / one)
    return max((gain(n), n) for n in range(1, 16))


def line(name, costs):
    cells = []
    for size, operations in costs:
        times = " / ".join(f"{1e6 * seconds((size, operations), gpu):.1f}" for gpu in GPUS)
        cells.append(f"{size / 1e6:,.1f}, {operations / 1e9:,.2f}, {times}")
    return f"| {name} | " + " | ".join(cells) + " |"


def text():
    lines = []
    for weights in BITS:
        lines += [f"Weights in {weights}: MB, GFLOP, and the least microseconds on H100 / H200, of one pass.", ""]
        lines += ["| kernel | " + " | ".join(f"{rows} row{'s' * (rows > 1)}" for rows in ROWS) + " |", "|---" * (len(ROWS) + 1) + "|"]
        tables = [kernels(rows, weights) for rows in ROWS]
        coded = [kernels(rows, weights, head_bytes=DIM + 4)["attention"] for rows in ROWS]
        for name in tables[0]:
            lines.append(line(name, [table[name] for table in tables]))
            if name == "attention":
                lines.append(line("(attention over an int8 cache)", coded))
        totals = [" / ".join(f"{1e3 * step(rows, weights, gpu):.3f} ms" for gpu in GPUS) for rows in ROWS]
        lines.append("| **all** | " + " | ".join(totals) + " |")
        ratios = [" / ".join(f"{step(rows, weights, gpu) / step(1, weights, gpu):.3f}" for gpu in GPUS) for rows in ROWS]
        lines += ["| **v(n)** | " + " | ".join(ratios) + " |", ""]
    lines += [f"Speed-up of a round with a draft of {DRAFT_LAYERS} blocks and {DRAFT_VOCAB:,} head rows in the same format, at its best draft length:", ""]
    lines += ["| weights, GPU | α = 0.6 | α = 0.7 | α = 0.8 |", "|---|---|---|---|"]
    for weights in BITS:
        for gpu in GPUS:
            cells = ["{:.2f} (γ = {})".format(*speed_up(alpha, weights, gpu)) for alpha in (0.6, 0.7, 0.8)]
            lines.append(f"| {weights}, {gpu} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if len(sys.argv) > 2 and sys.argv[1] == "--check":
    readme = open(sys.argv[2], encoding="utf-8").read()
    if readme.split("<!-- roofline -->\n")[1] != text():
        sys.exit("the roofline table is not what kernels/cuda/roofline.py prints")
else:
    print(text(), end="")
