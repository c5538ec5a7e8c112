//! Work space that only grows.

/// The first `len` values of a buffer that never shrinks: what was in it stays, so nothing is filled twice where lengths
/// go up and down.
pub(crate) fn grow(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    buffer.resize(buffer.len().max(len), 0.0);
    &mut buffer[..len]
}
