//! Shapes as pixels.

use tiny_skia::{FillRule, Paint, Path, PathBuilder, Pixmap, Rect, Stroke, StrokeDash, Transform};
use ttf_parser::OutlineBuilder;

use super::canvas::{CORNER, Dashes, Label, Look, Shape, UNIT};
use super::ink::{Ink, Theme, colour};
use super::{Plot, PlotError, font, sheet};

/// Pixels of the file for each of the drawing.
const SCALE: f32 = 2.0;
/// How wide the outline of bold letters is, in pixels of the drawing: the font has no bold ones.
const BOLD: f32 = 0.4;

impl Plot {
    /// As a PNG file, twice as large as the SVG, for a theme, with the font that is part of this program.
    ///
    /// # Errors
    ///
    /// The picture is too large.
    pub fn png(&self, theme: Theme) -> Result<Vec<u8>, PlotError> {
        let failed = |why: &dyn std::fmt::Display| PlotError::Render(self.name, why.to_string());
        let scaled = |pixels: f64| (pixels as f32 * SCALE).ceil() as u32;
        let pixels = Pixmap::new(scaled(sheet::WIDTH), scaled(self.height.ceil()));
        let mut easel = Easel {
            pixels: pixels.ok_or_else(|| failed(&"it is too large"))?,
            theme,
            dashes: Vec::new(),
        };
        let [red, green, blue] = colour(Ink::Paper.number(), theme);
        easel
            .pixels
            .fill(tiny_skia::Color::from_rgba8(red, green, blue, 255));
        for shape in &self.shapes {
            easel.draw(shape);
        }
        easel.pixels.encode_png().map_err(|why| failed(&why))
    }
}

/// A picture that is being painted.
struct Easel {
    pixels: Pixmap,
    theme: Theme,
    /// Those of the groups that the next shape is in, the innermost last.
    dashes: Vec<Dashes>,
}

/// Tenths of a pixel, as pixels.
fn pixels(tenths: i32) -> f32 {
    tenths as f32 / UNIT as f32
}

impl Easel {
    fn draw(&mut self, shape: &Shape) {
        match shape {
            Shape::Series(_, _, dashes) | Shape::Dashed(dashes) => self.dashes.push(dashes),
            Shape::End => {
                self.dashes.pop();
            }
            Shape::Rectangle(place, look) => self.paint(rectangle(place.map(pixels)), look),
            &Shape::Circle((x, y), radius, ref look) => {
                let circle = PathBuilder::from_circle(pixels(x), pixels(y), pixels(radius));
                self.paint(circle, look);
            }
            Shape::Path(points, closed, look) => {
                let mut path = PathBuilder::new();
                for (number, &(x, y)) in points.iter().enumerate() {
                    match number {
                        0 => path.move_to(pixels(x), pixels(y)),
                        _ => path.line_to(pixels(x), pixels(y)),
                    }
                }
                if *closed {
                    path.close();
                }
                self.paint(path.finish(), look);
            }
            Shape::Text(label) => self.write(label),
        }
    }

    fn colour(&self, ink: u8, opacity: f64) -> Paint<'static> {
        let [red, green, blue] = colour(ink, self.theme);
        let mut paint = Paint::default();
        paint.set_color_rgba8(red, green, blue, (opacity * 255.0).round() as u8);
        paint
    }

    /// Paints a path. What has no size, such as a rectangle without width, has none.
    fn paint(&mut self, path: Option<Path>, look: &Look) {
        let Some(path) = path else { return };
        let paint = self.colour(look.ink, look.opacity);
        let scale = Transform::from_scale(SCALE, SCALE);
        let Some(width) = look.stroke else {
            self.pixels
                .fill_path(&path, &paint, FillRule::Winding, scale, None);
            return;
        };
        let dashes = self.dashes.iter().rev().find(|dashes| !dashes.is_empty());
        let stroke = Stroke {
            width: pixels(width),
            line_join: tiny_skia::LineJoin::Round,
            dash: dashes.and_then(|dashes| StrokeDash::new(dashes.to_vec(), 0.0)),
            ..Stroke::default()
        };
        self.pixels.stroke_path(&path, &paint, &stroke, scale, None);
    }

    fn write(&mut self, label: &Label) {
        let mut letters = Letters::default();
        let (width, em) = font::outlined(&label.text, &mut letters);
        let scale = label.size as f32 / em;
        let Some(letters) = letters.path.finish() else {
            return;
        };
        let (x, y) = label.at;
        let turn = if label.upwards { -90.0 } else { 0.0 };
        let place = Transform::from_translate(-label.before as f32 * width, 0.0)
            .post_scale(scale, scale)
            .post_translate(0.0, pixels(label.down))
            .post_concat(Transform::from_rotate(turn))
            .post_translate(pixels(x), pixels(y))
            .post_scale(SCALE, SCALE);
        let paint = self.colour(label.ink, 1.0);
        self.pixels
            .fill_path(&letters, &paint, FillRule::Winding, place, None);
        if label.bold {
            let stroke = Stroke {
                width: BOLD / scale,
                ..Stroke::default()
            };
            self.pixels
                .stroke_path(&letters, &paint, &stroke, place, None);
        }
    }
}

/// A rectangle with round corners, from left, top, width and height.
fn rectangle([x, y, width, height]: [f32; 4]) -> Option<Path> {
    let round = (CORNER as f32).min(width / 2.0).min(height / 2.0);
    let (right, bottom) = (x + width, y + height);
    let mut path = PathBuilder::new();
    if round <= 0.0 {
        path.push_rect(Rect::from_ltrb(x, y, right, bottom)?);
        return path.finish();
    }
    path.move_to(x + round, y);
    path.line_to(right - round, y);
    path.quad_to(right, y, right, y + round);
    path.line_to(right, bottom - round);
    path.quad_to(right, bottom, right - round, bottom);
    path.line_to(x + round, bottom);
    path.quad_to(x, bottom, x, bottom - round);
    path.line_to(x, y + round);
    path.quad_to(x, y, x + round, y);
    path.close();
    path.finish()
}

/// Outlines of letters side by side, from the base line on. Fonts grow upwards, pictures downwards.
#[derive(Default)]
struct Letters {
    path: PathBuilder,
    /// Where the next letter begins.
    left: f32,
}

impl font::Pen for Letters {
    fn next(&mut self, left: f32) {
        self.left = left;
    }
}

impl OutlineBuilder for Letters {
    fn move_to(&mut self, x: f32, y: f32) {
        self.path.move_to(self.left + x, -y);
    }

    fn line_to(&mut self, x: f32, y: f32) {
        self.path.line_to(self.left + x, -y);
    }

    fn quad_to(&mut self, cx: f32, cy: f32, x: f32, y: f32) {
        let left = self.left;
        self.path.quad_to(left + cx, -cy, left + x, -y);
    }

    fn curve_to(&mut self, ax: f32, ay: f32, bx: f32, by: f32, x: f32, y: f32) {
        let left = self.left;
        self.path
            .cubic_to(left + ax, -ay, left + bx, -by, left + x, -y);
    }

    fn close(&mut self) {
        self.path.close();
    }
}
