//! How a training run went, for people: a table and a picture.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use pleach::checkpoint::write::atomically;
use pleach_train::Point;
use plotters::prelude::*;
use serde::{Deserialize, Serialize};

use crate::shared::{chart, lines};

/// One line of `losses.csv`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Row {
    #[serde(flatten)]
    pub(crate) point: Point,
    pub(crate) validation_loss: Option<f64>,
    pub(crate) validation_agreement: Option<f64>,
}

/// The run so far, for people.
pub(super) struct History {
    folder: PathBuf,
    pub(super) points: Vec<Row>,
}

impl History {
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("history.jsonl");
        let points = if path.exists() { lines::read(&path)? } else { Vec::new() };
        Ok(Self { folder: folder.into(), points })
    }

    /// Forgets what came after the checkpoint.
    pub(super) fn keep(&mut self, steps: u32) {
        self.points.retain(|row| row.point.step <= steps);
    }

    pub(super) fn push(&mut self, point: Point, validation: Option<(f64, f64)>) {
        let (validation_loss, validation_agreement) = validation.unzip();
        self.points.push(Row { point, validation_loss, validation_agreement });
    }

    /// Validations so far.
    pub(super) fn validations(&self) -> usize {
        self.points.iter().filter(|row| row.validation_loss.is_some()).count()
    }

    /// The last validation.
    pub(super) fn last_validation(&self) -> (Option<&Row>, String) {
        let row = self.points.iter().rev().find(|row| row.validation_loss.is_some());
        let text = row.and_then(|row| {
            let (loss, agreement) = (row.validation_loss?, row.validation_agreement?);
            Some(format!("{loss:.3} / {:.1} %", agreement * 100.0))
        });
        (row, text.unwrap_or_else(|| "none yet".into()))
    }

    pub(super) fn save(&self) -> Result<()> {
        lines::write(&self.folder.join("history.jsonl"), &self.points)?;
        atomically(&self.folder.join("losses.csv"), |writer| {
            writeln!(
                writer,
                "step,seconds,tokens,epoch,learning_rate,loss,agreement,gradient_norm,validation_loss,validation_agreement"
            )?;
            for Row { point: p, validation_loss, validation_agreement } in &self.points {
                let optional = |v: &Option<f64>| v.map_or(String::new(), |v| v.to_string());
                writeln!(
                    writer,
                    "{},{:.2},{},{},{},{},{},{},{},{}",
                    p.step,
                    p.seconds,
                    p.tokens,
                    p.epoch,
                    p.learning_rate,
                    p.loss,
                    p.agreement,
                    p.gradient_norm,
                    optional(validation_loss),
                    optional(validation_agreement),
                )?;
            }
            Ok(())
        })?;
        losses(&self.folder.join("loss.svg"), &self.points)
    }
}

/// Training and validation loss over time.
fn losses(path: &Path, rows: &[Row]) -> Result<()> {
    let minutes = |row: &Row| row.point.seconds / 60.0;
    let end = rows.last().map_or(1.0, minutes).max(0.01);
    let values = || rows.iter().flat_map(|row| [Some(row.point.loss), row.validation_loss]);
    let seen = values().flatten().fold((f64::INFINITY, 0f64), |(l, h), v| (l.min(v), h.max(v)));
    let (low, high) = if seen.0.is_finite() { seen } else { (0.0, 1.0) };
    chart::save(path, (900, 520), |canvas| {
        let mut chart = ChartBuilder::on(canvas)
            .caption("Loss", ("sans-serif", 22))
            .margin(15)
            .x_label_area_size(45)
            .y_label_area_size(55)
            .build_cartesian_2d(0.0..end, low * 0.95..high * 1.02 + 1e-9)?;
        chart
            .configure_mesh()
            .x_desc("minutes of training")
            .y_desc("cross-entropy to the target, nats per token")
            .label_style(("sans-serif", 15))
            .draw()?;
        let training = rows.iter().map(|row| (minutes(row), row.point.loss));
        chart
            .draw_series(LineSeries::new(training, BLUE.mix(0.6)))?
            .label("training")
            .legend(chart::stroke(BLUE));
        let validation: Vec<(f64, f64)> =
            rows.iter().filter_map(|row| Some((minutes(row), row.validation_loss?))).collect();
        chart
            .draw_series(LineSeries::new(validation, RED.stroke_width(2)).point_size(3))?
            .label("validation")
            .legend(chart::stroke(RED));
        chart::key(&mut chart)
    })
}
