//! Which draft a model has, and where those of the default model lie.

use std::path::PathBuf;

use crate::checkpoint::source::Source;

/// File name of the draft of the default model.
const DEFAULT_DRAFT: &str = "smollm2-135m-instruct.gguf";

/// The draft of the default model, an attached one: in `$PLEACH_DRAFT_DIR`, or in `drafts/` here or beside any folder
/// the program lies in.
#[must_use]
pub fn default_draft() -> Option<PathBuf> {
    let named = std::env::var_os("PLEACH_DRAFT_DIR").map(PathBuf::from);
    let here = std::env::current_dir().ok();
    let program = std::env::current_exe().ok();
    let around = program.iter().flat_map(|p| p.ancestors().skip(1)).map(PathBuf::from);
    named
        .into_iter()
        .chain(here.into_iter().chain(around).map(|dir| dir.join("drafts")))
        .map(|dir| dir.join(DEFAULT_DRAFT))
        .find(|path| path.is_file())
}

/// The draft of a model: the one that is given, unless that is `none`, or that of the default model.
pub(super) fn draft_of(model: &Source, given: Option<Source>, speculates: bool) -> Option<Source> {
    match given {
        _ if !speculates => None,
        Some(Source::Path(path)) if path.as_os_str() == "none" => None,
        Some(draft) => Some(draft),
        None if *model == Source::Pypi => default_draft().map(Source::Path),
        None => None,
    }
}
