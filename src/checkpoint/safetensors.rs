//! The safetensors files of a Hugging Face folder, one or sharded; headers in memory, data on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde_json::Value;

use super::{CheckpointError, RawTensor, TensorInfo, fields};
use pleach_kernels::DType;

#[derive(Debug)]
struct Entry {
    file: usize,
    format: Dtype,
    shape: Vec<usize>,
    start: u64,
    bytes: usize,
}

/// The files that an index names; `None` where there is no index.
pub(super) fn shards(index: &Path) -> Result<Option<BTreeSet<String>>, CheckpointError> {
    let Some(map) = fields::object(index)? else { return Ok(None) };
    let error = |reason: String| CheckpointError::field(index, "weight_map", reason);
    let names: BTreeSet<String> = map
        .get("weight_map")
        .and_then(Value::as_object)
        .and_then(|map| map.values().map(|v| v.as_str().map(str::to_owned)).collect())
        .ok_or_else(|| error("is no map of file names".into()))?;
    let is_name =
        |name: &String| Path::new(name).components().count() == 1 && !name.starts_with("..");
    match names.iter().find(|name| !is_name(name)) {
        Some(name) => Err(error(format!("`{name}` is no file name"))),
        None => Ok(Some(names)),
    }
}

/// What the header of a file says, and where the data begin, which it describes and which are there.
///
/// # Errors
/// [`CheckpointError`] where the file is damaged or cut short.
pub fn header(path: &Path, mut file: &File) -> Result<(Metadata, u64), CheckpointError> {
    let io = |error| CheckpointError::Io { path: path.into(), error };
    let corrupt = |reason: String| CheckpointError::corrupt(path, reason);
    let size = file.metadata().map_err(io)?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(io)?;
    let header = u64::from_le_bytes(length);
    if header > size.saturating_sub(8) {
        let reason = format!("a header of {header} bytes in a file of {size}: it is cut short");
        return Err(corrupt(reason));
    }
    let mut bytes = vec![0; header as usize];
    file.read_exact(&mut bytes).map_err(io)?;
    let metadata: Metadata = serde_json::from_slice(&bytes).map_err(|e| corrupt(e.to_string()))?;
    let data = 8 + header;
    for (name, info) in metadata.tensors() {
        if info.data_offsets.1 as u64 > size - data {
            return Err(corrupt(format!("tensor {name} ends after the file; is it complete?")));
        }
    }
    Ok((metadata, data))
}

/// All tensors of a folder.
#[derive(Debug)]
pub(super) struct Folder {
    files: Vec<(PathBuf, File)>,
    entries: BTreeMap<String, Entry>,
}

impl Folder {
    pub(super) fn open(folder: &Path) -> Result<Self, CheckpointError> {
        let index = folder.join("model.safetensors.index.json");
        // The whole file comes first; an index beside it is left from before.
        let whole = folder.join("model.safetensors").exists();
        let shards = if whole { None } else { shards(&index)? };
        let names = shards.unwrap_or_else(|| BTreeSet::from(["model.safetensors".to_owned()]));
        let mut opened = Self { files: Vec::new(), entries: BTreeMap::new() };
        for name in names {
            opened.add(&folder.join(name))?;
        }
        Ok(opened)
    }

    fn add(&mut self, path: &Path) -> Result<(), CheckpointError> {
        let file =
            File::open(path).map_err(|error| CheckpointError::Io { path: path.into(), error })?;
        let (metadata, data) = header(path, &file)?;
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let entry = Entry {
                file: self.files.len(),
                format: info.dtype,
                shape: info.shape.clone(),
                start: data + start as u64,
                bytes: end - start,
            };
            self.entries.insert(name, entry);
        }
        self.files.push((path.into(), file));
        Ok(())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    pub(super) fn files(&self) -> Vec<PathBuf> {
        self.files.iter().map(|(path, _)| path.clone()).collect()
    }

    /// The format and shape of a tensor, whether such are read or not.
    pub(super) fn format(&self, name: &str) -> Option<(Dtype, &[usize])> {
        self.entries.get(name).map(|entry| (entry.format, &entry.shape[..]))
    }

    /// An error that names a tensor and its file.
    pub(super) fn error(&self, name: &str, reason: impl Into<String>) -> CheckpointError {
        let path = self.entries.get(name).map_or(Path::new(""), |entry| &self.files[entry.file].0);
        CheckpointError::field(path, name, reason)
    }

    /// Names, formats, shapes and bytes of all tensors.
    pub(super) fn tensors(&self) -> impl Iterator<Item = (&str, Dtype, &[usize], usize)> {
        let tensors = self.entries.iter();
        tensors.map(|(name, entry)| (&**name, entry.format, &entry.shape[..], entry.bytes))
    }

    pub(super) fn info(&self, name: &str) -> Result<Option<TensorInfo>, CheckpointError> {
        let Some((format, shape)) = self.format(name) else { return Ok(None) };
        let dtype = match format {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => {
                let reason = format!(
                    "its format is {other:?}; F32, F16 and BF16 are read. Take the folder of the unquantised model \
                     or a .gguf file"
                );
                return Err(self.error(name, reason));
            }
        };
        Ok(Some(TensorInfo { dtype, shape: shape.to_vec() }))
    }

    pub(super) fn read(&mut self, name: &str) -> Result<Option<RawTensor>, CheckpointError> {
        let Some(TensorInfo { dtype, shape }) = self.info(name)? else { return Ok(None) };
        let data = self.bytes(name)?;
        Ok(Some(RawTensor { dtype, shape, data }))
    }

    /// The bytes of a tensor that is there, in whatever format.
    pub(super) fn bytes(&mut self, name: &str) -> Result<Vec<u8>, CheckpointError> {
        let entry = &self.entries[name];
        let (path, file) = &mut self.files[entry.file];
        let io = |error| CheckpointError::Io { path: path.clone(), error };
        let mut data = vec![0; entry.bytes];
        file.seek(SeekFrom::Start(entry.start)).map_err(io)?;
        file.read_exact(&mut data).map_err(io)?;
        Ok(data)
    }
}
