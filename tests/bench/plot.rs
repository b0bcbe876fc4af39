//! The plot of cost against live containers, as SVG.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;

/// What one contender costs.
pub struct Line {
    pub name: String,
    /// Containers alive; median milliseconds of ADD and DEL beside them.
    pub points: Vec<(u16, f64, f64)>,
}

/// Draws ADD and DEL side by side, milliseconds on a logarithmic scale.
///
/// # Errors
/// When the file cannot be written.
pub fn draw(file: &Path, lines: &[Line]) -> Result<(), Box<dyn Error>> {
    let area = SVGBackend::new(file, (960, 420)).into_drawing_area();
    area.fill(&WHITE)?;
    let points = lines.iter().flat_map(|line| &line.points);
    let most = points
        .clone()
        .map(|(alive, ..)| *alive)
        .max()
        .unwrap_or(1)
        .max(1);
    let highest = points.fold(1.0, |high: f64, (_, add, del)| high.max(*add).max(*del));
    for (panel, title) in area.split_evenly((1, 2)).iter().zip(["ADD", "DEL"]) {
        let mut chart = ChartBuilder::on(panel)
            .caption(
                format!("{title}, bridge + tuning + portmap"),
                ("sans-serif", 18),
            )
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(48)
            .build_cartesian_2d(0..u32::from(most), (1.0..highest * 2.5).log_scale())?;
        chart
            .configure_mesh()
            .x_desc("containers alive")
            .y_desc("median, ms")
            .light_line_style(WHITE)
            .draw()?;
        for (index, Line { name, points }) in lines.iter().enumerate() {
            let colour = Palette99::pick(index).to_rgba();
            let line = points.iter().map(|(alive, add, del)| {
                (u32::from(*alive), if title == "ADD" { *add } else { *del })
            });
            chart
                .draw_series(LineSeries::new(line, colour.stroke_width(2)).point_size(3))?
                .label(name.as_str())
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2))
                });
        }
        if title == "ADD" {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperLeft)
                .background_style(WHITE.mix(0.8))
                .border_style(BLACK.mix(0.3))
                .draw()?;
        }
    }
    area.present()?;
    Ok(())
}
