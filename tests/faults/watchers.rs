//! Those who watch the server: metrics and probes on a listener of their own.

use std::time::Duration;

use serde_json::json;

use super::support::{Answer, Server, metric, until};

/// Asks the listener that the log names.
fn ask(server: &Server, path: &str) -> Answer {
    let log = server.log();
    let line = log.lines().find(|line| line.contains("answering /metrics")).unwrap();
    let (_, port) = line.split_once("127.0.0.1:").unwrap();
    let port: String = port.chars().take_while(char::is_ascii_digit).collect();
    Answer::get(&format!("127.0.0.1:{port}"), path)
}

#[test]
fn metrics_and_probes_have_a_listener_of_their_own() {
    let mut server =
        Server::start_with(&["--metrics-address", "127.0.0.1:0"], &[("PLEACH_API_KEY", "one-key")]);
    for path in ["/health", "/ready"] {
        assert_eq!(ask(&server, path).status, 200, "{path}");
        assert_eq!(server.request("GET", path, "", "").status, 200, "{path}");
    }
    let metrics = ask(&server, "/metrics");
    assert_eq!(metrics.status, 200);
    assert!(metrics.body.contains("\npleach_running_sequences{model="), "{}", metrics.body);
    // Not beside the API, with a key or without one; nor is the API beside them.
    let key = "authorization: Bearer one-key\r\n";
    for headers in ["", key] {
        assert_eq!(server.request("GET", "/metrics", headers, "").status, 404);
    }
    for path in ["/", "/v1/models", "/version", "/openapi.json", "/admin/draft"] {
        assert_eq!(ask(&server, path).status, 404, "{path}");
    }
    // They answer on while the last streams end.
    let body = json!({"prompt": "x", "max_tokens": 4000, "stream": true, "ignore_eos": true});
    let running = server.send("POST", "/v1/completions", key, &body.to_string());
    until("it runs", Duration::from_secs(5), || {
        metric(&ask(&server, "/metrics").body, "pleach_running_sequences") == 1.0
    });
    server.signal("TERM");
    until("it drains", Duration::from_secs(5), || ask(&server, "/ready").status == 503);
    assert_eq!(ask(&server, "/health").status, 200);
    drop(running);
    assert_eq!(server.wait(Duration::from_secs(10)).code(), Some(0));
}
