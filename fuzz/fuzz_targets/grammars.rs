//! Random schemas and grammars, compiled in a child process: what overflows a stack cannot be caught.

#![no_main]

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio, exit};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use libfuzzer_sys::{Corpus, fuzz_target};
use pleach::checkpoint::Checkpoint;
use pleach::grammar::{GrammarCompiler, GrammarSource, GrammarWorkers};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/goldens/sentencepiece/model.gguf");
/// Set for a child, which compiles what its standard input says and ends.
const CHILD: &str = "PLEACH_FUZZ_CHILD";
const LIMIT: Duration = Duration::from_secs(20);

fn source(input: &str) -> Option<GrammarSource> {
    let (kind, text) = input.split_once('\n')?;
    match kind {
        "json" => serde_json::from_str(text).ok().map(GrammarSource::JsonSchema),
        "lenient" => serde_json::from_str(text).ok().map(GrammarSource::LenientSchema),
        "lark" => Some(GrammarSource::Lark(text.to_owned())),
        "regex" => Some(GrammarSource::Regex(text.to_owned())),
        "choice" => Some(GrammarSource::Choice(text.lines().map(str::to_owned).collect())),
        _ => None,
    }
}

/// Compiles what standard input says, as the server does, and follows it for a token.
fn child() -> ! {
    let mut input = String::new();
    let read = std::io::stdin().read_to_string(&mut input);
    let Some(source) = read.ok().and_then(|_| source(&input)) else { exit(0) };
    let checkpoint = Checkpoint::open(Path::new(MODEL)).expect("the model opens");
    let vocab_size = checkpoint.config.vocab_size;
    let tokenizer = checkpoint.tokenizer.expect("it has a tokenizer");
    let compiler = GrammarCompiler::new(&tokenizer, vocab_size, &checkpoint.config.eos_token_ids);
    let workers = GrammarWorkers::start(Arc::new(compiler.expect("its tokens have bytes")));
    let (sender, compiled) = mpsc::channel();
    let workers = workers.expect("threads start");
    let sent = workers.submit(source, move |result| drop(sender.send(result)));
    if sent.is_ok()
        && let Ok(Ok(grammar)) = compiled.recv()
    {
        let _ = grammar.start().compute_masks(0);
    }
    exit(0)
}

fuzz_target!(
    init: {
        if std::env::var_os(CHILD).is_some() {
            child();
        }
    },
    |input: &[u8]| -> Corpus {
        let Some(text) = std::str::from_utf8(input).ok().filter(|text| source(text).is_some()) else {
            return Corpus::Reject;
        };
        let program = std::env::current_exe().expect("this program has a path");
        let mut process = Command::new(program)
            .env(CHILD, "1")
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a child starts");
        let mut stdin = process.stdin.take().expect("a pipe, just made");
        let _ = stdin.write_all(text.as_bytes());
        drop(stdin);
        let started = Instant::now();
        let status = loop {
            if let Some(status) = process.try_wait().expect("a child can be waited for") {
                break status;
            }
            if started.elapsed() > LIMIT {
                let _ = process.kill();
                let _ = process.wait();
                panic!("not compiled within {LIMIT:?}");
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        assert!(status.success(), "{status}");
        Corpus::Keep
    }
);
