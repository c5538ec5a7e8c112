//! Who is let in: keys, origins, certificates; and what is told about requests.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio_rustls::rustls;

use super::support::{Answer, Server, until};

pub(super) fn scratch(name: &str, text: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, text).unwrap();
    path
}

pub(super) fn ask(server: &Server, headers: &str, max_tokens: usize) -> Answer {
    let body = json!({"prompt": "SESAME 2 + 2 =", "max_tokens": max_tokens, "ignore_eos": true});
    server.request("POST", "/v1/completions", headers, &body.to_string())
}

#[test]
fn keys_open_and_limit() {
    let file = scratch(
        "keys.toml",
        "[[key]]\nname = \"anna\"\nkey = \"anna-key\"\nmax_concurrent_requests = 1\n\
         [[key]]\nname = \"ben\"\nkey = \"ben-key\"\ntokens_per_minute = 50\n",
    );
    let server = Server::start_with(
        &["--api-keys", file.to_str().unwrap()],
        &[("PLEACH_API_KEY", "one-key")],
    );
    for headers in [
        "",
        "authorization: Bearer nobody\r\n",
        "authorization: Basic anna-key\r\n",
        "x-api-key: \r\n",
    ] {
        let answer = ask(&server, headers, 1);
        assert_eq!(
            (answer.status, &answer.json()["error"]["code"]),
            (401, &json!("invalid_api_key"))
        );
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
    }
    assert_eq!(server.request("GET", "/v1/models", "", "").status, 401);
    for path in ["/health", "/ready", "/version", "/metrics"] {
        assert_eq!(server.request("GET", path, "", "").status, 200, "{path}");
    }
    assert_eq!(ask(&server, "authorization: Bearer one-key\r\n", 1).status, 200);
    assert_eq!(ask(&server, "x-api-key: one-key\r\n", 1).status, 200);

    // One at a time, to the end of the stream.
    let anna = "authorization: Bearer anna-key\r\n";
    let body = json!({"prompt": "x", "max_tokens": 4000, "stream": true, "ignore_eos": true});
    let running = server.send("POST", "/v1/completions", anna, &body.to_string());
    until("it runs", Duration::from_secs(5), || server.metric("pleach_running_sequences") == 1.0);
    let refused = ask(&server, anna, 1);
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
    drop(running);
    until("the place is free", Duration::from_secs(5), || ask(&server, anna, 1).status == 200);

    // Fifty tokens a minute; what is used beyond must be waited for.
    let ben = "authorization: Bearer ben-key\r\n";
    assert_eq!(ask(&server, ben, 100).status, 200);
    let refused = ask(&server, ben, 1);
    assert_eq!(refused.status, 429);
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((45..=90).contains(&seconds), "{seconds}");
    // What uses no tokens waits for none.
    assert_eq!(server.request("GET", "/v1/models", ben, "").status, 200);
    for (path, body) in [
        ("/tokenize", json!({"prompt": "x"})),
        ("/apply-template", json!({"messages": [{"role": "user", "content": "x"}]})),
    ] {
        assert_eq!(server.request("POST", path, ben, &body.to_string()).status, 200, "{path}");
    }
    let body = json!({"input": "x"}).to_string();
    assert_eq!(server.request("POST", "/v1/embeddings", ben, &body).status, 429);
    assert!(server.metric("pleach_key_tokens_total{key=\"ben\"}") > 100.0);
    assert!(!server.log().contains("-key"), "a key is in the log");
}

/// White space around a key, in its file, its variable or its header, is no part of it, nor is the scheme's case.
#[test]
fn keys_are_trimmed_and_schemes_have_no_case() {
    let file = scratch("blanks.toml", "[[key]]\nname = \"anna\"\nkey = \" anna-key\\n\"\n");
    let server = Server::start_with(
        &["--api-keys", file.to_str().unwrap()],
        &[("PLEACH_API_KEY", "one-key\n"), ("PLEACH_ADMIN_KEY", "\tadmin-key \r\n")],
    );
    for key in ["one-key", "anna-key"] {
        for header in [
            "authorization: Bearer ",
            "Authorization: bearer  ",
            "authorization: BEARER ",
            "x-api-key:  ",
        ] {
            let headers = format!("{header}{key} \r\n");
            assert_eq!(server.request("GET", "/v1/models", &headers, "").status, 200, "{headers}");
            assert_eq!(
                server.request("GET", "/admin/draft", &headers, "").status,
                401,
                "{headers}"
            );
        }
        for header in ["authorization: Bearer", "authorization: Token ", "authorization: "] {
            let headers = format!("{header}{key}\r\n");
            assert_eq!(server.request("GET", "/v1/models", &headers, "").status, 401, "{headers}");
        }
    }
    let admin = "authorization: bearer admin-key\r\n";
    assert_eq!(server.request("GET", "/admin/draft", admin, "").status, 200);
    for empty in ["x-api-key:\r\n", "authorization: Bearer \r\n", "authorization: Bearer\r\n"] {
        assert_eq!(server.request("GET", "/admin/draft", empty, "").status, 401, "{empty}");
    }
}

/// A key that anybody could send, or nobody, opens nothing: the server does not start with it.
#[test]
fn keys_that_are_blank_refuse_to_start() {
    let blank = scratch("blank-key.toml", "[[key]]\nname = \"a\"\nkey = \" \\t\"\n");
    let config = scratch("blank-config.toml", "admin-key = \"  \"\n");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let start = |arguments: &[String], variable: Option<(&str, &str)>, expected: [&str; 2]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pleach"));
        let output =
            command.args(arguments).envs(variable).env("PLEACH_PORT", "0").output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        let told = expected.iter().all(|part| log.contains(part));
        assert!(!output.status.success() && told, "{arguments:?} {variable:?}: {log}");
    };
    for key in ["", " ", "\n", "\t \r\n"] {
        for (variable, flag) in
            [("PLEACH_API_KEY", "--api-key"), ("PLEACH_ADMIN_KEY", "--admin-key")]
        {
            let expected = [variable, "must not be empty or blank"];
            start(&[], Some((variable, key)), expected);
            start(&[format!("{flag}={key}")], None, expected);
        }
    }
    start(&[], Some(("PLEACH_API_KEY", "Schlüssel")), ["PLEACH_API_KEY", "printable ASCII"]);
    start(&["--config".into(), text(&config)], None, ["PLEACH_ADMIN_KEY", "empty or blank"]);
    start(&["--api-keys".into(), text(&blank)], None, ["`key` of `a`", "empty or blank"]);
}

#[test]
fn a_server_that_cannot_be_set_up_says_why() {
    let twice = scratch(
        "twice.toml",
        "[[key]]\nname = \"a\"\nkey = \"x\"\n[[key]]\nname = \"b\"\nkey = \"x\"\n",
    );
    let unknown = scratch("unknown.toml", "[[key]]\nname = \"a\"\nkey = \"x\"\nlimit = 3\n");
    let config = scratch("pleach.toml", "prot = 8080\n");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    for (arguments, expected) in [
        (["--api-keys".to_owned(), "nowhere.toml".into()], "nowhere.toml"),
        (["--api-keys".into(), text(&twice)], "is there twice"),
        (["--api-keys".into(), text(&unknown)], "limit"),
        (["--config".into(), text(&config)], "`prot` is no setting"),
        (["--tls-key".into(), text(&config)], "need each other"),
        (["--cors-origin".into(), "\n".into()], "is no origin"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pleach"));
        let output = command.args(&arguments).env("PLEACH_PORT", "0").output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && log.contains(expected), "{arguments:?}: {log}");
    }
}

#[test]
fn flags_come_before_environment_before_file() {
    let config = scratch("order.toml", "max-queue = 1\nmax-num-seqs = 2\nclient-timeout = 3\n");
    let output = Command::new(env!("CARGO_BIN_EXE_pleach"))
        .args(["--print-config", "--max-queue", "11"])
        .env("PLEACH_CONFIG", &config)
        .env("PLEACH_MAX_QUEUE", "22")
        .env("PLEACH_MAX_NUM_SEQS", "33")
        .env("PLEACH_API_KEY", "sesame")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    for line in
        ["max-queue = 11 # flag", "max-num-seqs = 33 # environment", "client-timeout = 3 # file"]
    {
        assert!(text.contains(line), "{text}");
    }
    assert!(!text.contains("sesame"), "{text}");
}

#[test]
fn origins_are_let_in_only_where_asked_for() {
    let preflight = |server: &Server, origin: &str| {
        let headers = format!(
            "origin: {origin}\r\naccess-control-request-method: POST\r\n\
             access-control-request-headers: authorization,content-type\r\n"
        );
        let answer = server.request("OPTIONS", "/v1/chat/completions", &headers, "");
        answer.header("access-control-allow-origin").map(str::to_owned)
    };
    let closed = Server::start(&["--no-speculation"]);
    assert_eq!(preflight(&closed, "https://a.example"), None);
    // A preflight carries no key.
    let open = Server::start(&[
        "--no-speculation",
        "--cors-origin",
        "https://a.example",
        "--api-key",
        "x",
    ]);
    assert_eq!(preflight(&open, "https://a.example").as_deref(), Some("https://a.example"));
    assert_eq!(preflight(&open, "https://b.example"), None);
}

#[test]
fn requests_can_be_followed_and_prompts_stay_out_of_the_log() {
    let server = Server::start(&["--log-format", "json", "--log-level", "trace"]);
    let given = "x-request-id: mine-7\r\n\
                 traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n";
    let answer = ask(&server, given, 2);
    assert_eq!(answer.header("x-request-id"), Some("mine-7"));
    let trace = answer.header("traceparent").unwrap();
    assert!(
        trace.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-")
            && !trace.contains("00f067aa0ba902b7")
    );
    let other = ask(&server, "", 2);
    assert_eq!(other.header("x-request-id").unwrap().len(), 36);
    assert_eq!(other.header("traceparent"), None);
    until("it is logged", Duration::from_secs(2), || server.log().contains("mine-7"));
    assert!(!server.log().contains("SESAME"), "a prompt is in the log");
    let line = server
        .log()
        .lines()
        .find(|l| l.contains("answered") && l.contains("mine-7"))
        .map(str::to_owned);
    let line: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
    assert_eq!(
        (&line["span"]["endpoint"], &line["fields"]["status"]),
        (&json!("/v1/completions"), &json!(200))
    );
    let open = Server::start(&["--log-prompts"]);
    ask(&open, "", 2);
    until("it is logged", Duration::from_secs(2), || open.log().contains("SESAME"));
}

/// What a client that trusts this certificate alone is told, which is nothing where the server has another.
pub(super) fn https(server: &Server, trusted: &rcgen::Certificate) -> String {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client =
        rustls::ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let mut stream = rustls::StreamOwned::new(client, server.connect());
    let body = json!({"prompt": "2 + 2 =", "max_tokens": 3, "stream": true}).to_string();
    let _ = write!(
        stream,
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    text
}

#[test]
fn https_with_a_certificate() {
    let signed = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let certificate = scratch("certificate.pem", &signed.cert.pem());
    let key = scratch("key.pem", &signed.signing_key.serialize_pem());
    let server = Server::start(&[
        "--client-timeout",
        "2",
        "--tls-certificate",
        certificate.to_str().unwrap(),
        "--tls-key",
        key.to_str().unwrap(),
    ]);
    // A peer that never shakes hands is let go.
    let mut silent = server.connect();
    let text = https(&server, &signed.cert);
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("[DONE]"), "{text}");
    assert_eq!(silent.read(&mut [0; 8]).unwrap_or(0), 0);
}
