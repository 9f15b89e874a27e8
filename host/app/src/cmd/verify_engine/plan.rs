//! `patchhost verify-engine plan`: tiny models and a list of updates, as a folder that any kit can read.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::certify::{Case, Expect, FAMILIES, Family, Kind, Made, Wanted, make};
use crate::cmd::Call;
use crate::cmd::args::Format;
use crate::cmd::failure::Result;
use crate::cmd::output::{json, plural};

/// Write tiny models of a family and a list of right and faulty updates, for a kit that drives an engine itself
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The family of the tiny model: qwen3, qwen3-tied, llama, llama-tied, qwen3_moe, qwen3_moe-tied or mixtral
    #[arg(long, value_name = "FAMILY", value_parser = family)]
    pub family: &'static Family,
    /// The same seed gives the same folder, byte for byte
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// How many updates; the first ones are always the same
    #[arg(long, value_name = "M", default_value_t = 60, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub cases: u16,
    /// Experts of a width that engines pad (48)
    #[arg(long)]
    pub padded: bool,
    /// The folder to write: it must be empty, or not exist yet
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// A family by its name, for `--family`.
pub(super) fn family(name: &str) -> Result<&'static Family, String> {
    let names = || FAMILIES.iter().map(|f| f.name).collect::<Vec<_>>().join(", ");
    Family::find(name).ok_or_else(|| format!("the kit can make {}", names()))
}

pub fn run(args: &Args, call: &Call) -> Result {
    let wanted = Wanted { family: args.family, seed: args.seed, cases: usize::from(args.cases), padded: args.padded };
    let Made { plan, .. } = make(wanted, &args.out)?;
    let count = |expect| plan.cases.iter().filter(|c| c.expect == expect).count();
    let (accepted, refused) = (count(Expect::Accept), count(Expect::Refuse));
    if call.format == Format::Json {
        return json(&serde_json::json!({
            "out": args.out, "family": plan.family, "architecture": plan.architecture, "seed": plan.seed,
            "checkpoints": plan.checkpoints.len(), "cases": plan.cases.len(),
            "to_accept": accepted, "to_refuse": refused,
        }));
    }
    outln!("plan for {} ({}), seed {}, in {}", plan.family, plan.architecture, plan.seed, args.out.display());
    for held in &plan.checkpoints {
        outln!("  {:5} {}  {}", held.name, &held.sha256[..12.min(held.sha256.len())], held.change);
    }
    outln!("{}: {accepted} to accept, {refused} to refuse", plural(plan.cases.len(), "update"));
    let mut kinds: BTreeMap<Kind, Vec<&Case>> = BTreeMap::new();
    for case in &plan.cases {
        kinds.entry(case.kind).or_default().push(case);
    }
    for (kind, cases) in kinds {
        outln!("  {:14} {:4}  {}", kind.name(), cases.len(), classes(&cases));
    }
    Ok(())
}

/// "3 expert, 1 norm".
fn classes(cases: &[&Case]) -> String {
    let mut classes: BTreeMap<String, usize> = BTreeMap::new();
    for case in cases {
        *classes.entry(crate::certify::class_name(case.class).to_owned()).or_default() += 1;
    }
    classes.iter().map(|(class, n)| format!("{n} {class}")).collect::<Vec<_>>().join(", ")
}
