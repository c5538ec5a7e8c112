//! Reader of GGUF files, versions 2 and 3, whole or in parts; tensors are read one at a time.

mod header;
mod part;
mod part_name;
mod value;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::summary::Sizes;
use super::{CheckpointError, RawTensor, TensorInfo};
use part::Part;
pub(super) use part_name::PartName;
pub use value::Value;

/// How many parts a model has.
const COUNT: &str = "split.count";
/// Which of them a file is; the first is 0.
const NUMBER: &str = "split.no";
/// How many tensors all of them have.
const TENSORS: &str = "split.tensors.count";

/// An open model: metadata and tensor directory in memory, tensor data on disk.
#[derive(Debug)]
pub struct Gguf {
    /// The file, or all parts in order; the metadata is the first one's.
    parts: Vec<Part>,
    /// Which part has each tensor.
    tensors: HashMap<String, usize>,
}

impl Gguf {
    /// Reads the header of the file and, where it is a part of a model, of all other parts, which lie beside it.
    ///
    /// # Errors
    /// [`CheckpointError`] naming the file and what is wrong with it, or the part that is missing.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let part = Part::open(path)?;
        let parts = match part.number(COUNT) {
            Some(count) if count > 1 => parts(part, count)?,
            _ => vec![part],
        };
        let mut tensors = HashMap::new();
        for (index, part) in parts.iter().enumerate() {
            for name in part.names() {
                if let Some(other) = tensors.insert(name.to_owned(), index) {
                    let other = parts[other].path.display();
                    let reason = format!("tensor {name} occurs in {other} too");
                    return Err(CheckpointError::corrupt(&part.path, reason));
                }
            }
        }
        let said = parts[0].number(TENSORS).filter(|_| parts.len() > 1);
        if let Some(said) = said.filter(|said| *said != tensors.len() as u64) {
            let reason = format!("{said}, but the {} parts have {}", parts.len(), tensors.len());
            return Err(CheckpointError::field(&parts[0].path, TENSORS, reason));
        }
        Ok(Self { parts, tensors })
    }

    /// A metadata value.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.parts[0].metadata.get(key)
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.parts[0].metadata.keys().map(String::as_str)
    }

    /// The bytes of a metadata value, with its type before it.
    pub(crate) fn raw_value(&mut self, key: &str) -> Result<Option<Vec<u8>>, CheckpointError> {
        self.parts[0].raw_value(key)
    }

    /// The file that has the metadata.
    pub(crate) fn path(&self) -> &Path {
        &self.parts[0].path
    }

    /// All files, in order.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        self.parts.iter().map(|part| part.path.clone()).collect()
    }

    /// The names of all tensors.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Format and shape of a tensor.
    pub(crate) fn info(&self, name: &str) -> Option<TensorInfo> {
        self.parts[*self.tensors.get(name)?].info(name)
    }

    /// Adds all tensors to `sizes`.
    pub(in crate::checkpoint) fn measure(&self, sizes: &mut Sizes) {
        self.parts.iter().for_each(|part| part.measure(sizes));
    }

    /// Format, shape and bytes of a tensor, in a format that the kernels read.
    pub(crate) fn read(&mut self, name: &str) -> Result<Option<RawTensor>, CheckpointError> {
        let Some(part) = self.tensors.get(name) else { return Ok(None) };
        self.parts[*part].read(name)
    }
}

/// All `count` parts of a model of which one is open.
fn parts(known: Part, count: u64) -> Result<Vec<Part>, CheckpointError> {
    let path = known.path.clone();
    let number = known.number(NUMBER).unwrap_or(0);
    let named = path.file_name().and_then(|name| PartName::parse(name.to_str()?));
    let named = named.filter(|name| (name.number - 1, name.count) == (number, count));
    let Some(named) = named else {
        let reason = format!(
            "this is part {} of {count}, and the others are found by their names; give all of them the ones that they \
             were written with, which end in `-{:05}-of-{count:05}.gguf` here",
            number.saturating_add(1),
            number.saturating_add(1)
        );
        return Err(CheckpointError::field(&path, COUNT, reason));
    };
    let (mut parts, mut known) = (Vec::new(), Some(known));
    for name in named.all() {
        let part = match known.take_if(|_| name == named) {
            Some(part) => part,
            None => other_part(&path, name)?,
        };
        parts.push(part);
    }
    Ok(parts)
}

/// Opens the part of this name, which lies beside the part at `path`.
fn other_part(path: &Path, name: PartName) -> Result<Part, CheckpointError> {
    let other = path.with_file_name(name.to_string());
    if !other.exists() {
        let reason =
            format!("the model has {} parts, and {} is missing", name.count, other.display());
        return Err(CheckpointError::field(path, COUNT, reason));
    }
    let part = Part::open(&other)?;
    let said = (part.number(NUMBER), part.number(COUNT));
    if said != (Some(name.number - 1), Some(name.count)) {
        let reason = format!("{said:?} beside {COUNT}, so it is not what its name says");
        return Err(CheckpointError::field(&other, NUMBER, reason));
    }
    Ok(part)
}
