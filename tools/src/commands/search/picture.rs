//! The drafts that were tried, as a picture.

use std::path::Path;

use anyhow::Result;
use plotters::prelude::*;

use super::tried::Tried;
use crate::shared::chart;

/// A line of the picture: its name, its values and its colour.
type Line = (&'static str, fn(&Tried) -> f64, RGBColor);

/// Tokens per second over those without speculation, and the acceptance and the cost that they come from, by draft.
pub(super) fn draw(path: &Path, tried: &[Tried]) -> Result<()> {
    let drafts = -0.5..tried.len() as f64 - 0.5;
    let highest =
        tried.iter().map(|one| one.both.max(one.ngram).max(one.draft)).fold(1.0, f64::max);
    let dearest = tried.iter().map(|one| one.draft_step_cost).fold(1.0, f64::max);
    let label = |at: &f64| {
        let one = tried.get(at.round().max(0.0) as usize).filter(|_| (at - at.round()).abs() < 0.1);
        one.map_or_else(String::new, |one| one.shape.numbers())
    };
    let attached = tried.iter().any(|one| one.shape.states.is_some());
    chart::save(path, (900, 540), |canvas| {
        let mut chart = ChartBuilder::on(canvas)
            .caption("Measured speed-up by draft", ("sans-serif", 22))
            .margin(15)
            .x_label_area_size(65)
            .y_label_area_size(55)
            .right_y_label_area_size(55)
            .build_cartesian_2d(drafts.clone(), 0.0..highest * 1.1)?
            .set_secondary_coord(drafts, 0.0..dearest);
        chart
            .configure_mesh()
            .x_desc(if attached {
                "blocks / neurons / states / rows of the head"
            } else {
                "blocks / neurons / rows of the head"
            })
            .y_desc("tokens per second over those without speculation")
            .x_labels(tried.len() + 1)
            .x_label_formatter(&label)
            .label_style(("sans-serif", 13))
            .draw()?;
        let axis = "alpha; draft step in target steps";
        chart.configure_secondary_axes().y_desc(axis).label_style(("sans-serif", 13)).draw()?;
        let points = |value: fn(&Tried) -> f64| {
            tried.iter().enumerate().map(move |(at, one)| (at as f64, value(one)))
        };
        let ways: [Line; 3] = [
            ("n-grams and draft", |one| one.both, RED),
            ("draft alone", |one| one.draft, MAGENTA),
            ("n-grams alone", |one| one.ngram, GREEN),
        ];
        for (name, value, colour) in ways {
            let line = LineSeries::new(points(value), colour.stroke_width(2)).point_size(4);
            chart.draw_series(line)?.label(name).legend(chart::stroke(colour));
        }
        let sides: [Line; 2] = [
            ("alpha (right)", |one| one.alpha, BLUE),
            ("draft step (right)", |one| one.draft_step_cost, BLACK),
        ];
        for (name, value, colour) in sides {
            let line = LineSeries::new(points(value), colour).point_size(3);
            chart.draw_secondary_series(line)?.label(name).legend(chart::stroke(colour));
        }
        chart::key(&mut chart)
    })
}
