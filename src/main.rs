//! The server: arguments → configuration → engine → HTTP. No logic beyond.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use pleach::check::Options;
use pleach::cli::{CheckArgs, Command, Config, ConfigError, LogFormat};
use pleach::observe::{exporter, spans};
use pleach::server::{AppState, load, run, watch};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The log may not be set up yet.
            if tracing::dispatcher::has_been_set() {
                tracing::error!("{error:#}");
            } else {
                eprintln!("error: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn start() -> anyhow::Result<()> {
    let (cli, shown) = match pleach::cli::parse(std::env::args_os().collect()) {
        // Help and version count as errors there; this prints them and ends in their own ways.
        Err(ConfigError::Arguments(error)) => error.exit(),
        parsed => parsed?,
    };
    let (args, check) = match cli.command {
        Some(Command::Check(check)) => (check.server.clone(), Some(check)),
        None => (cli.args, None),
    };
    if args.print_config {
        print!("{shown}");
        return Ok(());
    }
    let filter = EnvFilter::try_new(&args.log_level)
        .with_context(|| format!("--log-level {} is no filter", args.log_level))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    let traces = match &args.otlp_endpoint {
        Some(endpoint) if check.is_none() => Some(
            spans::export(endpoint)
                .with_context(|| format!("--otlp-endpoint {endpoint} cannot be used"))?,
        ),
        _ => None,
    };
    let config = Config::from(args);
    if let Some(check) = check {
        return report(&config, &check);
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(serve(config));
    // Streams that outlived the drain are cut here.
    runtime.shutdown_timeout(Duration::from_secs(1));
    if let Some(Err(error)) = traces.map(|traces| traces.shutdown()) {
        tracing::warn!(%error, "the last spans were not sent");
    }
    result
}

fn report(config: &Config, args: &CheckArgs) -> anyhow::Result<()> {
    let options = Options { prompts: args.prompts.clone(), limit: Some(args.limit) };
    let reports = pleach::check::check(config, &options)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&reports)?);
    } else {
        print!("{}", reports.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"));
    }
    Ok(())
}

async fn serve(config: Config) -> anyhow::Result<()> {
    // Every connection is a file descriptor, and the usual soft limit is 1,024.
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::warn!(%error, "the limit on open files stays as it is");
    }
    let (listener, address) = listen(config.address).await?;
    let watchers = match config.metrics_address {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    let metrics = exporter::install()?;
    let state = AppState::new(metrics).configure(&config)?;
    if config.access.api_keys.is_some() || config.access.tls_certificate.is_some() {
        reload_on_hangup(state.clone())?;
    }
    if let Some((listener, address)) = watchers {
        tracing::info!(%address, "answering /metrics, /health and /ready");
        tokio::spawn(watch(listener, state.clone()));
    }
    // The listener answers /health with 503 while the model loads.
    let mut server = std::pin::pin!(run(listener, state.clone(), shutdown()?));
    let loading = tokio::task::spawn_blocking(move || load(&config).map(|models| (config, models)));
    tokio::select! {
        ended = &mut server => return Ok(ended?),
        loaded = loading => {
            let (config, models) = loaded??;
            let name = models.main().name().to_owned();
            state.serve(models);
            announce(&config, &name, &address);
        }
    }
    Ok(server.await?)
}

async fn listen(address: SocketAddr) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("cannot listen on {address}"))?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

fn announce(config: &Config, name: &str, address: &SocketAddr) {
    if config.draft.is_none() && config.engine.num_speculative_tokens > 0 {
        eprintln!(
            "no draft: only what stands in the context is drafted. Build one with `pleach-tools build`."
        );
    }
    let scheme = if config.access.tls_certificate.is_some() { "https" } else { "http" };
    eprintln!(
        "{name} is ready at {scheme}://{address}. Try:\n\n  curl {scheme}://{address}/v1/chat/completions \
         -H 'content-type: application/json' \\\n    -d '{{\"messages\": [{{\"role\": \"user\", \
         \"content\": \"Why is the sky blue?\"}}], \"max_tokens\": 100}}'\n"
    );
}

/// Reads keys and certificate again at every SIGHUP.
fn reload_on_hangup(state: AppState) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            let state = state.clone();
            let _ = tokio::task::spawn_blocking(move || state.reload()).await;
        }
    });
    Ok(())
}

/// Resolves at the first SIGTERM or SIGINT; a second one ends the process at once.
fn shutdown() -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut next = async move || {
        tokio::select! {
            _ = terminate.recv() => SignalKind::terminate(),
            _ = interrupt.recv() => SignalKind::interrupt(),
        }
    };
    Ok(async move {
        next().await;
        tracing::info!("shutting down: finishing running requests");
        tokio::spawn(async move { std::process::exit(128 + next().await.as_raw_value()) });
    })
}
