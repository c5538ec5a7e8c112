//! An OpenAI-compatible server that answers in place of a model that is loaded here.

use std::sync::{Mutex, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use serde::Serialize;
use serde_json::{Value, json};
use ureq::http::{Request, StatusCode};

#[derive(Debug, Clone, Default, clap::Args, Serialize)]
pub(crate) struct Args {
    /// Ask this OpenAI-compatible server, as in http://host:8000/v1; the model here is then read for its
    /// tokenizer alone. The key, if one is needed, is taken from OPENAI_API_KEY.
    #[arg(long, env = "PLEACH_ENDPOINT", value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) endpoint: Option<String>,
    /// With --endpoint: the model's name there. Default: the first that the server lists.
    #[arg(long, env = "PLEACH_ENDPOINT_MODEL", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) endpoint_model: Option<String>,
    /// With --endpoint: requests at the same time.
    #[arg(long, env = "PLEACH_CONCURRENCY", default_value_t = 16, value_name = "REQUESTS")]
    #[serde(skip)]
    pub(crate) concurrency: usize,
}

/// A server and one of its models.
pub(crate) struct Endpoint {
    agent: ureq::Agent,
    url: String,
    key: Option<String>,
    model: String,
    concurrency: usize,
}

/// A request that its answer says no repeat can help.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refused(pub(crate) String);

/// Tries of a request.
const TRIES: u32 = 8;
/// Seconds that a request may take.
const PATIENCE: Duration = Duration::from_secs(600);
/// Seconds between two tries, at most; what the server asks for goes beyond it.
const LONGEST_PAUSE: f64 = 30.0;
/// Bytes of an answer, at most.
const LONGEST: u64 = 256 << 20;

impl Endpoint {
    /// The server that is named, if one is.
    pub(crate) fn open(args: &Args) -> Result<Option<Self>> {
        let Some(url) = &args.endpoint else { return Ok(None) };
        ensure!(args.concurrency > 0, "--concurrency must be at least 1");
        let key = std::env::var("OPENAI_API_KEY").ok().filter(|key| !key.is_empty());
        let mut endpoint = Self::new(url, key, args.concurrency);
        endpoint.model = match &args.endpoint_model {
            Some(name) => name.clone(),
            None => {
                let models = endpoint.send("models", None, 1)?;
                let first = models["data"][0]["id"].as_str();
                first.context("--endpoint lists no models; name one with --endpoint-model")?.into()
            }
        };
        Ok(Some(endpoint))
    }

    fn new(url: &str, key: Option<String>, concurrency: usize) -> Self {
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .http_status_as_error(false)
            .build();
        let url = url.trim_end_matches('/').to_owned();
        Self { agent: agent.into(), url, key, model: String::new(), concurrency }
    }

    /// Posts a request, with the model's name in it, and returns the first of the answer's choices. Tries
    /// again, after the time that `Retry-After` names or one that grows, where that may help.
    ///
    /// # Errors
    /// [`Refused`] where this request is at fault, and others may succeed.
    pub(crate) fn choice(&self, path: &str, mut body: Value) -> Result<Value> {
        body["model"] = json!(self.model);
        let mut answer = self.send(path, Some(&body), TRIES)?;
        let choices = answer.get_mut("choices");
        let choice = choices.and_then(|choices| choices.get_mut(0)).map(Value::take);
        choice.with_context(|| format!("{}/{path}: an answer without choices", self.url))
    }

    fn send(&self, path: &str, body: Option<&Value>, tries: u32) -> Result<Value> {
        let url = format!("{}/{path}", self.url);
        let mut tried = 0;
        loop {
            tried += 1;
            let (error, pause) = match self.send_once(&url, body)? {
                Outcome::Answer(answer) => return Ok(answer),
                Outcome::Again(error, pause) => (error, pause),
            };
            if tried >= tries {
                bail!("{url}: {error}");
            }
            let growing = (0.5 * 2f64.powi(tried as i32 - 1)).min(LONGEST_PAUSE);
            let own = || Duration::from_secs_f64(growing * (0.5 + 0.5 * fastrand::f64()));
            std::thread::sleep(pause.unwrap_or_else(own));
        }
    }

    fn send_once(&self, url: &str, body: Option<&Value>) -> Result<Outcome> {
        let mut request = Request::builder().uri(url);
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let sent = match body {
            Some(body) => {
                let request = request.method("POST").header("content-type", "application/json");
                let body = body.to_string().into_bytes();
                self.agent.run(request.body(body).with_context(|| url.to_owned())?)
            }
            None => self.agent.run(request.body(()).with_context(|| url.to_owned())?),
        };
        let mut response = match sent {
            Ok(response) => response,
            Err(
                error @ (ureq::Error::Io(_)
                | ureq::Error::Timeout(_)
                | ureq::Error::ConnectionFailed),
            ) => {
                return Ok(Outcome::Again(error.to_string(), None));
            }
            Err(error) => return Err(error).with_context(|| url.to_owned()),
        };
        let status = response.status();
        let header = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
        let pause = header.and_then(retry_after);
        let text = response.body_mut().with_config().limit(LONGEST).read_to_string();
        let text = match text {
            Ok(text) => text,
            Err(error) => return Ok(Outcome::Again(error.to_string(), None)),
        };
        if status.is_success() {
            let answer = serde_json::from_str(&text).with_context(|| url.to_owned())?;
            return Ok(Outcome::Answer(answer));
        }
        let error = format!("{status}: {}", message(&text));
        match status {
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                Ok(Outcome::Again(error, pause))
            }
            _ if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED => {
                Ok(Outcome::Again(error, pause))
            }
            StatusCode::BAD_REQUEST
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::UNPROCESSABLE_ENTITY => Err(Refused(error).into()),
            _ => bail!("{url}: {error}"),
        }
    }

    /// Does `work` on all jobs, as many at the same time as requests may be, and hands over what comes of
    /// each as it is done. Ends early with an error of `done`.
    pub(crate) fn for_all<T: Send, R: Send>(
        &self,
        jobs: impl Iterator<Item = T> + Send,
        work: impl Fn(T) -> R + Sync,
        done: impl FnMut(R) -> Result<()>,
    ) -> Result<()> {
        let jobs = Mutex::new(jobs);
        std::thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel();
            for _ in 0..self.concurrency {
                let (sender, jobs, work) = (sender.clone(), &jobs, &work);
                scope.spawn(move || {
                    let next = || jobs.lock().expect("invariant: jobs do not panic").next();
                    while let Some(job) = next() {
                        if sender.send(work(job)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            receiver.into_iter().try_for_each(done)
        })
    }
}

/// What came of a request.
enum Outcome {
    Answer(Value),
    /// What went wrong, and how long the server asks to wait.
    Again(String, Option<Duration>),
}

/// What an error's body says.
fn message(text: &str) -> String {
    let json: Option<Value> = serde_json::from_str(text).ok();
    let message = json.as_ref().and_then(|json| json["error"]["message"].as_str());
    message.map_or_else(|| text.chars().take(300).collect(), str::to_owned)
}

/// The wait a `Retry-After` header asks for: seconds, or a date.
fn retry_after(value: &str) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let date = rfc2822::parse(value).ok()?.timestamp();
    Some(date.duration_since(Timestamp::now()).try_into().unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn waits_are_seconds_or_dates() {
        assert_eq!(retry_after("2"), Some(Duration::from_secs(2)));
        assert_eq!(retry_after("0.5"), Some(Duration::from_millis(500)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        for nothing in ["", "soon", "-1", "NaN"] {
            assert_eq!(retry_after(nothing), None, "{nothing}");
        }
    }

    /// Answers connections with the given responses, one each, and returns the requests.
    fn serve(responses: Vec<String>) -> (String, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1/", listener.local_addr().unwrap());
        let answer = move |response: String| {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut request, mut buffer) = (String::new(), [0; 4096]);
            while !request.ends_with('}') {
                let read = stream.read(&mut buffer).unwrap();
                request += &String::from_utf8_lossy(&buffer[..read]);
            }
            stream.write_all(response.as_bytes()).unwrap();
            request
        };
        (url, std::thread::spawn(move || responses.into_iter().map(answer).collect()))
    }

    fn response(status: &str, headers: &str, body: &str) -> String {
        let length = body.len();
        format!(
            "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
        )
    }

    #[test]
    fn what_may_pass_is_tried_again() {
        let started = std::time::Instant::now();
        let (url, server) = serve(vec![
            response("429 Too Many Requests", "retry-after: 1\r\n", "slow down"),
            response("503 Service Unavailable", "retry-after: 0\r\n", ""),
            response("200 OK", "", r#"{"choices": [{"text": "yes"}]}"#),
        ]);
        let mut endpoint = Endpoint::new(&url, Some("secret".into()), 1);
        endpoint.model = "m".into();
        let choice = endpoint.choice("completions", json!({"prompt": "p"})).unwrap();
        assert_eq!(choice["text"], "yes");
        assert!(started.elapsed() >= Duration::from_secs(1), "the server asked for a second");
        let requests = server.join().unwrap();
        assert_eq!(requests.len(), 3);
        for request in requests {
            assert!(request.starts_with("POST /v1/completions "), "{request}");
            assert!(request.to_lowercase().contains("authorization: bearer secret\r\n"));
            assert!(request.contains(r#""prompt":"p""#) && request.contains(r#""model":"m""#));
        }
    }

    #[test]
    fn what_cannot_pass_is_not() {
        let body = r#"{"error": {"message": "no such model"}}"#;
        let (url, server) = serve(vec![
            response("400 Bad Request", "", body),
            response("401 Unauthorized", "", "who are you?"),
        ]);
        let endpoint = Endpoint::new(&url, None, 1);
        let error = endpoint.choice("completions", json!({})).unwrap_err();
        assert!(error.is::<Refused>() && error.to_string().contains("no such model"), "{error}");
        let error = endpoint.choice("completions", json!({})).unwrap_err();
        assert!(!error.is::<Refused>() && error.to_string().contains("who are you?"), "{error}");
        assert_eq!(server.join().unwrap().len(), 2);
    }

    #[test]
    fn jobs_share_the_connections() {
        let endpoint = Endpoint::new("http://nowhere", None, 4);
        let mut results = Vec::new();
        let collect = |result: u32| {
            results.push(result);
            Ok(())
        };
        endpoint.for_all(0..100, |job| job * 2, collect).unwrap();
        results.sort_unstable();
        assert!(results.into_iter().eq((0..100).map(|job| job * 2)));
        let end = endpoint.for_all(0.., |job| job, |job| if job < 9 { Ok(()) } else { bail!("9") });
        assert_eq!(end.unwrap_err().to_string(), "9");
    }
}
