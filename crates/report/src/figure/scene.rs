//! Shapes at places: what every drawing format can draw. Lengths are pixels, y grows downwards.

/// A place, or a size: x and y.
pub type Point = (f64, f64);

/// Colours of parts, told apart by people who see few colours (after Okabe and Ito), on light and dark
/// ground.
pub const PALETTE: [&str; 10] = [
    "0072B2", "E69F00", "009E73", "D55E00", "56B4E9", "CC79A7", "8C6D31", "7F7F7F", "6A51A3",
    "A6B727",
];

/// Colour of a shape.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Ink {
    /// Of the n-th part; they repeat after [`PALETTE`].
    Part(usize),
    /// As the text around the picture.
    Text,
    /// Lines behind the numbers.
    Faint,
    /// A share, from nothing (0) to full colour (1).
    Shade(f64),
    /// The n-th part's colour, thin: behind text.
    Pale(usize),
}

impl Ink {
    /// Colour in hexadecimal, or that of the text, and its opacity.
    pub fn colour(self) -> (Option<&'static str>, f64) {
        let part = |n: usize| Some(PALETTE[n % PALETTE.len()]);
        match self {
            Self::Part(n) => (part(n), 1.0),
            Self::Text => (None, 1.0),
            Self::Faint => (None, 0.2),
            Self::Shade(share) => (part(0), 0.75 * share.clamp(0.0, 1.0)),
            Self::Pale(n) => (part(n), 0.22),
        }
    }
}

/// Which end of a text is at its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Anchor {
    /// It begins there.
    Start,
    /// Its middle is there.
    Middle,
    /// It ends there.
    End,
}

/// A shape.
#[derive(Clone, PartialEq, Debug)]
pub enum Shape {
    /// A filled rectangle.
    Rect {
        /// Upper left corner.
        at: Point,
        /// Width and height.
        size: Point,
        /// Its colour.
        ink: Ink,
        /// What it says if pointed at; empty for nothing.
        told: String,
    },
    /// A line through points.
    Path {
        /// The points.
        points: Vec<Point>,
        /// Its colour.
        ink: Ink,
        /// Its width.
        width: f64,
        /// Its end has a head.
        arrow: bool,
    },
    /// A filled circle.
    Dot {
        /// Its centre.
        at: Point,
        /// Its radius.
        radius: f64,
        /// Its colour.
        ink: Ink,
        /// What it says if pointed at.
        told: String,
    },
    /// A line of text; its place is on the base line.
    Text {
        /// Where.
        at: Point,
        /// What.
        text: String,
        /// Which end is there.
        anchor: Anchor,
        /// Height of the font.
        size: f64,
        /// It reads upwards.
        upwards: bool,
    },
}

/// A picture.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Scene {
    /// What it shows, in a line.
    pub title: String,
    /// Width and height.
    pub size: Point,
    /// From back to front.
    pub shapes: Vec<Shape>,
}

/// Height of text.
pub const FONT: f64 = 12.0;

/// About how wide a text is: fonts differ, and none is at hand.
pub fn width_of(text: &str, size: f64) -> f64 {
    text.chars().count() as f64 * size * 0.56
}

impl Scene {
    /// An empty picture.
    pub fn new(title: &str) -> Self {
        Self { title: title.into(), ..Self::default() }
    }
    /// Adds a rectangle.
    pub fn rect(&mut self, at: Point, size: Point, ink: Ink, told: impl Into<String>) {
        self.shapes.push(Shape::Rect { at, size, ink, told: told.into() });
    }
    /// Adds a line through points.
    pub fn path(&mut self, points: Vec<Point>, ink: Ink, width: f64) {
        self.shapes.push(Shape::Path { points, ink, width, arrow: false });
    }
    /// Adds a line with a head.
    pub fn arrow(&mut self, points: Vec<Point>, ink: Ink) {
        self.shapes.push(Shape::Path { points, ink, width: 1.2, arrow: true });
    }
    /// Adds a circle.
    pub fn dot(&mut self, at: Point, radius: f64, ink: Ink, told: impl Into<String>) {
        self.shapes.push(Shape::Dot { at, radius, ink, told: told.into() });
    }
    /// Adds a text.
    pub fn text(&mut self, at: Point, text: impl Into<String>, anchor: Anchor) {
        self.sized(at, text, anchor, FONT);
    }
    /// Adds a text of another size.
    pub fn sized(&mut self, at: Point, text: impl Into<String>, anchor: Anchor, size: f64) {
        let text = text.into();
        self.shapes.push(Shape::Text { at, text, anchor, size, upwards: false });
    }
    /// Adds a text that reads upwards.
    pub fn upwards(&mut self, at: Point, text: impl Into<String>) {
        let (text, anchor) = (text.into(), Anchor::Middle);
        self.shapes.push(Shape::Text { at, text, anchor, size: FONT, upwards: true });
    }
    /// Adds a patch of colour and a name for each of `names` that `shown` says, in lines of `width` from
    /// `(left, top)` on. Returns where they end.
    pub fn legend(
        &mut self,
        names: &[String],
        shown: impl Fn(usize) -> bool,
        (left, top): Point,
        width: f64,
    ) -> f64 {
        let (mut x, mut y) = (left, top);
        for (i, name) in names.iter().enumerate().filter(|(i, _)| shown(*i)) {
            let wide = 36.0 + width_of(name, FONT);
            if x > left && x + wide > left + width {
                (x, y) = (left, y + 18.0);
            }
            self.rect((x, y), (12.0, 12.0), Ink::Part(i), "");
            self.text((x + 17.0, y + 10.5), name.clone(), Anchor::Start);
            x += wide;
        }
        if x > left { y + 18.0 } else { top }
    }
}
