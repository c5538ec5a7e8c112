//! The rooms of `src/` import each other as ARCHITECTURE.md says, and neither files of `src/` and `tools/src/` nor folders
//! that lie side by side there import each other in a circle.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod files;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use source::Source;

/// What each room imports.
type Edges = BTreeMap<String, BTreeSet<String>>;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The edges that the sources have.
fn actual() -> Edges {
    let mut paths = Vec::new();
    sources(&root().join("src"), &mut paths);
    let mut edges = Edges::new();
    for path in paths {
        let inside = path.strip_prefix(root().join("src")).unwrap();
        let room = inside.components().next().unwrap().as_os_str().to_str().unwrap();
        let room = room.strip_suffix(".rs").unwrap_or(room).to_owned();
        if room == "main" || room == "lib" {
            continue;
        }
        let names = edges.entry(room.clone()).or_default();
        let source = Source::read(&fs::read_to_string(&path).unwrap());
        let paths = source.paths.into_iter().chain(source.passed_on);
        let inside = paths.filter(|path| path.len() > 1 && path[0] == "crate");
        names.extend(inside.map(|path| path[1].clone()).filter(|name| *name != room));
    }
    edges
}

/// The edges that the document allows, and its rooms from the lowest on.
fn allowed() -> (Edges, Vec<String>) {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let table = text.split("| room | imports |\n|---|---|\n").nth(1).unwrap();
    let list = |cell: &str| -> Vec<String> {
        cell.split(',').map(|name| name.trim().to_owned()).filter(|name| name != "none").collect()
    };
    let (mut edges, mut order) = (Edges::new(), Vec::new());
    for row in table.lines().take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
        for room in list(cells[0]) {
            edges.insert(room.clone(), list(cells[1]).into_iter().collect());
            order.push(room);
        }
    }
    (edges, order)
}

#[test]
fn rooms_import_what_the_document_says() {
    let (allowed, _) = allowed();
    assert_eq!(actual(), allowed, "left: the sources; right: ARCHITECTURE.md");
}

/// A room imports lower ones alone, so there is no circle.
#[test]
fn the_document_lists_rooms_from_the_lowest_on() {
    let (allowed, order) = allowed();
    let place = |room: &String| order.iter().position(|known| known == room);
    for (room, imports) in &allowed {
        for import in imports {
            assert!(place(import).unwrap() < place(room).unwrap(), "{room} imports {import}");
        }
    }
}
