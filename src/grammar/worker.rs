//! Threads that compile grammars: few, so that compiling leaves the machine to those who generate, and with stacks
//! that no admitted grammar fills.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Grammar, GrammarCompiler, GrammarError, GrammarSource};

/// Threads that compile.
const THREADS: usize = 2;
/// Their stack: a hundred times what the deepest admitted grammar was seen to take. Only what is touched takes memory.
const STACK_BYTES: usize = 256 << 20;
/// Grammars that wait to be compiled.
const MAX_WAITING: usize = 64;
/// How long a grammar may take, its wait included.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// Threads whose grammar overran its deadline: each is replaced until it ends, up to so many.
const MAX_OVERDUE: usize = 4;

/// Compiles grammars in turn, on threads of its own.
pub struct GrammarWorkers {
    shared: Arc<Shared>,
    jobs: SyncSender<Job>,
}

struct Shared {
    compiler: Arc<GrammarCompiler>,
    waiting: Mutex<Receiver<Job>>,
    overdue: AtomicUsize,
}

struct Job {
    source: Arc<GrammarSource>,
    submitted: Instant,
    progress: Arc<Progress>,
    done: Box<dyn FnOnce(Result<Grammar, GrammarError>) + Send>,
}

/// How far a grammar has come: one of the states below.
#[derive(Default)]
struct Progress(AtomicU8);

const WAITS: u8 = 0;
const RUNS: u8 = 1;
/// It runs on a thread that another one has replaced.
const REPLACED: u8 = 2;
const ENDED: u8 = 3;

impl Progress {
    /// Goes from one state to another; says whether it was in that one.
    fn change(&self, from: u8, to: u8) -> bool {
        self.0.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// A grammar on its way.
pub struct Compilation {
    shared: Arc<Shared>,
    source: Arc<GrammarSource>,
    progress: Arc<Progress>,
}

/// Too many grammars wait to be compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many grammars wait to be compiled")]
pub struct Busy;

impl GrammarWorkers {
    /// Starts the threads.
    ///
    /// # Errors
    /// The system's reason not to start one.
    pub fn start(compiler: Arc<GrammarCompiler>) -> std::io::Result<Self> {
        let (jobs, waiting) = sync_channel(MAX_WAITING);
        let overdue = AtomicUsize::new(0);
        let shared = Arc::new(Shared { compiler, waiting: Mutex::new(waiting), overdue });
        (0..THREADS).try_for_each(|_| spawn(&shared))?;
        Ok(Self { shared, jobs })
    }

    /// What compiles them.
    #[must_use]
    pub fn compiler(&self) -> &GrammarCompiler {
        &self.shared.compiler
    }

    /// Has a grammar compiled; `done` is told of it, unless it waited for too long.
    ///
    /// # Errors
    /// [`Busy`] where too many wait.
    pub fn submit(
        &self,
        source: GrammarSource,
        done: impl FnOnce(Result<Grammar, GrammarError>) + Send + 'static,
    ) -> Result<Compilation, Busy> {
        let (source, progress) = (Arc::new(source), Arc::new(Progress::default()));
        let job = Job {
            source: Arc::clone(&source),
            submitted: Instant::now(),
            progress: Arc::clone(&progress),
            done: Box::new(done),
        };
        self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) | TrySendError::Disconnected(_) => Busy,
        })?;
        Ok(Compilation { shared: Arc::clone(&self.shared), source, progress })
    }
}

impl Compilation {
    /// Gives it up at its deadline. A grammar that was being compiled is refused from now on, and another thread
    /// takes the place of the one that goes on with it.
    ///
    /// # Errors
    /// [`Busy`] where it was still waiting, which is not its own fault.
    pub fn overdue(self) -> Result<GrammarError, Busy> {
        if self.progress.0.load(Ordering::Acquire) == WAITS {
            return Err(Busy);
        }
        let error = GrammarError(format!("takes longer than {} s to compile", DEADLINE.as_secs()));
        self.shared.compiler.refuse(&self.source, &error);
        let one_more = |count| (count < MAX_OVERDUE).then_some(count + 1);
        let overdue = &self.shared.overdue;
        let counted = overdue.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).is_ok();
        // It may end at this moment, and its thread go on with the next; one that another replaces ends with it.
        let replaced = counted && self.progress.change(RUNS, REPLACED);
        let stays =
            replaced && spawn(&self.shared).is_err() && self.progress.change(REPLACED, RUNS);
        if counted && (!replaced || stays) {
            overdue.fetch_sub(1, Ordering::AcqRel);
        }
        Ok(error)
    }
}

fn spawn(shared: &Arc<Shared>) -> std::io::Result<()> {
    let shared = Arc::clone(shared);
    let thread = std::thread::Builder::new().name("grammars".into()).stack_size(STACK_BYTES);
    thread.spawn(move || shared.run()).map(|_| ())
}

impl Shared {
    fn run(&self) {
        loop {
            let job = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(job) = job else { return };
            if job.submitted.elapsed() >= DEADLINE {
                continue;
            }
            job.progress.0.store(RUNS, Ordering::Release);
            (job.done)(self.compiler.compile(&job.source));
            if !job.progress.change(RUNS, ENDED) {
                self.overdue.fetch_sub(1, Ordering::AcqRel);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Barrier, mpsc};

    use serde_json::{Value, json};

    use super::super::tests::compiler;
    use super::*;

    fn compiled(workers: &GrammarWorkers, source: GrammarSource) -> Result<(), String> {
        let (sender, receiver) = mpsc::channel();
        let sent = workers.submit(source, move |result| {
            let _ = sender.send(result.map(|_| ()).map_err(|error| error.to_string()));
        });
        sent.map_err(|busy| busy.to_string())?;
        receiver.recv_timeout(DEADLINE).unwrap()
    }

    /// The deepest grammars that are admitted compile on these threads; all that is worse is refused at once.
    #[test]
    fn deep_and_costly_grammars_end_in_time() {
        let workers = GrammarWorkers::start(Arc::new(compiler())).unwrap();
        let refs = |count: usize, wrap: &dyn Fn(Value) -> Value| {
            let next = |i: usize| wrap(json!({"$ref": format!("#/$defs/{}", i + 1)}));
            let mut defs: serde_json::Map<String, Value> =
                (0..count).map(|i| (i.to_string(), next(i))).collect();
            defs.insert(count.to_string(), json!({"type": "integer"}));
            GrammarSource::JsonSchema(json!({"$defs": defs, "$ref": "#/$defs/0"}))
        };
        let property =
            |next| json!({"type": "object", "properties": {"x": next}, "required": ["x"]});
        let items = |next| json!({"type": "array", "items": next});
        let any = |next| json!({"anyOf": [next, {"type": "null"}]});
        let twice = |next: Value| json!({"allOf": [next.clone(), next]});
        let rules = |count: usize| {
            let rules: String = (0..count).map(|i| format!("r{i}: \"a\" r{}\n", i + 1)).collect();
            GrammarSource::Lark(format!("start: r0\n{rules}r{count}: \"b\"\n"))
        };
        let mut slowest = Duration::ZERO;
        for (name, source) in [
            ("properties", refs(240, &property)),
            ("items", refs(300, &items)),
            ("anyOf", refs(240, &any)),
            ("bare", refs(500, &|next| next)),
            ("allOf", refs(240, &twice)),
            ("rules", rules(900)),
            ("too many", refs(20_000, &property)),
            ("too many rules", rules(20_000)),
            ("regex", GrammarSource::Regex("(a|b)?".repeat(1300))),
            ("counted", GrammarSource::Regex("((a{1,999}){1,999}){1,999}".into())),
            (
                "counted items",
                GrammarSource::JsonSchema(json!({"items": {"pattern": "^(a|b|c){1,9999}$"}})),
            ),
        ] {
            let started = Instant::now();
            let result = compiled(&workers, source);
            let result = result.map_err(|error| error.chars().take(150).collect::<String>());
            println!("{name}: {:?} {result:?}", started.elapsed());
            slowest = slowest.max(started.elapsed());
        }
        assert!(slowest < DEADLINE, "{slowest:?}");
        assert_eq!(compiled(&workers, GrammarSource::json_object()), Ok(()));
    }

    #[test]
    fn what_was_refused_once_is_not_compiled_again() {
        let workers = GrammarWorkers::start(Arc::new(compiler())).unwrap();
        // Every thread is held up, so that the grammar is given up before anybody compiles it.
        let barrier = Arc::new(Barrier::new(THREADS + 1));
        for _ in 0..THREADS {
            let barrier = Arc::clone(&barrier);
            let held = move |_| {
                barrier.wait();
            };
            workers.submit(GrammarSource::json_object(), held).unwrap();
        }
        let source = GrammarSource::Regex("[ab]+".into());
        let compilation = workers.submit(source.clone(), |_| ()).unwrap();
        compilation.progress.0.store(RUNS, Ordering::Release);
        let error = compilation.overdue().unwrap();
        barrier.wait();
        assert_eq!(compiled(&workers, source), Err(error.to_string()));
        assert_eq!(compiled(&workers, GrammarSource::Regex("[cd]+".into())), Ok(()));
    }
}
