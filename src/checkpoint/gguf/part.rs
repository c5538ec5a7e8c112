//! One file: metadata and tensor directory in memory, tensor data on disk.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::header::Header;
use super::value::Value;
use crate::checkpoint::stored_type::StoredType;
use crate::checkpoint::summary::Sizes;
use crate::checkpoint::{CheckpointError, RawTensor, TensorInfo};

/// Where a tensor lies.
#[derive(Debug, Clone)]
struct Entry {
    stored: StoredType,
    /// Outermost dimension first.
    shape: Vec<usize>,
    offset: u64,
    bytes: usize,
}

/// An open file.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) path: PathBuf,
    file: File,
    pub(super) metadata: HashMap<String, Value>,
    /// Where each metadata value lies in the file, with its type before it.
    places: HashMap<String, Range<u64>>,
    tensors: HashMap<String, Entry>,
}

impl Part {
    /// Reads the header of the file. Every offset is checked against the file's size.
    ///
    /// # Errors
    /// [`CheckpointError`] naming the file and what is wrong with it.
    pub(super) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let io = |error| CheckpointError::Io { path: path.into(), error };
        let mut file = File::open(path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        let mut header = Header { reader: BufReader::new(&mut file), path, left: size };
        let (metadata, places, directory) = header.read()?;
        let position = size - header.left;
        let places =
            places.into_iter().map(|(key, left)| (key, size - left.start..size - left.end));
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(v) => v.as_u64().filter(|v| v.is_power_of_two()).ok_or_else(|| {
                CheckpointError::corrupt(
                    path,
                    format!("general.alignment {v:?} is no power of two"),
                )
            })?,
        };
        let data = position.checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
        let mut tensors = HashMap::new();
        for (name, stored, shape, offset) in directory {
            let bytes = stored.bytes_for(&shape).ok_or_else(|| {
                CheckpointError::corrupt(
                    path,
                    format!("tensor {name}: {stored} of shape {shape:?}"),
                )
            })?;
            let start = data.checked_add(offset);
            let end = start.and_then(|s| s.checked_add(bytes as u64));
            let (Some(offset), Some(end)) = (start, end) else {
                return Err(CheckpointError::corrupt(
                    path,
                    format!("tensor {name}: offset overflows"),
                ));
            };
            if end > size {
                return Err(CheckpointError::corrupt(
                    path,
                    format!(
                        "tensor {name} ends at byte {end} of a file of {size}; is it complete?"
                    ),
                ));
            }
            let info = Entry { stored, shape, offset, bytes };
            if tensors.insert(name.clone(), info).is_some() {
                return Err(CheckpointError::corrupt(path, format!("tensor {name} occurs twice")));
            }
        }
        Ok(Self { path: path.into(), file, metadata, places: places.collect(), tensors })
    }

    /// A metadata value as a number.
    pub(super) fn number(&self, key: &str) -> Option<u64> {
        self.metadata.get(key).and_then(Value::as_u64)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The bytes of a metadata value, with its type before it.
    pub(super) fn raw_value(&mut self, key: &str) -> Result<Option<Vec<u8>>, CheckpointError> {
        let Some(place) = self.places.get(key) else { return Ok(None) };
        let io = |error| CheckpointError::Io { path: self.path.clone(), error };
        let mut bytes = vec![0; (place.end - place.start) as usize];
        self.file.seek(SeekFrom::Start(place.start)).map_err(io)?;
        self.file.read_exact(&mut bytes).map_err(io)?;
        Ok(Some(bytes))
    }

    /// Format and shape of a tensor.
    pub(super) fn info(&self, name: &str) -> Option<TensorInfo> {
        let entry = self.tensors.get(name)?;
        Some(TensorInfo { dtype: entry.stored.dtype(), shape: entry.shape.clone() })
    }

    /// Adds all tensors to `sizes`.
    pub(super) fn measure(&self, sizes: &mut Sizes) {
        for Entry { stored, shape, bytes, .. } in self.tensors.values() {
            sizes.add(&stored.to_string(), shape, *bytes);
        }
    }

    /// Format, shape and bytes of a tensor, in a format that the kernels read.
    pub(super) fn read(&mut self, name: &str) -> Result<Option<RawTensor>, CheckpointError> {
        let Some(info) = self.tensors.get(name) else { return Ok(None) };
        let io = |error| CheckpointError::Io { path: self.path.clone(), error };
        let mut data = vec![0; info.bytes];
        self.file.seek(SeekFrom::Start(info.offset)).map_err(io)?;
        self.file.read_exact(&mut data).map_err(io)?;
        let data = info.stored.decode(data).map_err(|reason| {
            CheckpointError::corrupt(&self.path, format!("tensor {name}: {reason}"))
        })?;
        Ok(Some(RawTensor { dtype: info.stored.dtype(), shape: info.shape.clone(), data }))
    }
}
