//! SIGTERM: running requests may end, within a limit; a second one ends the program at once.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use super::support::Server;

/// A stream of `max_tokens` tokens that has begun.
fn stream(server: &Server, max_tokens: usize) -> BufReader<TcpStream> {
    let body = json!({"prompt": "Once upon a time", "max_tokens": max_tokens, "stream": true,
        "temperature": 0, "ignore_eos": true, "num_speculative_tokens": 0});
    let mut lines = BufReader::new(server.send("POST", "/v1/completions", "", &body.to_string()));
    let mut line = String::new();
    while !line.starts_with("data: ") {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0);
    }
    lines
}

fn rest(mut stream: BufReader<TcpStream>) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn running_streams_end_and_the_exit_is_clean() {
    let mut server = Server::start(&[]);
    let running = stream(&server, 150);
    let idle = server.connect();
    server.signal("TERM");
    super::support::until("nobody is let in", Duration::from_secs(5), || {
        TcpStream::connect(&server.address).is_err()
    });
    let text = rest(running);
    assert!(text.contains("data: [DONE]") && text.contains("\"length\""), "{text}");
    drop(idle);
    assert_eq!(server.wait(Duration::from_secs(10)).code(), Some(0));
}

#[test]
fn a_stream_beyond_the_limit_ends_with_an_error() {
    let mut server = Server::start(&["--drain-timeout", "1"]);
    let running = stream(&server, 4000);
    server.signal("TERM");
    let asked = Instant::now();
    let text = rest(running);
    assert!(text.contains("the server is shutting down"), "{text}");
    assert!(!text.contains("[DONE]"));
    assert_eq!(server.wait(Duration::from_secs(5)).code(), Some(0));
    assert!(asked.elapsed() >= Duration::from_secs(1));
}

#[test]
fn a_second_signal_ends_it_now() {
    let mut server = Server::start(&["--drain-timeout", "600"]);
    let _running = stream(&server, 4000);
    server.signal("TERM");
    super::support::until("nobody is let in", Duration::from_secs(5), || {
        TcpStream::connect(&server.address).is_err()
    });
    server.signal("TERM");
    assert_eq!(server.wait(Duration::from_secs(2)).code(), Some(128 + 15));
}
