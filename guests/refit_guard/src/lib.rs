//! Watches refits and vetoes those that do not hold what was promised or what the user demands. Remembers the last refit
//! that it accepted, so that one with fewer tensors is noticed, also after it was swapped for another version of itself.

mod memory;

/// Generated from the WIT.
#[allow(missing_docs, unused, clippy::all)]
mod bindings {
    wit_bindgen::generate!({ path: "../../wit/patch/0.1.0", world: "stateful-observer-patch" });
}

use bindings::exports::patchhost::patch::identity::{self, Info, Target};
use bindings::exports::patchhost::patch::refit_observer::{self, Arrival, Dtype, Verdict};
use bindings::exports::patchhost::patch::state::{self, Snapshot};
use kit::engines::{PATCHHOST, SGLANG, VLLM};
use memory::{Fingerprint, Last};
use std::collections::BTreeSet;
use std::sync::{Mutex, OnceLock, PoisonError};

/// What the user demands.
#[derive(Debug, Default)]
struct Rules {
    /// Globs of which each must match an arrival.
    require: Vec<String>,
    /// Globs that no arrival may match.
    forbid: Vec<String>,
    /// Globs and the dtype that their tensors must have.
    dtypes: Vec<(String, String)>,
    /// Names and the digest that they must have.
    sha256: Vec<(String, String)>,
    /// Whether a refit must bring the tensors of the one before.
    same_names: bool,
}

/// One refit, as far as it was seen.
#[derive(Debug, Default)]
struct Seen {
    promised: Option<BTreeSet<String>>,
    required: BTreeSet<usize>,
    last: Option<String>,
    count: u32,
    fingerprint: Fingerprint,
    version: String,
}

static RULES: OnceLock<Rules> = OnceLock::new();
static SEEN: Mutex<Option<Seen>> = Mutex::new(None);
/// The last refit that was accepted.
static LAST: Mutex<Option<Last>> = Mutex::new(None);

impl Rules {
    fn parse(settings: Vec<(String, String)>) -> Result<Self, String> {
        let mut rules = Self::default();
        for (key, value) in settings {
            let list = || value.split(',').map(|v| v.trim().to_string()).filter(|v| !v.is_empty());
            let pairs = || {
                let pair = |entry: String| {
                    let parts = entry.rsplit_once(':').map(|(a, b)| (a.to_string(), b.to_string()));
                    parts.ok_or_else(|| format!("{key}={value}: `{entry}` has no colon; write NAME:VALUE,…"))
                };
                list().map(pair).collect::<Result<Vec<_>, String>>()
            };
            match key.as_str() {
                "require" => rules.require = list().collect(),
                "forbid" => rules.forbid = list().collect(),
                "dtypes" => rules.dtypes = pairs()?,
                "sha256" => rules.sha256 = pairs()?,
                "names" => {
                    rules.same_names = match value.as_str() {
                        "any" => false,
                        "same" => true,
                        _ => return Err(format!("{key}={value}: write `any`, or `same` as the refit before")),
                    }
                }
                _ => return Err(format!("unknown setting `{key}`; known are: require, forbid, dtypes, sha256, names")),
            }
        }
        Ok(rules)
    }

    /// Why an arrival is not acceptable.
    fn objection(&self, seen: &mut Seen, a: &Arrival) -> Option<String> {
        let name = &a.name;
        if seen.last.as_ref().is_some_and(|last| last >= name) {
            return Some(format!("tensor `{name}` came twice or out of order"));
        }
        seen.last = Some(name.clone());
        seen.count += 1;
        seen.fingerprint.add(name, a.dtype as u8, &a.shape);
        if a.shape.contains(&0) {
            return Some(format!("tensor `{name}` is empty ({:?})", a.shape));
        }
        if let Some(promised) = &mut seen.promised
            && !promised.remove(name)
        {
            return Some(format!("tensor `{name}` was not promised"));
        }
        if let Some(g) = self.forbid.iter().find(|g| kit::glob::matches(g, name)) {
            return Some(format!("tensor `{name}` matches `{g}` in setting forbid"));
        }
        let dtype = dtype_name(a.dtype);
        if let Some((g, wanted)) = self.dtypes.iter().find(|(g, w)| kit::glob::matches(g, name) && w != dtype) {
            return Some(format!("tensor `{name}` is {dtype}; setting dtypes demands {wanted} for `{g}`"));
        }
        if let Some((_, wanted)) = self.sha256.iter().find(|(n, d)| n == name && *d != a.sha256) {
            return Some(format!("tensor `{name}` has sha256 {}; setting sha256 demands {wanted}", a.sha256));
        }
        let matching = self.require.iter().enumerate().filter(|(_, g)| kit::glob::matches(g, name)).map(|(i, _)| i);
        seen.required.extend(matching);
        None
    }

    /// Why the whole is not acceptable, after the refit before.
    fn missing(&self, seen: &Seen, total: u32, last: Option<&Last>) -> Option<String> {
        if seen.count != total || total == 0 {
            return Some(format!("{} tensors were seen of {total}", seen.count));
        }
        if let Some(name) = seen.promised.as_ref().and_then(|p| p.first()) {
            return Some(format!("tensor `{name}` was promised and did not come"));
        }
        if let Some((_, g)) = self.require.iter().enumerate().find(|(i, _)| !seen.required.contains(i)) {
            return Some(format!("nothing matches `{g}` in setting require"));
        }
        let last = last.filter(|last| self.same_names && last.fingerprint != seen.fingerprint.value())?;
        let (had, before) = (last.tensors, &last.version);
        Some(match had == total {
            true => format!("its {total} tensors have other names, dtypes or shapes than those of refit `{before}`"),
            false => format!("it has {total} tensors, refit `{before}` had {had}; setting names=same demands the same"),
        })
    }
}

fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "f32",
        Dtype::F16 => "f16",
        Dtype::Bf16 => "bf16",
        Dtype::F8E4m3 => "f8-e4m3",
        Dtype::F8E8m0 => "f8-e8m0",
        Dtype::I64 => "i64",
        Dtype::U8 => "u8",
        Dtype::Other => "other",
    }
}

fn verdict(objection: Option<String>) -> Verdict {
    match objection {
        None => Verdict::Accept,
        Some(mut reason) => {
            reason.truncate((0..=1024.min(reason.len())).rev().find(|i| reason.is_char_boundary(*i)).unwrap_or(0));
            Verdict::Veto(reason)
        }
    }
}

struct RefitGuard;

impl identity::Guest for RefitGuard {
    fn describe() -> Info {
        Info {
            name: "refit_guard".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "Vetoes refits that do not hold what was promised or demanded".into(),
            reason: "a trainer that casts, renames or drops a tensor is noticed by its reward, hours later".into(),
            upstream: Some("volcengine/verl: #5117 (router bias in bf16), #5801 (buffers are not sent)".into()),
            remove_when: None,
            // It sees names, dtypes and digests of what a trainer sends, whichever engine it is for.
            targets: [PATCHHOST, VLLM, SGLANG]
                .map(|(engine, versions)| Target {
                    engine: engine.into(),
                    versions: versions.into(),
                    architectures: vec![],
                })
                .into(),
        }
    }

    fn configure(settings: Vec<(String, String)>) -> Result<(), String> {
        let rules = Rules::parse(settings)?;
        RULES.set(rules).map_err(|_| "configure was called twice; it is called once, before any hook".into())
    }
}

impl refit_observer::Guest for RefitGuard {
    fn begin(version: String, expected: Option<Vec<String>>) -> Verdict {
        let promised = expected.map(|names| names.into_iter().collect());
        *SEEN.lock().unwrap_or_else(PoisonError::into_inner) = Some(Seen { promised, version, ..Seen::default() });
        Verdict::Accept
    }

    fn tensors(batch: Vec<Arrival>) -> Verdict {
        let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(seen) = seen.as_mut() else { return Verdict::Veto("`begin` was not called".into()) };
        let rules = RULES.get_or_init(Rules::default);
        verdict(batch.iter().find_map(|a| rules.objection(seen, a)))
    }

    fn finish(total: u32) -> Verdict {
        let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(seen) = seen else { return Verdict::Veto("`begin` was not called".into()) };
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        let objection = RULES.get_or_init(Rules::default).missing(&seen, total, last.as_ref());
        if objection.is_none() {
            let (fingerprint, version) = (seen.fingerprint.value(), seen.version);
            *last = Some(Last { tensors: total, fingerprint, version });
        }
        verdict(objection)
    }
}

impl state::Guest for RefitGuard {
    fn export_state() -> Result<Snapshot, String> {
        Ok(memory::export(LAST.lock().unwrap_or_else(PoisonError::into_inner).as_ref()))
    }

    fn import_state(s: Snapshot) -> Result<(), String> {
        *LAST.lock().unwrap_or_else(PoisonError::into_inner) = memory::import(s)?;
        Ok(())
    }
}

bindings::export!(RefitGuard with_types_in bindings);

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival(name: &str, dtype: Dtype) -> Arrival {
        Arrival { name: name.into(), dtype, shape: vec![2], sha256: "ab".into() }
    }

    fn rules(key: &str, value: &str) -> Rules {
        Rules::parse(vec![(key.into(), value.into())]).expect("valid")
    }

    #[test]
    fn demands_are_checked() {
        let mut seen = Seen::default();
        let bias = rules("dtypes", "*e_score_correction_bias:f32");
        let name = "mlp.gate.e_score_correction_bias";
        assert_eq!(bias.objection(&mut seen, &arrival(name, Dtype::F32)), None);
        let narrowed = bias.objection(&mut Seen::default(), &arrival(name, Dtype::Bf16));
        assert!(narrowed.is_some_and(|w| w.contains("is bf16") && w.contains("demands f32")));
        assert!(
            rules("forbid", "*.lora_*").objection(&mut Seen::default(), &arrival("x.lora_A", Dtype::F32)).is_some()
        );
        assert!(rules("sha256", "x:cd").objection(&mut Seen::default(), &arrival("x", Dtype::F32)).is_some());
        let require = rules("require", "*bias,*norm");
        let mut seen = Seen::default();
        assert_eq!(require.objection(&mut seen, &arrival("a.bias", Dtype::F32)), None);
        assert!(require.missing(&seen, 1, None).is_some_and(|w| w.contains("`*norm`")));
    }

    #[test]
    fn the_tensors_of_the_refit_before_are_demanded_if_set() {
        let (a, b) = (arrival("a", Dtype::F32), arrival("b", Dtype::F32));
        let same = rules("names", "same");
        let seen = |rules: &Rules, arrivals: &[&Arrival]| {
            let mut seen = Seen::default();
            arrivals.iter().for_each(|a| assert_eq!(rules.objection(&mut seen, a), None));
            seen
        };
        let both = seen(&same, &[&a, &b]);
        let last = Last { tensors: 2, fingerprint: both.fingerprint.value(), version: "step-1".into() };
        assert_eq!(same.missing(&both, 2, Some(&last)), None);
        assert_eq!(same.missing(&both, 2, None), None);
        let one = same.missing(&seen(&same, &[&a]), 1, Some(&last));
        assert!(one.is_some_and(|why| why.contains("1 tensors, refit `step-1` had 2")));
        let narrowed = same.missing(&seen(&same, &[&a, &arrival("b", Dtype::Bf16)]), 2, Some(&last));
        assert!(narrowed.is_some_and(|why| why.contains("other names, dtypes or shapes")));
        assert_eq!(rules("names", "any").missing(&seen(&same, &[&a]), 1, Some(&last)), None);
        assert!(Rules::parse(vec![("names".into(), "some".into())]).is_err());
    }

    #[test]
    fn promises_are_kept() {
        let promised = Some(["a".to_string(), "b".to_string()].into());
        let mut seen = Seen { promised, ..Seen::default() };
        let none = Rules::default();
        assert_eq!(none.objection(&mut seen, &arrival("a", Dtype::F32)), None);
        assert!(none.missing(&seen, 1, None).is_some_and(|w| w.contains("`b` was promised")));
        assert!(none.objection(&mut seen, &arrival("c", Dtype::F32)).is_some_and(|w| w.contains("not promised")));
        assert!(none.objection(&mut seen, &arrival("a", Dtype::F32)).is_some_and(|w| w.contains("out of order")));
    }
}
