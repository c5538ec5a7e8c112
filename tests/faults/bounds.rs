//! Clients that vanish, dawdle or exaggerate cost nobody else anything.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::support::{Answer, Server, until};

const SOON: Duration = Duration::from_secs(5);

fn endless(extra: Value) -> Value {
    let mut body = json!({"prompt": "Once upon a time", "max_tokens": 4000, "temperature": 0,
        "ignore_eos": true, "num_speculative_tokens": 0});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn ask(server: &Server) -> Answer {
    server.post("/v1/completions", &json!({"prompt": "2 + 2 =", "max_tokens": 2}))
}

/// Waits until the server ends the connection; what it said by then.
fn closed(mut stream: TcpStream, limit: Duration) -> String {
    let started = Instant::now();
    stream.set_read_timeout(Some(limit)).unwrap();
    let mut text = Vec::new();
    if let Err(error) = stream.read_to_end(&mut text) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "still open after {limit:?}");
    }
    assert!(started.elapsed() < limit);
    String::from_utf8(text).unwrap()
}

#[test]
fn vanished_clients_free_their_blocks() {
    let server = Server::start(&["--max-num-seqs", "2"]);
    let idle = || {
        server.metric("pleach_running_sequences") == 0.0
            && server.metric("pleach_kv_cache_used_blocks") == 0.0
    };
    for extra in [json!({"stream": true}), json!({"stream": false}), json!({"n": 2})] {
        let body = endless(extra).to_string();
        let clients: Vec<_> =
            (0..4).map(|_| server.send("POST", "/v1/completions", "", &body)).collect();
        until("they run", SOON, || server.metric("pleach_running_sequences") == 2.0);
        drop(clients);
        // A step takes milliseconds; the full answers would take minutes.
        until("their blocks are free", Duration::from_secs(1), idle);
    }
    assert_eq!(ask(&server).status, 200);
}

/// So do those whose sequences have said nothing yet: they wait, or their prompts are read.
#[test]
fn vanished_clients_are_not_waited_for() {
    let server = Server::start(&["--max-num-seqs", "1", "--max-num-batched-tokens", "16"]);
    let long = "word ".repeat(6000);
    let idle = || {
        server.metric("pleach_running_sequences") == 0.0
            && server.metric("pleach_waiting_sequences") == 0.0
            && server.metric("pleach_kv_cache_used_blocks") == 0.0
    };
    for stream in [false, true] {
        let bodies = [
            ("/v1/completions", json!({"prompt": long, "max_tokens": 1, "stream": stream})),
            (
                "/v1/completions",
                json!({"prompt": long, "max_tokens": 0, "echo": true, "logprobs": 5}),
            ),
            (
                "/v1/messages",
                json!({"messages": [{"role": "user", "content": long}], "max_tokens": 1,
                "stream": stream}),
            ),
            ("/v1/responses", json!({"input": long, "max_output_tokens": 1, "stream": stream})),
            ("/v1/embeddings", json!({"input": [long, long]})),
        ];
        let clients: Vec<_> = bodies
            .iter()
            .map(|(path, body)| server.send("POST", path, "", &body.to_string()))
            .collect();
        let sequences = || {
            server.metric("pleach_running_sequences") + server.metric("pleach_waiting_sequences")
        };
        until("all are taken on", SOON, || sequences() == 6.0);
        drop(clients);
        // To read all these prompts would take many times as long.
        until("nothing is left of them", Duration::from_secs(2), idle);
    }
    assert_eq!(ask(&server).status, 200);
}

/// A reader that takes nothing holds up nobody, and is cut off when its time is over.
#[test]
fn slow_readers_hold_up_nobody() {
    let server =
        Server::start(&["--client-timeout", "2", "--max-num-seqs", "1", "--max-queue", "1"]);
    // More text than the sockets' buffers hold.
    let body = endless(json!({"stream": true, "logprobs": 20, "max_tokens": 1500})).to_string();
    let stuck: Vec<TcpStream> =
        (0..2).map(|_| server.send("POST", "/v1/completions", "", &body)).collect();
    until("both are taken on", SOON, || {
        server.metric("pleach_running_sequences") + server.metric("pleach_waiting_sequences") == 2.0
    });
    assert_eq!(ask(&server).status, 429);
    until("there is room again", Duration::from_secs(60), || ask(&server).status == 200);
    let generated = server.metric("pleach_generated_tokens_total");
    assert!(generated >= 3000.0, "the engine waited for its readers: {generated}");
    drop(stuck);
}

#[test]
fn slow_senders_are_cut_off() {
    let server = Server::start(&["--client-timeout", "1"]);
    // Silence, half a head, and an idle connection after an answer.
    let started = Instant::now();
    closed(server.connect(), SOON);
    assert!(started.elapsed() > Duration::from_millis(900), "closed too early");
    let mut half = server.connect();
    half.write_all(b"GET /health HTTP/1.1\r\nhost:").unwrap();
    closed(half, SOON);
    let mut kept = server.connect();
    kept.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let text = closed(kept, SOON);
    assert!(text.starts_with("HTTP/1.1 200"), "{text:?}");
    // One byte at a time, for ever.
    for start in [
        "GET /health HTTP/1.1\r\nx: ",
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 999\r\n\r\n",
    ] {
        let mut drip = server.connect();
        drip.write_all(start.as_bytes()).unwrap();
        let started = Instant::now();
        while drip.write_all(b"x").is_ok() && started.elapsed() < SOON {
            std::thread::sleep(Duration::from_millis(100));
        }
        assert!(started.elapsed() < SOON, "{start}");
    }
    let mut body = server.connect();
    body.write_all(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{")
        .unwrap();
    assert!(closed(body, SOON).starts_with("HTTP/1.1 408"));
    assert_eq!(ask(&server).status, 200);
}

#[test]
fn what_is_too_large_is_refused() {
    let server = Server::start(&[]);
    let post = |body: &str| server.request("POST", "/v1/completions", "", body);
    // By its announced length, before it is sent.
    let mut announced = server.connect();
    announced
        .write_all(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n",
        )
        .unwrap();
    assert!(closed(announced, SOON).starts_with("HTTP/1.1 413"));
    // By what arrives.
    let mut chunked = server.connect();
    chunked
        .write_all(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n",
        )
        .unwrap();
    let chunk = [&b"100000\r\n"[..], &vec![b' '; 1 << 20], b"\r\n"].concat();
    while chunked.write_all(&chunk).is_ok() {}
    assert_eq!(ask(&server).status, 200);
    let headers = format!("x: {}\r\n", "y".repeat(100_000));
    assert_eq!(server.request("GET", "/health", &headers, "").status, 431);
    let headers: String = (0..100).map(|i| format!("x{i}: y\r\n")).collect();
    assert_eq!(server.request("GET", "/health", &headers, "").status, 431);
    let uri = format!("/{}", "x".repeat(100_000));
    assert!([414, 431].contains(&server.request("GET", &uri, "", "").status));
    // JSON that would overflow a stack.
    let deep = format!("{{\"prompt\": {}", "[".repeat(1_000_000));
    assert_eq!(post(&deep).status, 400);
    // A prompt beyond the context, however long.
    for words in [9_000, 1_000_000] {
        let started = Instant::now();
        let answer = post(&json!({"prompt": "word ".repeat(words)}).to_string());
        assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!("prompt")));
        assert!(started.elapsed() < SOON);
    }
    for body in
        ["", "null", "[]", "{\"prompt\":\"\\ud800\"}", "\u{0}", "{\"prompt\":\"x\",\"n\":1e99}"]
    {
        assert_eq!(post(body).status, 400, "{body:?}");
    }
    assert_eq!(ask(&server).status, 200);
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let server = Server::start(&["--max-num-seqs", "1", "--max-queue", "2"]);
    let body = endless(json!({"stream": true})).to_string();
    let running: Vec<_> =
        (0..3).map(|_| server.send("POST", "/v1/completions", "", &body)).collect();
    until("it is full", SOON, || {
        server.metric("pleach_running_sequences") + server.metric("pleach_waiting_sequences") == 3.0
    });
    let answer = ask(&server);
    assert_eq!(answer.status, 429);
    let seconds = |answer: &Answer| answer.header("retry-after").unwrap().parse::<u32>().unwrap();
    assert!(seconds(&answer) > 0);
    assert_eq!(answer.json()["error"]["type"], "rate_limit_error");
    // Two wait and nobody has left for a second: it takes two at least.
    std::thread::sleep(Duration::from_millis(1100));
    assert!(seconds(&ask(&server)) > 2);
    drop(running);
    until("there is room again", SOON, || ask(&server).status == 200);
}

#[test]
fn a_lower_priority_number_is_served_first() {
    let server = Server::start(&["--max-num-seqs", "1"]);
    let running = server.send("POST", "/v1/completions", "", &endless(json!({})).to_string());
    until("it runs", SOON, || server.metric("pleach_running_sequences") == 1.0);
    let mut waiting = [5, 0].map(|priority| {
        let body = endless(json!({"priority": priority, "max_tokens": 300})).to_string();
        let before = server.metric("pleach_waiting_sequences");
        let stream = server.send("POST", "/v1/completions", "", &body);
        until("it waits", SOON, || server.metric("pleach_waiting_sequences") > before);
        stream
    });
    drop(running);
    assert_eq!(Answer::read(&mut waiting[1]).status, 200);
    // The other, which came first, has only begun.
    waiting[0].set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    assert!(waiting[0].peek(&mut [0]).is_err(), "served out of turn");
    waiting[0].set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    assert_eq!(Answer::read(&mut waiting[0]).status, 200);
}

/// A long beginning that two requests share is computed once.
#[test]
fn what_was_computed_is_found_again() {
    let names = ["pleach_prefix_cache_queries_total", "pleach_prefix_cache_hits_total"];
    let prompt = "The gardener prunes the old tree, and what is left of it grows. ".repeat(8);
    for (flags, cached) in [(&[][..], true), (&["--no-prefix-caching"][..], false)] {
        let server = Server::start(flags);
        let answers = ["One.", "Two."].map(|end| {
            let body = json!({"prompt": format!("{prompt}{end}"), "max_tokens": 4});
            server.post("/v1/completions", &body).json()
        });
        let usage = &answers[1]["usage"];
        let found = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        assert_eq!(found > 100, cached, "{usage}");
        assert!(found % 16 == 0 && found < usage["prompt_tokens"].as_u64().unwrap());
        let [queries, hits] = names.map(|name| server.metric(name));
        assert_eq!(hits, found as f64);
        assert_eq!(queries > 0.0, cached);
    }
}
