//! The program itself over the emulated driver.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use pleach::model::{Family, ModelConfig};
use serde_json::json;

use super::decoder::config;
use super::support::adapter::write_adapter;
use super::support::pair::write_pair;
use super::support::{Server, gguf, program, until};

/// Without being told to, the server takes the device that is there, says so, and answers the same with and without
/// speculation, also with an attached draft, which drafts there; and so it does with keys and values of 8 bits, of which
/// nearly twice as many fit.
pub(crate) fn the_server_answers_from_the_device() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let config = ModelConfig { vocab_size: 96, ..config(Family::Llama) };
    write_pair(folder.path(), &config, 1.0);
    gguf::add_letters(&path);
    let path = path.to_str().unwrap();
    let answer = |arguments: &[&str]| {
        let arguments = [&["--model", path][..], arguments].concat();
        let memory = (64 << 20).to_string();
        let server = Server::start_with(&arguments, &[("EMULATOR_MEMORY", &memory)]);
        assert!(server.log().contains("emulator"), "{}", server.log());
        let messages = json!([{"role": "user", "content": "abcabcabcabc"}]);
        let choices = [0.0, 1.0].map(|temperature| {
            let request = json!({
                "messages": messages, "max_tokens": 24, "temperature": temperature, "seed": 4
            });
            let answer = server.post("/v1/chat/completions", &request);
            assert_eq!(answer.status, 200, "{answer:?}");
            let answer = answer.json();
            assert!(answer["usage"]["completion_tokens"].as_u64() > Some(0), "{answer}");
            answer["choices"].clone()
        });
        let metric = |name| server.metric(&format!("pleach_spec_decode_{name}_total"));
        assert_eq!(metric("draft_failures"), 0.0, "{}", server.log());
        // The meter is read from the first scrape on.
        let energy = server.metric("pleach_energy_joules_total{zone=\"gpu-0\"}");
        assert!(energy >= 5.0, "{energy}");
        let blocks = server.metric("pleach_kv_cache_blocks{model=\"model\"}");
        (choices, metric("accepted_tokens"), blocks)
    };
    let draft = folder.path().join("attached.gguf");
    let drafting = ["--draft", draft.to_str().unwrap(), "--fixed-drafts"];
    let (expected, none, blocks) = answer(&["--device", "cuda:0", "--no-speculation"]);
    assert_eq!((answer(&[]).0, none), (expected.clone(), 0.0));
    let (drafted, accepted, _) = answer(&drafting);
    assert_eq!(drafted, expected);
    assert!(accepted > 0.0, "{drafted:?}");
    let int8 = ["--kv-cache-dtype", "int8"];
    let (expected, _, more) =
        answer(&[&int8[..], &["--device", "cuda", "--no-speculation"]].concat());
    // A head of 64 values takes 68 bytes in place of 128.
    assert!((1.8..1.9).contains(&(more / blocks)), "{more} blocks, and {blocks} of 16 bits");
    let (drafted, accepted, _) = answer(&[&int8[..], &drafting].concat());
    assert_eq!(drafted, expected);
    assert!(accepted > 0.0, "{drafted:?}");
}

/// A better draft than the one that serves is compared with it while the server runs, one with a cache of its own too, and
/// one that is not there is refused.
pub(crate) fn drafts_are_changed_on_the_device() {
    let folder = tempfile::tempdir().unwrap();
    let config = ModelConfig { vocab_size: 96, ..config(Family::Llama) };
    let [poor, good] = ["poor", "good"].map(|name| folder.path().join(name));
    for (folder, kept) in [(&poor, 0.0), (&good, 1.0)] {
        std::fs::create_dir(folder).unwrap();
        write_pair(folder, &config, kept);
    }
    let model = good.join("model.gguf");
    gguf::add_letters(&model);
    let [poor, good] = [poor, good].map(|folder| folder.join("attached.gguf"));
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let (model, poor, good) = (path(&model), path(&poor), path(&good));
    let arguments = ["--model", &model, "--draft", &poor, "--device", "cuda", "--kv-blocks", "64"];
    let memory = (64 << 20).to_string();
    let environment = [("EMULATOR_MEMORY", &*memory), ("PLEACH_ADMIN_KEY", "key")];
    let server = Server::start_with(&arguments, &environment);
    let admin = |method: &str, body: &str| {
        server.request(method, "/admin/draft", "authorization: Bearer key\r\n", body)
    };
    let change = |draft: &str| admin("POST", &json!({"draft": draft, "tokens": 150}).to_string());
    let answer = |turn: usize| {
        let text: String = ('a'..='w').cycle().skip(turn).step_by(turn % 7 + 1).take(12).collect();
        let request = json!({
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 24, "temperature": 0, "ignore_eos": true,
        });
        let answer = server.post("/v1/chat/completions", &request);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["choices"].clone()
    };
    let before = answer(1);
    assert_eq!(admin("GET", "").json()["draft"], "attached");

    let refused = change("/nowhere.gguf");
    assert_eq!(refused.status, 400, "{refused:?}");
    let own_cache = change(&model);
    assert_eq!(own_cache.status, 202, "{own_cache:?}");
    assert_eq!(change(&good).status, 409, "one at a time");
    answer(2);
    let stopped = admin("DELETE", "").json();
    assert_eq!(stopped["comparison"]["state"], "stopped", "{stopped}");

    let accepted = change(&good);
    assert_eq!(accepted.status, 202, "{accepted:?}");
    let comparison = || admin("GET", "").json()["comparison"].clone();
    let mut turns = 3..;
    until("the drafts are compared", Duration::from_secs(120), || {
        answer(turns.next().unwrap());
        comparison()["state"] != "comparing"
    });
    let compared = comparison();
    let accepted = |draft: &str| compared[draft]["acceptance"].as_f64().unwrap();
    assert!(accepted("candidate") > accepted("current") + 0.1, "{compared}");
    // Which one promises more speed depends on what steps took.
    assert!(["switched", "refused"].contains(&compared["state"].as_str().unwrap()), "{compared}");
    assert_eq!(answer(1), before, "no draft leaves a trace");
    assert!(!server.log().contains("ERROR"), "{}", server.log());
}

/// A request's `model` names an adapter, which came with the server or while it ran; one that is too large for the device is
/// refused, and changes nothing.
pub(crate) fn adapters_are_served_from_the_device() {
    let folder = tempfile::tempdir().unwrap();
    let small = ModelConfig { vocab_size: 96, ..config(Family::Llama) };
    write_pair(folder.path(), &small, 1.0);
    let small = ModelConfig { num_hidden_layers: 3, ..small };
    for (seed, name, rank) in [(1, "one", 3), (2, "two", 8), (3, "large", 2000)] {
        write_adapter(&folder.path().join(name), &small, seed, rank, 0.5);
    }
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (model, draft) = (path("model.gguf"), path("attached.gguf"));
    gguf::add_letters(folder.path().join("model.gguf").as_path());
    let memory = (32 << 20).to_string();
    let environment = [("EMULATOR_MEMORY", &*memory)];
    let served = ["--model", &model, "--served-model-name", "base", "--device", "cuda"];
    let said = |server: &Server, model: &str| {
        let request = json!({
            "model": model, "prompt": "abcabcabcabc", "max_tokens": 16, "temperature": 0,
            "ignore_eos": true, "logprobs": 1,
        });
        let answer = server.post("/v1/completions", &request);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["choices"].clone()
    };
    let loras = format!("one={},two={}", path("one"), path("two"));
    let arguments = [&served[..], &["--lora", &loras, "--no-speculation"]].concat();
    let plain = Server::start_with(&arguments, &environment);
    let [base, one, two] = ["base", "one", "two"].map(|model| said(&plain, model));
    assert!(base != one && one != two && two != base, "{base} {one} {two}");

    let lora = format!("one={}", path("one"));
    let more = ["--lora", &lora, "--allow-runtime-lora", "--draft", &draft, "--fixed-drafts"];
    let server = Server::start_with(&[&served[..], &more].concat(), &environment);
    let load = |name: &str, folder: &str| {
        let request = json!({"lora_name": name, "lora_path": path(folder), "load_inplace": true});
        server.post("/v1/load_lora_adapter", &request)
    };
    assert_eq!([said(&server, "base"), said(&server, "one")], [base.clone(), one.clone()]);
    let loaded = load("sql", "two");
    assert_eq!(loaded.status, 200, "{loaded:?}");
    assert_eq!(said(&server, "sql"), two);
    let refused = load("sql", "large");
    assert_eq!(refused.status, 400, "{refused:?}");
    assert!(refused.body.contains("are left on the device"), "{refused:?}");
    assert_eq!(said(&server, "sql"), two);
    assert_eq!(load("sql", "one").status, 200);
    assert_eq!([said(&server, "sql"), said(&server, "base")], [one, base]);
    let unloaded = server.post("/v1/unload_lora_adapter", &json!({"lora_name": "sql"}));
    assert_eq!(unloaded.status, 200, "{unloaded:?}");
    let request = json!({"model": "sql", "prompt": "abc"});
    assert_eq!(server.post("/v1/completions", &request).status, 404);
    assert!(server.metric("pleach_spec_decode_accepted_tokens_total") > 0.0);
    assert!(!server.log().contains("ERROR"), "{}", server.log());
}

pub(crate) fn the_server_says_which_devices_there_are() {
    let run = |device: &str| {
        let mut pleach = Command::new(program("pleach"));
        let output = pleach.args(["--port", "0", "--device", device]).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let error = run("gpu");
    assert!(error.contains("`auto`, `cpu`, `cuda` or `cuda:N`"), "{error}");
    // Without a driver, without a device, or without so many.
    let error = run("cuda:99");
    assert!(error.contains("no CUDA device"), "{error}");
}
