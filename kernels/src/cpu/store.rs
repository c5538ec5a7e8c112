//! Arrays in huge pages.
//!
//! A pass reads all weights from one end to the other. With pages of 4 KiB the processor looks up an address at
//! every 64th line, through two page tables in a virtual machine, and its own prefetch ends there; pages of 2 MiB
//! are read 15 to 25 % faster. A matrix is smaller than such a page, so arrays lie side by side in large pieces of
//! memory.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytemuck::Pod;
use memmap2::MmapMut;

/// Bytes of a huge page.
const HUGE_PAGE: usize = 2 << 20;
/// Bytes of a piece of memory; one for a larger array is as large as that takes.
const PIECE: usize = 8 * HUGE_PAGE;
/// Arrays of fewer bytes are left to the allocator.
const SMALL: usize = 64 << 10;
/// Where in a piece an array may begin: at any cache line.
const ALIGN: usize = 64;

/// A piece of memory that arrays share, given back with the last of them.
struct Piece {
    /// Never touched through this.
    _memory: MmapMut,
    /// At a huge page.
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: nobody reaches the memory through the piece, only through arrays, each its own part.
unsafe impl Send for Piece {}
// SAFETY: as above.
unsafe impl Sync for Piece {}

impl Piece {
    /// At least `len` bytes of zeros; nothing where the system gives none.
    fn new(len: usize) -> Option<Self> {
        let len = len.next_multiple_of(HUGE_PAGE);
        let mut memory = MmapMut::map_anon(len + HUGE_PAGE).ok()?;
        // A wish: without huge pages it is memory like any other.
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage);
        let start = memory.as_mut_ptr();
        // SAFETY: less than a huge page further, so within the memory.
        let start = unsafe { start.add(start.align_offset(HUGE_PAGE)) };
        Some(Self { start: NonNull::new(start)?, len, _memory: memory })
    }
}

/// The piece in use, and how much of it is taken.
static CURRENT: Mutex<(Weak<Piece>, usize)> = Mutex::new((Weak::new(), 0));

/// An array of numbers, in huge pages where it is large.
pub(crate) struct Store<T> {
    start: NonNull<T>,
    len: usize,
    /// What it is a part of; without one it is a boxed slice.
    piece: Option<Arc<Piece>>,
}

// SAFETY: the array owns its numbers.
unsafe impl<T: Send> Send for Store<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Store<T> {}

impl<T: Pod> Store<T> {
    /// `len` zeros.
    pub(crate) fn zeroed(len: usize) -> Self {
        let large = len.saturating_mul(size_of::<T>()) >= SMALL;
        // Where there is no memory, the allocator says so.
        if let Some(part) = large.then(|| Self::part(len)).flatten() {
            return part;
        }
        let values: &mut [T] = Box::leak(bytemuck::zeroed_slice_box(len));
        Self { start: NonNull::from(values).cast(), len, piece: None }
    }

    /// `len` zeros in a piece of memory.
    fn part(len: usize) -> Option<Self> {
        assert!(align_of::<T>() <= ALIGN, "alignment of an element");
        let bytes = len.checked_mul(size_of::<T>())?.checked_next_multiple_of(ALIGN)?;
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        let (piece, at) = match current.0.upgrade() {
            Some(piece) if piece.len - current.1 >= bytes => (piece, current.1),
            _ => (Arc::new(Piece::new(bytes.max(PIECE))?), 0),
        };
        *current = (Arc::downgrade(&piece), at + bytes);
        // SAFETY: `bytes` bytes from there on are within the piece, and nobody else's.
        let start = unsafe { piece.start.add(at) }.cast();
        Some(Self { start, len, piece: Some(piece) })
    }
}

impl<T> Drop for Store<T> {
    fn drop(&mut self) {
        if self.piece.is_none() {
            let values = NonNull::slice_from_raw_parts(self.start, self.len);
            // SAFETY: leaked in `zeroed`, with this length.
            drop(unsafe { Box::from_raw(values.as_ptr()) });
        }
    }
}

impl<T> Deref for Store<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `len` numbers, set to zero at first, which live as long as the array.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for Store<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and nobody else's.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T: Pod> Clone for Store<T> {
    fn clone(&self) -> Self {
        let mut copy = Self::zeroed(self.len());
        copy.copy_from_slice(self);
        copy
    }
}

impl<T> std::fmt::Debug for Store<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{} numbers]", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_do_not_overlap_and_outlive_each_other() {
        let lens = [1, 5, SMALL / 8 - 1, SMALL / 8, 100_003, PIECE / 8 - 1, PIECE / 8, PIECE / 5];
        let mut stores: Vec<Store<u64>> = lens.iter().map(|len| Store::zeroed(*len)).collect();
        for (i, (store, len)) in stores.iter_mut().zip(lens).enumerate() {
            assert!(store.len() == len && store.iter().all(|v| *v == 0));
            assert_eq!(store.piece.is_some(), 8 * len >= SMALL);
            store.fill(i as u64 + 1);
        }
        // Half of them go, with what they share.
        for at in (0..stores.len()).rev().step_by(2) {
            let copy = stores[at].clone();
            stores[at] = Store::zeroed(3);
            assert!(copy.iter().all(|v| *v == at as u64 + 1));
        }
        for (i, store) in stores.iter().enumerate() {
            assert!(store.iter().all(|v| *v == i as u64 + 1) || store.len() == 3);
        }
    }

    #[test]
    fn threads_get_parts_of_their_own() {
        std::thread::scope(|scope| {
            for thread in 1..5u32 {
                scope.spawn(move || {
                    for round in 0..20 {
                        let mut store: Store<u32> = Store::zeroed(20_000 + round);
                        store.fill(thread);
                        std::thread::yield_now();
                        assert!(store.iter().all(|v| *v == thread));
                    }
                });
            }
        });
    }
}
