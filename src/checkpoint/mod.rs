//! Models on disk: GGUF files and Hugging Face folders, seen alike.
//!
//! Tensors carry their Hugging Face names and row order whatever the file. Opening reads headers only;
//! tensors are read one at a time, so that loading needs little more memory than the packed model.

pub mod adapter;
pub mod architecture;
mod chat_template;
mod digest;
mod error;
mod fields;
mod fused;
mod gguf;
mod gguf_model;
mod hf_config;
mod packed;
mod pre_tokenizer;
mod quantization;
mod quantized;
mod rope;
mod safetensors;
mod settings;
pub mod source;
mod special;
mod stored_type;
mod summary;
mod template_files;
mod tensor;
mod tokenizer;
mod usual_template;
pub mod write;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

pub use digest::sha256;
pub use error::CheckpointError;
use gguf::PartName;
pub use gguf::{Gguf, Value};
pub use gguf_model::ATTACHMENT;
pub use hf_config::NOTE;
pub use safetensors::header as safetensors_header;
pub use special::SpecialTokens;
pub use summary::Summary;
pub use template_files::ChatTemplates;
pub use tensor::{RawTensor, TensorInfo};

use crate::checkpoint::architecture::{Attachment, ModelConfig, tensor_names};
use hf_config::Description;
use summary::Sizes;

/// Metadata of a GGUF file: keys, and the bytes of their values with the types before them.
pub type RawMetadata = Vec<(String, Vec<u8>)>;

#[derive(Debug)]
enum Store {
    Gguf(Box<Gguf>),
    Folder(quantized::Folder),
}

/// An open model: configuration, tokenizer, chat template, and tensors on demand.
#[derive(Debug)]
pub struct Checkpoint {
    /// The architecture.
    pub config: ModelConfig,
    /// Token ids of the output head's rows, where the head is trimmed.
    pub draft_vocab: Option<Vec<u32>>,
    /// Where the model hangs on its target, where it is an attached drafter.
    pub attachment: Option<Attachment>,
    /// The tokenizer, where the file has one.
    pub tokenizer: Option<tokenizers::Tokenizer>,
    /// The chat templates, where the file has any.
    pub chat_templates: ChatTemplates,
    /// The special tokens by role, as the chat template knows them.
    pub special_tokens: SpecialTokens,
    /// What the model is to be sampled by, as `generation_config.json` has it; empty where the file has nothing of it.
    pub generation: serde_json::Map<String, serde_json::Value>,
    /// A short name for people.
    pub name: String,
    path: PathBuf,
    store: Store,
}

impl Checkpoint {
    /// Opens a Hugging Face folder, a `.gguf` file, or all parts of a model by any of them.
    ///
    /// # Errors
    /// [`CheckpointError`] naming the file, the field and what is wrong.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let folder = path.is_dir();
        let name = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let name = match PartName::parse(&name) {
            _ if folder => name,
            Some(part) => part.model.to_owned(),
            None => Path::new(&name).file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        };
        let (store, description, tokenizer, mut chat_templates) = if folder {
            let store = Store::Folder(quantized::Folder::open(path)?);
            let templates = ChatTemplates::of_folder(path)?;
            (store, hf_config::read(path)?, tokenizer::from_folder(path)?, templates)
        } else {
            let gguf = Gguf::open(path)?;
            let model = Description {
                config: gguf_model::config(&gguf)?,
                draft_vocab: gguf_model::draft_vocab(&gguf)?,
                attachment: gguf_model::attachment(&gguf)?,
                generation: gguf_model::generation(&gguf),
            };
            let (tokenizer, templates) =
                (tokenizer::from_gguf(&gguf)?, ChatTemplates::of_gguf(&gguf));
            (Store::Gguf(Box::new(gguf)), model, tokenizer, templates)
        };
        let Description { mut config, draft_vocab, attachment, generation } = description;
        chat_templates.default = chat_templates.default.or_else(|| {
            let usual = usual_template::of(&config, tokenizer.as_ref())?;
            tracing::warn!(file = %path.display(), "no chat template; Gemma's turns are used");
            Some(usual.to_owned())
        });
        let special_tokens = match &store {
            Store::Folder(_) => special::from_folder(path, &config, tokenizer.as_ref())?,
            Store::Gguf(gguf) => special::from_gguf(gguf),
        };
        if let (Some(tokenizer), Some(eos)) = (&tokenizer, special_tokens.get("eos_token")) {
            config.end_at(tokenizer.token_to_id(eos));
        }
        if let Store::Gguf(gguf) = &store {
            config.end_at(special::ends(gguf));
        }
        Ok(Self {
            config,
            draft_vocab,
            attachment,
            tokenizer,
            chat_templates,
            special_tokens,
            generation,
            name,
            path: path.into(),
            store,
        })
    }

    /// Checks that the blocks have all that every model of the family has, and that the head is there where
    /// it is not the embedding; says which tensors are there and never read.
    ///
    /// # Errors
    /// [`CheckpointError::MissingTensor`].
    pub fn check_tensors(&self) -> Result<(), CheckpointError> {
        let names = tensor_names(&self.config, |name| self.has(name));
        let (embedding, head) = ("model.embed_tokens.weight", "lm_head.weight");
        let untied = !self.config.tie_word_embeddings && self.has(embedding);
        let mut needed = names.iter().map(String::as_str).chain(untied.then_some(head));
        if let Some(name) = needed.find(|name| !self.has(name)) {
            let module = name.strip_suffix("weight");
            let similar = module.and_then(|module| self.stored().find(|n| n.starts_with(module)));
            return Err(match similar {
                Some(similar) => {
                    let reason =
                        format!("is missing; there is {similar}, which is no format that is read");
                    CheckpointError::field(&self.path, name, reason)
                }
                None => {
                    CheckpointError::MissingTensor { path: self.path.clone(), name: name.into() }
                }
            });
        }
        let known: HashSet<String> = match &self.store {
            Store::Folder(_) => {
                let whole =
                    |name: &String| fused::source(&self.config, name).map(|(whole, _)| whole);
                let fused: Vec<String> = names.iter().filter_map(whole).collect();
                names.into_iter().chain(fused).chain([embedding.into(), head.into()]).collect()
            }
            Store::Gguf(gguf) => {
                let names = names.iter().map(String::as_str).chain([embedding, head]);
                let stored = |name| gguf_model::stored_name(gguf, &self.config, name);
                let factors = gguf_model::LONG_FACTORS.into_iter().chain([gguf_model::FACTORS]);
                names.filter_map(stored).chain(factors.map(str::to_owned)).collect()
            }
        };
        let mut unread: Vec<&str> = self
            .stored()
            .filter(|name| !known.contains(*name) && !name.ends_with("rotary_emb.inv_freq"))
            .collect();
        unread.sort_unstable();
        if let Some(first) = unread.first() {
            let (file, count) = (self.path.display(), unread.len());
            tracing::warn!(%file, first, count, "tensors that the model has no place for are ignored");
        }
        Ok(())
    }

    /// The names of all tensors, as the file has them.
    fn stored(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        match &self.store {
            Store::Folder(folder) => Box::new(folder.names()),
            Store::Gguf(gguf) => Box::new(gguf.names()),
        }
    }

    /// What the files say of the model as a whole.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let mut sizes = Sizes::default();
        let mixture = match &self.store {
            Store::Folder(folder) => {
                folder.measure(&mut sizes);
                None
            }
            Store::Gguf(gguf) => {
                gguf.measure(&mut sizes);
                gguf_model::mixture(gguf)
            }
        };
        sizes.summary(&self.config, mixture)
    }

    /// The file or folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is a tensor of this Hugging Face name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        match &self.store {
            Store::Folder(folder) => {
                folder.has(name) || fused_in(folder, &self.config, name).is_some()
            }
            Store::Gguf(gguf) => gguf_model::has(gguf, &self.config, name),
        }
    }

    /// Reads a tensor by its Hugging Face name, rows in Hugging Face order.
    ///
    /// # Errors
    /// [`CheckpointError::MissingTensor`], or what the file system says.
    pub fn tensor(&mut self, name: &str) -> Result<RawTensor, CheckpointError> {
        let tensor = match &mut self.store {
            Store::Folder(folder) => match fused_in(folder, &self.config, name) {
                None => folder.read(name)?,
                Some((whole, rows)) => {
                    let tensor = folder.read(&whole)?;
                    let wrong = |reason| CheckpointError::field(&self.path, &whole, reason);
                    tensor.map(|tensor| fused::cut(&tensor, &rows, wrong)).transpose()?
                }
            },
            Store::Gguf(gguf) => gguf_model::read(gguf, &self.config, name)?,
        };
        tensor.ok_or_else(|| self.missing(name))
    }

    /// Format and shape of a tensor, without reading it.
    ///
    /// # Errors
    /// [`CheckpointError`] where it is not there, or in a format that is not read.
    pub fn info(&self, name: &str) -> Result<TensorInfo, CheckpointError> {
        let info = match &self.store {
            Store::Folder(folder) => match fused_in(folder, &self.config, name) {
                None => folder.info(name)?,
                Some((whole, rows)) => folder.info(&whole)?.map(|info| fused::info(info, &rows)),
            },
            Store::Gguf(gguf) => gguf_model::info(gguf, &self.config, name),
        };
        info.ok_or_else(|| self.missing(name))
    }

    /// What a GGUF file says of its tokenizer and chat template; `None` of a folder.
    ///
    /// # Errors
    /// What the file system says.
    pub fn tokenizer_metadata(&mut self) -> Result<Option<RawMetadata>, CheckpointError> {
        let Store::Gguf(gguf) = &mut self.store else { return Ok(None) };
        let mut keys: Vec<String> =
            gguf.keys().filter(|key| key.starts_with("tokenizer.")).map(str::to_owned).collect();
        keys.sort_unstable();
        let read = |key: String| Some(gguf.raw_value(&key).transpose()?.map(|value| (key, value)));
        keys.into_iter().filter_map(read).collect::<Result<_, _>>().map(Some)
    }

    fn missing(&self, name: &str) -> CheckpointError {
        CheckpointError::MissingTensor { path: self.path.clone(), name: name.into() }
    }

    /// SHA-256 of the weight files in order of name, in hex.
    ///
    /// # Errors
    /// What the file system says.
    pub fn fingerprint(&self) -> Result<String, CheckpointError> {
        let files = match &self.store {
            Store::Gguf(gguf) => gguf.files(),
            Store::Folder(folder) => folder.files(),
        };
        sha256(&files).map_err(|error| CheckpointError::Io { path: self.path.clone(), error })
    }
}

/// Where a folder has a tensor that it does not have by its own name: the matrix that has its rows, and which they are.
fn fused_in(
    folder: &quantized::Folder,
    config: &ModelConfig,
    name: &str,
) -> Option<(String, std::ops::Range<usize>)> {
    if folder.has(name) {
        return None;
    }
    fused::source(config, name).filter(|(whole, _)| folder.has(whole))
}
