//! Rotary position embedding: what config.json says about it, and its frequencies, as transformers computes them
//! (`modeling_rope_utils.py`).

use std::f64::consts::PI;

use serde_json::{Map, Value};

use crate::config::{RawConfig, number, refuse};
use crate::error::Result;

/// Rotary position embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Share of a head's dimensions that is rotated (the first ones).
    pub partial: f64,
    /// How frequencies are stretched.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are stretched for long contexts.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Positions divided by `factor`.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// The base grows with the length of the sequence beyond `original` (dynamic NTK).
    Dynamic {
        /// Growth.
        factor: f64,
        /// `max_position_embeddings`.
        original: usize,
    },
    /// Llama 3.1's interpolation by wavelength.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// `low_freq_factor`.
        low: f64,
        /// `high_freq_factor`.
        high: f64,
        /// `original_max_position_embeddings`.
        original: f64,
    },
    /// YaRN: low frequencies are interpolated, high ones are not, with a ramp between them.
    Yarn {
        /// Divisor of low frequencies.
        factor: f64,
        /// Rotations within `original` above which a frequency stays.
        beta_fast: f64,
        /// Rotations within `original` below which a frequency is divided.
        beta_slow: f64,
        /// `original_max_position_embeddings`.
        original: f64,
        /// Whether the ends of the ramp are rounded to whole dimensions.
        truncate: bool,
        /// Factor of cos and sin.
        attention_factor: f64,
        /// `mscale_all_dim`, where it is given: DeepSeek scales the softmax by the square of its mscale.
        mscale_all_dim: Option<f64>,
    },
}

impl RopeConfig {
    /// Reads `rope_theta` + `rope_scaling`, or transformers 5's `rope_parameters`.
    pub fn read(config: &RawConfig, max_positions: usize) -> Result<Self> {
        let params = config.get("rope_parameters").and_then(Value::as_object);
        let scaling = config.get("rope_scaling").and_then(Value::as_object).or(params);
        let theta = match params.and_then(|p| p.get("rope_theta")) {
            Some(v) => number("rope_parameters.rope_theta", v)?,
            None => config.number("rope_theta")?.unwrap_or(10_000.0),
        };
        if theta.is_nan() || theta < 1.0 {
            return Err(refuse("config.json", format!("`rope_theta` is {theta}; it must be at least 1")));
        }
        let partial = match params.and_then(|p| p.get("partial_rotary_factor")) {
            Some(v) => Some(number("rope_parameters.partial_rotary_factor", v)?),
            None => config.number("partial_rotary_factor")?,
        };
        let partial = partial.unwrap_or(1.0);
        if !(partial > 0.0 && partial <= 1.0) {
            return Err(refuse(
                "config.json",
                format!("`partial_rotary_factor` is {partial}; it must be above 0 and at most 1"),
            ));
        }
        let kind = scaling.and_then(|s| s.get("rope_type").or(s.get("type"))).and_then(Value::as_str);
        let scaling = match (kind, scaling) {
            // `mrope` gives images three positions; text has one, and then it is the plain embedding.
            (None | Some("default" | "mrope"), _) | (_, None) => RopeScaling::None,
            (Some(kind), Some(fields)) => Fields { fields, max_positions }.scaling(kind)?,
        };
        Ok(Self { theta, partial, scaling })
    }

    /// Dimensions of a head of `head_dim` that are rotated.
    pub fn rotary_dim(&self, head_dim: usize) -> usize {
        (head_dim as f64 * self.partial) as usize
    }

    /// Inverse frequencies of the `dim / 2` rotated pairs, in f32 as transformers computes them, for a sequence of
    /// `length` tokens (which only dynamic scaling looks at).
    pub fn inv_freq(&self, dim: usize, length: usize) -> Vec<f32> {
        let theta = match self.scaling {
            RopeScaling::Dynamic { factor, original } if length > original && dim > 2 => {
                let stretch = factor * length as f64 / original as f64 - (factor - 1.0);
                self.theta * stretch.powf(dim as f64 / (dim as f64 - 2.0))
            }
            _ => self.theta,
        };
        let plain = |i: usize| 1.0 / (theta as f32).powf((2 * i) as f32 / dim as f32);
        let ramp = self.yarn_ramp(dim);
        (0..dim / 2)
            .map(|i| match self.scaling {
                RopeScaling::None | RopeScaling::Dynamic { .. } => plain(i),
                RopeScaling::Linear { factor } => plain(i) / factor as f32,
                RopeScaling::Llama3 { factor, low, high, original } => {
                    let plain = plain(i);
                    let wavelength = 2.0 * std::f32::consts::PI / plain;
                    let (factor, low, high, original) = (factor as f32, low as f32, high as f32, original as f32);
                    if wavelength > original / low {
                        plain / factor
                    } else if wavelength < original / high {
                        plain
                    } else {
                        let smooth = (original / wavelength - low) / (high - low);
                        (1.0 - smooth) * plain / factor + smooth * plain
                    }
                }
                RopeScaling::Yarn { factor, .. } => {
                    let frequency = (theta as f32).powf((2 * i) as f32 / dim as f32);
                    let (kept, divided) = (1.0 / frequency, 1.0 / (factor as f32 * frequency));
                    let share = 1.0 - ramp.map_or(0.0, |(low, high)| ((i as f32 - low) / (high - low)).clamp(0.0, 1.0));
                    divided * (1.0 - share) + kept * share
                }
            })
            .collect()
    }

    /// Where YaRN's ramp begins and ends, in pairs of dimensions.
    fn yarn_ramp(&self, dim: usize) -> Option<(f32, f32)> {
        let RopeScaling::Yarn { beta_fast, beta_slow, original, truncate, .. } = self.scaling else { return None };
        let at = |rotations: f64| dim as f64 * (original / (rotations * 2.0 * PI)).ln() / (2.0 * self.theta.ln());
        let (mut low, mut high) = (at(beta_fast), at(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(dim as f64 - 1.0));
        if low == high {
            high += 0.001;
        }
        Some((low as f32, high as f32))
    }

    /// Factor of cos and sin.
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor as f32,
            _ => 1.0,
        }
    }

    /// Factor of the softmax scale of latent attention: DeepSeek's mscale of `mscale_all_dim`, squared.
    pub fn softmax_factor(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn { factor, mscale_all_dim: Some(m), .. } if m != 0.0 => mscale(factor, m).powi(2) as f32,
            _ => 1.0,
        }
    }
}

/// `yarn_get_mscale`.
fn mscale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

struct Fields<'a> {
    fields: &'a Map<String, Value>,
    max_positions: usize,
}

impl Fields<'_> {
    fn optional(&self, key: &str) -> Result<Option<f64>> {
        self.fields.get(key).filter(|v| !v.is_null()).map(|v| number(key, v)).transpose()
    }

    fn required(&self, key: &str) -> Result<f64> {
        self.optional(key)?.ok_or_else(|| refuse("config.json", format!("rope scaling needs `{key}`")))
    }

    fn positive(&self, key: &str, value: f64) -> Result<f64> {
        if value > 0.0 {
            return Ok(value);
        }
        Err(refuse("config.json", format!("rope scaling's `{key}` is {value}; it must be above 0")))
    }

    fn scaling(&self, kind: &str) -> Result<RopeScaling> {
        let original = self.optional("original_max_position_embeddings")?.unwrap_or(self.max_positions as f64);
        let original = self.positive("original_max_position_embeddings", original)?;
        let factor = || self.positive("factor", self.required("factor")?);
        Ok(match kind {
            "linear" => RopeScaling::Linear { factor: factor()? },
            "dynamic" => RopeScaling::Dynamic { factor: factor()?, original: self.max_positions },
            "llama3" => RopeScaling::Llama3 {
                factor: factor()?,
                low: self.positive("low_freq_factor", self.required("low_freq_factor")?)?,
                high: self.positive("high_freq_factor", self.required("high_freq_factor")?)?,
                original,
            },
            "yarn" => {
                // Without `factor`, it is the ratio of the two lengths.
                let factor = match self.optional("factor")? {
                    Some(f) => self.positive("factor", f)?,
                    None => self.max_positions as f64 / original,
                };
                let (plain, all_dim) = (self.optional("mscale")?, self.optional("mscale_all_dim")?);
                let attention_factor = match (self.optional("attention_factor")?, plain, all_dim) {
                    (Some(given), _, _) => given,
                    (None, Some(m), Some(all)) if m != 0.0 && all != 0.0 => mscale(factor, m) / mscale(factor, all),
                    _ => mscale(factor, 1.0),
                };
                let beta = |key: &str, default: f64| -> Result<f64> {
                    let given = self.optional(key)?.filter(|b| *b != 0.0);
                    self.positive(key, given.unwrap_or(default))
                };
                RopeScaling::Yarn {
                    factor,
                    beta_fast: beta("beta_fast", 32.0)?,
                    beta_slow: beta("beta_slow", 1.0)?,
                    original,
                    truncate: self.fields.get("truncate").and_then(Value::as_bool).unwrap_or(true),
                    attention_factor,
                    mscale_all_dim: all_dim,
                }
            }
            other => {
                return Err(refuse(
                    "config.json",
                    format!("rope scaling `{other}` is not supported (default, linear, dynamic, llama3 and yarn are)"),
                ));
            }
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(text: &str) -> Result<RopeConfig> {
        RopeConfig::read(&RawConfig::parse(text).unwrap(), 64)
    }

    #[test]
    fn reads_both_generations() {
        let old = read(r#"{"model_type":"llama","rope_theta":5e5,"rope_scaling":{"type":"linear","factor":2}}"#);
        let linear = RopeConfig { theta: 5e5, partial: 1.0, scaling: RopeScaling::Linear { factor: 2.0 } };
        assert_eq!(old.unwrap(), linear);
        let new = r#"{"model_type":"llama","rope_parameters":{"rope_theta":1e6,"rope_type":"default","partial_rotary_factor":0.25}}"#;
        assert_eq!(read(new).unwrap(), RopeConfig { theta: 1e6, partial: 0.25, scaling: RopeScaling::None });
    }

    #[test]
    fn dynamic_scaling_is_plain_up_to_the_original_length() {
        let dynamic =
            read(r#"{"model_type":"llama","rope_scaling":{"type":"dynamic","factor":4},"rope_theta":1e4}"#).unwrap();
        let plain = RopeConfig { scaling: RopeScaling::None, ..dynamic.clone() };
        assert_eq!(dynamic.inv_freq(16, 64), plain.inv_freq(16, 64));
        assert!(dynamic.inv_freq(16, 65)[7] < plain.inv_freq(16, 65)[7]);
    }

    #[test]
    fn nonsense_is_refused_with_the_field() {
        for (bad, field) in [
            (r#"{"model_type":"llama","rope_scaling":{"rope_type":"longrope"}}"#, "longrope"),
            (r#"{"model_type":"llama","rope_scaling":{"rope_type":"linear"}}"#, "`factor`"),
            (r#"{"model_type":"llama","rope_scaling":{"rope_type":"yarn","factor":-1}}"#, "`factor` is -1"),
            (r#"{"model_type":"llama","partial_rotary_factor":1.5}"#, "partial_rotary_factor"),
            (r#"{"model_type":"llama","rope_theta":0}"#, "rope_theta"),
        ] {
            assert!(read(bad).unwrap_err().to_string().contains(field), "{bad}");
        }
    }
}
