//! Rules and schemas that refer to each other, and how deep a way through them goes.

use std::collections::HashMap;
use std::hash::Hash;

use serde_json::Value;

/// Parts of a grammar that refer to each other, each known by a `Key`.
pub(super) struct Graph<Key> {
    keys: HashMap<Key, usize>,
    nodes: Vec<Node>,
}

#[derive(Default)]
struct Node {
    /// Its deepest level.
    depth: usize,
    /// What it refers to, and at which level.
    edges: Vec<(usize, usize)>,
}

impl<Key> Default for Graph<Key> {
    fn default() -> Self {
        Self { keys: HashMap::new(), nodes: Vec::new() }
    }
}

impl<Key: Eq + Hash> Graph<Key> {
    pub(super) fn node(&mut self, key: Key) -> usize {
        *self.keys.entry(key).or_insert_with(|| {
            self.nodes.push(Node::default());
            self.nodes.len() - 1
        })
    }

    pub(super) fn deepen(&mut self, node: usize, level: usize) {
        self.nodes[node].depth = self.nodes[node].depth.max(level);
    }

    pub(super) fn edge(&mut self, from: usize, to: Key, level: usize) {
        let to = self.node(to);
        self.nodes[from].edges.push((to, level));
    }

    /// The deepest way through it, or one deeper than `most`; a way that comes back to where it has been ends there.
    pub(super) fn depth(&self, most: usize) -> usize {
        let mut known: Vec<Option<usize>> = vec![None; self.nodes.len()];
        let mut open = vec![false; self.nodes.len()];
        for start in 0..self.nodes.len() {
            // Each entry: a node, and the edges of it that were followed.
            let mut path = vec![(start, 0)];
            while let Some((node, followed)) = path.last_mut() {
                let (node, edge) = (*node, *followed);
                *followed += 1;
                open[node] = known[node].is_none();
                if !open[node] {
                    path.pop();
                    continue;
                }
                match self.nodes[node].edges.get(edge) {
                    Some((to, _)) if known[*to].is_none() && !open[*to] => path.push((*to, 0)),
                    Some(_) => {}
                    None => {
                        let ways = self.nodes[node].edges.iter();
                        let ways = ways.map(|(to, level)| level + known[*to].unwrap_or(0));
                        known[node] = Some(ways.fold(self.nodes[node].depth, usize::max));
                        open[node] = false;
                        path.pop();
                    }
                }
                if path.len() > most {
                    return path.len();
                }
            }
        }
        known.into_iter().flatten().max().unwrap_or(0)
    }
}

/// What a reference in a schema leads to, as the compiler finds it: steps are names and numbers as they stand, without
/// escapes.
pub(super) fn referred<'a>(schema: &'a Value, reference: &str) -> Option<&'a Value> {
    let path = match reference {
        "#" | "#/" => return Some(schema),
        _ => reference.strip_prefix("#/")?,
    };
    path.split('/').try_fold(schema, |value, step| match value {
        Value::Array(items) => items.get(step.parse::<usize>().ok()?),
        Value::Object(fields) => fields.get(step),
        _ => None,
    })
}
