//! Names of files that are parts of a model: `NAME-00001-of-00003.gguf`.

use std::fmt;

/// The name of a part, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::checkpoint) struct PartName<'a> {
    /// What all parts' names begin with.
    pub(in crate::checkpoint) model: &'a str,
    /// Which part it is; the first is 1.
    pub(in crate::checkpoint) number: u64,
    /// How many there are.
    pub(in crate::checkpoint) count: u64,
}

impl<'a> PartName<'a> {
    /// The parts of a file's name; `None` of one that does not end so.
    pub(in crate::checkpoint) fn parse(name: &'a str) -> Option<Self> {
        let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (model, number) = rest.rsplit_once('-')?;
        let parse = |digits: &str| {
            let all = digits.len() >= 5 && digits.bytes().all(|digit| digit.is_ascii_digit());
            all.then(|| digits.parse().ok()).flatten()
        };
        let name = Self { model, number: parse(number)?, count: parse(count)? };
        (1..=name.count).contains(&name.number).then_some(name)
    }

    /// The names of all parts, in order.
    pub(in crate::checkpoint) fn all(self) -> impl Iterator<Item = Self> {
        (1..=self.count).map(move |number| Self { number, ..self })
    }
}

impl fmt::Display for PartName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:05}-of-{:05}.gguf", self.model, self.number, self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parts() {
        let name = PartName::parse("a-of-b-00002-of-00003.gguf").unwrap();
        assert_eq!(name, PartName { model: "a-of-b", number: 2, count: 3 });
        let all: Vec<String> = name.all().map(|part| part.to_string()).collect();
        assert_eq!(all[0], "a-of-b-00001-of-00003.gguf");
        assert_eq!(all[2], "a-of-b-00003-of-00003.gguf");
        for other in [
            "model.gguf",
            "model-00001-of-00002",
            "model-00003-of-00002.gguf",
            "model-00000-of-00002.gguf",
            "model-1-of-2.gguf",
            "model-0000x-of-00002.gguf",
            "00001-of-00002.gguf",
        ] {
            assert_eq!(PartName::parse(other), None, "{other}");
        }
    }
}
