//! Shapes as elements of SVG: with classes instead of colours, so that one drawing serves every theme.

use std::fmt::Write;

use maud::Escaper;

use super::canvas::{CORNER, Dashes, Label, Look, Shape, UNIT, units};

/// Text that XML can hold, escaped: control characters have no place in it.
pub(super) fn escaped(text: &str) -> String {
    let clean: String = text
        .chars()
        .map(|character| match character {
            '\u{fffe}' | '\u{ffff}' => '\u{fffd}',
            character if character.is_control() => '\u{fffd}',
            character => character,
        })
        .collect();
    let mut escaped = String::new();
    let _ = Escaper::new(&mut escaped).write_str(&clean);
    escaped
}

/// A number of tenths, as it is written.
struct Tenths(i32);

impl std::fmt::Display for Tenths {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}", f64::from(self.0) / UNIT)
    }
}

/// The elements, one after the other.
pub(super) fn elements(shapes: &[Shape]) -> String {
    let mut elements = Elements(String::new());
    for shape in shapes {
        match shape {
            Shape::Series(name, hover, dashes) => {
                let (name, hover) = (escaped(name), escaped(hover));
                elements.push(format_args!("<g class=\"series\" data-series=\"{name}\""));
                elements.dashes(dashes);
                elements.push(format_args!("><title>{hover}</title>"));
            }
            Shape::Dashed(dashes) => {
                elements.push(format_args!("<g"));
                elements.dashes(dashes);
                elements.push(format_args!(">"));
            }
            Shape::End => elements.push(format_args!("</g>\n")),
            Shape::Rectangle(place, look) => {
                let [x, y, width, height] = place.map(Tenths);
                elements.push(format_args!(
                    "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"{CORNER}\""
                ));
                elements.end(look);
            }
            &Shape::Circle((x, y), radius, ref look) => {
                let (x, y, radius) = (Tenths(x), Tenths(y), Tenths(radius));
                elements.push(format_args!("<circle cx=\"{x}\" cy=\"{y}\" r=\"{radius}\""));
                elements.end(look);
            }
            Shape::Path(points, closed, look) => {
                elements.points(points);
                let close = if *closed { "z" } else { "" };
                elements.push(format_args!("{close}\""));
                elements.end(look);
            }
            Shape::Text(label) => elements.text(label),
        }
    }
    elements.0
}

struct Elements(String);

impl Elements {
    fn push(&mut self, text: std::fmt::Arguments) {
        let _ = self.0.write_fmt(text);
    }

    fn dashes(&mut self, dashes: Dashes) {
        if !dashes.is_empty() {
            let dashes: Vec<_> = dashes.iter().map(f32::to_string).collect();
            let dashes = dashes.join(" ");
            self.push(format_args!(" stroke-dasharray=\"{dashes}\""));
        }
    }

    /// Ends an element that fills or strokes.
    fn end(&mut self, look: &Look) {
        let ink = look.ink;
        let attribute = match look.stroke {
            None => {
                self.push(format_args!(" class=\"f{ink}\""));
                "fill-opacity"
            }
            Some(width) => {
                self.push(format_args!(" class=\"s{ink}\""));
                if width != units(1.0) {
                    let width = Tenths(width);
                    self.push(format_args!(" stroke-width=\"{width}\""));
                }
                "stroke-opacity"
            }
        };
        if look.opacity < 1.0 {
            self.push(format_args!(" {attribute}=\"{:.2}\"", look.opacity));
        }
        self.push(format_args!("/>"));
    }

    /// Begins a path with its points; each but the first as its distance from the one before, which is shorter.
    fn points(&mut self, points: &[(i32, i32)]) {
        self.push(format_args!("<path d=\""));
        let mut last = None;
        for &(x, y) in points {
            match last {
                None => self.push(format_args!("M{} {}", Tenths(x), Tenths(y))),
                Some((left, above)) => match (Tenths(x - left), Tenths(y - above)) {
                    (Tenths(0), down) => self.push(format_args!("v{down}")),
                    (across, Tenths(0)) => self.push(format_args!("h{across}")),
                    (across, down) => self.push(format_args!("l{across} {down}")),
                },
            }
            last = Some((x, y));
        }
    }

    fn text(&mut self, label: &Label) {
        let (x, y) = label.at;
        let down = label.down;
        if label.upwards {
            let (x, y, down) = (Tenths(x), Tenths(y), Tenths(down));
            self.push(format_args!(
                "<text transform=\"translate({x} {y}) rotate(-90)\" y=\"{down}\""
            ));
        } else {
            let (x, y) = (Tenths(x), Tenths(y + down));
            self.push(format_args!("<text x=\"{x}\" y=\"{y}\""));
        }
        let anchor = match label.before {
            0.0 => "",
            0.5 => " text-anchor=\"middle\"",
            _ => " text-anchor=\"end\"",
        };
        let bold = if label.bold { " b" } else { "" };
        let (size, ink, text) = (label.size, label.ink, escaped(&label.text));
        self.push(format_args!(
            " font-size=\"{size}\" class=\"f{ink}{bold}\"{anchor}>{text}</text>"
        ));
    }
}
