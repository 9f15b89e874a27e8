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
        Self { lr: 3e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
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
        let AdamWSettings { lr, beta1, beta2, eps, weight_decay } = self.settings;
        let correct = |beta: f64| 1.0 - beta.powi(i32::try_from(self.updates).unwrap_or(i32::MAX));
        let step = (lr / correct(beta1)) as f32;
        let root = (1.0 / correct(beta2).sqrt()) as f32;
        let keep = (1.0 - lr * weight_decay) as f32;
        let (b1, b2, eps) = (beta1 as f32, beta2 as f32, eps as f32);
        let (c1, c2) = ((1.0 - beta1) as f32, (1.0 - beta2) as f32);
        for ((master, moments), gradient) in masters.all().iter().zip(&mut self.moments).zip(gradients) {
            let mut values = master.values()?;
            let state = moments.m.par_iter_mut().zip(&mut moments.v);
            values.par_iter_mut().zip(state).zip(gradient).with_min_len(1 << 14).for_each(|((w, (m, v)), g)| {
                *m = b1 * *m + c1 * g;
                *v = b2 * *v + c2 * (g * g);
                *w = *w * keep - step * *m / (v.sqrt() * root + eps);
            });
            master.set(values)?;
        }
        Ok(())
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
