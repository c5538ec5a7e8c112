//! The real program, started for a test.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    dead_code,
    reason = "test support, shared by several test binaries that each use a part of it"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub mod adapter;
pub mod emulator;
pub mod engines;
pub mod gguf;
pub mod letters;
pub mod logits;
pub mod pair;
pub mod random_model;

/// The standalone draft of the default model, beside the attached one.
pub fn standalone_draft() -> Option<PathBuf> {
    let attached = pleach::cli::default_draft()?;
    Some(attached.with_file_name("smollm2-135m-instruct-standalone.gguf"))
}

/// A program of this workspace: cargo builds both before it runs the tests of both packages.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join(name);
    assert!(path.exists(), "{}: not built; `cargo build --release` builds it", path.display());
    path
}

/// A running server; killed when dropped.
pub struct Server {
    pub process: Child,
    pub address: String,
    log: Arc<Mutex<String>>,
}

/// An answer, taken apart.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Server {
    /// Starts the program on a free port with the default model and waits until it is ready.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_with(arguments, &[])
    }

    /// The same with environment variables.
    pub fn start_with(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut process = Command::new(program("pleach"))
            .args(["--port", "0", "--threads", "2"])
            .args(arguments)
            .envs(environment.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let mut log = String::new();
        let address = lines.by_ref().map(Result::unwrap).find_map(|line| {
            log += &line;
            log.push('\n');
            let (_, rest) = line.split_once(" is ready at ")?;
            let (_, rest) = rest.split_once("://")?;
            Some(rest.split(". ").next()?.to_owned())
        });
        let Some(address) = address else { panic!("the server did not start:\n{log}") };
        let log = Arc::new(Mutex::new(log));
        let sink = Arc::clone(&log);
        // Keeps the pipe open, and empty.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut log = sink.lock().unwrap();
                *log += &line;
                log.push('\n');
            }
        });
        Self { process, address, log }
    }

    /// What the server has said so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn connect(&self) -> TcpStream {
        connect(&self.address)
    }

    /// Sends a request on a connection of its own, without waiting for the answer. The server may refuse a request
    /// and close before it has read all of it, so a write that fails is no failure: the answer tells.
    pub fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> TcpStream {
        send(self.connect(), method, path, headers, body)
    }

    pub fn request(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        Answer::read(&mut self.send(method, path, headers, body))
    }

    pub fn post(&self, path: &str, body: &serde_json::Value) -> Answer {
        self.request("POST", path, "content-type: application/json\r\n", &body.to_string())
    }

    pub fn get(&self, path: &str) -> String {
        let answer = self.request("GET", path, "", "");
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.body
    }

    /// A metric's value, as [`metric`] has it.
    pub fn metric(&self, series: &str) -> f64 {
        metric(&self.get("/metrics"), series)
    }

    /// Sends a signal, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let command = format!("kill -{name} {}", self.process.id());
        assert!(Command::new("sh").args(["-c", &command]).status().unwrap().success());
    }

    /// Waits for the program to end.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < limit, "still running:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

fn send(mut stream: TcpStream, method: &str, path: &str, headers: &str, body: &str) -> TcpStream {
    let length = body.len();
    let _ = write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\
         {headers}\r\n{body}"
    );
    stream
}

impl Answer {
    /// What an address answers to `GET`.
    pub fn get(address: &str, path: &str) -> Self {
        Self::read(&mut send(connect(address), "GET", path, "", ""))
    }

    /// Reads until the server closes the connection.
    pub fn read(stream: &mut TcpStream) -> Self {
        let mut text = Vec::new();
        // A reset after the answer is as good as an end.
        if let Err(error) = stream.read_to_end(&mut text) {
            assert!(!text.is_empty(), "no answer: {error}");
        }
        let text = String::from_utf8_lossy(&text);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no HTTP answer: {text}"));
        Self { status, head: head.to_owned(), body: body.to_owned() }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The sum of a metric's series on its page; of those with a label, where `series` has one in braces.
pub fn metric(page: &str, series: &str) -> f64 {
    let (name, label) = series.trim_end_matches('}').split_once('{').unwrap_or((series, ""));
    let of_it = |line: &&str| {
        let labels = line.strip_prefix(name).filter(|rest| rest.starts_with(['{', ' ']));
        labels.is_some_and(|labels| labels.contains(label))
    };
    let lines = page.lines().filter(of_it).filter_map(|line| line.rsplit_once(' '));
    lines.map(|(_, value)| value.parse::<f64>().unwrap()).sum()
}

/// Waits until something holds.
pub fn until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
