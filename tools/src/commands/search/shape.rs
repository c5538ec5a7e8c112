//! What a draft is made of.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use pleach::cli::DeviceChoice;
use serde::{Deserialize, Serialize};

use crate::commands::prune::{self, DraftKind};
use crate::shared::model_args::ModelArgs;

/// Two numbers and all between.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Span(pub(super) usize, pub(super) usize);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let number = |text: &str| text.trim().parse().ok().filter(|number| *number > 0);
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self(first, last)),
            _ => Err(format!("`{text}` is no span of numbers above 0, as in 2-12")),
        }
    }
}

/// The numbers that set one draft apart from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shape {
    pub(crate) keep_blocks: usize,
    /// Neurons of their feed-forward parts.
    pub(crate) intermediate_size: usize,
    /// The target's states that it reads; none if it is standalone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) states: Option<usize>,
    /// Rows of its head.
    pub(crate) draft_vocab: usize,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { keep_blocks, intermediate_size, states, draft_vocab } = self;
        write!(f, "{keep_blocks} blocks, {intermediate_size} neurons, ")?;
        if let Some(states) = states {
            write!(f, "{states} states, ")?;
        }
        write!(f, "{draft_vocab} rows")
    }
}

impl Shape {
    /// Every combination.
    pub(super) fn all(
        kind: DraftKind,
        Span(first, last): Span,
        neurons: &[usize],
        states: &[usize],
        draft_vocab: &[usize],
    ) -> Vec<Self> {
        let states: Vec<_> = match kind {
            DraftKind::Standalone => vec![None],
            DraftKind::Attached => states.iter().map(|&states| Some(states)).collect(),
        };
        let mut shapes = Vec::new();
        for keep_blocks in first..=last {
            for &intermediate_size in neurons {
                for &states in &states {
                    let shape =
                        |&draft_vocab| Self { keep_blocks, intermediate_size, states, draft_vocab };
                    shapes.extend(draft_vocab.iter().map(shape));
                }
            }
        }
        shapes
    }

    /// Its numbers alone, short enough for an axis.
    pub(super) fn numbers(&self) -> String {
        let states = self.states.map_or_else(String::new, |states| format!("{states} / "));
        format!("{} / {} / {states}{}", self.keep_blocks, self.intermediate_size, self.draft_vocab)
    }

    /// The name of its folder.
    pub(super) fn folder(&self) -> String {
        self.to_string().replace(", ", "-").replace(' ', "-")
    }

    /// To cut it out of a model of `total` blocks, whose importance was `measured`.
    pub(super) fn pruned(
        &self,
        model: &ModelArgs,
        device: DeviceChoice,
        out: PathBuf,
        total: usize,
        measured: PathBuf,
    ) -> prune::Args {
        let args = match self.states {
            None => prune::Args::of(model, device, out, total - self.keep_blocks, measured),
            Some(states) => {
                let attached = prune::Args::attached(model, device, out, self.keep_blocks, total);
                prune::Args { states, ..attached }
            }
        };
        prune::Args { intermediate_size: Some(self.intermediate_size), ..args }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_two_numbers() {
        assert_eq!("2-12".parse(), Ok(Span(2, 12)));
        assert_eq!("3".parse(), Ok(Span(3, 3)));
        for wrong in ["", "0-2", "4-2", "a-b", "-3"] {
            assert!(wrong.parse::<Span>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_combination_has_a_folder_of_its_own() {
        let shapes = Shape::all(DraftKind::Attached, Span(1, 2), &[32], &[1, 3], &[256, 512]);
        let mut folders: Vec<_> = shapes.iter().map(Shape::folder).collect();
        assert_eq!(folders[1], "1-blocks-32-neurons-1-states-512-rows");
        folders.dedup();
        assert_eq!(folders.len(), 8);
        // A standalone draft reads no states.
        let shapes = Shape::all(DraftKind::Standalone, Span(2, 3), &[32, 64], &[1, 3], &[256]);
        assert_eq!(
            shapes.iter().map(Shape::folder).collect::<Vec<_>>(),
            [
                "2-blocks-32-neurons-256-rows",
                "2-blocks-64-neurons-256-rows",
                "3-blocks-32-neurons-256-rows",
                "3-blocks-64-neurons-256-rows"
            ]
        );
    }
}
