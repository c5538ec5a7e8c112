//! No files import each other in a circle, nor do folders that lie side by side. An import leads to the file that defines
//! what is imported, also where a module passes it on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::source::{Path, Source};
use super::{root, sources};

/// The folders of the crates that are checked, and imports between files that each has at least.
const CRATES: [(&str, usize); 3] = [("src", 300), ("tools/src", 100), ("tools/src/training", 20)];

/// The imports of each file or folder.
type Edges = BTreeMap<Path, BTreeSet<Path>>;

/// Files by their module's path.
struct Files(BTreeMap<Path, Source>);

impl Files {
    /// Reads a crate whose sources lie in `folder`, without those of crates that lie in it.
    fn read(folder: &str) -> Self {
        let (folder, mut paths) = (root().join(folder), Vec::new());
        sources(&folder, &mut paths);
        let crates = CRATES.map(|(name, _)| root().join(name));
        let within = |path: &std::path::Path| {
            crates.iter().any(|other| {
                *other != folder && other.starts_with(&folder) && path.starts_with(other)
            })
        };
        let named = paths.iter().filter(|path| !within(path)).filter_map(|path| {
            let inside = path.strip_prefix(&folder).unwrap().with_extension("");
            let mut names: Path =
                inside.iter().map(|name| name.to_str().unwrap().to_owned()).collect();
            match &**names.last().unwrap() {
                "tests" | "main" => return None,
                "mod" | "lib" => drop(names.pop()),
                _ => {}
            }
            Some((names, Source::read(&fs::read_to_string(path).unwrap())))
        });
        Self(named.collect())
    }

    /// The path from the crate on that `path` is in the module `from`; `None` for what is not of this crate.
    fn absolute(&self, from: &Path, path: &[String]) -> Option<Path> {
        let (mut base, mut rest) = (from.clone(), path);
        match &*path[0] {
            "crate" => return Some(path[1..].to_vec()),
            "self" => rest = &path[1..],
            "super" => {
                while rest.first().is_some_and(|name| name == "super") {
                    base.pop();
                    rest = &rest[1..];
                }
            }
            name => {
                let child: Path = from.iter().cloned().chain([name.to_owned()]).collect();
                if !self.0.contains_key(&child) {
                    return None;
                }
            }
        }
        Some(base.into_iter().chain(rest.iter().cloned()).collect())
    }

    /// The file that defines what an absolute path leads to.
    fn file(&self, path: &[String], mut steps: usize) -> Path {
        let length = (0..=path.len()).rev().find(|&length| self.0.contains_key(&path[..length]));
        let (module, rest) = path.split_at(length.unwrap());
        let (module, source) = (module.to_vec(), &self.0[module]);
        let Some(name) = rest.first().filter(|_| steps > 0) else { return module };
        steps -= 1;
        let further =
            |path: &Path| self.absolute(&module, path).map(|path| self.file(&path, steps));
        if let Some(file) = source.names.get(name).and_then(further) {
            return file;
        }
        let globs = source.globs.iter().filter_map(|path| self.absolute(&module, path));
        let mut globs = globs.filter(|path| self.0.contains_key(path));
        let defines = |path: &Path| self.0[path].defined.contains(name);
        globs.find(defines).unwrap_or(module)
    }

    /// The files that each file imports.
    fn edges(&self) -> Edges {
        let imported = |(module, source): (&Path, &Source)| -> BTreeSet<Path> {
            let paths = source.paths.iter().filter_map(|path| self.absolute(module, path));
            paths.map(|path| self.file(&path, 8)).filter(|file| file != module).collect()
        };
        self.0.iter().map(|file| (file.0.clone(), imported(file))).collect()
    }

    /// The folders that each folder imports, of those that lie beside it.
    fn folder_edges(&self) -> Edges {
        let is_folder = |path: &[String]| {
            self.0.keys().any(|file| file.len() > path.len() && file.starts_with(path))
        };
        let mut edges = Edges::new();
        for (file, imports) in self.edges() {
            for import in imports {
                let shared = file.iter().zip(&import).take_while(|(a, b)| a == b).count();
                if let (Some(from), Some(to)) = (file.get(..=shared), import.get(..=shared))
                    && is_folder(from)
                    && is_folder(to)
                {
                    edges.entry(from.to_vec()).or_default().insert(to.to_vec());
                }
            }
        }
        edges
    }
}

/// The imports that lie on circles, or between them.
fn circles(mut edges: Edges) -> Vec<String> {
    loop {
        let before = edges.len();
        // Neither what imports nothing that is left is on a circle, nor what nothing imports that is left.
        let left: BTreeSet<Path> = edges.keys().cloned().collect();
        edges.retain(|_, imports| !imports.is_disjoint(&left));
        let imported: BTreeSet<Path> = edges.values().flatten().cloned().collect();
        edges.retain(|file, _| imported.contains(file));
        if edges.len() == before {
            break;
        }
    }
    let on_circles = |(file, imports): (&Path, &BTreeSet<Path>)| {
        let imports = imports.iter().filter(|path| edges.contains_key(*path));
        let imports: Vec<String> = imports.map(|path| path.join("/")).collect();
        format!("{} imports {}", file.join("/"), imports.join(", "))
    };
    edges.iter().map(on_circles).collect()
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    for (folder, least) in CRATES {
        let edges = Files::read(folder).edges();
        let count: usize = edges.values().map(BTreeSet::len).sum();
        assert!(count > least, "{folder}: {count} imports are found");
        let circles = circles(edges);
        assert!(
            circles.is_empty(),
            "files of {folder} import each other in a circle:\n{}",
            circles.join("\n")
        );
    }
}

#[test]
fn no_folders_side_by_side_import_each_other_in_a_circle() {
    for (folder, _) in CRATES {
        let circles = circles(Files::read(folder).folder_edges());
        assert!(
            circles.is_empty(),
            "folders of {folder} import each other in a circle:\n{}",
            circles.join("\n")
        );
    }
}
