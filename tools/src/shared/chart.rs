//! Pictures, as SVG.

use std::path::Path;

use anyhow::{Result, anyhow};
use pleach::checkpoint::write::atomically;
use plotters::prelude::*;

type Canvas<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// Draws into memory, then writes the file whole.
pub(crate) fn save(
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
pub(crate) fn stroke(colour: RGBColor) -> impl Fn((i32, i32)) -> PathElement<(i32, i32)> {
    move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour)
}

/// Draws the key: which line is which.
pub(crate) fn key<'a, C: CoordTranslate>(
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
