//! How wide text is, with the one font that is part of the program: a static binary finds no others.

use std::sync::OnceLock;

use ttf_parser::{Face, GlyphId, OutlineBuilder};

/// The font, as TrueType: Ubuntu Light.
const DATA: &[u8] = epaint_default_fonts::UBUNTU_LIGHT;

/// How much wider the fonts that a browser may take instead are: DejaVu Sans, the widest in wide use, is this much wider for the text of these plots.
const WIDER: f64 = 1.2;

/// Advances of the characters from space to tilde and of any other, in units of the font's size.
fn advances() -> &'static ([f64; 95], f64) {
    static ADVANCES: OnceLock<([f64; 95], f64)> = OnceLock::new();
    ADVANCES.get_or_init(|| {
        let mut advances = ([0.6; 95], 1.0);
        let Ok(font) = Face::parse(DATA, 0) else {
            return advances;
        };
        let em = f64::from(font.units_per_em());
        for (advance, character) in advances.0.iter_mut().zip(' '..='~') {
            let glyph = font.glyph_index(character);
            if let Some(known) = glyph.and_then(|glyph| font.glyph_hor_advance(glyph)) {
                *advance = f64::from(known) / em;
            }
        }
        advances
    })
}

/// How much room text of this size needs at most, in the size's unit.
pub(super) fn width(text: &str, size: f64) -> f64 {
    let (known, other) = advances();
    let ems: f64 = text
        .chars()
        .map(|character| match character {
            ' '..='~' => known[character as usize - 32],
            '–' | '·' | '…' | '†' | '×' => 0.7,
            _ => *other,
        })
        .sum();
    ems * size * WIDER
}

/// What letters are drawn with, in units of which the font's size has as many as [`outlined`] says.
pub(super) trait Pen: OutlineBuilder {
    /// Moves to where the next letter begins.
    fn next(&mut self, left: f32);
}

/// Draws the letters of a text, and returns how wide all are, and how many units the font's size has.
pub(super) fn outlined(text: &str, pen: &mut impl Pen) -> (f32, f32) {
    let Ok(font) = Face::parse(DATA, 0) else {
        return (0.0, 1.0);
    };
    let width = text.chars().fold(0.0, |left, character| {
        // What the font does not have is a box.
        let glyph = font.glyph_index(character).unwrap_or(GlyphId(0));
        pen.next(left);
        // A space has no outline.
        let _ = font.outline_glyph(glyph, pen);
        left + f32::from(font.glyph_hor_advance(glyph).unwrap_or_default())
    });
    (width, f32::from(font.units_per_em()))
}

/// The text, or as much of its beginning as has room, with an ellipsis.
pub(super) fn shortened(text: &str, size: f64, room: f64) -> String {
    if width(text, size) <= room {
        return text.to_owned();
    }
    let mut short = String::new();
    for character in text.chars() {
        short.push(character);
        if width(&short, size) + width("…", size) > room {
            short.pop();
            break;
        }
    }
    short.truncate(short.trim_end().len());
    short + "…"
}

/// The text in lines that have room. A word that has none is shortened.
pub(super) fn lines(text: &str, size: f64, room: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if width(&format!("{line} {word}"), size) <= room => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(shortened(word, size, room)),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths() {
        assert!(width("iiii", 10.0) < width("mmmm", 10.0));
        assert!((width("ab", 20.0) - 2.0 * width("ab", 10.0)).abs() < 1e-9);
        assert!((20.0..60.0).contains(&width("abcdef", 10.0)));
        assert_eq!(width("", 10.0), 0.0);
    }

    #[test]
    fn what_has_no_room_is_shortened() {
        assert_eq!(shortened("crun", 12.0, 100.0), "crun");
        let short = shortened(&"long ".repeat(50), 12.0, 100.0);
        assert!(short.starts_with("long") && short.ends_with('…'), "{short}");
        assert!(width(&short, 12.0) <= 100.0);
        assert_eq!(shortened("x", 12.0, 0.0), "…");
        let wrapped = lines("one two three four five six", 12.0, 80.0);
        assert_eq!(wrapped.join(" "), "one two three four five six");
        assert!(wrapped.len() > 1 && wrapped.iter().all(|line| width(line, 12.0) <= 80.0));
        assert!(lines("", 12.0, 80.0).is_empty());
    }
}
