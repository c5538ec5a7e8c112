//! Questions whose answers are written: greedy, many at a time.

use anyhow::Result;
use pleach::engine::{EngineConfig, FinishReason, OfflineBatch, Request};

use super::reader::Reader;
use super::scored::Scored;
use super::tasks::{Metrics, Question, Task};

/// Answers written at the same time.
const BATCH: usize = 32;
/// Where an answer ends besides the model's own end, as in the harness's definition of GSM8K.
pub(super) const UNTIL: [&str; 3] = ["Question:", "</s>", "<|im_end|>"];

/// Lets the model answer the questions and grades each answer as it is finished.
pub(super) fn write(
    model: Scored,
    reader: &Reader<'_>,
    questions: Vec<(Task, usize, Question)>,
    graded: &mut impl FnMut(Task, usize, Metrics) -> Result<()>,
) -> Result<()> {
    let config = EngineConfig {
        max_num_seqs: BATCH,
        max_model_len: Some(reader.max_length),
        num_speculative_tokens: 0,
        ..EngineConfig::default()
    };
    let mut engine = model.into_engine(config)?;
    let mut waiting = questions.into_iter();
    let mut batch = OfflineBatch::default();
    loop {
        while batch.len() < BATCH
            && let Some((task, number, question)) = waiting.next()
        {
            let Question::Number { prompt, reference } = question else { continue };
            let request = Request {
                stop: Some(reader.chat.until(&UNTIL)),
                ..Request::greedy(reader.prompt(&prompt)?, reader.max_tokens)
            };
            let purpose = (task, number, reference);
            batch.submit(&mut engine, request, purpose).map_err(|(error, _)| error)?;
        }
        if batch.is_empty() {
            return Ok(());
        }
        for ((task, number, reference), answer) in batch.step(&mut engine) {
            if let FinishReason::Error(reason) = &answer.reason {
                anyhow::bail!("{}, record {}: {reason}", task.name, number + 1);
            }
            let text = reader.chat.decode(&answer.ids())?;
            graded(task, number, grade(&text, &reference))?;
        }
    }
}

fn end(text: &str) -> Option<usize> {
    UNTIL.iter().filter_map(|stop| text.find(stop)).min()
}

/// Grades an answer by its last number.
pub(super) fn grade(text: &str, reference: &str) -> Metrics {
    let right = same_number(&text[..end(text).unwrap_or(text.len())], reference);
    Metrics::from([("exact_match".to_owned(), f64::from(right))])
}

/// Whether the last number of an answer is that of the reference, as text (the `flexible-extract` filter
/// and `exact_match` of GSM8K).
fn same_number(answer: &str, reference: &str) -> bool {
    let plain = |text: &str| {
        let text = text.replace([',', '$'], "");
        let text = text.rsplit_once("#### ").map_or(text.as_str(), |(_, result)| result);
        text.strip_suffix('.').unwrap_or(text).to_lowercase()
    };
    last_number(answer).is_some_and(|number| plain(number) == plain(reference))
}

/// The last match of `(-?[$0-9.,]{2,})|(-?[0-9]+)`.
fn last_number(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    let run = |at: usize, part: fn(&u8) -> bool| bytes[at..].iter().take_while(|b| part(b)).count();
    let (mut at, mut last) = (0, None);
    while at < bytes.len() {
        let start = at + usize::from(bytes[at] == b'-');
        let wide = run(start, |b| b.is_ascii_digit() || matches!(b, b'$' | b'.' | b','));
        let length = if wide >= 2 { wide } else { run(start, u8::is_ascii_digit) };
        if length > 0 {
            last = Some(&text[at..start + length]);
            at = start + length;
        } else {
            at += 1;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_compared_as_the_harness_does() {
        for (text, number) in [
            ("He has 3. She has $1,200.", Some("$1,200.")),
            ("x -5 y", Some("-5")),
            ("7 or 8-9", Some("-9")),
            ("none.", None),
            ("so 12é", Some("12")),
            ("...", Some("...")),
        ] {
            assert_eq!(last_number(text), number, "{text}");
        }
        assert!(same_number("It is $1,200.", "3 * 400\n#### 1200"));
        assert!(same_number("It is 1200", "#### 1,200"));
        assert!(!same_number("It is 1200.00", "#### 1200"));
        assert!(!same_number("no idea", "#### 1200"));
    }
}
