//! Reader of a file's header: its metadata, and where its tensors lie. Every length and count is checked against the
//! file before anything is allocated.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::ops::Range;
use std::path::Path;

use super::value::Value;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::stored_type::StoredType;

/// Name, type, shape and offset of each tensor.
type Directory = Vec<(String, StoredType, Vec<usize>, u64)>;

/// What is left of the file before and behind each metadata value.
type Places = Vec<(String, Range<u64>)>;

/// A file of which the header is being read.
pub(super) struct Header<'a> {
    pub(super) reader: BufReader<&'a mut File>,
    pub(super) path: &'a Path,
    /// Bytes of the file not read yet: no honest length is larger.
    pub(super) left: u64,
}

impl Header<'_> {
    fn error(&self, what: impl Into<String>) -> CheckpointError {
        CheckpointError::corrupt(self.path, what)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], CheckpointError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), CheckpointError> {
        if bytes.len() as u64 > self.left {
            return Err(self.error("the file ends inside its header; is it complete?"));
        }
        self.left -= bytes.len() as u64;
        self.reader
            .read_exact(bytes)
            .map_err(|error| CheckpointError::Io { path: self.path.into(), error })
    }

    fn u32(&mut self) -> Result<u32, CheckpointError> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, CheckpointError> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// A count of things that take at least `size` bytes each.
    fn count(&mut self, size: u64, what: &str) -> Result<usize, CheckpointError> {
        let count = self.u64()?;
        if count > self.left / size {
            return Err(
                self.error(format!("{count} {what} do not fit the {} bytes left", self.left))
            );
        }
        Ok(count as usize)
    }

    fn string(&mut self) -> Result<String, CheckpointError> {
        let len = self.count(1, "string bytes")?;
        let mut bytes = vec![0; len];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| self.error("a string is not UTF-8"))
    }

    fn value(&mut self, kind: u32, nested: bool) -> Result<Value, CheckpointError> {
        Ok(match kind {
            0 => Value::Unsigned(u8::from_le_bytes(self.bytes()?).into()),
            1 => Value::Signed(i8::from_le_bytes(self.bytes()?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.bytes()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.bytes()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.bytes()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.bytes()?).into()),
            7 => Value::Unsigned(u64::from(self.bytes::<1>()?[0] != 0)),
            8 => Value::String(self.string()?),
            9 if !nested => {
                let kind = self.u32()?;
                let size = match kind {
                    0 | 1 | 7 => 1,
                    2 | 3 => 2,
                    4..=6 => 4,
                    _ => 8,
                };
                let len = self.count(size, "array elements")?;
                let mut values = Vec::new();
                for _ in 0..len {
                    values.push(self.value(kind, true)?);
                }
                Value::Array(values)
            }
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.bytes()?)),
            12 => Value::Float(f64::from_le_bytes(self.bytes()?)),
            _ => return Err(self.error(format!("metadata type {kind} is not supported here"))),
        })
    }

    /// Reads it whole.
    ///
    /// # Errors
    /// [`CheckpointError`] naming the file and what is wrong with it.
    pub(super) fn read(
        &mut self,
    ) -> Result<(HashMap<String, Value>, Places, Directory), CheckpointError> {
        if &self.bytes::<4>()? != b"GGUF" {
            return Err(self.error("not a GGUF file (it does not begin with `GGUF`)"));
        }
        let version = self.u32()?;
        if !(2..=3).contains(&version) {
            return Err(
                self.error(format!("GGUF version {version}; versions 2 and 3 are supported"))
            );
        }
        let num_tensors = self.count(24, "tensors")?;
        let num_values = self.count(12, "metadata values")?;
        let (mut metadata, mut places) = (HashMap::new(), Places::new());
        for _ in 0..num_values {
            let key = self.string()?;
            let before = self.left;
            let kind = self.u32()?;
            let value = self.value(kind, false)?;
            places.push((key.clone(), before..self.left));
            metadata.insert(key, value);
        }
        let mut directory = Vec::new();
        for _ in 0..num_tensors {
            let name = self.string()?;
            let dims = self.u32()?;
            if !(1..=4).contains(&dims) {
                return Err(self.error(format!("tensor {name} has {dims} dimensions")));
            }
            let mut shape = Vec::new();
            for _ in 0..dims {
                let dim = self.u64()?;
                shape.push(usize::try_from(dim).map_err(|_| self.error("a dimension overflows"))?);
            }
            shape.reverse();
            let kind = self.u32()?;
            let stored = StoredType::from_id(kind)
                .map_err(|reason| self.error(format!("tensor {name} has {reason}")))?;
            let offset = self.u64()?;
            directory.push((name, stored, shape, offset));
        }
        Ok((metadata, places, directory))
    }
}
