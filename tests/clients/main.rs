//! The programs as users meet them: what they say, what they are documented to do, and what they send to others.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod check;
mod documents;
#[path = "../support/mod.rs"]
mod support;
mod traces;

use std::process::Command;

/// A model that is not there, a port that is taken, a flag that is wrong: an error, and a word on it.
#[test]
fn a_server_that_cannot_start_says_why() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (arguments, expected) in [
        (vec!["--model", "nowhere"], "nowhere"),
        (vec!["--port", &port], "cannot listen on"),
        (vec!["--model", "pypi:other"], "names no model"),
        (vec!["--max-num-seqs", "0", "--port", "0"], "max_num_seqs"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_pleach"))
            .args(&arguments)
            .env("PLEACH_PORT", "0")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(expected), "{arguments:?}: {text}");
    }
}
