//! How the rows of a batch are shared among the threads of the pool that a step runs in. Pieces depend on the number of
//! rows alone, and so does the order in which sums over pieces are made: a step has the same bits on any number of threads.

use std::ops::Range;
use std::sync::LazyLock;

use pleach_kernels::ThreadPool;

/// Rows of a piece.
pub(super) const ROWS: usize = 128;

/// The rows of a piece.
pub(super) fn piece(index: usize, rows: usize) -> Range<usize> {
    index * ROWS..rows.min((index + 1) * ROWS)
}

/// What kernels that share their work themselves run on, for one piece.
pub(super) fn alone() -> &'static ThreadPool {
    static ALONE: LazyLock<ThreadPool> = LazyLock::new(|| ThreadPool::new(1));
    &ALONE
}
