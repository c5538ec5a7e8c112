//! Questions to the model of another server.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::answers;
use super::likelihood::{Score, Text};
use super::reader::Reader;
use super::tasks::{Metrics, Question, Task};

use crate::shared::endpoint::Endpoint;

/// Asks many at a time, and grades each as it is answered.
pub(super) fn grade(
    endpoint: &Endpoint,
    reader: &Reader<'_>,
    questions: Vec<(Task, usize, Question)>,
    graded: &mut impl FnMut(Task, usize, Metrics) -> Result<()>,
) -> Result<()> {
    endpoint.for_all(
        questions.into_iter(),
        |(task, number, question)| -> Result<_> {
            let metrics = ask(endpoint, reader, &question);
            let metrics =
                metrics.with_context(|| format!("{}, record {}", task.name, number + 1))?;
            Ok((task, number, metrics))
        },
        |done: Result<_>| {
            let (task, number, metrics) = done?;
            graded(task, number, metrics)
        },
    )
}

fn ask(endpoint: &Endpoint, reader: &Reader<'_>, question: &Question) -> Result<Metrics> {
    if let Question::Number { prompt, reference } = question {
        let request = json!({
            "prompt": reader.prompt(prompt)?,
            "max_tokens": reader.max_tokens,
            "temperature": 0,
            "stop": answers::UNTIL,
        });
        let choice = endpoint.choice("completions", request)?;
        let text = choice["text"].as_str().context("a completion without text")?;
        return Ok(answers::grade(text, reference));
    }
    let texts = reader.texts(question)?;
    let scores = texts.iter().map(|text| score(endpoint, text));
    Ok(question.grade(&scores.collect::<Result<Vec<_>>>()?))
}

/// What the server makes of a text: the text is echoed with the log-probability of each of its tokens.
fn score(endpoint: &Endpoint, text: &Text) -> Result<Score> {
    // Servers differ in whether they take 0 tokens; what the one adds is left aside.
    let request = json!({
        "prompt": text.tokens,
        "max_tokens": 1,
        "temperature": 0,
        "echo": true,
        "logprobs": 1,
    });
    let choice = endpoint.choice("completions", request)?;
    let list = |name: &str| {
        let list = choice["logprobs"][name].as_array();
        list.filter(|list| list.len() >= text.tokens.len()).with_context(|| {
            format!("the completion has no `{name}` of its prompt: does the server support `echo`?")
        })
    };
    let (own, top) = (list("token_logprobs")?, list("top_logprobs")?);
    let mut sum = Score { log_likelihood: 0.0, greedy: true };
    for place in text.context..text.tokens.len() {
        let own = own[place].as_f64().context("a token without a log-probability")?;
        let likeliest = top[place].as_object().into_iter().flatten();
        let highest = likeliest.filter_map(|(_, value)| value.as_f64()).fold(own, f64::max);
        sum.log_likelihood += own;
        sum.greedy &= own >= highest;
    }
    ensure!(sum.log_likelihood.is_finite(), "log-probabilities that are not finite");
    Ok(sum)
}
