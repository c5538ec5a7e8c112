//! Scales and minima of panels.

use std::ops::{Deref, DerefMut};

use half::f16;

use super::panels::PANEL;
use crate::cpu::shared_mut::SharedMut;
use crate::cpu::store::Store;
use crate::dtype::Factor;

/// A byte for each output of a panel.
pub(crate) type Row = [u8; PANEL];

/// Rows of a unit, 16 numbers of half precision.
const UNIT: usize = 2;

/// Scales or minima: entries of 16, one for each block or half block. Entries that share a unit are rows of steps behind
/// it; one that shares it with none is the unit alone.
#[derive(Debug, Clone)]
pub(crate) struct Scales<R = Store<Row>> {
    pub(super) rows: R,
    /// The entries of a unit, as a power of two.
    shared: u32,
}

impl Scales {
    /// `entries` zeros, `sharing` of which share a unit: a power of two that divides their number.
    pub(super) fn zeroed(entries: usize, sharing: usize) -> Self {
        let shared = sharing.trailing_zeros();
        Self { rows: Store::zeroed(rows_of(entries, shared)), shared }
    }

    /// These, for the tasks of a job.
    pub(super) fn shared(&mut self) -> SharedScales<'_> {
        SharedScales { rows: SharedMut::new(&mut self.rows), shared: self.shared }
    }

    /// Zeros in the same format.
    pub(super) fn empty(&self, entries: usize) -> Self {
        Self::zeroed(entries, 1 << self.shared)
    }
}

/// Rows that so many entries take.
fn rows_of(entries: usize, shared: u32) -> usize {
    let steps = if shared == 0 { 0 } else { entries };
    (entries >> shared) * UNIT + steps
}

impl<R: Deref<Target = [Row]>> Scales<R> {
    /// The first row of an entry's unit, and the row of its steps.
    #[inline(always)]
    pub(crate) fn place(&self, entry: usize) -> (usize, Option<usize>) {
        let record = entry >> self.shared;
        if self.shared == 0 {
            return (UNIT * record, None);
        }
        let units = UNIT * record;
        ((record << self.shared) + units, Some(entry + units + UNIT))
    }

    /// The row, which need not exist.
    #[inline(always)]
    pub(crate) fn at(&self, row: usize) -> *const Row {
        self.rows.as_ptr().wrapping_add(row)
    }

    pub(crate) fn get(&self, entry: usize, lane: usize) -> Factor {
        let (unit, steps) = self.place(entry);
        let units = self.rows[unit..unit + UNIT].as_flattened().as_chunks().0;
        let steps = steps.map_or(1, |row| self.rows[row][lane] as i8);
        Factor { unit: f16::from_le_bytes(units[lane]), steps }
    }
}

impl<R: DerefMut<Target = [Row]>> Scales<R> {
    /// Sets an entry, and the unit of those that share it.
    pub(super) fn set(&mut self, entry: usize, lane: usize, value: Factor) {
        let (unit, steps) = self.place(entry);
        let units = self.rows[unit..unit + UNIT].as_flattened_mut().as_chunks_mut().0;
        units[lane] = value.unit.to_le_bytes();
        if let Some(row) = steps {
            self.rows[row][lane] = value.steps as u8;
        }
    }
}

/// Scales that the tasks of one job set, each a part.
pub(super) struct SharedScales<'a> {
    rows: SharedMut<'a, Row>,
    shared: u32,
}

impl SharedScales<'_> {
    /// `entries` entries from `first` on, which share no unit with others.
    ///
    /// # Safety
    /// No other part that overlaps this one may be alive.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub(super) unsafe fn part(&self, first: usize, entries: usize) -> Scales<&mut [Row]> {
        let (start, len) = (rows_of(first, self.shared), rows_of(entries, self.shared));
        // SAFETY: by the caller's promise.
        Scales { rows: unsafe { self.rows.slice(start, len) }, shared: self.shared }
    }
}
