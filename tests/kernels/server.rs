//! The program itself over the emulated driver.

use std::process::Command;

use pleach::model::{Family, ModelConfig};
use serde_json::json;

use super::decoder::config;
use super::support::pair::write_pair;
use super::support::{Server, gguf, program};

/// Without being told to, the server takes the device that is there, says so, and answers the same with and without
/// speculation, also with an attached draft, which drafts there.
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
        (choices, metric("accepted_tokens"))
    };
    let (expected, none) = answer(&["--device", "cuda:0", "--no-speculation"]);
    assert_eq!((answer(&[]).0, none), (expected.clone(), 0.0));
    let draft = folder.path().join("attached.gguf");
    let arguments = ["--draft", draft.to_str().unwrap(), "--fixed-drafts"];
    let (drafted, accepted) = answer(&arguments);
    assert_eq!(drafted, expected);
    assert!(accepted > 0.0, "{drafted:?}");
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
