//! What a source says, as far as its imports go.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::str::Chars;

/// Names and where they stand.
pub(crate) type Path = Vec<String>;

/// The imports of one source.
#[derive(Debug, Default)]
pub(crate) struct Source {
    /// Paths that the code follows. What is only passed on, by `pub use`, is not among them.
    pub(crate) paths: Vec<Path>,
    /// Paths of what is only passed on.
    pub(crate) passed_on: Vec<Path>,
    /// What a name stands for that was brought here, by the name.
    pub(crate) names: BTreeMap<String, Path>,
    /// Modules all of whose names were brought here.
    pub(crate) globs: Vec<Path>,
    /// What is defined here: the names behind `struct`, `fn` and the like.
    pub(crate) defined: Vec<String>,
}

impl Source {
    /// Reads a source; unit tests at its end are left out, those in files of their own are not read.
    pub(crate) fn read(text: &str) -> Self {
        let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let tokens = tokens(text);
        let mut source = Self::default();
        let (mut passed_on, mut words) = (Vec::new(), Vec::new());
        let mut at = 0;
        while at < tokens.len() {
            let public = at > 0 && (tokens[at - 1] == "pub" || tokens[at - 1] == ")");
            if tokens[at] == "use" {
                let end = at + tokens[at..].iter().position(|token| token == ";").unwrap();
                for (path, name) in tree(&tokens[at + 1..end]) {
                    match &*name {
                        "*" => source.globs.push(path[..path.len() - 1].to_vec()),
                        _ => drop(source.names.insert(name.clone(), path.clone())),
                    }
                    if public { passed_on.push((name, path)) } else { source.paths.push(path) }
                }
                at = end + 1;
                continue;
            }
            // As in `pub(in crate::a)`, which imports nothing.
            let visibility = at > 1 && tokens[at - 2..at] == ["(", "in"];
            let mut path = vec![tokens[at].clone()];
            while let [_, colons, name, ..] = &tokens[at..]
                && colons == "::"
                && is_name(name)
            {
                at += 2;
                path.push(name.clone());
            }
            if path.len() > 1 && !visibility {
                source.paths.push(path.clone());
            }
            let kinds =
                ["struct", "enum", "trait", "fn", "type", "const", "static", "mod", "macro"];
            if at > 0 && kinds.contains(&&*tokens[at - 1]) {
                source.defined.push(tokens[at].clone());
            }
            words.extend(path);
            at += 1;
        }
        for (name, path) in passed_on {
            let used = words.contains(&name);
            let paths = if used { &mut source.paths } else { &mut source.passed_on };
            paths.push(path);
        }
        source
    }
}

/// The paths of a `use`, and the name that each brings.
fn tree(tokens: &[String]) -> Vec<(Path, String)> {
    let mut path = Path::new();
    let mut at = 0;
    while at < tokens.len() {
        match &*tokens[at] {
            "{" => {
                let inner = &tokens[at + 1..tokens.len() - 1];
                let (mut depth, mut start, mut found) = (0, 0, Vec::new());
                for place in 0..=inner.len() {
                    match inner.get(place).map(|token| &**token) {
                        Some("{") => depth += 1,
                        Some("}") => depth -= 1,
                        Some(",") | None if depth == 0 => {
                            for (rest, name) in tree(&inner[start..place]) {
                                let whole: Path = path.iter().cloned().chain(rest).collect();
                                found.push(match &*name {
                                    "self" => (path.clone(), path.last().unwrap().clone()),
                                    _ => (whole, name),
                                });
                            }
                            start = place + 1;
                        }
                        _ => {}
                    }
                }
                return found;
            }
            "as" => return vec![(path, tokens[at + 1].clone())],
            "::" => {}
            name => path.push(name.to_owned()),
        }
        at += 1;
    }
    let name = path.last().cloned();
    name.map(|name| (path, name)).into_iter().collect()
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// The tokens of a source, without comments and literals.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '/' if chars.peek() == Some(&'/') => drop(chars.by_ref().find(|c| *c == '\n')),
            '"' => text_ends(&mut chars, None),
            '\'' => quoted(&mut chars),
            ':' if chars.next_if_eq(&':').is_some() => tokens.push("::".to_owned()),
            c if c.is_alphanumeric() || c == '_' => {
                let mut word = String::from(c);
                while let Some(c) = chars.next_if(|c| c.is_alphanumeric() || *c == '_') {
                    word.push(c);
                }
                let raw = ["r", "br"].contains(&&*word);
                match chars.peek() {
                    Some('"') if raw => {
                        chars.next();
                        text_ends(&mut chars, Some(0));
                    }
                    Some('#') if raw => {
                        let mut hashes = 0;
                        while chars.next_if_eq(&'#').is_some() {
                            hashes += 1;
                        }
                        chars.next();
                        text_ends(&mut chars, Some(hashes));
                    }
                    _ => tokens.push(word),
                }
            }
            c if c.is_whitespace() => {}
            c => tokens.push(c.into()),
        }
    }
    tokens
}

/// Goes behind the end of a text; a raw one ends at a quote and as many hashes.
fn text_ends(chars: &mut Peekable<Chars<'_>>, raw: Option<usize>) {
    while let Some(c) = chars.next() {
        match (c, raw) {
            ('\\', None) => drop(chars.next()),
            ('"', None | Some(0)) => return,
            ('"', Some(hashes)) => {
                let mut left = hashes;
                while left > 0 && chars.next_if_eq(&'#').is_some() {
                    left -= 1;
                }
                if left == 0 {
                    return;
                }
            }
            _ => {}
        }
    }
}

/// Goes behind a character, or the quote of a lifetime.
fn quoted(chars: &mut Peekable<Chars<'_>>) {
    let mut ahead = chars.clone();
    match (ahead.next(), ahead.next()) {
        (Some('\\'), _) => {
            chars.next();
            chars.next();
            let _ = chars.find(|c| *c == '\'');
        }
        (Some(_), Some('\'')) => drop(chars.nth(1)),
        _ => {}
    }
}

#[test]
fn imports_are_found_however_they_are_written() {
    let text = "pub use a::{B, c::{self, D as E}};\npub(crate) use f::*;\n// crate::comment\n\
                use crate::g::{h::I, j};\nfn k<'a>(x: &'a str) -> E { 'x'; \"crate::text\"; \
                r#\"a \"quoted\" one\"#; super::l::m(crate::n::O::p()) }\npub(in crate::s) fn t() {}\n#[cfg(test)]\nmod tests { use q::r; }";
    let source = Source::read(text);
    let paths: Vec<String> = source.paths.iter().map(|path| path.join("::")).collect();
    let followed = ["crate::g::h::I", "crate::g::j", "super::l::m", "crate::n::O::p", "a::c::D"];
    assert_eq!(paths, followed, "E is used here, B and c are only passed on");
    assert_eq!(source.names["E"].join("::"), "a::c::D");
    assert_eq!(source.names["c"].join("::"), "a::c");
    assert_eq!(
        (source.globs, source.defined),
        (vec![vec!["f".to_owned()]], vec!["k".to_owned(), "t".to_owned()])
    );
}
