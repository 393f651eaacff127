//! Where plotters draws to: a list of shapes that say which ink they have and whose they are, to be written as SVG or painted as pixels. plotters' own SVG backend has
//! neither classes for themes, nor names of series, nor coordinates finer than a pixel; its bitmap backend has no text without the system's fonts.

use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;

use plotters::drawing::DrawingAreaErrorKind;
use plotters_backend::text_anchor::{HPos, VPos};
use plotters_backend::{
    BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingBackend, DrawingErrorKind,
    FontStyle, FontTransform,
};

/// What drawing comes to: a backend that keeps what it is told has no errors of its own.
pub(super) type Drawn<T = ()> = Result<T, DrawingAreaErrorKind<Infallible>>;

/// Lengths of dashes and of the gaps after them, in pixels; empty for lines without gaps.
pub(super) type Dashes = &'static [f32];

/// plotters' whole numbers are tenths of a pixel.
pub(super) const UNIT: f64 = 10.0;
/// How round corners of rectangles are, in pixels.
pub(super) const CORNER: f64 = 1.5;

/// Pixels, as plotters has them.
pub(super) fn units(pixels: f64) -> i32 {
    (pixels * UNIT).round() as i32
}

/// The same, of what is never negative.
pub(super) fn length(pixels: f64) -> u32 {
    units(pixels).unsigned_abs()
}

/// How a shape is coloured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// The ink's number.
    pub(super) ink: u8,
    /// From 0 to 1.
    pub(super) opacity: f64,
    /// How wide its outline is, in tenths of a pixel; none if it is filled.
    pub(super) stroke: Option<i32>,
}

impl Look {
    fn new(style: &impl BackendStyle, filled: bool) -> Self {
        let BackendColor { alpha, rgb } = style.color();
        Self {
            ink: rgb.0,
            opacity: alpha,
            stroke: (!filled).then_some(style.stroke_width() as i32),
        }
    }
}

/// Text: one line.
#[derive(Clone, Debug)]
pub(super) struct Label {
    pub(super) text: String,
    /// Where it is, in tenths of a pixel.
    pub(super) at: BackendCoord,
    /// How much further down its base line is.
    pub(super) down: i32,
    /// In pixels.
    pub(super) size: f64,
    /// Which share of it is to the left of where it is.
    pub(super) before: f64,
    pub(super) bold: bool,
    /// It is read from below.
    pub(super) upwards: bool,
    pub(super) ink: u8,
}

/// What is drawn, in tenths of a pixel.
#[derive(Clone, Debug)]
pub(super) enum Shape {
    /// What follows is of one series, and has a text to be shown where a pointer rests on it
    Series(String, String, Dashes),
    /// The lines that follow have these dashes
    Dashed(Dashes),
    /// The end of what began last
    End,
    /// Left, top, width, height
    Rectangle([i32; 4], Look),
    /// Middle and radius
    Circle(BackendCoord, i32, Look),
    /// Corners, and whether the last is joined to the first
    Path(Vec<BackendCoord>, bool, Look),
    /// Text
    Text(Label),
}

/// The shapes drawn so far. Copies share them.
#[derive(Clone)]
pub(super) struct Canvas {
    shapes: Rc<RefCell<Vec<Shape>>>,
    size: (u32, u32),
}

impl Canvas {
    /// An empty one, so many pixels large.
    pub(super) fn new(width: f64, height: f64) -> Self {
        Self {
            shapes: Rc::default(),
            size: (length(width), length(height)),
        }
    }

    /// Begins a group for one series, named, with what is shown where the pointer rests on it.
    pub(super) fn open(&self, name: &str, hover: &str, dashes: Dashes) {
        self.push(Shape::Series(name.to_owned(), hover.to_owned(), dashes));
    }

    /// Begins a group of lines of these dashes.
    pub(super) fn dashed(&self, dashes: Dashes) {
        self.push(Shape::Dashed(dashes));
    }

    /// Ends the group.
    pub(super) fn close(&self) {
        self.push(Shape::End);
    }

    /// What was drawn.
    pub(super) fn shapes(&self) -> Vec<Shape> {
        self.shapes.borrow().clone()
    }

    fn push(&self, shape: Shape) {
        self.shapes.borrow_mut().push(shape);
    }
}

type Kept = Result<(), DrawingErrorKind<Infallible>>;

impl DrawingBackend for Canvas {
    type ErrorType = Infallible;

    fn get_size(&self) -> (u32, u32) {
        self.size
    }

    fn ensure_prepared(&mut self) -> Kept {
        Ok(())
    }

    fn present(&mut self) -> Kept {
        Ok(())
    }

    fn draw_pixel(&mut self, at: BackendCoord, colour: BackendColor) -> Kept {
        self.draw_rect(at, (at.0 + 1, at.1 + 1), &colour, true)
    }

    fn draw_line<S: BackendStyle>(
        &mut self,
        from: BackendCoord,
        to: BackendCoord,
        style: &S,
    ) -> Kept {
        self.draw_path([from, to], style)
    }

    fn draw_rect<S: BackendStyle>(
        &mut self,
        (left, top): BackendCoord,
        (right, bottom): BackendCoord,
        style: &S,
        fill: bool,
    ) -> Kept {
        let (width, height) = ((right - left).abs(), (bottom - top).abs());
        let place = [left.min(right), top.min(bottom), width, height];
        self.push(Shape::Rectangle(place, Look::new(style, fill)));
        Ok(())
    }

    fn draw_path<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(
        &mut self,
        path: I,
        style: &S,
    ) -> Kept {
        let points = path.into_iter().collect();
        self.push(Shape::Path(points, false, Look::new(style, false)));
        Ok(())
    }

    fn draw_circle<S: BackendStyle>(
        &mut self,
        middle: BackendCoord,
        radius: u32,
        style: &S,
        fill: bool,
    ) -> Kept {
        let look = Look::new(style, fill);
        self.push(Shape::Circle(middle, radius as i32, look));
        Ok(())
    }

    fn fill_polygon<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(
        &mut self,
        corners: I,
        style: &S,
    ) -> Kept {
        let points = corners.into_iter().collect();
        self.push(Shape::Path(points, true, Look::new(style, true)));
        Ok(())
    }

    fn draw_text<T: BackendTextStyle>(&mut self, text: &str, style: &T, at: BackendCoord) -> Kept {
        let size = style.size() / UNIT;
        let down = match style.anchor().v_pos {
            VPos::Top => 0.95,
            VPos::Center => 0.35,
            VPos::Bottom => -0.25,
        };
        let before = match style.anchor().h_pos {
            HPos::Left => 0.0,
            HPos::Center => 0.5,
            HPos::Right => 1.0,
        };
        self.push(Shape::Text(Label {
            text: text.to_owned(),
            at,
            down: units(down * size),
            size,
            before,
            bold: matches!(style.style(), FontStyle::Bold),
            upwards: matches!(style.transform(), FontTransform::Rotate270),
            ink: style.color().rgb.0,
        }));
        Ok(())
    }
}
