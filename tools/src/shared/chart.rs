//! Pictures, as SVG.

use std::path::Path;

use anyhow::{Result, anyhow};
use pleach::checkpoint::write::atomically;
use plotters::prelude::*;

use crate::commands::importance::Importance;
use crate::commands::search::Tried;
use crate::commands::train::Row;

type Canvas<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// Draws into memory, then writes the file whole.
fn save(
    path: &Path,
    size: (u32, u32),
    draw: impl FnOnce(&Canvas<'_>) -> Result<(), Box<dyn std::error::Error>>,
) -> Result<()> {
    let mut svg = String::new();
    {
        let canvas = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        canvas.fill(&WHITE)?;
        draw(&canvas).map_err(|e| anyhow!("{}: {e}", path.display()))?;
        canvas.present()?;
    }
    Ok(atomically(path, |writer| std::io::Write::write_all(writer, svg.as_bytes()))?)
}

/// The stroke that stands for a line in the key.
fn stroke(colour: RGBColor) -> impl Fn((i32, i32)) -> PathElement<(i32, i32)> {
    move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour)
}

/// Draws the key: which line is which.
fn key<'a, C: CoordTranslate>(
    chart: &mut ChartContext<'a, SVGBackend<'a>, C>,
) -> Result<(), Box<dyn std::error::Error>> {
    chart
        .configure_series_labels()
        .background_style(WHITE)
        .border_style(BLACK)
        .label_font(("sans-serif", 15))
        .draw()?;
    Ok(())
}

/// Angular distance of every run of blocks: small is dark, and the best start of every length is
/// framed.
pub(crate) fn heat_map(path: &Path, importance: &Importance) -> Result<()> {
    let n = importance.num_blocks;
    let longest = n - 1;
    let all = importance.angular_distance.iter().take(longest).flatten().copied();
    let (low, high) = all.fold((f64::INFINITY, 0f64), |(low, high), v| (low.min(v), high.max(v)));
    save(path, (900, 760), |canvas| {
        let mut chart = ChartBuilder::on(canvas)
            .caption("Angular distance between input and output of n blocks", ("sans-serif", 22))
            .margin(15)
            .x_label_area_size(45)
            .y_label_area_size(55)
            .build_cartesian_2d(0..n, 1..longest + 1)?;
        chart
            .configure_mesh()
            .disable_mesh()
            .x_desc("first block of the run (0 is the first decoder block)")
            .y_desc("blocks in the run, n")
            .label_style(("sans-serif", 15))
            .draw()?;
        for run in 1..=longest {
            for (start, distance) in importance.angular_distance[run - 1].iter().enumerate() {
                let share = (distance - low) / (high - low).max(1e-12);
                let colour = ViridisRGB.get_color(share);
                let cell = [(start, run), (start + 1, run + 1)];
                chart.draw_series([Rectangle::new(cell, colour.filled())])?;
            }
            if let Some((start, _)) = importance.best_run(run) {
                let cell = [(start, run), (start + 1, run + 1)];
                chart.draw_series([Rectangle::new(cell, RED.stroke_width(2))])?;
            }
        }
        let legend = format!("dark {low:.3}, light {high:.3}; red: the best start for each n");
        let style = ("sans-serif", 16).into_font().color(&BLACK);
        canvas.draw_text(&legend, &style, (480, 60))?;
        Ok(())
    })
}

/// Training and validation loss over time.
pub(crate) fn losses(path: &Path, rows: &[Row]) -> Result<()> {
    let minutes = |row: &Row| row.point.seconds / 60.0;
    let end = rows.last().map_or(1.0, minutes).max(0.01);
    let values = || rows.iter().flat_map(|row| [Some(row.point.loss), row.validation_loss]);
    let seen = values().flatten().fold((f64::INFINITY, 0f64), |(l, h), v| (l.min(v), h.max(v)));
    let (low, high) = if seen.0.is_finite() { seen } else { (0.0, 1.0) };
    save(path, (900, 520), |canvas| {
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
            .legend(stroke(BLUE));
        let validation: Vec<(f64, f64)> =
            rows.iter().filter_map(|row| Some((minutes(row), row.validation_loss?))).collect();
        chart
            .draw_series(LineSeries::new(validation, RED.stroke_width(2)).point_size(3))?
            .label("validation")
            .legend(stroke(RED));
        key(&mut chart)
    })
}

/// Predicted speed-up, and the acceptance and the cost it comes from, by blocks kept.
pub(crate) fn search(path: &Path, tried: &[Tried]) -> Result<()> {
    let (Some(first), Some(last)) = (tried.first(), tried.last()) else { return Ok(()) };
    let blocks = first.keep_blocks as f64 - 0.5..last.keep_blocks as f64 + 0.5;
    let highest = tried.iter().map(|one| one.predicted_speedup).fold(1.0, f64::max);
    let dearest = tried.iter().map(|one| one.draft_step_cost).fold(1.0, f64::max);
    save(path, (900, 520), |canvas| {
        let mut chart = ChartBuilder::on(canvas)
            .caption("Predicted speed-up by blocks kept", ("sans-serif", 22))
            .margin(15)
            .x_label_area_size(45)
            .y_label_area_size(55)
            .right_y_label_area_size(55)
            .build_cartesian_2d(blocks.clone(), 0.0..highest * 1.1)?
            .set_secondary_coord(blocks, 0.0..dearest);
        chart
            .configure_mesh()
            .x_desc("decoder blocks kept")
            .y_desc("predicted speed-up")
            .x_labels(tried.len() + 1)
            .x_label_formatter(&|x| format!("{x:.0}"))
            .label_style(("sans-serif", 15))
            .draw()?;
        let axis = "alpha; draft step in target steps";
        chart.configure_secondary_axes().y_desc(axis).label_style(("sans-serif", 15)).draw()?;
        let points = |value: fn(&Tried) -> f64| {
            tried.iter().map(move |one| (one.keep_blocks as f64, value(one)))
        };
        let speedup = points(|one| one.predicted_speedup);
        chart
            .draw_series(LineSeries::new(speedup, RED.stroke_width(2)).point_size(4))?
            .label("predicted speed-up")
            .legend(stroke(RED));
        chart
            .draw_secondary_series(LineSeries::new(points(|one| one.alpha), BLUE).point_size(3))?
            .label("alpha (right)")
            .legend(stroke(BLUE));
        let cost = points(|one| one.draft_step_cost);
        chart
            .draw_secondary_series(LineSeries::new(cost, BLACK).point_size(3))?
            .label("draft step (right)")
            .legend(stroke(BLACK));
        key(&mut chart)
    })
}
