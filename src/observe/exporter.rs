//! The recorder behind `/metrics`, set up by the table of metrics.

use std::time::Duration;

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use crate::metrics::{ALL, Kind, Metric};

/// How often new observations are counted into their buckets; until then each takes memory.
const UPKEEP: Duration = Duration::from_secs(5);

/// Installs the process-wide recorder; its handle renders the metrics page.
///
/// # Errors
/// If a recorder is installed already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let mut builder = PrometheusBuilder::new();
    for metric in ALL {
        if let Kind::Histogram(bounds) = metric.kind {
            builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.into()), bounds)?;
        }
    }
    let handle = builder.install_recorder()?;
    ALL.iter().for_each(describe);
    let upkeep = handle.clone();
    let work = move || loop {
        std::thread::sleep(UPKEEP);
        upkeep.run_upkeep();
    };
    // Without this thread the page itself does the same at every scrape.
    let _ = std::thread::Builder::new().name("metrics".into()).spawn(work);
    Ok(handle)
}

/// Tells the recorder what a metric is, and begins the series that are there from the start.
fn describe(metric: &Metric) {
    let Metric { name, kind, help, .. } = *metric;
    match kind {
        Kind::Counter => describe_counter!(name, help),
        Kind::Gauge => describe_gauge!(name, help),
        Kind::Histogram(_) if name.ends_with("_seconds") => {
            describe_histogram!(name, Unit::Seconds, help);
        }
        Kind::Histogram(_) => describe_histogram!(name, help),
    }
    if !metric.from_start {
        return;
    }
    match metric.labels {
        [] => begin(metric, &[]),
        labels => {
            for label in labels {
                label.values.iter().for_each(|value| begin(metric, &[(label.name, *value)]));
            }
        }
    }
}

fn begin(metric: &Metric, labels: &[(&'static str, &'static str)]) {
    match metric.kind {
        Kind::Counter => counter!(metric.name, labels).increment(0),
        Kind::Gauge => gauge!(metric.name, labels).set(0.0),
        Kind::Histogram(_) => histogram!(metric.name, labels).record_many(0.0, 0),
    }
}
