//! Which files of a repository make the model that is asked for.

use std::fmt;
use std::path::{Component, Path};

use crate::checkpoint::NOTE;
use crate::checkpoint::gguf::PartName;
use crate::checkpoint::safetensors::shards;
use crate::checkpoint::settings::SETTINGS;

/// Which model of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// That of the safetensors files.
    Folder,
    /// That of a GGUF file, or of a file and the other parts that it names.
    File(String),
    /// The GGUF file whose name has this word in it, such as `Q4_K_M`.
    Quantisation(String),
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder => Ok(()),
            Self::File(file) => write!(f, "/{file}"),
            Self::Quantisation(name) => write!(f, ":{name}"),
        }
    }
}

/// The files of a model.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Selection {
    /// Their names, in the order they are fetched.
    pub(super) files: Vec<String>,
    /// The GGUF file to open; `None` for the folder of all.
    pub(super) opened: Option<String>,
    /// Whether the index among them names further ones.
    pub(super) indexed: bool,
}

/// The index of weights in several files.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Weights in one file.
const WEIGHTS: &str = "model.safetensors";

/// What a folder says of its weights: the model, and what it is as a draft.
const DESCRIPTIONS: [&str; 2] = ["config.json", NOTE];

impl Choice {
    /// The files of the model, out of all names of a repository.
    ///
    /// # Errors
    /// What the repository lacks, and what it has.
    pub(super) fn of(&self, names: &[String]) -> Result<Selection, String> {
        match self {
            Self::Folder => folder(names),
            Self::File(file) if names.contains(file) => parts(file, names),
            Self::File(file) => Err(format!("it has no file {file}; {}", models(names))),
            Self::Quantisation(name) => parts(quantised(name, names)?, names),
        }
    }
}

/// Whether a name leads to a file inside the folder it is joined to.
pub(super) fn is_inside(name: &str) -> bool {
    !name.is_empty()
        && !name.contains('\\')
        && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

/// The files of the weights that an index names.
///
/// # Errors
/// What is wrong with it.
pub(super) fn indexed(index: &Path, names: &[String]) -> Result<Vec<String>, String> {
    let shards = shards(index).map_err(|error| error.to_string())?;
    let shards: Vec<String> = shards.into_iter().flatten().collect();
    match shards.iter().find(|shard| !names.contains(shard)) {
        Some(missing) => Err(format!("{INDEX} names {missing}, which it does not have")),
        None => Ok(shards),
    }
}

fn folder(names: &[String]) -> Result<Selection, String> {
    let has = |name: &str| names.iter().any(|other| other == name);
    let (weights, indexed) = match (has(WEIGHTS), has(INDEX)) {
        (true, _) => (WEIGHTS, false),
        (false, true) => (INDEX, true),
        (false, false) if names.iter().any(|name| is_model(name)) => {
            return Err(format!(
                "it has GGUF files alone; choose one by its quantisation, as in `:Q4_K_M` behind the name, or by its \
                 file; {}",
                models(names)
            ));
        }
        (false, false) => return Err(format!("it has neither {WEIGHTS} nor GGUF files")),
    };
    if !has("config.json") {
        return Err("it has no config.json".into());
    }
    let settings = DESCRIPTIONS.into_iter().chain(SETTINGS).filter(|name| has(name));
    let files = settings.chain([weights]).map(str::to_owned).collect();
    Ok(Selection { files, opened: None, indexed })
}

/// A GGUF file and its other parts.
fn parts(file: &str, names: &[String]) -> Result<Selection, String> {
    let files = match PartName::parse(file) {
        None => vec![file.to_owned()],
        Some(part) => part
            .all()
            .map(|part| part.to_string())
            .map(|part| match names.contains(&part) {
                true => Ok(part),
                false => Err(format!("it has {file}, but no {part}")),
            })
            .collect::<Result<_, _>>()?,
    };
    Ok(Selection { files, opened: Some(file.to_owned()), indexed: false })
}

/// The one model, or its first part, whose file's name has this word in it.
fn quantised<'a>(wanted: &str, names: &'a [String]) -> Result<&'a str, String> {
    let file = |name: &'a str| name.rsplit_once('/').map_or(name, |(_, file)| file);
    let all: Vec<&str> = first_parts(names).collect();
    let mut found: Vec<&str> =
        all.iter().copied().filter(|name| has_word(file(name), wanted)).collect();
    if found.is_empty() {
        found = all.iter().copied().filter(|name| has_word(name, wanted)).collect();
    }
    match found[..] {
        [one] => Ok(one),
        [] => Err(format!("it has no GGUF file of {wanted}; {}", models(names))),
        _ => Err(format!(
            "several of its GGUF files are of {wanted}; name one, behind a `/`: {}",
            found.join(", ")
        )),
    }
}

/// Whether a text has a word in it, in capitals or not. What goes on behind `_` is another word: `Q4_K` is none of
/// `Q4_K_M`'s.
fn has_word(text: &str, word: &str) -> bool {
    let (text, word) = (text.to_ascii_lowercase(), word.to_ascii_lowercase());
    text.match_indices(&word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let behind = text[at + word.len()..].chars().next();
        !before.is_some_and(char::is_alphanumeric)
            && !behind.is_some_and(|letter| letter.is_alphanumeric() || letter == '_')
    })
}

/// Whether a file is a model: neither a projector of images nor a matrix of importance.
fn is_model(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    lower.ends_with(".gguf") && !lower.contains("mmproj") && !lower.contains("imatrix")
}

/// The models among the files, of those in parts the first.
fn first_parts(names: &[String]) -> impl Iterator<Item = &str> {
    let first = |name: &&str| PartName::parse(name).is_none_or(|part| part.number == 1);
    names.iter().map(String::as_str).filter(|name| is_model(name)).filter(first)
}

/// Which models there are, in words.
fn models(names: &[String]) -> String {
    let mut models: Vec<&str> = first_parts(names).collect();
    models.sort_unstable();
    match models[..] {
        [] => "it has no GGUF files".into(),
        _ => format!("it has {}", models.join(", ")),
    }
}
