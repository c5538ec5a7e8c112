//! What the target computed at every position of the answers, on disk: an attached drafter reads it in training.
//!
//! On disk: the magic `PLSTAT02`, the length of an identity as u32 and its bytes, then for each position its
//! values as f16, little-endian: the hidden states, normed without weights, then keys and values of each kept block.
//! (Gemma's states as they are leave the range of f16.)

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::TrainError;
use pleach::checkpoint::write;

const MAGIC: &[u8; 8] = b"PLSTAT02";

/// The states of all positions, read as they are needed.
#[derive(Debug)]
pub struct TargetStates {
    file: File,
    start: u64,
    width: usize,
}

impl TargetStates {
    /// Opens a file of `positions` positions of `width` values each that was written for `identity`; `None` where
    /// there is none.
    ///
    /// # Errors
    /// [`TrainError::File`] with what the file system says.
    pub fn open(
        path: &Path,
        identity: &str,
        width: usize,
        positions: usize,
    ) -> Result<Option<Self>, TrainError> {
        let error = |e: std::io::Error| TrainError::file(path, e);
        let mut file = match File::open(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(error)?,
        };
        let header = header(identity);
        let mut found = Vec::new();
        Read::by_ref(&mut file).take(header.len() as u64).read_to_end(&mut found).map_err(error)?;
        let start = header.len() as u64;
        let length = start + (positions * width * size_of::<f16>()) as u64;
        let whole = found == header && file.metadata().map_err(error)?.len() == length;
        Ok(whole.then_some(Self { file, start, width }))
    }

    /// Writes a file of what `fill` puts out, whole or not at all.
    ///
    /// # Errors
    /// What the file system or `fill` says.
    pub fn write(
        path: &Path,
        identity: &str,
        fill: impl FnOnce(&mut TargetStatesWriter<'_, '_>) -> std::io::Result<()>,
    ) -> Result<(), TrainError> {
        Ok(write::atomically(path, |file| {
            file.write_all(&header(identity))?;
            fill(&mut TargetStatesWriter { file, cells: Vec::new() })
        })?)
    }

    /// Values of one position.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Reads `count` positions from `first` on: `[count, width]`.
    pub(super) fn read(&self, first: usize, count: usize) -> std::io::Result<Vec<f32>> {
        let mut cells = vec![f16::ZERO; count * self.width];
        let offset = self.start + (first * self.width * size_of::<f16>()) as u64;
        self.file.read_exact_at(bytemuck::cast_slice_mut(&mut cells), offset)?;
        let mut values = vec![0.0; cells.len()];
        cells.convert_to_f32_slice(&mut values);
        Ok(values)
    }
}

fn header(identity: &str) -> Vec<u8> {
    let length = (identity.len() as u32).to_le_bytes();
    [&MAGIC[..], &length, identity.as_bytes()].concat()
}

/// Appends positions to a file of [`TargetStates`].
pub struct TargetStatesWriter<'w, 'f> {
    file: &'w mut BufWriter<&'f File>,
    cells: Vec<f16>,
}

impl TargetStatesWriter<'_, '_> {
    /// Appends values of one position or a part of them.
    ///
    /// # Errors
    /// What the file system says.
    pub fn push(&mut self, values: &[f32]) -> std::io::Result<()> {
        self.cells.resize(values.len(), f16::ZERO);
        self.cells.convert_from_f32_slice(values);
        self.file.write_all(bytemuck::cast_slice(&self.cells))
    }
}
