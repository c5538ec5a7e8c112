use super::super::EngineConfig;
use super::super::test_model::{Fault, TestModel};
use super::*;

fn engine(on_one: Fault) -> Engine {
    let config = EngineConfig { num_blocks: Some(32), ..Default::default() };
    let mut target = TestModel::new(32);
    target.on_one = on_one;
    Engine::with_models(Box::new(target), None, config).unwrap()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

fn long() -> Request {
    Request { ignore_eos: true, ..Request::greedy(vec![3, 4], 200) }
}

#[test]
fn events_arrive_in_order_and_the_thread_ends_with_its_handles() {
    let (handle, thread) = EngineHandle::start(engine(Fault::None), Turns::default());
    block_on(async {
        let mut readers = Vec::new();
        for _ in 0..3 {
            readers.push(handle.submit(long()).await.unwrap());
        }
        for mut events in readers {
            let mut tokens = 0;
            loop {
                match events.recv().await.unwrap() {
                    Event::Tokens(new) => tokens += new.len(),
                    Event::Prompt(_) | Event::Embedding(_) => panic!("not asked for"),
                    Event::Finished { reason, stats } => {
                        assert_eq!(reason, FinishReason::Length);
                        assert_eq!((stats.rounds.generated_tokens, tokens), (200, 200));
                        break;
                    }
                }
            }
            assert_eq!(events.recv().await, None);
        }
    });
    assert!(handle.is_alive());
    drop(handle);
    thread.join().unwrap();
}

#[test]
fn invalid_requests_come_back_at_once() {
    let (handle, _thread) = EngineHandle::start(engine(Fault::None), Turns::default());
    let error = block_on(handle.submit(Request::greedy(vec![], 1))).unwrap_err();
    assert!(matches!(error, SubmitError::Invalid(RequestError { field: "prompt", .. })));
}

#[test]
fn a_dropped_receiver_cancels() {
    let mut engine = engine(Fault::None);
    let (sender, submissions) = commands::channel();
    let mut readers = Readers::new();
    let submit = || {
        let (events, receiver) = mpsc::channel(201);
        sender
            .send(Command::Submit(Box::new(Submission {
                request: long(),
                events,
                at: Instant::now(),
            })))
            .unwrap();
        receiver
    };
    let (kept, dropped) = (submit(), submit());
    let (progress, turns) = (Progress::new(), Turns::default());
    assert!(turn(&mut engine, &submissions, &turns, &mut readers, &progress));
    let both = engine.cache_blocks().0;
    drop(dropped);
    turn(&mut engine, &submissions, &turns, &mut readers, &progress);
    assert_eq!((engine.cache_blocks().0 * 2, readers.len()), (both, 1));
    drop(kept);
    turn(&mut engine, &submissions, &turns, &mut readers, &progress);
    assert_eq!((engine.cache_blocks().0, engine.has_work()), (0, false));
}

#[test]
fn a_crash_reaches_every_reader() {
    let (handle, thread) = EngineHandle::start(engine(Fault::Panic), Turns::default());
    block_on(async {
        let mut healthy = handle.submit(long()).await.unwrap();
        let _ = handle.submit(Request::greedy(vec![1], 5)).await;
        let last = loop {
            match healthy.recv().await {
                Some(Event::Tokens(_)) => {}
                other => break other,
            }
        };
        let Some(Event::Finished { reason, .. }) = last else { panic!("no last event") };
        // The healthy sequence may have met token 1 by itself, which ends in the same way.
        assert!(matches!(reason, FinishReason::Error(_)), "{reason:?}");
        thread.join().unwrap();
        assert!(!handle.is_alive());
        assert_eq!(handle.submit(long()).await.unwrap_err(), SubmitError::Stopped);
    });
}

#[test]
fn a_stop_ends_every_sequence_with_an_error() {
    let (handle, thread) = EngineHandle::start(engine(Fault::None), Turns::default());
    block_on(async {
        let mut readers = Vec::new();
        for _ in 0..50 {
            readers.push(handle.submit(long()).await.unwrap());
        }
        handle.stop();
        handle.stopped().await;
        assert!(!handle.is_alive());
        let mut cut = 0;
        for mut events in readers {
            let mut last = None;
            while let Some(event) = events.recv().await {
                last = Some(event);
            }
            match last {
                Some(Event::Finished { reason: FinishReason::Error(reason), .. }) => {
                    assert_eq!(reason, "the server is shutting down");
                    cut += 1;
                }
                Some(Event::Finished { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(cut > 0);
        assert_eq!(handle.submit(long()).await.unwrap_err(), SubmitError::Stopped);
    });
    thread.join().unwrap();
}
