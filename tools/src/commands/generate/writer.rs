//! The two output files, kept in step and in the prompts' order, so that an interrupted run ends with the
//! same files as an undisturbed one.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use anyhow::{Context, Result};
use pleach_train::{Example, Origin, TopKWriter};

use crate::shared::manifest::beside;
use pleach::prompts::Prompt;

/// A finished answer, and the likeliest tokens at each of its places.
pub(crate) struct Answered {
    pub(crate) example: Example,
    pub(crate) top: Vec<Vec<(u32, f32)>>,
}

pub(crate) struct Writer {
    answers: File,
    top: Option<TopKWriter>,
    /// Answers in the file, and their tokens.
    pub(crate) written: usize,
    pub(crate) tokens: usize,
    /// Places of the prompts that are not written yet, rising.
    order: VecDeque<usize>,
    /// Prompts that were finished before an earlier one.
    ready: BTreeMap<usize, Vec<Answered>>,
    /// Answers that checked out against their reference, and all that have one, by category.
    pub(crate) selected: BTreeMap<String, [usize; 2]>,
}

impl Writer {
    /// Opens the files after the last prompt that is answered in all its turns.
    pub(crate) fn open(path: &Path, k: usize, prompts: &[Prompt]) -> Result<Self> {
        let context = || path.display().to_string();
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path);
        let file = file.with_context(context)?;
        // The answers of each prompt, and where they end in the file.
        let mut known: Vec<(Vec<Example>, u64)> = Vec::new();
        let (mut reader, mut line, mut length) = (BufReader::new(&file), String::new(), 0);
        while reader.read_line(&mut line).with_context(context)? > 0 && line.ends_with('\n') {
            let answer: Example = serde_json::from_str(&line).with_context(context)?;
            length += line.len() as u64;
            match known.last_mut().filter(|(all, _)| all[0].id == answer.id) {
                Some((all, end)) => {
                    all.push(answer);
                    *end = length;
                }
                None => known.push((vec![answer], length)),
            }
            line.clear();
        }
        let turns: HashMap<&str, usize> =
            prompts.iter().map(|prompt| (prompt.id.as_str(), prompt.turns.len())).collect();
        known.pop_if(|(all, _)| turns.get(all[0].id.as_str()).is_some_and(|n| *n > all.len()));

        let mut selected = BTreeMap::new();
        let answers = || known.iter().flat_map(|(all, _)| all);
        answers().for_each(|answer| count(&mut selected, answer));
        let records = answers().map(|answer| answer.response_tokens.len()).sum();
        let written = answers().count();
        let done: HashSet<&str> = known.iter().map(|(all, _)| all[0].id.as_str()).collect();
        let order = (0..prompts.len()).filter(|at| !done.contains(prompts[*at].id.as_str()));
        let order = order.collect();
        let length = known.last().map_or(0, |(_, end)| *end);
        file.set_len(length).with_context(context)?;
        let top =
            (k > 0).then(|| TopKWriter::open(&beside(path, ".topk"), k, records)).transpose()?;
        let answers = OpenOptions::new().append(true).open(path).with_context(context)?;
        Ok(Self { answers, top, written, tokens: records, order, ready: BTreeMap::new(), selected })
    }

    /// Whether the prompt at this place has no answer yet.
    pub(crate) fn waits_for(&self, index: usize) -> bool {
        self.order.binary_search(&index).is_ok()
    }

    /// Takes all that there will be for a prompt, and writes what is next in order.
    pub(crate) fn finish(&mut self, index: usize, answers: Vec<Answered>) -> Result<()> {
        self.ready.insert(index, answers);
        while let Some(answers) = self.order.front().and_then(|next| self.ready.remove(next)) {
            self.order.pop_front();
            self.write(&answers)?;
        }
        Ok(())
    }

    /// Writes what is left, whether all before it is there or not.
    pub(crate) fn close(&mut self) -> Result<()> {
        for answers in std::mem::take(&mut self.ready).into_values() {
            self.write(&answers)?;
        }
        Ok(self.answers.sync_all()?)
    }

    /// Distributions first: an answer without them would be worth nothing, the reverse is cut off.
    fn write(&mut self, answers: &[Answered]) -> Result<()> {
        if let Some(top) = &mut self.top {
            for likely in answers.iter().flat_map(|answer| &answer.top) {
                top.push(likely)?;
            }
            top.flush()?;
        }
        let mut lines = Vec::new();
        for Answered { example, .. } in answers {
            count(&mut self.selected, example);
            serde_json::to_writer(&mut lines, example)?;
            lines.push(b'\n');
            self.written += 1;
            self.tokens += example.response_tokens.len();
        }
        Ok(self.answers.write_all(&lines)?)
    }
}

fn count(selected: &mut BTreeMap<String, [usize; 2]>, answer: &Example) {
    if let Some(origin) = answer.origin {
        let [kept, all] = selected.entry(answer.category.clone()).or_default();
        *kept += usize::from(origin == Origin::Model);
        *all += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(id: &str, turns: usize) -> Prompt {
        let turns = vec![String::new(); turns];
        Prompt { id: id.into(), category: String::new(), turns, reference: None }
    }

    fn answers(id: &str, turns: usize) -> Vec<Answered> {
        let one = |turn: usize| Answered {
            example: Example {
                id: id.into(),
                category: String::new(),
                turns: vec![String::new(); turn + 1],
                response: String::new(),
                prompt_tokens: vec![1],
                response_tokens: vec![2, 3],
                finish_reason: "stop".into(),
                temperature: 0.0,
                origin: None,
            },
            top: vec![vec![(turn as u32, -0.5)]; 2],
        };
        (0..turns).map(one).collect()
    }

    /// However the answers come and wherever the file is cut, it ends the same.
    #[test]
    fn order_and_interruptions_leave_no_trace() {
        let folder = tempfile::tempdir().unwrap();
        let (path, top) = (folder.path().join("a"), folder.path().join("a.topk"));
        let prompts = [prompt("x", 1), prompt("y", 2), prompt("z", 1)];
        let mut writer = Writer::open(&path, 1, &prompts).unwrap();
        for (index, id) in [(0, "x"), (1, "y"), (2, "z")] {
            writer.finish(index, answers(id, prompts[index].turns.len())).unwrap();
        }
        writer.close().unwrap();
        let whole = [std::fs::read(&path).unwrap(), std::fs::read(&top).unwrap()];
        for cut in 0..whole[0].len() {
            std::fs::write(&path, &whole[0][..cut]).unwrap();
            std::fs::write(&top, &whole[1]).unwrap();
            let mut writer = Writer::open(&path, 1, &prompts).unwrap();
            for (index, id) in [(2, "z"), (1, "y"), (0, "x")] {
                if writer.waits_for(index) {
                    writer.finish(index, answers(id, prompts[index].turns.len())).unwrap();
                }
            }
            writer.close().unwrap();
            assert!(whole[0] == std::fs::read(&path).unwrap(), "cut at {cut}");
            assert!(whole[1] == std::fs::read(&top).unwrap(), "cut at {cut}");
        }
    }
}
