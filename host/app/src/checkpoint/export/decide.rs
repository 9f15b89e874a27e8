//! What becomes FP8 in an export: the patch's decision, then the rules of the reader. Every rule leaves its reason.

use std::collections::{BTreeMap, HashSet};

use patchhost_runtime::hooks::{BlockQuant, Decision, Dtype, ModelInfo, Role, ScaleFormat, Scheme, TensorInfo};
use patchhost_runtime::quantize::{edges_name, grid};
use patchhost_runtime::refit::{Outcome, TensorOutcome};
use safetensors::tensor::Dtype as Stored;

use super::consumer::Agreement;
use super::{Consumer, Output, Result, refused, usage};

/// What the user chose.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Quantize matrices whose sizes are not multiples of the block, too.
    pub allow_partial_blocks: bool,
    /// The scale format that was asked for; none: the patch's own.
    pub scale_format: Option<ScaleFormat>,
}

/// What becomes of one tensor.
#[derive(Debug, Clone)]
pub enum Fate {
    /// Copied, with the reason.
    Keep(String),
    /// Becomes FP8.
    Quantize {
        /// How.
        scheme: Box<Scheme>,
        /// Name of the scale tensor (F32).
        scale_name: String,
        /// Its dimensions.
        scale_shape: [usize; 2],
    },
}

/// One tensor of the export.
pub struct Entry {
    /// The tensor.
    pub output: Output,
    /// What becomes of it.
    pub fate: Fate,
}

impl Entry {
    /// Whether it becomes FP8.
    pub fn is_quantized(&self) -> bool {
        matches!(self.fate, Fate::Quantize { .. })
    }

    /// In the words of `explain`.
    pub fn outcome(&self) -> TensorOutcome {
        TensorOutcome {
            name: self.output.name.clone(),
            dtype: dtype(self.output.dtype),
            shape: self.output.shape.iter().map(|d| *d as u64).collect(),
            role: self.output.role,
            target: self.output.target.clone(),
            placed: None,
            host_map: None,
            outcome: match &self.fate {
                Fate::Keep(reason) => Outcome::Kept { reason: reason.clone() },
                Fate::Quantize { scheme, scale_name, scale_shape } => Outcome::Quantized {
                    rule: scheme.rule.clone(),
                    profile: scheme.profile.clone(),
                    scale_name: scale_name.clone(),
                    scale_shape: scale_shape.to_vec(),
                    block: [scheme.block_rows, scheme.block_cols],
                    edges: edges_name(scheme.cast.edges),
                },
            },
        }
    }
}

/// A decided export.
pub struct Plan {
    /// Who reads it.
    pub consumer: Consumer,
    /// Every tensor, by name.
    pub entries: Vec<Entry>,
    /// Rows and columns of a block.
    pub block: [usize; 2],
    /// All scales are powers of two.
    pub ue8m0: bool,
    /// What the user should know.
    pub warnings: Vec<String>,
}

impl Plan {
    /// Asks the patch, applies the rules of the reader, and checks that one config.json can say it all.
    pub fn new(
        consumer: Consumer,
        model: &ModelInfo,
        outputs: Vec<Output>,
        quant: &dyn BlockQuant,
        options: Options,
    ) -> Result<Self> {
        if options.allow_partial_blocks && !consumer.takes_partial_blocks() {
            return Err(usage(
                format!("--allow-partial-blocks for {consumer}"),
                "it derives the block as rows divided by scale rows, so matrices whose sizes are not multiples of the block \
                 would load silently wrong or not at all",
                "leave --allow-partial-blocks away: such matrices stay in their own dtype",
            ));
        }
        let mut fates = ask(&consumer, model, &outputs, quant)?;
        for (output, fate) in outputs.iter().zip(&mut fates) {
            if let Fate::Quantize { scheme, .. } = fate
                && let Some(reason) = stays(output, scheme, &consumer, options)
            {
                *fate = Fate::Keep(reason);
            }
        }
        agree(&consumer, &outputs, &mut fates);
        let plan = Self::checked(consumer, outputs, fates, options, quant.name())?;
        Ok(plan)
    }

    fn checked(
        consumer: Consumer,
        outputs: Vec<Output>,
        fates: Vec<Fate>,
        options: Options,
        patch: &str,
    ) -> Result<Self> {
        let entries: Vec<Entry> = outputs.into_iter().zip(fates).map(|(output, fate)| Entry { output, fate }).collect();
        let names: HashSet<&str> = entries.iter().map(|e| e.output.name.as_str()).collect();
        let mut block: Option<[usize; 2]> = None;
        let (mut pow2, mut quantized, mut partial) = (0usize, 0usize, 0usize);
        for Entry { output, fate } in &entries {
            let Fate::Quantize { scheme, scale_name, .. } = fate else { continue };
            let of_this = [scheme.block_rows, scheme.block_cols];
            if *block.get_or_insert(of_this) != of_this {
                return Err(refused(
                    format!("tensor `{}`", output.name),
                    format!(
                        "patch `{patch}` gives it blocks of {of_this:?}, others have {block:?}; config.json has one size"
                    ),
                    "use one block size (--set block=128x128)",
                ));
            }
            if names.contains(scale_name.as_str()) {
                return Err(refused(
                    format!("tensor `{}`", output.name),
                    format!("the checkpoint already has a tensor `{scale_name}`, the name of its scale"),
                    "give the unquantized checkpoint",
                ));
            }
            quantized += 1;
            pow2 += usize::from(scheme.cast.format == ScaleFormat::Ue8m0);
            partial += usize::from(!whole_blocks(output, scheme));
        }
        if options.scale_format == Some(ScaleFormat::Ue8m0) && pow2 < quantized {
            return Err(refused(
                "--scale-format ue8m0",
                format!("patch `{patch}` gives {} of {quantized} tensors another scale format", quantized - pow2),
                "use a patch that takes the setting, for example fp8_block",
            ));
        }
        let mut warnings = Vec::new();
        if quantized == 0 {
            warnings.push("no tensor becomes FP8; `patchhost explain --for` says why, tensor by tensor".to_string());
        }
        if partial > 0 {
            warnings.push(format!(
                "{partial} FP8 tensors have sizes that are not multiples of the block: transformers loads them silently wrong \
                 or not at all"
            ));
        }
        let ue8m0 = quantized > 0 && pow2 == quantized;
        Ok(Self { consumer, entries, block: block.unwrap_or([128, 128]), ue8m0, warnings })
    }

    /// Refuses a plan by which nothing becomes FP8.
    pub fn require_quantized(&self) -> Result<()> {
        if self.entries.iter().any(Entry::is_quantized) {
            return Ok(());
        }
        let kept = |e: &'_ Entry| match &e.fate {
            Fate::Keep(reason) if e.output.shape.len() > 1 && !never(e.output.role) => Some(reason.clone()),
            _ => None,
        };
        let example = self.entries.iter().find_map(|e| Some(format!("; `{}`: {}", e.output.name, kept(e)?)));
        Err(refused(
            format!("an FP8 export for {}", self.consumer),
            format!("no tensor becomes FP8, all {} are kept{}", self.entries.len(), example.unwrap_or_default()),
            "look at `patchhost explain --for`, which says why for each tensor, or say --allow-unquantized to write it all the same",
        ))
    }
}

/// The patch's decisions; the patch is not asked about what cannot be quantized anyway.
fn ask(consumer: &Consumer, model: &ModelInfo, outputs: &[Output], quant: &dyn BlockQuant) -> Result<Vec<Fate>> {
    let asked: Vec<&Output> = outputs.iter().filter(|o| o.fixed.is_none()).collect();
    let infos: Vec<TensorInfo> = asked
        .iter()
        .map(|o| TensorInfo {
            name: o.name.clone(),
            dtype: dtype(o.dtype),
            shape: o.shape.iter().map(|d| *d as u64).collect(),
            role: o.role,
        })
        .collect();
    let answers =
        quant.decide(model, &consumer.for_patch(), &infos).map_err(patchhost_runtime::error::RuntimeError::from)?;
    let mut answers = answers.into_iter();
    let mut fates = Vec::with_capacity(outputs.len());
    for output in outputs {
        fates.push(match &output.fixed {
            Some(reason) => Fate::Keep(reason.clone()),
            None => match answers.next() {
                Some(Decision::Quantize(scheme)) => chosen(consumer, output, scheme)?,
                Some(Decision::Keep(reason)) => Fate::Keep(reason),
                None => Fate::Keep("the patch said nothing about it".to_string()),
            },
        });
    }
    Ok(fates)
}

fn chosen(consumer: &Consumer, output: &Output, scheme: Scheme) -> Result<Fate> {
    // Kept by `stays`, which says why.
    let [rows, cols] = output.shape[..] else {
        return Ok(Fate::Keep(format!("{}-D; blocks are of matrices", output.shape.len())));
    };
    let scale_name = consumer.scale_name(&output.name, &scheme.scale_suffix).map_err(|why| {
        refused(format!("tensor `{}`", output.name), why, "use a patch that knows this reader, for example fp8_block")
    })?;
    let (grid_rows, grid_cols) = grid(rows, cols, &scheme);
    Ok(Fate::Quantize { scheme: Box::new(scheme), scale_name, scale_shape: [grid_rows, grid_cols] })
}

/// Roles that no reader takes in FP8.
fn never(role: Role) -> bool {
    matches!(role, Role::Embedding | Role::LmHead | Role::Router | Role::Norm | Role::Buffer)
}

/// Why a tensor that the patch would quantize stays as it is.
fn stays(output: &Output, scheme: &Scheme, consumer: &Consumer, options: Options) -> Option<String> {
    if never(output.role) {
        return Some(format!("the patch wants it in FP8, but {consumer} reads this role unquantized only"));
    }
    if output.elem.is_none() {
        return Some(format!("{:?} is not a type that can be quantized", output.dtype));
    }
    if !output.name.ends_with(".weight") {
        return Some(format!("{consumer} finds scales only beside names that end in `.weight`"));
    }
    if output.shape.contains(&0) {
        return Some("it is empty".to_string());
    }
    if !whole_blocks(output, scheme) && !options.allow_partial_blocks {
        return Some(format!(
            "its size {:?} is not a multiple of the {}x{} block (transformers would load it wrong); --allow-partial-blocks \
             quantizes it for other readers",
            output.shape, scheme.block_rows, scheme.block_cols
        ));
    }
    None
}

fn whole_blocks(output: &Output, scheme: &Scheme) -> bool {
    matches!(output.shape[..], [n, k] if n % scheme.block_rows == 0 && k % scheme.block_cols == 0)
}

/// Where the reader fuses modules, all members follow the one that is kept.
fn agree(consumer: &Consumer, outputs: &[Output], fates: &mut [Fate]) {
    let mut groups: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (i, output) in outputs.iter().enumerate() {
        if let Some(group) = group(output, consumer.agreement()) {
            groups.entry(group).or_default().push(i);
        }
    }
    for (module, members) in groups {
        let kept = members.iter().find_map(|i| match &fates[*i] {
            Fate::Keep(reason) => Some((outputs[*i].name.clone(), reason.clone())),
            Fate::Quantize { .. } => None,
        });
        let Some((name, reason)) = kept else { continue };
        for i in members {
            if matches!(fates[i], Fate::Quantize { .. }) {
                fates[i] =
                    Fate::Keep(format!("{consumer} needs all of `{module}` alike, and `{name}` is kept ({reason})"));
            }
        }
    }
}

/// The fused module that a matrix is part of, named as in vLLM.
pub(super) fn group(output: &Output, agreement: Agreement) -> Option<String> {
    if output.shape.len() < 2 || agreement == Agreement::None {
        return None;
    }
    if output.role == Role::Expert {
        return output.name.split_once(".experts.").map(|(block, _)| format!("{block}.experts"));
    }
    if agreement == Agreement::Experts {
        return None;
    }
    let module = output.name.strip_suffix(".weight")?;
    let (parent, last) = module.rsplit_once('.')?;
    if matches!(last, "q_a_proj" | "kv_a_proj_with_mqa") {
        return Some(format!("{parent}.fused_qkv_a_proj"));
    }
    let target = output.target.as_deref()?;
    (target != output.name).then(|| target.strip_suffix(".weight").unwrap_or(target).to_string())
}

/// Element type in the words of the hooks.
pub(super) fn dtype(stored: Stored) -> Dtype {
    match stored {
        Stored::F32 => Dtype::F32,
        Stored::F16 => Dtype::F16,
        Stored::BF16 => Dtype::Bf16,
        Stored::F8_E4M3 => Dtype::F8E4m3,
        Stored::F8_E8M0 => Dtype::F8E8m0,
        Stored::I64 => Dtype::I64,
        Stored::U8 => Dtype::U8,
        _ => Dtype::Other,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::checkpoint::export::tensors::Data;
    use patchhost_runtime::bytes::TensorBytes;
    use patchhost_runtime::hooks::Elem;

    fn output(name: &str, role: Role, target: &str) -> Output {
        Output {
            name: name.to_string(),
            role,
            dtype: Stored::BF16,
            elem: Some(Elem::Bf16),
            shape: vec![128, 128],
            target: Some(target.to_string()),
            fixed: None,
            data: Data::Plain(TensorBytes::new(std::sync::Arc::new(Vec::new()), 0..0).unwrap().into()),
        }
    }

    #[test]
    fn fused_modules_are_those_of_vllm() {
        let of = |name: &str, role, target: &str| group(&output(name, role, target), Agreement::Fused);
        let q_a = of("l.0.self_attn.q_a_proj.weight", Role::Attention, "l.0.self_attn.q_a_proj.weight");
        let kv_a =
            of("l.0.self_attn.kv_a_proj_with_mqa.weight", Role::Attention, "l.0.self_attn.kv_a_proj_with_mqa.weight");
        assert_eq!(q_a.as_deref(), Some("l.0.self_attn.fused_qkv_a_proj"));
        assert_eq!(q_a, kv_a);
        let k = of("l.0.self_attn.k_proj.weight", Role::Attention, "l.0.self_attn.qkv_proj.weight");
        assert_eq!(k.as_deref(), Some("l.0.self_attn.qkv_proj"));
        assert_eq!(of("l.0.self_attn.o_proj.weight", Role::Attention, "l.0.self_attn.o_proj.weight"), None);
        let w1 = of("l.0.mlp.experts.3.w1.weight", Role::Expert, "l.0.mlp.experts.w13_weight");
        let w2 = of("l.0.mlp.experts.0.w2.weight", Role::Expert, "l.0.mlp.experts.w2_weight");
        assert_eq!(w1.as_deref(), Some("l.0.mlp.experts"));
        assert_eq!(w1, w2);
        let stacked = output("l.0.mlp.experts.3.w1.weight", Role::Expert, "l.0.mlp.experts.w13_weight");
        assert_eq!(group(&stacked, Agreement::Experts), w1);
        assert_eq!(group(&stacked, Agreement::None), None);
        // vLLM 0.11 treats the shared expert as a dense module of its own (H7), so does this.
        let shared =
            of("l.0.mlp.shared_expert.up_proj.weight", Role::SharedExpert, "l.0.mlp.shared_expert.gate_up_proj.weight");
        assert_eq!(shared.as_deref(), Some("l.0.mlp.shared_expert.gate_up_proj"));
    }
}
