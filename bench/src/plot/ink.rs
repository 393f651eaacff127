//! Colours, by what they are for. A drawing says which ink it uses; a theme says what colour that is. Both themes' colours are told apart by readers who do not see
//! red and green as different, and those of text stand out from the paper by at least 4.5 to 1.

use std::fmt::Write;

use plotters::style::Color;
use plotters_backend::BackendColor;

use super::canvas::Dashes;
use crate::record::Kind;

/// What a picture is to be looked at on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Theme {
    /// Dark on white
    Light,
    /// Light on black
    Dark,
}

/// What is drawn with one colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ink {
    /// What everything is drawn on
    Paper,
    /// Names and values
    Text,
    /// What is read second
    Muted,
    /// Lines that lead the eye
    Grid,
    /// Lanes, every other one
    Lane,
    /// What failed
    Bad,
    /// The label of a host that is emulated
    Notice,
    /// Text on it
    OnNotice,
    /// A process
    Process,
    /// A container
    Container,
    /// A virtual machine
    Vm,
    /// Series of containers, in turn
    Cool(u8),
    /// Series of virtual machines, in turn
    Warm(u8),
    /// Parts of a start, in their order
    Phase(u8),
    /// Text on a part of a start
    OnPhase,
}

/// How many series of one kind have colours of their own.
const HUES: u8 = 4;
/// How many parts a start has.
const PHASES: u8 = 7;

/// All inks, in the order of their numbers.
fn all() -> impl Iterator<Item = Ink> {
    use Ink::*;
    [
        Paper, Text, Muted, Grid, Lane, Bad, Notice, OnNotice, Process, Container, Vm, OnPhase,
    ]
    .into_iter()
    .chain((0..HUES).map(Cool))
    .chain((0..HUES).map(Warm))
    .chain((0..PHASES).map(Phase))
}

/// How the lines of series that share a colour differ: the lengths of dashes and gaps.
const DASHES: [Dashes; 4] = [&[], &[7.0, 3.0], &[2.0, 2.5], &[9.0, 3.0, 2.0, 3.0]];

impl Ink {
    /// That of a kind.
    pub(super) fn of(kind: Kind) -> Self {
        match kind {
            Kind::Process => Self::Process,
            Kind::Container => Self::Container,
            Kind::Vm => Self::Vm,
        }
    }

    /// That of the `number`-th series of a kind, and its dashes: containers are cool, virtual machines warm.
    pub(super) fn series(kind: Kind, number: usize) -> (Self, Dashes) {
        let hue = (number % usize::from(HUES)) as u8;
        let ink = match kind {
            Kind::Process => return (Self::Process, DASHES[number % DASHES.len()]),
            Kind::Container => Self::Cool(hue),
            Kind::Vm => Self::Warm(hue),
        };
        (ink, DASHES[number / usize::from(HUES) % DASHES.len()])
    }

    /// Its number.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Paper => 0,
            Self::Text => 1,
            Self::Muted => 2,
            Self::Grid => 3,
            Self::Lane => 4,
            Self::Bad => 5,
            Self::Notice => 6,
            Self::OnNotice => 7,
            Self::Process => 8,
            Self::Container => 9,
            Self::Vm => 10,
            Self::OnPhase => 11,
            Self::Cool(n) => 12 + n % HUES,
            Self::Warm(n) => 12 + HUES + n % HUES,
            Self::Phase(n) => 12 + 2 * HUES + n % PHASES,
        }
    }

    /// Its colour, as `#rrggbb`.
    fn colour(self, theme: Theme) -> &'static str {
        let (light, dark) = match self {
            Self::Paper => ("#ffffff", "#14181d"),
            Self::Text => ("#1b2026", "#e8ebee"),
            Self::Muted => ("#5a636e", "#a0aab5"),
            Self::Grid => ("#dfe3e8", "#313840"),
            Self::Lane => ("#f6f8fa", "#191e24"),
            Self::Bad => ("#b3261e", "#ff8a80"),
            Self::Notice => ("#ffd479", "#f0b93a"),
            Self::OnNotice => ("#2b1d00", "#2b1d00"),
            Self::Process => ("#6b7480", "#9aa5b1"),
            Self::Container => ("#0072b2", "#56b4e9"),
            Self::Vm => ("#d55e00", "#ff9147"),
            Self::OnPhase => ("#14181d", "#14181d"),
            Self::Cool(n) => [
                ("#0072b2", "#56b4e9"),
                ("#0a8f73", "#3fd0a8"),
                ("#5b53c4", "#a9a3ff"),
                ("#3f8fce", "#9fd4f5"),
            ][usize::from(n % HUES)],
            Self::Warm(n) => [
                ("#d55e00", "#ff9147"),
                ("#b0357a", "#f08dc0"),
                ("#b58900", "#f0d04e"),
                ("#7a3b12", "#d8a07a"),
            ][usize::from(n % HUES)],
            Self::Phase(n) => [
                ("#aeb6c1", "#8d97a3"),
                ("#6fb1e4", "#6fb1e4"),
                ("#4dbb98", "#4dbb98"),
                ("#e0c03a", "#e8cd54"),
                ("#f2954a", "#f2954a"),
                ("#e487b1", "#e487b1"),
                ("#b9a2e6", "#b9a2e6"),
            ][usize::from(n % PHASES)],
        };
        match theme {
            Theme::Light => light,
            Theme::Dark => dark,
        }
    }
}

impl Color for Ink {
    /// plotters hands colours through as they are: the number travels in one.
    fn to_backend_color(&self) -> BackendColor {
        BackendColor {
            alpha: 1.0,
            rgb: (self.number(), 0, 0),
        }
    }
}

/// Rules for the classes that drawings use: `f` fills and `s` strokes with the ink of that number.
fn rules(theme: Theme) -> String {
    rules_with(|ink| ink.colour(theme).to_owned())
}

fn rules_with(colour: impl Fn(Ink) -> String) -> String {
    all().fold(String::new(), |mut rules, ink| {
        let (number, colour) = (ink.number(), colour(ink));
        let _ = write!(
            rules,
            ".f{number}{{fill:{colour}}}.s{number}{{stroke:{colour}}}"
        );
        rules
    })
}

/// The style of a picture that stands alone, and follows what its viewer prefers.
pub(super) fn following() -> String {
    format!(
        "{}.b{{font-weight:600}}@media(prefers-color-scheme:dark){{{}}}",
        rules(Theme::Light),
        rules(Theme::Dark)
    )
}

/// The colour of the ink of a number: red, green and blue.
pub(super) fn colour(number: u8, theme: Theme) -> [u8; 3] {
    let ink = all().find(|ink| ink.number() == number);
    let written = ink.unwrap_or(Ink::Text).colour(theme);
    let value = u32::from_str_radix(&written[1..], 16).unwrap_or_default();
    let [_, red, green, blue] = value.to_be_bytes();
    [red, green, blue]
}

/// The rules of a page, whose variables `--i0`, `--i1` … say what colour an ink has.
pub(crate) fn page_rules() -> String {
    rules_with(|ink| format!("var(--i{})", ink.number())) + ".b{font-weight:600}"
}

/// Those variables.
pub(crate) fn page_variables(theme: Theme) -> String {
    all().fold(String::new(), |mut variables, ink| {
        let _ = write!(variables, "--i{}:{};", ink.number(), ink.colour(theme));
        variables
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How much two colours differ in brightness, from 1 to 21, as WCAG has it.
    fn contrast(one: &str, other: &str) -> f64 {
        let luminance = |colour: &str| {
            let part = |at: usize| {
                let value = f64::from(u8::from_str_radix(&colour[at..at + 2], 16).unwrap()) / 255.0;
                if value <= 0.03928 {
                    value / 12.92
                } else {
                    ((value + 0.055) / 1.055).powf(2.4)
                }
            };
            0.2126 * part(1) + 0.7152 * part(3) + 0.0722 * part(5)
        };
        let (one, other) = (luminance(one), luminance(other));
        (one.max(other) + 0.05) / (one.min(other) + 0.05)
    }

    #[test]
    fn numbers_are_those_of_the_order() {
        for (number, ink) in all().enumerate() {
            let same = all().filter(|other| other.number() == ink.number()).count();
            assert_eq!((usize::from(ink.number()), same), (number, 1), "{ink:?}");
        }
    }

    #[test]
    fn colours_are_read_as_they_are_written() {
        assert_eq!(colour(Ink::Vm.number(), Theme::Light), [0xd5, 0x5e, 0]);
        assert_eq!(colour(Ink::Paper.number(), Theme::Dark), [0x14, 0x18, 0x1d]);
    }

    #[test]
    fn text_and_marks_stand_out() {
        for theme in [Theme::Light, Theme::Dark] {
            for paper in [Ink::Paper, Ink::Lane] {
                let least = |ink: Ink, least: f64| {
                    let contrast = contrast(ink.colour(theme), paper.colour(theme));
                    assert!(
                        contrast >= least,
                        "{ink:?} on {paper:?} {theme:?}: {contrast}"
                    );
                };
                for text in [Ink::Text, Ink::Muted, Ink::Bad] {
                    least(text, 4.5);
                }
                for mark in [Ink::Process, Ink::Container, Ink::Vm] {
                    least(mark, 3.0);
                }
                for hue in 0..HUES {
                    least(Ink::Cool(hue), 3.0);
                    least(Ink::Warm(hue), 2.8);
                }
            }
            for phase in 0..PHASES {
                let (text, fill) = (Ink::OnPhase.colour(theme), Ink::Phase(phase).colour(theme));
                assert!(contrast(text, fill) >= 4.5, "{phase}");
            }
            assert!(contrast(Ink::OnNotice.colour(theme), Ink::Notice.colour(theme)) >= 4.5);
        }
    }
}
