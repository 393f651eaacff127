//! What all plots have: title, label of an emulated host, legend, axes, names of lanes, and where it was measured.

use plotters::coord::Shift;
use plotters::coord::cartesian::{Cartesian2d, MeshLine};
use plotters::coord::types::RangedCoordf64;
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{Circle, Cross, PathElement, Polygon, Rectangle, Text};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontDesc, FontFamily, FontStyle, ShapeStyle, TextStyle};

use super::axis::{Axis, short};
use super::canvas::{Canvas, Dashes, Drawn, length, units};
use super::font;
use super::ink::Ink;
use super::{EMULATED, Plot};
use crate::record::Record;

/// How wide every plot is, in pixels.
pub(super) const WIDTH: f64 = 960.0;
/// What is left free at each side.
pub(super) const MARGIN: f64 = 20.0;
/// Plotters has to be told a height before it is known.
const TALL: f64 = 100_000.0;
/// Room that the names of lanes have at most.
const NAMES: f64 = 210.0;
/// Size of most text.
pub(super) const SIZE: f64 = 12.0;
/// Room below a frame for its values and what they are.
pub(super) const BELOW: f64 = 44.0;

/// How text looks.
#[derive(Clone, Copy)]
pub(super) struct Type {
    size: f64,
    ink: Ink,
    across: HPos,
    bold: bool,
    upwards: bool,
}

impl Type {
    /// To the right of where it is put, and half above it.
    pub(super) const fn new(size: f64, ink: Ink) -> Self {
        Self {
            size,
            ink,
            across: HPos::Left,
            bold: false,
            upwards: false,
        }
    }

    /// To the left of it.
    pub(super) const fn left(self) -> Self {
        let across = HPos::Right;
        Self { across, ..self }
    }

    /// Half to each side of it.
    pub(super) const fn centred(self) -> Self {
        let across = HPos::Center;
        Self { across, ..self }
    }

    pub(super) const fn bold(self) -> Self {
        Self { bold: true, ..self }
    }

    /// Read from below.
    const fn upwards(self) -> Self {
        let upwards = true;
        Self { upwards, ..self }
    }

    fn style(self) -> TextStyle<'static> {
        let style = if self.bold {
            FontStyle::Bold
        } else {
            FontStyle::Normal
        };
        let size = f64::from(units(self.size));
        let mut font = FontDesc::new(FontFamily::SansSerif, size, style);
        if self.upwards {
            font = font.transform(plotters::style::FontTransform::Rotate270);
        }
        TextStyle {
            font,
            color: plotters::style::Color::to_backend_color(&self.ink),
            pos: Pos::new(self.across, VPos::Center),
        }
    }
}

/// A line of an ink, so many pixels wide.
pub(super) fn line(ink: Ink, width: f64) -> ShapeStyle {
    plotters::style::Color::stroke_width(&ink, length(width))
}

/// An area of an ink, so opaque.
pub(super) fn fill(ink: Ink, opacity: f64) -> ShapeStyle {
    plotters::style::Color::filled(&plotters::style::Color::mix(&ink, opacity))
}

/// What a legend explains.
#[derive(Clone, Copy)]
pub(super) enum Mark {
    Box(Ink),
    Area(Ink),
    Tick(Ink),
    Cross(Ink),
    Diamond(Ink),
    Dagger(Ink),
    /// Thick, unbroken
    Line(Ink),
    /// Thin, of dashes
    Thin(Ink),
}

/// Dashes of thin lines.
pub(super) const THIN: Dashes = &[4.0, 3.0];

/// A plot that is being drawn, from top to bottom.
pub(super) struct Sheet {
    pub(super) canvas: Canvas,
    area: DrawingArea<Canvas, Shift>,
    /// How far down it is drawn so far, in pixels.
    pub(super) top: f64,
    name: &'static str,
    title: String,
}

/// Lanes, one below the other, with a name each.
pub(super) struct Lanes {
    /// Where the names end and the rest begins.
    pub(super) left: f64,
    /// Where the first one begins.
    pub(super) top: f64,
    /// How high each is.
    pub(super) height: f64,
    /// How many there are.
    count: usize,
}

impl Lanes {
    /// The middle of one.
    pub(super) fn middle(&self, number: usize) -> f64 {
        self.top + (number as f64 + 0.5) * self.height
    }

    /// Where the last one ends.
    pub(super) fn bottom(&self) -> f64 {
        self.top + self.count as f64 * self.height
    }
}

impl Sheet {
    /// One with a title and what else there is to say of all of it. `name` is that of its file.
    pub(super) fn new(
        record: &Record,
        name: &'static str,
        title: &str,
        about: &str,
    ) -> Drawn<Self> {
        let canvas = Canvas::new(WIDTH, TALL);
        let mut sheet = Self {
            area: canvas.clone().into_drawing_area(),
            canvas,
            top: 32.0,
            name,
            title: title.to_owned(),
        };
        let room = WIDTH - 2.0 * MARGIN;
        for text in font::lines(title, 18.0, room) {
            sheet.text(
                &text,
                (MARGIN, sheet.top),
                Type::new(18.0, Ink::Text).bold(),
            )?;
            sheet.top += 23.0;
        }
        for text in font::lines(about, SIZE, room) {
            sheet.text(&text, (MARGIN, sheet.top), Type::new(SIZE, Ink::Muted))?;
            sheet.top += 17.0;
        }
        if record.host.emulated.is_some() {
            sheet.top += 8.0;
            let corners = [(MARGIN - 8.0, -12.0), (WIDTH - MARGIN + 8.0, 12.0)];
            let [from, to] = corners.map(|(x, y)| (x, sheet.top + y));
            sheet.rectangle(from, to, fill(Ink::Notice, 1.0))?;
            let look = Type::new(12.5, Ink::OnNotice).bold();
            sheet.text(EMULATED, (MARGIN, sheet.top), look)?;
            sheet.top += 24.0;
        }
        sheet.top += 4.0;
        Ok(sheet)
    }

    pub(super) fn text(&self, text: &str, (x, y): (f64, f64), look: Type) -> Drawn {
        let at = (units(x), units(y));
        self.area
            .draw(&Text::new(text.to_owned(), at, look.style()))
    }

    pub(super) fn rectangle(
        &self,
        (left, top): (f64, f64),
        (right, bottom): (f64, f64),
        style: ShapeStyle,
    ) -> Drawn {
        let corners = [(units(left), units(top)), (units(right), units(bottom))];
        self.area.draw(&Rectangle::new(corners, style))
    }

    pub(super) fn path(&self, points: &[(f64, f64)], style: ShapeStyle) -> Drawn {
        let points: Vec<_> = points.iter().map(|&(x, y)| (units(x), units(y))).collect();
        self.area.draw(&PathElement::new(points, style))
    }

    pub(super) fn diamond(&self, (x, y): (f64, f64), ink: Ink) -> Drawn {
        let corners = [(0.0, -4.0), (4.0, 0.0), (0.0, 4.0), (-4.0, 0.0)];
        let corners = corners.map(|(dx, dy)| (units(x + dx), units(y + dy)));
        self.area.draw(&Polygon::new(corners, fill(ink, 1.0)))
    }

    /// Two strokes, for what failed.
    pub(super) fn cross(&self, (x, y): (f64, f64), ink: Ink) -> Drawn {
        let at = (units(x), units(y));
        self.area.draw(&Cross::new(at, length(2.8), line(ink, 1.2)))
    }

    fn mark(&self, mark: Mark, (x, y): (f64, f64)) -> Drawn {
        let middle = x + 9.0;
        match mark {
            Mark::Box(ink) => {
                self.rectangle((x, y - 5.0), (x + 18.0, y + 5.0), fill(ink, 0.16))?;
                self.rectangle((x, y - 5.0), (x + 18.0, y + 5.0), line(ink, 1.0))
            }
            Mark::Area(ink) => {
                self.rectangle((x + 3.0, y - 6.0), (x + 15.0, y + 6.0), fill(ink, 1.0))
            }
            Mark::Tick(ink) => self.path(&[(middle, y - 7.0), (middle, y + 7.0)], line(ink, 2.4)),
            Mark::Cross(ink) => self.cross((middle, y), ink),
            Mark::Dagger(ink) => self.text("†", (middle, y), Type::new(SIZE, ink).centred()),
            Mark::Diamond(ink) => self.diamond((middle, y), ink),
            Mark::Line(ink) => self.path(&[(x, y), (x + 18.0, y)], line(ink, 2.2)),
            Mark::Thin(ink) => {
                self.canvas.dashed(THIN);
                self.path(&[(x, y), (x + 18.0, y)], line(ink, 1.1))?;
                self.canvas.close();
                Ok(())
            }
        }
    }

    /// What marks mean, in as many lines as it needs.
    pub(super) fn legend(&mut self, entries: &[(Mark, &str)]) -> Drawn {
        let (mut x, mut y) = (MARGIN, self.top + 8.0);
        for &(mark, text) in entries {
            let end = x + 24.0 + font::width(text, SIZE);
            if end > WIDTH - MARGIN && x > MARGIN {
                (x, y) = (MARGIN, y + 20.0);
            }
            self.mark(mark, (x, y))?;
            self.text(text, (x + 24.0, y), Type::new(SIZE, Ink::Text))?;
            x += 24.0 + font::width(text, SIZE) + 14.0;
        }
        self.top = y + 18.0;
        Ok(())
    }

    /// Lanes of these names, so high.
    pub(super) fn lanes<'a>(
        &mut self,
        names: impl Iterator<Item = &'a str> + Clone,
        height: f64,
    ) -> Drawn<Lanes> {
        let widths = names.clone().map(|name| font::width(name, 13.0));
        let lanes = Lanes {
            left: MARGIN + widths.fold(40.0, f64::max).min(NAMES) + 12.0,
            top: self.top,
            height,
            count: names.clone().count(),
        };
        for (number, name) in names.enumerate() {
            let top = lanes.top + number as f64 * height;
            if number % 2 == 0 {
                let corner = (WIDTH - MARGIN + 8.0, top + height);
                self.rectangle((MARGIN - 8.0, top), corner, fill(Ink::Lane, 1.0))?;
            }
            let at = (lanes.left - 12.0, lanes.middle(number));
            let look = Type::new(13.0, Ink::Text).left();
            self.text(&font::shortened(name, 13.0, NAMES), at, look)?;
        }
        self.top = lanes.bottom();
        Ok(lanes)
    }

    /// A frame whose upright axis counts pixels from the top of the sheet.
    pub(super) fn lane_frame(
        &self,
        axis: Axis,
        (left, right): (f64, f64),
        lanes: &Lanes,
    ) -> Frame<'_, RangedCoordf64> {
        let (top, bottom) = (lanes.top, lanes.bottom());
        let spec = Cartesian2d::new(
            axis,
            RangedCoordf64::from(top..bottom),
            (units(left)..units(right), units(top)..units(bottom)),
        );
        Frame {
            sheet: self,
            area: self.area.apply_coord_spec(spec),
            left,
            right,
            bottom,
        }
    }

    /// A frame with values along both sides.
    pub(super) fn frame(
        &self,
        (x, y): (Axis, Axis),
        (left, right): (f64, f64),
        (top, bottom): (f64, f64),
    ) -> Frame<'_, Axis> {
        // The upright axis grows upwards.
        let pixels = (units(left)..units(right), units(bottom)..units(top));
        Frame {
            sheet: self,
            area: self.area.apply_coord_spec(Cartesian2d::new(x, y, pixels)),
            left,
            right,
            bottom,
        }
    }

    /// The plot, with where and when it was measured below it.
    pub(super) fn finish(self, record: &Record) -> Drawn<Plot> {
        let host = &record.host;
        let mut facts = format!(
            "mote {} · {} · {} CPU{} · {} · {}",
            record.mote,
            host.cpu,
            host.cpus,
            if host.cpus == 1 { "" } else { "s" },
            host.kernel,
            record.began
        );
        if record.interrupted {
            facts.insert_str(0, "interrupted: fewer runs than asked for · ");
        }
        let facts = font::shortened(&facts, 10.5, WIDTH - 2.0 * MARGIN);
        let look = Type::new(10.5, Ink::Muted);
        self.text(&facts, (MARGIN, self.top + 14.0), look)?;
        Ok(Plot {
            name: self.name,
            title: self.title,
            height: self.top + 30.0,
            shapes: self.canvas.shapes(),
        })
    }
}

/// Part of a sheet with axes.
pub(super) struct Frame<'a, Y: plotters::coord::ranged1d::Ranged<ValueType = f64>> {
    sheet: &'a Sheet,
    area: DrawingArea<Canvas, Cartesian2d<Axis, Y>>,
    left: f64,
    right: f64,
    bottom: f64,
}

impl<Y: plotters::coord::ranged1d::Ranged<ValueType = f64>> Frame<'_, Y> {
    /// Lines at values of the axis below, with the values and what they are.
    pub(super) fn below(&self, what: &str) -> Drawn {
        let mut ticks = Vec::new();
        let most = ((self.right - self.left) / 80.0).max(2.0) as usize;
        self.area.draw_mesh(
            |_, tick| {
                if let MeshLine::XMesh((x, _), (_, _), value) = tick {
                    ticks.push((f64::from(x) / f64::from(units(1.0)), *value));
                }
                Ok(())
            },
            0_usize,
            most,
        )?;
        let (_, top) = self.pixels();
        let mut free = f64::NEG_INFINITY;
        for (x, value) in ticks {
            let line_style = line(Ink::Grid, 1.0);
            self.sheet.path(&[(x, top), (x, self.bottom)], line_style)?;
            let text = short(value);
            let half = font::width(&text, 11.0) / 2.0;
            if x - half > free {
                let look = Type::new(11.0, Ink::Muted).centred();
                self.sheet.text(&text, (x, self.bottom + 12.0), look)?;
                free = x + half + 4.0;
            }
        }
        let at = ((self.left + self.right) / 2.0, self.bottom + 29.0);
        let look = Type::new(SIZE, Ink::Muted).centred();
        self.sheet.text(what, at, look)
    }

    /// Where the upright axis begins and ends, in pixels: the larger first.
    fn pixels(&self) -> (f64, f64) {
        let range = self.area.get_y_axis_pixel_range();
        let pixels = |value: i32| f64::from(value) / f64::from(units(1.0));
        (pixels(range.end), pixels(range.start))
    }

    /// Where a value of the axis below is, in pixels.
    pub(super) fn across(&self, value: f64) -> f64 {
        let (x, _) = self
            .area
            .map_coordinate(&(value, self.area.get_y_range().start));
        f64::from(x) / f64::from(units(1.0))
    }

    pub(super) fn dot(&self, at: (f64, f64), radius: f64, style: ShapeStyle) -> Drawn {
        self.area.draw(&Circle::new(at, length(radius), style))
    }

    pub(super) fn line(&self, points: Vec<(f64, f64)>, style: ShapeStyle) -> Drawn {
        self.area.draw(&PathElement::new(points, style))
    }

    pub(super) fn rectangle(&self, corners: [(f64, f64); 2], style: ShapeStyle) -> Drawn {
        self.area.draw(&Rectangle::new(corners, style))
    }
}

impl Frame<'_, Axis> {
    /// Where a value of the upright axis is, in pixels.
    pub(super) fn up(&self, value: f64) -> f64 {
        let (_, y) = self
            .area
            .map_coordinate(&(self.area.get_x_range().start, value));
        f64::from(y) / f64::from(units(1.0))
    }

    /// The same beside the upright axis.
    pub(super) fn beside(&self, what: &str, write: impl Fn(f64) -> String) -> Drawn {
        let mut ticks = Vec::new();
        let (bottom, top) = self.pixels();
        let most = ((bottom - top) / 40.0).max(2.0) as usize;
        self.area.draw_mesh(
            |_, tick| {
                if let MeshLine::YMesh(_, (_, y), value) = tick {
                    ticks.push((f64::from(y) / f64::from(units(1.0)), *value));
                }
                Ok(())
            },
            most,
            0_usize,
        )?;
        for (y, value) in ticks {
            let style = line(Ink::Grid, 1.0);
            self.sheet.path(&[(self.left, y), (self.right, y)], style)?;
            let look = Type::new(11.0, Ink::Muted).left();
            self.sheet.text(&write(value), (self.left - 8.0, y), look)?;
        }
        let at = (MARGIN + 8.0, (top + bottom) / 2.0);
        let look = Type::new(SIZE, Ink::Muted).centred().upwards();
        self.sheet.text(what, at, look)
    }
}
