//! AdamW with decoupled weight decay (torch.optim.AdamW), and clipping by the global norm. candle_nn has an AdamW whose
//! moments cannot be read; here they are plain vectors, so that a checkpoint holds them and a resumed run is the same bit
//! for bit. Each element is computed alone, in a fixed order of operations: threads do not change a bit.

use rayon::prelude::*;

use super::error::Result;
use super::masters::Masters;

/// Settings of the optimizer.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct AdamWSettings {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Share of a weight that a step of learning rate 1 would take off.
    pub weight_decay: f64,
}

impl Default for AdamWSettings {
    fn default() -> Self {
        Self { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

/// The moments of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// Running mean of the gradient.
    pub m: Vec<f32>,
    /// Running mean of its square.
    pub v: Vec<f32>,
}

/// The optimizer and its state.
pub struct AdamW {
    settings: AdamWSettings,
    /// Updates done.
    pub(super) updates: u64,
    /// Of each tensor, in the order of [`Masters::all`].
    pub(super) moments: Vec<Moments>,
}

impl AdamW {
    /// With moments of zero.
    pub fn new(settings: AdamWSettings, masters: &Masters) -> Self {
        let zeros = |n: usize| Moments { m: vec![0.0; n], v: vec![0.0; n] };
        let moments = masters.all().iter().map(|m| zeros(m.shape.iter().product())).collect();
        Self { settings, updates: 0, moments }
    }

    /// One update. A tensor without a gradient (an expert that no token chose) has a gradient of zero: its moments decay
    /// and still move it.
    pub fn update(&mut self, masters: &Masters, gradients: &[Vec<f32>]) -> Result<()> {
        self.updates += 1;
        let factors = Factors::new(&self.settings, self.updates);
        for ((master, moments), gradient) in masters.all().iter().zip(&mut self.moments).zip(gradients) {
            let mut values = master.values()?;
            factors.apply(&mut values, moments, gradient);
            master.set(values)?;
        }
        Ok(())
    }
}

/// The numbers of one update.
struct Factors {
    beta1: f32,
    beta2: f32,
    /// 1 - beta.
    new1: f32,
    new2: f32,
    /// Learning rate over the first moment's bias correction.
    step: f32,
    /// One over the root of the second moment's.
    root: f32,
    eps: f32,
    /// What weight decay leaves.
    keep: f32,
}

impl Factors {
    /// Of update number `t`, from 1.
    fn new(s: &AdamWSettings, t: u64) -> Self {
        let correction = |beta: f64| 1.0 - beta.powi(i32::try_from(t).unwrap_or(i32::MAX));
        Self {
            beta1: s.beta1 as f32,
            beta2: s.beta2 as f32,
            new1: (1.0 - s.beta1) as f32,
            new2: (1.0 - s.beta2) as f32,
            step: (s.lr / correction(s.beta1)) as f32,
            root: (1.0 / correction(s.beta2).sqrt()) as f32,
            eps: s.eps as f32,
            keep: (1.0 - s.lr * s.weight_decay) as f32,
        }
    }

    fn apply(&self, values: &mut [f32], moments: &mut Moments, gradient: &[f32]) {
        let state = moments.m.par_iter_mut().zip(&mut moments.v);
        values.par_iter_mut().zip(state).zip(gradient).with_min_len(1 << 14).for_each(|((w, (m, v)), g)| {
            *m = self.beta1 * *m + self.new1 * g;
            *v = self.beta2 * *v + self.new2 * (g * g);
            *w = *w * self.keep - self.step * *m / (v.sqrt() * self.root + self.eps);
        });
    }
}

/// Scales all gradients so that their common norm is at most `most`; gives the norm before that.
pub fn clip_grad_norm(gradients: &mut [Vec<f32>], most: f64) -> f64 {
    let squares = gradients.iter().map(|g| g.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>());
    let norm = squares.sum::<f64>().sqrt();
    // As torch.nn.utils.clip_grad_norm_ has it.
    let factor = (most / (norm + 1e-6)).min(1.0) as f32;
    if factor < 1.0 {
        gradients.iter_mut().flatten().for_each(|g| *g *= factor);
    }
    norm
}

#[cfg(test)]
mod tests {
    // The digits are torch's own.
    #![allow(clippy::excessive_precision)]
    use super::*;

    /// Values of `torch.optim.AdamW` (2.x, CPU, f32) after each of three steps.
    #[test]
    fn three_steps_are_those_of_torch() {
        let settings = AdamWSettings { lr: 0.01, weight_decay: 0.1, ..AdamWSettings::default() };
        let mut w = vec![0.5, -1.25, 0.0, 2.0];
        let mut moments = Moments { m: vec![0.0; 4], v: vec![0.0; 4] };
        let steps: [([f32; 4], [f32; 4]); 3] = [
            ([0.1, -0.2, 0.0, 3.0], [0.489_500_02, -1.238_749_9, 0.0, 1.988_000_1]),
            ([0.3, 0.2, 1e-4, -1.0], [0.479_832_7, -1.238_037_6, -0.007_440_316_5, 1.982_009_9]),
            ([-0.5, 0.0, 0.0, 0.25], [0.480_962_04, -1.237_206_5, -0.013_184_079, 1.976_439_9]),
        ];
        for (t, (gradient, expected)) in (1..).zip(steps) {
            Factors::new(&settings, t).apply(&mut w, &mut moments, &gradient);
            for (w, e) in w.iter().zip(expected) {
                assert!((w - e).abs() <= 2e-7 * e.abs().max(1.0), "step {t}: {w} for {e}");
            }
        }
    }

    #[test]
    fn the_norm_is_that_of_all_gradients_together() {
        let mut gradients = vec![vec![3.0, 4.0], vec![12.0]];
        assert_eq!(clip_grad_norm(&mut gradients, 20.0), 13.0);
        assert_eq!(gradients, [vec![3.0, 4.0], vec![12.0]]);
        assert_eq!(clip_grad_norm(&mut gradients, 1.3), 13.0);
        assert!(gradients.iter().flatten().zip([0.3, 0.4, 1.2]).all(|(g, e): (&f32, f32)| (g - e).abs() < 1e-6));
    }
}
