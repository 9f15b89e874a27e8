//! What is drawn of each number: its axis, its line with gaps where there is no number, and fewer points where a run is long.

use crate::compare::axis::Axis;
use crate::compare::number;
use crate::train::metrics::Point;

/// More points than this are put together.
const MOST: usize = 480;
/// Up to this many, each point has a dot.
pub(super) const DOTTED: usize = 60;
/// Ticks of an axis, about.
const TICKS: u32 = 4;

/// A number over the steps.
pub(super) struct Panel {
    /// What it is.
    pub(super) title: &'static str,
    /// Its unit, in the plural; empty where it has none.
    pub(super) unit: &'static str,
    /// What is drawn.
    pub(super) shape: Shape,
    /// Steps that have no number.
    pub(super) missing: usize,
}

/// What is drawn of a panel.
pub(super) enum Shape {
    /// No step has a number.
    Nothing,
    /// All steps that have one have this.
    Same(f64),
    /// They differ.
    Line(Line),
}

/// Values that differ, ready to be drawn.
pub(super) struct Line {
    pub(super) axis: Axis,
    /// Points that follow one another without a gap.
    pub(super) parts: Vec<Vec<Spot>>,
    /// Whether a point stands for several steps.
    pub(super) thinned: bool,
    pub(super) least: f64,
    pub(super) most: f64,
}

impl Line {
    /// All points.
    pub(super) fn spots(&self) -> impl Iterator<Item = &Spot> {
        self.parts.iter().flatten()
    }
}

/// A point: one step, or several put together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spot {
    /// The step, or the middle of several.
    pub(super) step: f64,
    pub(super) mean: f64,
    pub(super) least: f64,
    pub(super) most: f64,
}

/// The panels of a run.
pub(super) fn panels(points: &[Point]) -> Vec<Panel> {
    let refits = values(points, |p| p.refit_seconds);
    // Whole seconds for large models, milliseconds for small ones.
    let slowest = refits.iter().map(|(_, v)| *v).filter(|v| v.is_finite()).fold(0.0, f64::max);
    let (unit, times) = if slowest >= 1.0 { ("seconds", 1.0) } else { ("milliseconds", 1000.0) };
    let refits = refits.into_iter().map(|(step, v)| (step, v * times)).collect();
    vec![
        panel("Mean reward", "", values(points, |p| Some(p.reward))),
        panel("Mismatch of rollout engine and trainer: k3 KL", "nats per token", values(points, |p| Some(p.k3_kl))),
        panel("Norm of the gradients before clipping", "", values(points, |p| p.grad_norm)),
        panel("Mean response length", "tokens", values(points, |p| p.response_length)),
        panel("Refit time", unit, refits),
    ]
}

fn values(points: &[Point], of: impl Fn(&Point) -> Option<f64>) -> Vec<(u64, f64)> {
    points.iter().map(|p| (p.step, of(p).unwrap_or(f64::NAN))).collect()
}

fn panel(title: &'static str, unit: &'static str, values: Vec<(u64, f64)>) -> Panel {
    let finite = || values.iter().map(|(_, v)| *v).filter(|v| v.is_finite());
    let missing = values.len() - finite().count();
    let shape = match finite().next() {
        None => Shape::Nothing,
        Some(first) => {
            let (least, most) = finite().fold((first, first), |(least, most), v| (least.min(v), most.max(v)));
            // Equal in all digits that are shown is equal.
            let axis = Axis::around(least, most, TICKS).filter(|_| number(least) != number(most));
            axis.map_or(Shape::Same(first), |axis| {
                Shape::Line(Line { axis, parts: parts(&values), thinned: values.len() > MOST, least, most })
            })
        }
    };
    Panel { title, unit, shape, missing }
}

/// How many steps a point of a line stands for, about.
pub(super) fn steps_of_a_point(steps: usize) -> usize {
    steps.div_ceil(MOST)
}

/// Points for the steps, or for nearly equal numbers of steps that follow one another, cut where there is no number.
fn parts(values: &[(u64, f64)]) -> Vec<Vec<Spot>> {
    let mut parts: Vec<Vec<Spot>> = vec![Vec::new()];
    let points = values.len().min(MOST);
    for i in 0..points {
        let chunk = values.get(i * values.len() / points..(i + 1) * values.len() / points).unwrap_or_default();
        match (spot(chunk), parts.last_mut()) {
            (Some(spot), Some(part)) => part.push(spot),
            (None, Some(part)) if !part.is_empty() => parts.push(Vec::new()),
            _ => {}
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

fn spot(chunk: &[(u64, f64)]) -> Option<Spot> {
    let numbers: Vec<f64> = chunk.iter().map(|(_, v)| *v).filter(|v| v.is_finite()).collect();
    let (first, last) = (chunk.first()?.0, chunk.last()?.0);
    let start = *numbers.first()?;
    Some(Spot {
        step: (first as f64 + last as f64) / 2.0,
        mean: numbers.iter().map(|v| v / numbers.len() as f64).sum(),
        least: numbers.iter().copied().fold(start, f64::min),
        most: numbers.iter().copied().fold(start, f64::max),
    })
}

/// Digits that the longest number at any vertical axis takes, and room beside it.
pub(super) fn gutter(panels: &[Panel]) -> usize {
    let line = |panel: &Panel| match &panel.shape {
        Shape::Line(line) => line.axis.ticks().iter().map(|(_, label)| label.chars().count()).max(),
        _ => None,
    };
    panels.iter().filter_map(line).max().unwrap_or(0) + 2
}

impl Panel {
    /// A value with its unit.
    pub(super) fn value(&self, v: f64) -> String {
        format!("{} {}", number(v), self.unit).trim_end().to_owned()
    }

    /// Its title with its unit.
    pub(super) fn heading(&self) -> String {
        if self.unit.is_empty() { self.title.to_owned() } else { format!("{}, {}", self.title, self.unit) }
    }

    /// The sentence that stands in the place of a line that would be none.
    pub(super) fn sentence(&self, steps: usize) -> Option<String> {
        match &self.shape {
            Shape::Nothing => Some("No step has a number here.".to_owned()),
            Shape::Same(v) if steps == 1 => Some(format!("{} in the one step.", self.value(*v))),
            Shape::Same(v) if self.missing > 0 => {
                Some(format!("{} in each of the {} steps that have a number.", self.value(*v), steps - self.missing))
            }
            Shape::Same(v) => Some(format!("{} in each of the {steps} steps.", self.value(*v))),
            Shape::Line(_) => None,
        }
    }

    /// What a reader should know about the line.
    pub(super) fn notes(&self, steps: usize) -> Vec<String> {
        let mut out = Vec::new();
        if !matches!(self.shape, Shape::Line(_)) {
            return out;
        }
        if self.missing > 0 {
            out.push(format!("{} of {steps} steps have no number here; the line has a gap there.", self.missing));
        }
        out
    }
}
