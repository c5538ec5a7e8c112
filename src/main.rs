//! The server: arguments → configuration → engine → HTTP. No logic beyond.

use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use pleach::config::{Args, Config, LogFormat};
use pleach::server::{AppState, load, run};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let filter = EnvFilter::try_new(&args.log_level)
        .with_context(|| format!("--log-level {} is no filter", args.log_level))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    let config = Config::from(args);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(serve(config));
    // Streams that outlived the drain are cut here.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let listener = TcpListener::bind(config.address)
        .await
        .with_context(|| format!("cannot listen on {}", config.address))?;
    let address = listener.local_addr()?;
    let metrics = pleach::metrics::install()?;
    let state = AppState::new(config.max_queue + config.engine.max_num_seqs, metrics);
    let loading = state.clone();
    // The listener answers /health with 503 meanwhile.
    std::thread::spawn(move || match load(&config) {
        Ok((serving, engine)) => {
            announce(&config, &serving.name, &address);
            loading.serve(serving);
            // Ends by itself only on a bug; requests in flight get their error before we go.
            let _ = engine.join();
            tracing::error!("the engine has stopped");
            std::thread::sleep(Duration::from_millis(500));
            std::process::exit(1);
        }
        Err(error) => {
            tracing::error!("{error}");
            std::process::exit(1);
        }
    });
    run(listener, state, shutdown()?).await?;
    Ok(())
}

fn announce(config: &Config, name: &str, address: &std::net::SocketAddr) {
    if config.draft.is_none() && config.engine.num_speculative_tokens > 0 {
        eprintln!("no draft: serving without speculation. Build one with `pleach-tools build`.");
    }
    eprintln!(
        "{name} is ready at http://{address}. Try:\n\n  curl http://{address}/v1/chat/completions \
         -H 'content-type: application/json' \\\n    -d '{{\"messages\": [{{\"role\": \"user\", \
         \"content\": \"Why is the sky blue?\"}}], \"max_tokens\": 100}}'\n"
    );
}

/// Resolves at the first SIGTERM or SIGINT; a second one ends the process at once.
fn shutdown() -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        next().await;
        tracing::info!("shutting down: finishing running requests");
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            std::process::exit(130);
        });
    })
}
