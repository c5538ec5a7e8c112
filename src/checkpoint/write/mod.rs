//! Writing models: Hugging Face folders and GGUF drafts. A file appears under its name whole or not at
//! all: it is written beside it, synced and renamed.

mod folder;
mod gguf;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Value as Json, json};

pub use folder::{folder_files, hf_config, model_folder};
pub use gguf::{Meta, gguf_file};

use super::CheckpointError;
use pleach_kernels::DType;

/// How the names of files begin that are still being written; a killed process leaves them behind.
pub const BEGUN: &str = ".writing-";

/// Writes a file through `fill` so that no reader ever sees a part of it.
///
/// # Errors
/// What the file system says; the old file, if any, is then untouched.
pub fn atomically(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
) -> Result<(), CheckpointError> {
    let error = |error| CheckpointError::Io { path: path.into(), error };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666)); // less what umask takes
    }
    let file = builder.prefix(BEGUN).tempfile_in(folder).map_err(error)?;
    let mut writer = BufWriter::with_capacity(1 << 20, file.as_file());
    fill(&mut writer).and_then(|()| writer.flush()).map_err(error)?;
    drop(writer);
    file.as_file().sync_all().map_err(error)?;
    file.persist(path).map_err(|e| error(e.error))?;
    // The rename itself must last too.
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(error)
}

/// Writes a JSON file, indented, [`atomically`].
///
/// # Errors
/// What the file system says.
pub fn json_file(path: &Path, value: &impl serde::Serialize) -> Result<(), CheckpointError> {
    atomically(path, |writer| {
        serde_json::to_writer_pretty(&mut *writer, value)?;
        writer.write_all(b"\n")
    })
}

/// A tensor to be written, made when its turn comes.
pub struct LazyTensor<'a> {
    /// Hugging Face name.
    pub name: String,
    /// Float format on disk.
    pub dtype: DType,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Makes the values.
    pub values: Box<dyn Fn() -> Result<Vec<f32>, CheckpointError> + 'a>,
}

/// The safetensors format of a float format.
fn safetensors_dtype(dtype: DType) -> Option<Dtype> {
    match dtype {
        DType::F32 => Some(Dtype::F32),
        DType::F16 => Some(Dtype::F16),
        DType::BF16 => Some(Dtype::BF16),
        _ => None,
    }
}

/// Writes a file of tensors, one of them in memory at a time, and what `about` says beside the format.
///
/// # Errors
/// What the file system says, or what a tensor's maker says.
pub fn safetensors_file(
    path: &Path,
    tensors: &[LazyTensor],
    about: &[(&str, &str)],
) -> Result<(), CheckpointError> {
    let mut header = serde_json::Map::new();
    let about: BTreeMap<_, _> = [("format", "pt")].iter().chain(about).copied().collect();
    header.insert("__metadata__".into(), json!(about));
    let mut end = 0;
    for tensor in tensors {
        let dtype = safetensors_dtype(tensor.dtype).ok_or_else(|| {
            CheckpointError::corrupt(path, format!("safetensors cannot hold {:?}", tensor.dtype))
        })?;
        let values = tensor.shape.iter().product::<usize>();
        let start = end;
        end += tensor.dtype.bytes_for(values).unwrap_or(0);
        header.insert(
            tensor.name.clone(),
            json!({"dtype": dtype, "shape": tensor.shape, "data_offsets": [start, end]}),
        );
    }
    let mut header = Json::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut failed = None;
    let written = atomically(path, |writer| {
        writer.write_all(&(header.len() as u64).to_le_bytes())?;
        writer.write_all(&header)?;
        for tensor in tensors {
            let values = (tensor.values)().map_err(|error| {
                failed = Some(error);
                io::Error::other("a tensor could not be made")
            })?;
            let bytes = tensor.dtype.quantize(&values).expect("invariant: a float format");
            writer.write_all(&bytes)?;
        }
        Ok(())
    });
    failed.map_or(written, Err)
}
