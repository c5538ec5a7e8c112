//! The recorder behind `/metrics`, set up by the table of metrics.

use std::time::Duration;

use metrics::{
    Label, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
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
    ALL.iter().filter(|it| !it.is_of_a_model()).for_each(|it| begin_series(it, &[]));
    let upkeep = handle.clone();
    let work = move || loop {
        std::thread::sleep(UPKEEP);
        upkeep.run_upkeep();
    };
    // Without this thread the page itself does the same at every scrape.
    let _ = std::thread::Builder::new().name("metrics".into()).spawn(work);
    Ok(handle)
}

/// Tells the recorder what a metric is.
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
}

/// Begins the series of a model that is served.
pub(crate) fn begin(model: &str) {
    let label = [Label::new("model", model.to_owned())];
    ALL.iter().filter(|it| it.is_of_a_model()).for_each(|it| begin_series(it, &label));
}

/// Begins the series that a metric has from the start, of the model that is told, where one is.
fn begin_series(metric: &Metric, model: &[Label]) {
    let begin = |more: &[Label]| {
        let labels = [model, more].concat();
        match metric.kind {
            Kind::Counter => counter!(metric.name, labels).increment(0),
            Kind::Gauge => gauge!(metric.name, labels).set(0.0),
            Kind::Histogram(_) => histogram!(metric.name, labels).record_many(0.0, 0),
        }
    };
    match metric.labels.get(model.len()) {
        _ if !metric.from_start => {}
        None => begin(&[]),
        Some(own) => own.values.iter().for_each(|value| begin(&[Label::new(own.name, *value)])),
    }
}
