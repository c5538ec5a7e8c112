//! `top`, beside a server.

use std::process::Command;

use serde_json::json;

use super::support::Server;

pub(crate) fn top_shows_what_the_server_does() {
    let server = Server::start(&["--fixed-drafts", "--max-model-len", "1024"]);
    let top = |url: &str| {
        Command::new(env!("CARGO_BIN_EXE_pleach-tools"))
            .args(["top", "--once", "--interval", "0.5", "--url", url])
            .output()
            .unwrap()
    };
    let url = format!("http://{}", server.address);
    // Work for many times as long as `top` looks, on any machine.
    let body = json!({
        "prompt": "1, 2, 3, 4,", "n": 8, "max_tokens": 1000, "ignore_eos": true, "temperature": 0, "stream": true,
    });
    let busy = server.send(
        "POST",
        "/v1/completions",
        "content-type: application/json\r\n",
        &body.to_string(),
    );
    let output = top(&url);
    drop(busy);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("tokens per target pass") && text.contains("8 running"), "{text}");
    assert!(!text.contains("0.0 per second") && !text.contains("– times"), "{text}");
    // What is no pleach is told apart from one that is idle.
    let output = top(&format!("{url}/v1/nothing"));
    assert!(!output.status.success());
}
