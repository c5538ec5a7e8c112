//! What keys may do, what they are told of it, and files that change while the server runs.

use std::time::Duration;

use serde_json::{Value, json};

use super::access::{ask, https, scratch};
use super::support::{Answer, Server, until};

const ANNA: &str = "authorization: Bearer anna-key\r\n";
const BEN: &str = "authorization: Bearer ben-key\r\n";

fn table(name: &str, more: &str) -> String {
    format!("[[key]]\nname = \"{name}\"\nkey = \"{name}-key\"\n{more}\n")
}

/// The body, which comes in chunks where a key is needed.
fn body(answer: &Answer) -> Value {
    let text = &answer.body;
    serde_json::from_str(&text[text.find('{').unwrap()..=text.rfind('}').unwrap()]).unwrap()
}

#[test]
fn limits_are_told() {
    let limits = "max_concurrent_requests = 3\ntokens_per_minute = 600";
    let file = scratch("told.toml", &(table("anna", limits) + &table("ben", "")));
    let server = Server::start(&["--api-keys", file.to_str().unwrap()]);
    let told = |answer: &Answer| {
        let of = |name: &str| answer.header(&format!("x-ratelimit-{name}")).map(str::to_owned);
        ["limit-requests", "remaining-requests", "limit-tokens", "remaining-tokens", "reset-tokens"]
            .map(of)
    };
    let answer = server.request("GET", "/v1/models", ANNA, "");
    assert_eq!(told(&answer), ["3", "2", "600", "600", "0s"].map(|it| Some(it.to_owned())));
    assert_eq!(answer.header("x-ratelimit-reset-requests"), Some("1s"));
    // A whole answer has used what it says it has.
    let answer = ask(&server, ANNA, 100);
    let used = body(&answer)["usage"]["total_tokens"].as_u64().unwrap();
    let left: u64 = answer.header("x-ratelimit-remaining-tokens").unwrap().parse().unwrap();
    assert!((600 - used..600 - used + 100).contains(&left), "{used} used, {left} left");
    let reset = answer.header("x-ratelimit-reset-tokens").unwrap();
    let seconds: u64 = reset.strip_suffix('s').unwrap().parse().unwrap();
    assert!((1..=used / 10 + 1).contains(&seconds), "{used} used, {reset}");
    // One that is turned away is told too, and a key without limits nothing.
    ask(&server, ANNA, 700);
    let refused = ask(&server, ANNA, 1);
    assert_eq!((refused.status, told(&refused)[3].as_deref()), (429, Some("0")));
    assert!(told(&ask(&server, BEN, 1)).iter().all(Option::is_none));
    // Whoever asks in Anthropic's words is answered in them, before a handler is reached as behind it.
    for (key, path, status, kind) in [
        ("x-api-key: wrong\r\n", "/v1/messages", 401, "authentication_error"),
        (ANNA, "/v1/messages", 429, "rate_limit_error"),
        ("x-api-key: wrong\r\n", "/messages/count_tokens", 401, "authentication_error"),
        (BEN, "/v1/messages", 400, "invalid_request_error"),
        (BEN, "/v1/messages/batches", 404, "not_found_error"),
    ] {
        let refused = server.request("POST", path, key, "{}");
        let said = body(&refused);
        assert_eq!((refused.status, &said["error"]["type"]), (status, &json!(kind)), "{path}");
        assert_eq!(said["type"], "error", "{said}");
    }
    // A prompt counts once, however many answers it gets.
    let counted = || server.metric("pleach_key_tokens_total{key=\"ben\"}") as u64;
    let before = counted();
    let several = json!({"prompt": "Blue is the sky, green is the grass.", "max_tokens": 5, "ignore_eos": true, "n": 3});
    let answer = server.request("POST", "/v1/completions", BEN, &several.to_string());
    assert_eq!(counted() - before, body(&answer)["usage"]["total_tokens"].as_u64().unwrap());
}

#[test]
fn priority_is_for_keys_that_may() {
    let file = scratch("priority.toml", &(table("anna", "priority = true") + &table("ben", "")));
    let server = Server::start_with(
        &["--api-keys", file.to_str().unwrap()],
        &[("PLEACH_API_KEY", "one-key")],
    );
    let ask = |headers: &str, priority: i64| {
        let asked = json!({"prompt": "x", "max_tokens": 1, "priority": priority}).to_string();
        server.request("POST", "/v1/completions", headers, &asked)
    };
    for headers in [ANNA, "x-api-key: one-key\r\n"] {
        assert_eq!(ask(headers, -1).status, 200, "{headers}");
    }
    for priority in [-1, 1] {
        let refused = ask(BEN, priority);
        assert_eq!((refused.status, &body(&refused)["error"]["param"]), (403, &json!("priority")));
    }
    // Routers send what asks for nothing.
    assert_eq!(ask(BEN, 0).status, 200);
}

#[test]
fn keys_are_read_again_at_a_signal() {
    let file = scratch("changing.toml", &table("anna", ""));
    let server = Server::start(&["--api-keys", file.to_str().unwrap()]);
    let models = |headers: &str| server.request("GET", "/v1/models", headers, "").status;
    assert_eq!((models(ANNA), models(BEN)), (200, 401));
    let reload = |text: &str, said: &str| {
        std::fs::write(&file, text).unwrap();
        let before = server.log().matches(said).count();
        server.signal("HUP");
        until(said, Duration::from_secs(5), || server.log().matches(said).count() > before);
    };
    reload(&(table("anna", "") + &table("ben", "")), "the keys were read again");
    assert_eq!((models(ANNA), models(BEN)), (200, 200));
    // A stream goes on to its end without its key.
    let body = json!({"prompt": "x", "max_tokens": 200, "stream": true, "ignore_eos": true});
    let mut running = server.send("POST", "/v1/completions", ANNA, &body.to_string());
    until("it runs", Duration::from_secs(5), || server.metric("pleach_running_sequences") == 1.0);
    reload(&table("ben", ""), "the keys were read again");
    assert_eq!((models(ANNA), models(BEN)), (401, 200));
    assert!(Answer::read(&mut running).body.contains("[DONE]"));
    for broken in ["[[key]]\nname = ", &table("", ""), &table("ben", "limit = 1")] {
        reload(broken, "the keys stay as they were");
        assert_eq!((models(ANNA), models(BEN)), (401, 200));
    }
    assert!(server.log().contains("changing.toml") && !server.log().contains("ben-key"));
}

#[test]
fn a_certificate_is_read_again_at_a_signal() {
    let [old, new] =
        [(); 2].map(|()| rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap());
    let certificate = scratch("changing-certificate.pem", &old.cert.pem());
    let key = scratch("changing-key.pem", &old.signing_key.serialize_pem());
    let [one, two] = [&certificate, &key].map(|path| path.to_str().unwrap());
    let server = Server::start(&["--tls-certificate", one, "--tls-key", two]);
    assert!(https(&server, &old.cert).starts_with("HTTP/1.1 200"));
    // The new certificate with the old key fits nothing.
    std::fs::write(&certificate, new.cert.pem()).unwrap();
    server.signal("HUP");
    let wait = |said: &str| until(said, Duration::from_secs(5), || server.log().contains(said));
    wait("the certificate stays as it was");
    assert!(https(&server, &old.cert).starts_with("HTTP/1.1 200"));
    std::fs::write(&key, new.signing_key.serialize_pem()).unwrap();
    server.signal("HUP");
    wait("the certificate was read again");
    assert!(https(&server, &new.cert).starts_with("HTTP/1.1 200"));
    assert_eq!(https(&server, &old.cert), "");
}

#[test]
fn keys_find_nothing_of_each_other() {
    let file = scratch("cache.toml", &(table("anna", "") + &table("ben", "")));
    let server = Server::start(&["--api-keys", file.to_str().unwrap()]);
    let text = "The quick brown fox jumps over the lazy dog and runs away. ".repeat(5);
    let cached = |headers: &str, path: &str, salt: Option<&str>| {
        let text = format!("{path}: {text}");
        let messages = json!([{"role": "user", "content": "x"}]);
        let asked = match path {
            "/v1/completions" => json!({"prompt": text, "max_tokens": 1, "cache_salt": salt}),
            "/v1/responses" => json!({
                "input": messages, "instructions": text, "max_output_tokens": 1, "cache_salt": salt,
            }),
            _ => json!({"messages": messages, "system": text, "max_tokens": 1}),
        };
        let answer = server.request("POST", path, headers, &asked.to_string());
        let usage = &body(&answer)["usage"];
        let details = ["prompt_tokens_details", "input_tokens_details"];
        let found = details.iter().find_map(|details| usage[details]["cached_tokens"].as_u64());
        found.or(usage["cache_read_input_tokens"].as_u64()).unwrap_or_else(|| panic!("{answer:?}"))
    };
    for path in ["/v1/completions", "/v1/responses", "/v1/messages"] {
        assert_eq!(cached(ANNA, path, None), 0, "{path}");
        assert!(cached(ANNA, path, None) >= 32, "{path}");
        assert_eq!(cached(BEN, path, None), 0, "{path}");
    }
    // A salt sets requests of one key apart, and is no other key's.
    for path in ["/v1/completions", "/v1/responses"] {
        for salt in ["anna", "ben"] {
            assert_eq!(cached(ANNA, path, Some(salt)), 0, "{path}: {salt}");
            assert!(cached(ANNA, path, Some(salt)) >= 32, "{path}: {salt}");
        }
        assert_eq!(cached(BEN, path, Some("anna")), 0, "{path}");
    }
    let empty = json!({"prompt": text, "cache_salt": ""}).to_string();
    let refused = server.request("POST", "/v1/completions", ANNA, &empty);
    assert_eq!((refused.status, &body(&refused)["error"]["param"]), (400, &json!("cache_salt")));
}
