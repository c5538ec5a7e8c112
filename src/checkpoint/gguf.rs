//! Reader of GGUF files, versions 2 and 3. Every length, count and offset is checked against the file
//! before anything is allocated; tensors are read one at a time.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::stored_type::StoredType;
use super::{CheckpointError, RawTensor, TensorInfo};

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any unsigned integer or boolean.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// Any float.
    Float(f64),
    /// A string.
    String(String),
    /// An array; not nested.
    Array(Vec<Value>),
}

impl Value {
    /// As an unsigned integer, where it is one.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Unsigned(v) => Some(*v),
            Self::Signed(v) => u64::try_from(*v).ok(),
            _ => None,
        }
    }

    /// As a number.
    #[must_use]
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Unsigned(v) => Some(*v as f64),
            Self::Signed(v) => Some(*v as f64),
            Self::Float(v) => Some(*v),
            _ => None,
        }
    }

    /// As a string.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(v) => Some(v),
            _ => None,
        }
    }

    /// As an array.
    #[must_use]
    pub fn as_array(&self) -> Option<&[Value]> {
        match self {
            Self::Array(v) => Some(v),
            _ => None,
        }
    }
}

/// Where a tensor lies.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    stored: StoredType,
    /// Outermost dimension first.
    pub(crate) shape: Vec<usize>,
    offset: u64,
    bytes: usize,
}

/// An open GGUF file: metadata and tensor directory in memory, tensor data on disk.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    file: File,
    metadata: HashMap<String, Value>,
    /// Where each metadata value lies in the file, with its type before it.
    places: HashMap<String, Range<u64>>,
    pub(crate) tensors: HashMap<String, Entry>,
}

impl Gguf {
    /// Reads the header of the file.
    ///
    /// # Errors
    /// [`CheckpointError`] naming the file and what is wrong with it.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
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
                    format!("tensor {name}: {stored:?} of shape {shape:?}"),
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

    /// A metadata value.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// The bytes of a metadata value, with its type before it.
    pub(crate) fn raw_value(&mut self, key: &str) -> Result<Option<Vec<u8>>, CheckpointError> {
        let Some(place) = self.places.get(key) else { return Ok(None) };
        let io = |error| CheckpointError::Io { path: self.path.clone(), error };
        let mut bytes = vec![0; (place.end - place.start) as usize];
        self.file.seek(SeekFrom::Start(place.start)).map_err(io)?;
        self.file.read_exact(&mut bytes).map_err(io)?;
        Ok(Some(bytes))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Format and shape of a tensor.
    pub(crate) fn info(&self, name: &str) -> Option<TensorInfo> {
        let entry = self.tensors.get(name)?;
        Some(TensorInfo { dtype: entry.stored.dtype(), shape: entry.shape.clone() })
    }

    /// Format, shape and bytes of a tensor, in a format that the kernels read.
    pub(crate) fn read(&mut self, name: &str) -> Result<Option<RawTensor>, CheckpointError> {
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

type Directory = Vec<(String, StoredType, Vec<usize>, u64)>;

/// What is left of the file before and behind each metadata value.
type Places = Vec<(String, Range<u64>)>;

struct Header<'a> {
    reader: BufReader<&'a mut File>,
    path: &'a Path,
    /// Bytes of the file not read yet: no honest length is larger.
    left: u64,
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

    fn read(&mut self) -> Result<(HashMap<String, Value>, Places, Directory), CheckpointError> {
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
