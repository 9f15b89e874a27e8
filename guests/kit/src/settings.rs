//! What `--set key=value` means for the quantization patches.

use crate::numeric::{EdgeRule, Profile, Recipe};
use crate::types::{ActivationRule, Contract, Edges, Needs, ScaleFormat, Scheme};

/// Who decides which tensors are quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// The runtime's tensor registry: role, dtype and shape.
    Registry,
    /// The name rule of verl's SGLang code, hazards included (routers become FP8, Mixtral's experts do not).
    VerlSglang,
}

/// The globs and the policy: which tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    /// Who decides.
    pub policy: Policy,
    /// Never quantized.
    pub keep: Vec<String>,
    /// Quantized although the policy would not.
    pub quantize: Vec<String>,
}

/// What both quantization patches understand.
#[derive(Debug, Clone, PartialEq)]
pub struct Common {
    /// Rows and columns of a block.
    pub block: (u32, u32),
    /// Scales are powers of two.
    pub pow2: bool,
    /// The host applies the activation rule itself; otherwise it calls `activation-scales`.
    pub activation_rule: bool,
    /// Which tensors.
    pub selection: Selection,
}

/// Keys that both patches know.
const COMMON_KEYS: &str = "scale_format, block, activation, keep, quantize, policy";

impl Default for Common {
    fn default() -> Self {
        Self {
            block: (128, 128),
            pow2: false,
            activation_rule: true,
            selection: Selection { policy: Policy::Registry, keep: Vec::new(), quantize: Vec::new() },
        }
    }
}

impl Common {
    /// Takes one pair; `false` if the key is not one of the common ones.
    fn take(&mut self, key: &str, value: &str) -> Result<bool, String> {
        match key {
            "scale_format" => self.pow2 = choice(key, value, &[("f32", false), ("ue8m0", true)])?,
            "block" => self.block = block(value)?,
            "activation" => self.activation_rule = choice(key, value, &[("rule", true), ("call", false)])?,
            "keep" => self.selection.keep = globs(key, value)?,
            "quantize" => self.selection.quantize = globs(key, value)?,
            "policy" => {
                let known = [("registry", Policy::Registry), ("verl-sglang", Policy::VerlSglang)];
                self.selection.policy = choice(key, value, &known)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The scale format in the words of the interface.
    fn format(&self) -> ScaleFormat {
        if self.pow2 { ScaleFormat::Ue8m0 } else { ScaleFormat::F32 }
    }
}

/// The settings of `fp8_block`.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockSettings {
    /// What both patches understand.
    pub common: Common,
    /// Which arithmetic.
    pub profile: Profile,
    /// What happens to blocks that are not finite.
    pub edges: EdgeRule,
    /// f32 and f16 weights are rounded to bf16 first.
    pub round_bf16: bool,
    /// Ask the host for sums of squares too.
    pub moments: bool,
}

impl Default for BlockSettings {
    fn default() -> Self {
        Self {
            common: Common::default(),
            profile: Profile::VerlTorch,
            edges: EdgeRule::Strict,
            round_bf16: false,
            moments: false,
        }
    }
}

impl BlockSettings {
    /// Reads the pairs; an error names the key, the value and what is known instead.
    pub fn parse<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, String> {
        let mut s = Self::default();
        let mut seen = Vec::new();
        for (key, value) in pairs {
            once(&mut seen, key)?;
            match key {
                "profile" => s.profile = choice(key, value, &Profile::ALL)?,
                "edges" => {
                    let known = [
                        ("strict", EdgeRule::Strict),
                        ("seed-torch", EdgeRule::SeedTorch),
                        ("seed-triton", EdgeRule::SeedTriton),
                    ];
                    s.edges = choice(key, value, &known)?;
                }
                "round" => s.round_bf16 = choice(key, value, &[("none", false), ("bf16", true)])?,
                "stats" => s.moments = choice(key, value, &[("amax", false), ("moments", true)])?,
                _ if s.common.take(key, value)? => {}
                _ => return Err(unknown(key, &format!("profile, edges, round, stats, {COMMON_KEYS}"))),
            }
        }
        s.check()?;
        Ok(s)
    }

    /// Edges belong to the formulas they were seen in.
    fn check(&self) -> Result<(), String> {
        let has_eps = self.profile.eps() > 0.0;
        match self.edges {
            EdgeRule::SeedTorch if self.profile != Profile::VerlTorch => {
                Err("edges=seed-torch is what verl's PyTorch path does, so it needs profile=verl-torch; \
                 choose that profile, or edges=strict"
                    .into())
            }
            EdgeRule::SeedTriton if !has_eps => {
                Err("edges=seed-triton is what kernels with an eps do, so it needs profile=verl-triton, deepseek, \
                 vllm-group, deepgemm or slime; choose one of them, or edges=strict"
                    .into())
            }
            _ => Ok(()),
        }
    }

    /// From amax to a scale.
    pub fn recipe(&self) -> Recipe {
        Recipe { profile: self.profile, pow2: self.common.pow2, edges: self.edges }
    }

    /// The scheme of every tensor that is quantized.
    pub fn scheme(&self) -> Scheme {
        let recipe = self.recipe();
        Scheme {
            block_rows: self.common.block.0,
            block_cols: self.common.block.1,
            format: self.common.format(),
            needs: if self.moments { Needs::Moments } else { Needs::Amax },
            cast: recipe.cast(),
            edges: match self.edges {
                EdgeRule::Strict => Edges::Strict,
                EdgeRule::SeedTorch => Edges::PropagateNan,
                EdgeRule::SeedTriton => Edges::IgnoreNan,
            },
            floor: recipe.floor(),
            contract: if self.common.pow2 { Contract::Pow2 } else { Contract::Amax },
            round_bf16: self.round_bf16,
            profile: self.profile.name(),
        }
    }

    /// How activations are scaled.
    pub fn activation(&self) -> ActivationRule {
        activation(self.profile.activation_eps(), &self.common)
    }
}

/// The settings of `fp8_block_mse`.
#[derive(Debug, Clone, PartialEq)]
pub struct MseSettings {
    /// What both patches understand.
    pub common: Common,
    /// How many scales are tried for each block.
    pub candidates: usize,
    /// Smallest and largest factor on `amax / 448`.
    pub range: (f32, f32),
    /// The share of a block's values that may saturate.
    pub clip: f32,
}

/// Most candidates for one block; each costs some 400 vector instructions, however large the block is.
pub const MAX_CANDIDATES: usize = 64;

impl Default for MseSettings {
    fn default() -> Self {
        Self { common: Common::default(), candidates: 16, range: (1.0, 1.95), clip: 0.01 }
    }
}

impl MseSettings {
    /// Reads the pairs; an error names the key, the value and what is known instead.
    pub fn parse<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, String> {
        let mut s = Self::default();
        let mut seen = Vec::new();
        for (key, value) in pairs {
            once(&mut seen, key)?;
            match key {
                "candidates" => match value.parse() {
                    Ok(n) if (1..=MAX_CANDIDATES).contains(&n) => s.candidates = n,
                    _ => return Err(bad(key, value, "a whole number from 1 to 64")),
                },
                "range" => s.range = range(value)?,
                "clip" => match value.parse() {
                    Ok(r) if (0.0..=0.05).contains(&r) => s.clip = r,
                    _ => return Err(bad(key, value, "a share from 0 to 0.05")),
                },
                _ if s.common.take(key, value)? => {}
                _ => return Err(unknown(key, &format!("candidates, range, clip, {COMMON_KEYS}"))),
            }
        }
        Ok(s)
    }

    /// The scheme of every tensor that is quantized. f32 and f16 weights are rounded to bf16 first, because the rows
    /// that this patch reads are bf16: so what it measures is what the cast sees.
    pub fn scheme(&self) -> Scheme {
        Scheme {
            block_rows: self.common.block.0,
            block_cols: self.common.block.1,
            format: self.common.format(),
            needs: Needs::Rows,
            cast: crate::types::Cast::Reciprocal,
            edges: Edges::Strict,
            floor: crate::mse::FLOOR,
            contract: Contract::Clip(self.clip),
            round_bf16: true,
            profile: "mse",
        }
    }

    /// How activations are scaled.
    pub fn activation(&self) -> ActivationRule {
        activation(1e-10, &self.common)
    }
}

fn activation(eps: f32, common: &Common) -> ActivationRule {
    ActivationRule { eps, divisor: crate::numeric::F8_MAX, pow2_up: common.pow2 }
}

impl ActivationRule {
    /// The scales of groups of activations, by the same rule that the host would apply itself.
    pub fn scales(&self, amax: &[f32]) -> Result<Vec<f32>, String> {
        let mut out = Vec::with_capacity(amax.len());
        for (i, &a) in amax.iter().enumerate() {
            if !a.is_finite() {
                return Err(format!("activation group {i} holds NaN or infinity; the layer before it overflowed"));
            }
            let s = a.max(self.eps) / self.divisor;
            out.push(if self.pow2_up { crate::numeric::pow2_up(s) } else { s });
        }
        Ok(out)
    }
}

fn once<'a>(seen: &mut Vec<&'a str>, key: &'a str) -> Result<(), String> {
    if seen.contains(&key) {
        return Err(format!("setting `{key}` is given twice; give it once"));
    }
    seen.push(key);
    Ok(())
}

fn unknown(key: &str, known: &str) -> String {
    format!("unknown setting `{key}`; known are: {known}")
}

fn bad(key: &str, value: &str, expected: &str) -> String {
    format!("setting `{key}={value}` is not valid; expected {expected}")
}

fn choice<T: Copy>(key: &str, value: &str, known: &[(&'static str, T)]) -> Result<T, String> {
    match known.iter().find(|(name, _)| *name == value) {
        Some((_, v)) => Ok(*v),
        None => {
            let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            Err(bad(key, value, &format!("one of {}", names.join(", "))))
        }
    }
}

fn block(value: &str) -> Result<(u32, u32), String> {
    let side = |text: &str| text.parse::<u32>().ok().filter(|n| (1..=4096).contains(n));
    let parsed = value.split_once('x').and_then(|(r, c)| Some((side(r)?, side(c)?)));
    parsed.ok_or_else(|| bad("block", value, "ROWSxCOLS, each from 1 to 4096, such as 128x128"))
}

fn range(value: &str) -> Result<(f32, f32), String> {
    let parsed = value.split_once("..").and_then(|(lo, hi)| Some((lo.parse().ok()?, hi.parse().ok()?)));
    match parsed {
        Some((lo, hi)) if (0.5..=hi).contains(&lo) && hi <= crate::mse::MAX_FACTOR => Ok((lo, hi)),
        _ => Err(bad("range", value, "LOW..HIGH with 0.5 <= LOW <= HIGH <= 1.99, such as 1.0..1.95")),
    }
}

fn globs(key: &str, value: &str) -> Result<Vec<String>, String> {
    let list: Vec<String> = value.split(',').map(|g| g.trim().to_string()).collect();
    if list.iter().any(String::is_empty) {
        return Err(bad(key, value, "GLOB or GLOB,GLOB,… with no empty entry"));
    }
    Ok(list)
}
