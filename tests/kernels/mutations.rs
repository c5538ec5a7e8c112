//! Bugs put into the kernels on purpose: each must make a test fail.

/// One bug: `from`, which stands once in `file`, becomes `to`.
pub(crate) struct Mutation {
    pub(crate) what: &'static str,
    /// The file that gets the bug, and the kernel file that is compiled with it.
    pub(crate) file: &'static str,
    pub(crate) compile: &'static str,
    pub(crate) from: &'static str,
    pub(crate) to: &'static str,
    /// Part of the names of the tests that must notice.
    pub(crate) tests: &'static str,
    /// Compiles in seconds: part of every run.
    pub(crate) quick: bool,
}

const fn bug(
    what: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
    tests: &'static str,
) -> Mutation {
    Mutation { what, file, compile: file, from, to, tests, quick: true }
}

/// A bug in a header, seen through a kernel file.
const fn header_bug(
    what: &'static str,
    file: &'static str,
    compile: &'static str,
    from: &'static str,
    to: &'static str,
    tests: &'static str,
) -> Mutation {
    Mutation { compile, ..bug(what, file, from, to, tests) }
}

/// A bug in a file that takes long to compile.
const fn slow(mutation: Mutation) -> Mutation {
    Mutation { quick: false, ..mutation }
}

pub(crate) const MUTATIONS: &[Mutation] = &[
    header_bug(
        "missing barrier before the partial sums are read",
        "common.cuh",
        "fused.cu",
        "if (lane_id() == 0) scratch[warp_id()] = value;\n    __syncthreads();",
        "if (lane_id() == 0) scratch[warp_id()] = value;",
        "norm",
    ),
    header_bug(
        "a reduction that leaves out the last warp",
        "common.cuh",
        "fused.cu",
        "for (int w = 1; w < WARPS; w++) result",
        "for (int w = 1; w < WARPS - 1; w++) result",
        "norm",
    ),
    header_bug(
        "a shuffle that stops one step early",
        "common.cuh",
        "fused.cu",
        "bits > 0; bits /= 2)",
        "bits > 1; bits /= 2)",
        "norm",
    ),
    header_bug(
        "high bits of a 6-bit scale from the wrong byte",
        "weights.cuh",
        "fused.cu",
        "scale = (s[g + 4] & 15) | s[g - 4] >> 6 << 4;",
        "scale = (s[g + 4] & 15) | s[g] >> 6 << 4;",
        "embed",
    ),
    bug(
        "one value too far",
        "fused.cu",
        "if (i >= width) return;",
        "if (i > width) return;",
        "silu",
    ),
    bug(
        "rotation by the row instead of its position",
        "fused.cu",
        "int64_t(io.positions[row]) * dim",
        "row * dim",
        "rope",
    ),
    bug(
        "a padding row that is written",
        "fused.cu",
        "if (slot == PLEACH_NO_SLOT) return;",
        "if (slot == PLEACH_NO_SLOT + 1) return;",
        "rope",
    ),
    bug(
        "wrong stride between cache blocks",
        "fused.cu",
        "((block * shape.kv_heads + kv_head) * shape.block_size + offset) * dim;",
        "((block * shape.heads + kv_head) * shape.block_size + offset) * dim;",
        "rope",
    ),
    slow(bug(
        "missing barrier between two uses of shared memory",
        "matmul.cu",
        "for (int c = 0; c < COLUMNS; c++) {\n        __syncthreads();",
        "for (int c = 0; c < COLUMNS; c++) {",
        "matmul",
    )),
    slow(bug(
        "a row too many",
        "matmul.cu",
        "if (row >= rows || input >= inputs)",
        "if (row > rows || input >= inputs)",
        "matmul",
    )),
    slow(bug(
        "padded inputs that are read",
        "matmul.cu",
        "if (row >= rows || input >= inputs)",
        "if (row >= rows)",
        "matmul",
    )),
    slow(bug(
        "wrong lane's output",
        "matmul.cu",
        "lane_row() + e / 2 * 8;\n        const int64_t row",
        "lane_pair() + e / 2 * 8;\n        const int64_t row",
        "matmul",
    )),
    slow(bug(
        "scales of the wrong group",
        "matmul.cu",
        "const int64_t at = (tile * l.groups + group) * TILE + r;",
        "const int64_t at = (tile * l.groups + group / 2 * 2) * TILE + r;",
        "matmul",
    )),
    slow(bug(
        "a prefetch that is one round late",
        "matmul.cu",
        "fetch(ahead[i], chunk + AHEAD * WARPS);",
        "fetch(ahead[i], chunk + (AHEAD + 1) * WARPS);",
        "matmul",
    )),
];
