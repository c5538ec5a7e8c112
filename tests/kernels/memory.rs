//! Memory that runs out: whichever call of the driver finds none, the program says so, or goes on and says what it
//! would have said. Each trial is a process of its own, so that an abort and a hang are seen.

use std::error::Error;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::Parser;
use pleach::checkpoint::Checkpoint;
use pleach::checkpoint::adapter::Adapter;
use pleach::cli::{Args, Config};
use pleach::engine::{Engine, EngineConfig, Event, FinishReason, Readout, Request};
use pleach::loading;
use pleach::model::{
    AdapterWeights, CudaDecoder, CudaDraft, CudaRunner, Drafter, Family, Forward, ModelConfig,
};
use pleach::sampling::SamplingParams;
use pleach_kernels::cuda::{Device, foreign};

use super::decoder::config;
use super::rounds::write_draft;
use super::support::adapter::write_adapter;
use super::support::gguf;
use super::support::pair::write_pair;

/// Names the folder of the models that a process is to run, in place of tests.
pub(crate) const RUN: &str = "PLEACH_MEMORY_TEST";

/// A trial that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(240);

/// Bytes of the device's memory.
const MEMORY: usize = 32 << 20;

/// Trials of each kind in a plain run; all with PLEACH_ALL_ALLOCATIONS set.
const SPREAD: u64 = 13;

const VOCAB: u32 = 96;

/// Requests of every kind, of which the last go through an adapter.
fn requests(adapter: &Arc<AdapterWeights>) -> Vec<Request> {
    let request = |start: u32, length: u32, params| {
        let prompt = (0..length).map(|i| (start + i * 7) % VOCAB).collect();
        Request { params, ignore_eos: true, ..Request::greedy(prompt, 9) }
    };
    let sampled = |seed| SamplingParams {
        temperature: 0.9,
        top_p: 0.9,
        seed: Some(seed),
        ..SamplingParams::default()
    };
    let penalised = SamplingParams {
        presence_penalty: 0.5,
        logit_bias: [(7, 2.5), (90, -4.0)].into(),
        ..sampled(2)
    };
    let greedy = SamplingParams::greedy();
    vec![
        request(3, 30, greedy.clone()),
        request(50, 11, sampled(1)),
        request(20, 7, penalised),
        Request { top_logprobs: Some(2), ..request(50, 19, greedy.clone()) },
        Request { readout: Readout::Logprobs(1), ..request(70, 24, greedy.clone()) },
        Request { adapter: Some(Arc::clone(adapter)), ..request(3, 30, greedy) },
        Request { adapter: Some(Arc::clone(adapter)), ..request(50, 11, sampled(1)) },
    ]
}

/// How many [`requests`] there are.
const REQUESTS: usize = 7;

/// What a process of these tests does, by its first argument, with the model in a folder and the draft that the second
/// names.
pub(crate) fn run(folder: &Path) {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [what, draft, settings @ ..] = &arguments[..] else { panic!("{arguments:?}") };
    match what.as_str() {
        "serve" => serve(folder, draft, settings),
        "grow" => grow(folder, draft),
        "adapt" => adapt(folder, draft, settings.is_empty()),
        _ => count(folder, draft),
    }
}

/// Serves the models from the device, answers some requests at once, and prints what came of it.
fn serve(folder: &Path, draft: &str, more: &[String]) {
    let file = |name: &str| folder.join(name).display().to_string();
    let (model, draft, lora) = (file("model.gguf"), file(draft), format!("own={}", file(LORA)));
    let settings = "--device cuda --threads 1 --fixed-drafts --num-speculative-tokens 3 --max-model-len 64 \
                    --max-num-seqs 4 --max-num-batched-tokens 32";
    let own = ["pleach", "--model", &model, "--draft", &draft, "--lora", &lora];
    let settings = settings.split_whitespace().chain(more.iter().map(String::as_str));
    let config = Config::from(Args::parse_from(own.into_iter().chain(settings)));
    let model = match loading::start(&config) {
        Ok(mut models) => models.remove(0),
        Err(error) => {
            println!("refused: {error}");
            return;
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut answers = Vec::new();
        for request in requests(&model.adapters[0].weights) {
            answers.push(model.engine.submit(request).await.unwrap());
        }
        for mut events in answers {
            let mut said = Vec::new();
            while let Some(event) = events.recv().await {
                match event {
                    Event::Tokens(tokens) => {
                        said.extend(tokens.iter().map(|token| (token.id, token.logprob)));
                    }
                    Event::Prompt(tokens) => {
                        said.extend(tokens.iter().map(|token| (token.id, token.logprob)));
                    }
                    Event::Embedding(_) => unreachable!("not asked for"),
                    Event::Finished { reason: FinishReason::Error(error), .. } => {
                        println!("failed: {error}");
                    }
                    Event::Finished { .. } => println!("said: {said:?}"),
                }
            }
        }
    });
    assert!(model.engine.is_alive(), "the engine has ended");
}

/// A model, its draft and its adapter on the device, and an engine's configuration for them.
fn load(folder: &Path, draft: &str) -> Result<Loaded, Box<dyn Error>> {
    let device = Device::open(0)?;
    let mut checkpoint = Checkpoint::open(&folder.join("model.gguf"))?;
    let target = CudaDecoder::load(&mut checkpoint, &device)?;
    let mut draft = Checkpoint::open(&folder.join(draft))?;
    let draft = target.lender().load_draft(&mut draft, &mut checkpoint)?;
    let adapter = load_adapter(folder, &target)?;
    let config = EngineConfig {
        max_model_len: Some(64),
        max_num_seqs: 4,
        max_num_batched_tokens: 32,
        num_blocks: Some(24),
        num_speculative_tokens: 3,
        ngram: false,
        adaptive: false,
        ..EngineConfig::default()
    };
    Ok((target, draft, adapter, config))
}

type Loaded = (CudaDecoder, CudaDraft, Arc<AdapterWeights>, EngineConfig);

fn load_adapter(
    folder: &Path,
    target: &CudaDecoder,
) -> Result<Arc<AdapterWeights>, Box<dyn Error>> {
    let layout = target.adapter_shapes().lay_out(&Adapter::read(&folder.join(LORA))?)?;
    Ok(Arc::new(layout.load(target.adapters())?))
}

/// Answers the requests with models whose memory is not planned: passes take it as they grow.
fn grow(folder: &Path, draft: &str) {
    let engine = || -> Result<(Engine, Arc<AdapterWeights>), Box<dyn Error>> {
        let (target, draft, adapter, config) = load(folder, draft)?;
        let runner = |decoder| CudaRunner::new(decoder, 24, 64);
        let mut target = runner(target)?;
        let mut standalone = None;
        match draft {
            CudaDraft::Standalone(draft) => {
                standalone = Some(Box::new(runner(*draft)?) as Box<dyn Forward>);
            }
            CudaDraft::Attached(drafter) => drop(target.attach(Some(Drafter::Cuda(drafter)))),
        }
        Ok((Engine::with_models(Box::new(target), standalone, config)?, adapter))
    };
    let (mut engine, adapter) = match engine() {
        Ok(engine) => engine,
        Err(error) => {
            println!("refused: {error}");
            return;
        }
    };
    say(&mut engine, &adapter);
}

/// Answers the requests, and prints what came of them.
fn say(engine: &mut Engine, adapter: &Arc<AdapterWeights>) {
    for answer in engine.answer(requests(adapter)).unwrap() {
        match answer.reason {
            FinishReason::Error(error) => println!("failed: {error}"),
            _ => println!("said: {:?}", answer.ids()),
        }
    }
}

/// Loads an adapter, again where that finds no memory, and answers requests if it `answers`.
fn adapt(folder: &Path, draft: &str, answers: bool) {
    let (target, draft, first, config) = load(folder, draft).unwrap();
    let adapter = load_adapter(folder, &target).unwrap_or_else(|error| {
        println!("not loaded: {error}");
        load_adapter(folder, &target).unwrap()
    });
    drop(first);
    if answers {
        say(&mut Engine::on_cuda(target, Some(draft), config).unwrap(), &adapter);
    }
}

/// Has engines with a draft and without serve every kind of request for 50 rounds, and prints how often each asked for
/// memory before and meanwhile.
fn count(folder: &Path, draft: &str) {
    for drafted in [true, false] {
        let (target, draft, adapter, config) = load(folder, draft).unwrap();
        let mut engine = Engine::on_cuda(target, drafted.then_some(draft), config).unwrap();
        engine.profile();
        assert_eq!(engine.has_draft_model(), drafted);
        let library = super::plain_driver().join("libcuda.so");
        let allocations = || foreign::call(&library, &[]).unwrap();
        let before = allocations();
        while engine.stats().steps < 50 {
            engine.answer(requests(&adapter)).unwrap();
        }
        println!("{} {before}", allocations() - before);
    }
}

struct Trial {
    status: ExitStatus,
    out: String,
    log: String,
}

impl Trial {
    /// Runs this program with some arguments on a device of so much memory; the `failing`th allocation fails.
    fn new(folder: &Path, arguments: &[&str], memory: usize, failing: u64) -> Self {
        let [out, log] = [(); 2].map(|()| tempfile::NamedTempFile::new_in(folder).unwrap());
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(arguments)
            .env(RUN, folder)
            .env("EMULATOR_FAIL_ALLOCATION", failing.to_string())
            .env("EMULATOR_MEMORY", memory.to_string())
            .stdout(out.reopen().unwrap())
            .stderr(log.reopen().unwrap())
            .spawn()
            .unwrap();
        let started = Instant::now();
        let status = loop {
            if let Some(status) = process.try_wait().unwrap() {
                break status;
            }
            if started.elapsed() > LIMIT {
                process.kill().unwrap();
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let [out, log] = [out, log].map(|file| std::fs::read_to_string(file.path()).unwrap());
        Self { status, out, log }
    }

    /// Calls that took memory, of a trial in which none failed.
    fn calls(&self) -> u64 {
        let count = self.log.lines().find_map(|line| {
            line.strip_prefix("emulator: ")?.strip_suffix(" allocations")?.parse().ok()
        });
        count.expect("the emulator counts")
    }

    /// Why the server did not start, where it did not.
    fn refusal(&self) -> Option<&str> {
        self.out.strip_prefix("refused: ")
    }
}

/// The drafts of a folder: a standalone one, and an attached one.
const DRAFTS: [&str; 2] = ["draft.gguf", "attached.gguf"];

/// The folder of the model's adapter.
const LORA: &str = "lora";

/// A folder of a model, its drafts and its adapter.
fn models() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let config = ModelConfig { vocab_size: VOCAB as usize, ..config(Family::Llama) };
    write_pair(folder.path(), &config, 1.0);
    write_draft(&path, &folder.path().join("draft.gguf"));
    gguf::add_letters(&path);
    let config = Checkpoint::open(&path).unwrap().config;
    write_adapter(&folder.path().join(LORA), &config, 7, 5, 0.3);
    folder
}

pub(crate) fn passes_take_no_memory_while_an_engine_serves() {
    let folder = models();
    for draft in DRAFTS {
        let trial = Trial::new(folder.path(), &["count", draft], MEMORY, 0);
        let engines: Vec<(&str, &str)> =
            trial.out.lines().filter_map(|line| line.split_once(' ')).collect();
        assert_eq!(engines.len(), 2, "{draft}: {}{}", trial.out, trial.log);
        for (taken, before) in engines {
            let planned = taken == "0" && before.parse::<u32>().unwrap() > 50;
            assert!(planned, "{draft}: {}", trial.out);
        }
    }
}

/// With less and less memory: first all is served, then the model without its draft, then nothing; and with too small a
/// share of it, nothing.
pub(crate) fn memory_is_planned() {
    let models = models();
    DRAFTS.into_iter().for_each(|draft| is_planned(models.path(), draft));
}

fn is_planned(folder: &Path, draft: &str) {
    let serve = |memory, arguments: &[&str]| {
        let trial = Trial::new(folder, &[&["serve", draft], arguments].concat(), memory, 0);
        assert!(trial.status.success() && !trial.log.contains("panicked"), "{}", trial.log);
        trial
    };
    let whole = serve(MEMORY, &[]);
    assert!(whole.log.contains("the device's memory is planned"), "{}", whole.log);
    assert!(whole.log.contains("cache_mb=2"), "most of 32 MB: {}", whole.log);
    let little = serve(MEMORY, &["--gpu-memory-utilization", "0.001"]);
    let refusal = little.refusal().expect("no room");
    assert!(refusal.contains("--gpu-memory-utilization"), "{refusal}");
    let (mut without, mut memory) = (0, 1_400_000);
    let refusal = loop {
        let trial = serve(memory, &[]);
        if let Some(refusal) = trial.refusal() {
            break refusal.to_owned();
        }
        assert_eq!(trial.out, whole.out, "with {memory} bytes: {}", trial.log);
        if trial.log.contains("serving without the draft") {
            without += 1;
            let line = trial.log.lines().find(|line| line.contains("without the draft")).unwrap();
            assert!(line.contains("are free") || line.contains("are left"), "{line}");
        } else {
            assert_eq!(without, 0, "the draft came back with {memory} bytes");
        }
        memory -= memory / 16;
    };
    assert!(without > 0, "the draft never lacked memory");
    assert!(refusal.contains("--gpu-memory-utilization"), "{refusal}");
}

/// What became of a trial that should have said as much as `expected`, or what is wrong with it. A `server` says which
/// flags to change.
fn judge(
    number: u64,
    trial: &Trial,
    expected: &[&str],
    server: bool,
) -> Result<&'static str, &'static str> {
    let Trial { status, out, log } = trial;
    let said: Vec<&str> = out.lines().collect();
    let failing = log.lines().find(|line| line.contains(&format!("allocation {number} fails")));
    let memory = failing.is_some_and(|line| line.contains("Alloc"));
    if !status.success() || log.contains("panicked") {
        return Err("it crashed, or hung");
    }
    if failing.is_none() {
        return if said == expected { Ok("not reached") } else { Err("other answers") };
    }
    if let Some(refused) = trial.refusal() {
        let sized = refused.contains("bytes were asked for");
        return match refused.contains("no memory is left") && (refused.contains("--") || !server) {
            true if sized || !memory => Ok("refused"),
            _ => Err("the error does not say what did not fit, or what to do"),
        };
    }
    let others = said.iter().zip(expected).filter(|(said, expected)| said != expected);
    let others: Vec<_> = others.map(|(said, _)| *said).collect();
    match others[..] {
        _ if said.len() != expected.len() => Err("requests without an end"),
        [] => Ok("borne"),
        [one] if one.starts_with("failed: the server has no memory left") => {
            Ok("one request failed")
        }
        _ => Err("other answers"),
    }
}

pub(crate) fn what_finds_no_memory_is_refused_or_borne() {
    let models = models();
    // Where memory is planned, passes find none as well only while it is: so they do where it is not.
    for [what, draft] in DRAFTS.into_iter().flat_map(|draft| [["serve", draft], ["grow", draft]]) {
        let try_with = |failing| Trial::new(models.path(), &[what, draft], MEMORY, failing);
        let plain = try_with(u64::MAX);
        let expected: Vec<&str> = plain.out.lines().collect();
        let answered = expected.iter().filter(|line| line.starts_with("said: ")).count();
        assert_eq!((plain.status.success(), answered), (true, REQUESTS), "{}", plain.log);
        let count = plain.calls();
        let numbers: Vec<u64> = match std::env::var_os("PLEACH_ALL_ALLOCATIONS") {
            Some(_) => (1..=count).collect(),
            None => (0..SPREAD).map(|trial| 1 + trial * count / SPREAD).collect(),
        };
        let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(|| {
                    while let Some(&number) = numbers.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let trial = try_with(number);
                        let outcome = judge(number, &trial, &expected, what == "serve");
                        if outcome.is_err() {
                            println!("{number}: {outcome:?}\n{}{}", trial.out, trial.log);
                        }
                        outcomes.lock().unwrap().push((number, outcome));
                    }
                });
            }
        });
        let outcomes = outcomes.into_inner().unwrap();
        let of = |wanted| outcomes.iter().filter(|(_, outcome)| *outcome == Ok(wanted)).count();
        let kinds = ["refused", "borne", "one request failed", "not reached"];
        let counts = kinds.map(|kind| (kind, of(kind)));
        println!(
            "{what} with {draft}: {count} allocations; of {} that failed, {counts:?}",
            numbers.len()
        );
        let wrong: Vec<_> = outcomes.iter().filter(|(_, outcome)| outcome.is_err()).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }
}

/// An adapter that finds no memory while others are there is refused, and nothing else is lost.
pub(crate) fn an_adapter_that_finds_no_memory_is_refused() {
    let models = models();
    let try_with = |settings: &[&str], failing| {
        let arguments = [&["adapt", DRAFTS[0]], settings].concat();
        let trial = Trial::new(models.path(), &arguments, MEMORY, failing);
        assert!(trial.status.success(), "{}", trial.log);
        trial
    };
    // The adapter's memory is the last that is taken.
    let failing = try_with(&["without answers"], u64::MAX).calls();
    let whole = try_with(&[], u64::MAX);
    assert_eq!(whole.out.matches("said: ").count(), REQUESTS, "{}", whole.out);
    let refused = try_with(&[], failing);
    let (error, rest) = refused.out.split_once('\n').unwrap();
    assert!(error.contains("not loaded: no memory is left"), "{error}: {}", refused.log);
    assert!(error.contains("bytes were asked for"), "{error}");
    assert_eq!(rest, whole.out);
}
