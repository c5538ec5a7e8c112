//! A mutable slice that the tasks of one job write to at disjoint places.

use std::marker::PhantomData;

/// Shared access to a mutable slice; each task must stay in its own part.
pub(crate) struct SharedMut<'a, T> {
    data: *mut T,
    len: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: the only access is through `slice` and `element`, whose callers promise disjoint parts.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { data: slice.as_mut_ptr(), len: slice.len(), lifetime: PhantomData }
    }

    /// The part `start .. start + len`.
    ///
    /// # Safety
    /// No other part that overlaps this one may be alive.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start, "part {start}+{len} of {}", self.len);
        // SAFETY: within the slice, which outlives `self`; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), len) }
    }

    /// One element.
    ///
    /// # Safety
    /// As [`slice`](Self::slice).
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    #[inline]
    pub(crate) unsafe fn element(&self, index: usize) -> &mut T {
        assert!(index < self.len, "element {index} of {}", self.len);
        // SAFETY: within the slice; ours alone by the caller's promise.
        unsafe { &mut *self.data.add(index) }
    }
}
