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
    /// Reads `rope_theta` beside `rope_scaling`, or transformers 5's `rope_parameters`. Each value may stand in several places, also
    /// below the name of a layer type; where two places disagree, readers do too, and it is refused.
    pub fn read(config: &RawConfig, max_positions: usize) -> Result<Self> {
        let mut found: Option<(String, Self)> = None;
        for key in ["rope_scaling", "rope_parameters"] {
            for (place, fields) in objects(config, key)? {
                let rope = Fields { place: &place, fields: &fields, config, max_positions }.rope()?;
                match &found {
                    Some((first, other)) if *other != rope => {
                        let why =
                            format!("`{first}` and `{place}` mean different rotary embeddings; one of them must go");
                        return Err(refuse("config.json", why));
                    }
                    _ => found = Some((place, rope)),
                }
            }
        }
        match found {
            Some((_, rope)) => Ok(rope),
            None => Fields { place: "rope_parameters", fields: &Map::new(), config, max_positions }.rope(),
        }
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

/// Layer types that rotate, below whose names `rope_parameters` may be nested.
const LAYER_TYPES: [&str; 2] = ["full_attention", "sliding_attention"];

/// The objects that a field holds: itself, or one for each layer type that it names, completed by what stands beside them.
fn objects(config: &RawConfig, key: &str) -> Result<Vec<(String, Map<String, Value>)>> {
    let bad = |place: &str, value: &Value| refuse("config.json", format!("`{place}` is {value}; it must be an object"));
    let Some(value) = config.get(key) else { return Ok(Vec::new()) };
    let all = value.as_object().ok_or_else(|| bad(key, value))?;
    let beside: Map<String, Value> =
        all.iter().filter(|(k, _)| !k.ends_with("_attention")).map(|(k, v)| (k.clone(), v.clone())).collect();
    let mut out = Vec::new();
    for kind in LAYER_TYPES {
        let Some(value) = all.get(kind).filter(|v| !v.is_null()) else { continue };
        let place = format!("{key}.{kind}");
        let mut fields = beside.clone();
        fields.extend(value.as_object().ok_or_else(|| bad(&place, value))?.clone());
        out.push((place, fields));
    }
    if out.is_empty() && !beside.is_empty() {
        out.push((key.to_string(), beside));
    }
    Ok(out)
}

struct Fields<'a> {
    /// Where they stand, for messages.
    place: &'a str,
    fields: &'a Map<String, Value>,
    config: &'a RawConfig,
    max_positions: usize,
}

impl Fields<'_> {
    fn rope(&self) -> Result<RopeConfig> {
        let theta = self.or_beside("rope_theta")?;
        let theta = theta.ok_or_else(|| refuse("config.json", "`rope_theta` is missing".to_string()))?;
        if theta.is_nan() || theta < 1.0 {
            return Err(refuse("config.json", format!("`rope_theta` is {theta}; it must be at least 1")));
        }
        let word = |key: &str| self.fields.get(key).filter(|v| !v.is_null());
        let kind = match word("rope_type").or_else(|| word("type")) {
            None => None,
            Some(Value::String(kind)) => Some(kind.as_str()),
            Some(other) => {
                return Err(refuse("config.json", format!("`{}.rope_type` is {other}; it must be a text", self.place)));
            }
        };
        let scaling = match kind {
            // `mrope` gives images three positions; text has one, and then it is the plain embedding.
            None | Some("default" | "mrope") => RopeScaling::None,
            Some(kind) => self.scaling(kind)?,
        };
        let partial = self.or_beside("partial_rotary_factor")?.unwrap_or(1.0);
        let refused = |why: &str| Err(refuse("config.json", format!("`partial_rotary_factor` is {partial}; {why}")));
        // A family without this field rotates whole heads, as its transformers class does, which cannot run it beside scaling.
        let partial = match (self.config.reads("partial_rotary_factor"), &scaling) {
            (true, _) if partial > 0.0 && partial <= 1.0 => partial,
            (true, _) => return refused("it must be above 0 and at most 1"),
            (false, RopeScaling::None) => 1.0,
            (false, _) if partial == 1.0 => 1.0,
            (false, _) => return refused("this family does not have it beside rope scaling"),
        };
        Ok(RopeConfig { theta, partial, scaling })
    }

    /// A number that may also stand beside the object, or has a default.
    fn or_beside(&self, key: &str) -> Result<Option<f64>> {
        let (within, beside) = (self.optional(key)?, self.config.number_opt(key)?);
        match (within, beside) {
            (Some(a), Some(b)) if a != b && self.config.given(key).is_some() => Err(refuse(
                "config.json",
                format!(
                    "`{key}` is {b}, and {a} in `{}`; readers of config.json take either, so one must go",
                    self.place
                ),
            )),
            _ => Ok(within.or(beside)),
        }
    }

    fn optional(&self, key: &str) -> Result<Option<f64>> {
        self.fields.get(key).filter(|v| !v.is_null()).map(|v| number(&format!("{}.{key}", self.place), v)).transpose()
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
        let original = self.or_beside("original_max_position_embeddings")?.unwrap_or(self.max_positions as f64);
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
                // Where `factor` is null, it is the ratio of the two lengths.
                let factor = match self.fields.get("factor") {
                    Some(Value::Null) => self.max_positions as f64 / original,
                    _ => self.positive("factor", self.required("factor")?)?,
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

    fn read_as(family: &str, text: &str) -> Result<RopeConfig> {
        let fields = crate::families::FAMILIES.iter().find(|f| f.model_type == family).unwrap().fields;
        let raw = RawConfig::parse(&format!(r#"{{"model_type":"{family}",{text}}}"#)).unwrap();
        RopeConfig::read(&raw.of_family(false, &[], fields)?, 64)
    }

    fn read(text: &str) -> Result<RopeConfig> {
        read_as("llama", text)
    }

    #[test]
    fn reads_both_generations() {
        let old = read(r#""rope_theta":5e5,"rope_scaling":{"type":"linear","factor":2}"#);
        let linear = RopeConfig { theta: 5e5, partial: 1.0, scaling: RopeScaling::Linear { factor: 2.0 } };
        assert_eq!(old.unwrap(), linear);
        let new = r#""rope_parameters":{"rope_theta":1e6,"rope_type":"default","partial_rotary_factor":0.5}"#;
        let plain = |partial| RopeConfig { theta: 1e6, partial, scaling: RopeScaling::None };
        assert_eq!(read_as("qwen3_next", new).unwrap(), plain(0.5));
        assert_eq!(read(new).unwrap(), plain(1.0), "Llama rotates whole heads");
    }

    #[test]
    fn a_value_may_stand_anywhere_and_must_be_one() {
        let theta = |text: &str| read(text).unwrap().theta;
        assert_eq!(theta(r#""rope_theta":1e6,"rope_scaling":null"#), 1e6);
        assert_eq!(theta(r#""rope_scaling":{"rope_theta":1e6}"#), 1e6);
        assert_eq!(theta(r#""rope_theta":1e6,"rope_scaling":{},"rope_parameters":{"rope_theta":1000000}"#), 1e6);
        assert_eq!(theta(r#""rope_parameters":{"full_attention":{"rope_type":"default","rope_theta":1e6}}"#), 1e6);
        assert_eq!(theta(r#""rope_theta":1e6,"rope_parameters":{"sliding_attention":{},"full_attention":null}"#), 1e6);
        for disagree in [
            r#""rope_theta":1e4,"rope_parameters":{"rope_theta":1e6}"#,
            r#""rope_theta":1e4,"rope_parameters":{"full_attention":{"rope_theta":1e6}}"#,
            r#""rope_scaling":{"type":"linear","factor":2},"rope_parameters":{"rope_theta":1e6}"#,
            r#""rope_parameters":{"full_attention":{"rope_theta":1e6},"sliding_attention":{"rope_theta":1e4}}"#,
            r#""original_max_position_embeddings":8,"rope_scaling":{"type":"yarn","factor":2,"original_max_position_embeddings":9}"#,
        ] {
            assert!(read(disagree).unwrap_err().to_string().contains("one "), "{disagree}");
        }
    }

    #[test]
    fn dynamic_scaling_is_plain_up_to_the_original_length() {
        let dynamic = read(r#""rope_scaling":{"type":"dynamic","factor":4},"rope_theta":1e4"#).unwrap();
        let plain = RopeConfig { scaling: RopeScaling::None, ..dynamic.clone() };
        assert_eq!(dynamic.inv_freq(16, 64), plain.inv_freq(16, 64));
        assert!(dynamic.inv_freq(16, 65)[7] < plain.inv_freq(16, 65)[7]);
    }

    #[test]
    fn nonsense_is_refused_with_the_field() {
        for (bad, field) in [
            (r#""rope_scaling":{"rope_type":"longrope"}"#, "longrope"),
            (r#""rope_scaling":{"rope_type":"linear"}"#, "`factor`"),
            (r#""rope_scaling":{"rope_type":"yarn"}"#, "`factor`"),
            (r#""rope_scaling":{"rope_type":"yarn","factor":-1}"#, "`factor` is -1"),
            (
                r#""rope_scaling":{"rope_type":"linear","factor":2,"partial_rotary_factor":0.5}"#,
                "partial_rotary_factor",
            ),
            (r#""rope_scaling":{"rope_type":8}"#, "rope_type"),
            (r#""rope_scaling":"linear""#, "rope_scaling"),
            (r#""rope_parameters":{"full_attention":7}"#, "full_attention"),
            (r#""rope_theta":0"#, "rope_theta"),
        ] {
            assert!(read(bad).unwrap_err().to_string().contains(field), "{bad}");
        }
        assert!(read_as("qwen3_next", r#""partial_rotary_factor":1.5"#).unwrap_err().to_string().contains("is 1.5"));
    }
}
