//! A measurement as pictures.
//!
//! Reading order: `sheet` (what all have), `distribution`, `cumulative`, `waterfall`, `bars`, `density` (one file a plot), `lane` (what they show), `axis`, `ink`
//! and `font`, then `canvas` (what plotters draws on), and what is made of it: `svg` and `raster`.

mod axis;
mod bars;
mod canvas;
mod cumulative;
mod density;
mod distribution;
mod font;
pub(crate) mod ink;
mod lane;
mod raster;
mod sheet;
mod svg;
mod waterfall;

use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};

use plotters::drawing::DrawingAreaErrorKind;

use crate::record::{Measured, Record};
use canvas::{Drawn, Shape};
use distribution::Time;
pub use ink::Theme;

/// What everything that is shown of a measurement in an emulated host is labelled with.
pub const EMULATED: &str = "EMULATED HOST – compare ratios, not milliseconds";

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub enum PlotError {
    /// plotters could not draw.
    #[error("Cannot draw")]
    Draw(#[from] DrawingAreaErrorKind<Infallible>),
    /// A PNG could not be made.
    #[error("Cannot make \"{0}.png\": {1}")]
    Render(&'static str, String),
    /// A file could not be written.
    #[error("Cannot write \"{}\": {}", .0.display(), .1)]
    Write(PathBuf, std::io::Error),
}

/// A picture: 960 pixels wide.
#[derive(Clone, Debug)]
pub struct Plot {
    /// Its file's name, without what comes after the dot.
    pub name: &'static str,
    /// Its title.
    pub title: String,
    /// How high it is, in pixels.
    height: f64,
    shapes: Vec<Shape>,
}

impl Plot {
    /// As an SVG file: light, or dark where its viewer prefers that.
    pub fn svg(&self) -> String {
        self.styled(&ink::following())
    }

    /// As an element of a page that has the rules of [`ink::page_rules`].
    pub(crate) fn element(&self) -> String {
        self.styled("")
    }

    fn styled(&self, style: &str) -> String {
        let (width, height) = (sheet::WIDTH, self.height.ceil());
        let title = svg::escaped(&self.title);
        let style = match style {
            "" => String::new(),
            style => format!("<style>{style}</style>"),
        };
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
             role=\"img\" aria-label=\"{title}\" data-plot=\"{}\" \
             font-family=\"Ubuntu, system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif\">\
             {style}<rect width=\"{width}\" height=\"{height}\" class=\"f0\"/>\n\
             <g fill=\"none\" stroke-linejoin=\"round\">{}</g></svg>\n",
            self.name,
            svg::elements(&self.shapes)
        )
    }
}

/// All pictures of a measurement.
///
/// # Errors
///
/// plotters may fail; it has no known reason to.
pub fn plots(record: &Record) -> Result<Vec<Plot>, PlotError> {
    Ok(drawn(record)?)
}

fn drawn(record: &Record) -> Drawn<Vec<Plot>> {
    match &record.measured {
        Measured::Startup(startup) => {
            let mut plots = vec![
                distribution::plot(record, startup, Time::Exit)?,
                cumulative::plot(record, startup)?,
                waterfall::plot(record, startup)?,
                bars::resources(record, startup)?,
            ];
            let mut runs = startup.rows.iter().flat_map(|row| &row.runs);
            if runs.any(|run| run.milestones.output.is_some()) {
                plots.insert(1, distribution::plot(record, startup, Time::Output)?);
            }
            Ok(plots)
        }
        Measured::Density(measured) => Ok(vec![
            density::memory(record, measured)?,
            density::latency(record, measured)?,
            bars::rates(record, measured)?,
        ]),
    }
}

/// Writes all pictures into a folder, which is made if it is not there, as `NAME.svg`, and returns their paths.
///
/// # Errors
///
/// A picture cannot be drawn, or a file cannot be written.
pub fn write_svgs(record: &Record, folder: &Path) -> Result<Vec<PathBuf>, PlotError> {
    write(record, folder, "svg", |plot| Ok(plot.svg().into_bytes()))
}

/// The same as `NAME.png`, twice as large: for a theme, with the font that is part of this program.
///
/// # Errors
///
/// A picture cannot be drawn or rendered, or a file cannot be written.
pub fn write_pngs(record: &Record, folder: &Path, theme: Theme) -> Result<Vec<PathBuf>, PlotError> {
    write(record, folder, "png", |plot| plot.png(theme))
}

fn write(
    record: &Record,
    folder: &Path,
    ending: &str,
    contents: impl Fn(&Plot) -> Result<Vec<u8>, PlotError>,
) -> Result<Vec<PathBuf>, PlotError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        |why| PlotError::Write(path, why)
    };
    fs::create_dir_all(folder).map_err(failed(folder))?;
    let mut paths = Vec::new();
    for plot in plots(record)? {
        let path = folder.join(format!("{}.{ending}", plot.name));
        fs::write(&path, contents(&plot)?).map_err(failed(&path))?;
        paths.push(path);
    }
    Ok(paths)
}
