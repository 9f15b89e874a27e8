//! Names of tensors as their sender has them and as the model has them: renames that somebody asked for, and those that would
//! help where wrappers of a trainer (`torch.compile`, DDP, FSDP, PEFT) left their prefix in the names.

use std::borrow::Cow;
use std::collections::BTreeSet;

use crate::error::Refusal;

/// Most renames of one list.
const MOST: usize = 64;
/// Most bytes of either side of a rename.
const SIDE: usize = 256;
/// Most bytes of a name that was renamed.
const NAME: usize = 2048;

/// Where a rename may stand in a name.
const NEXT: &str = "write FROM=TO, for example `_orig_mod.=` (the prefix is taken away) or `^layers.=model.layers.`";

/// One rename: FROM becomes TO wherever it stands at the beginning of a component of a name; with `^` before it, only at the
/// beginning of the name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rename {
    from: String,
    to: String,
    anchored: bool,
}

impl Rename {
    /// From its two sides.
    pub fn new(from: &str, to: &str) -> Result<Self, Refusal> {
        let refuse = |why: String| Refusal::new(format!("rename `{}={}`", shown(from), shown(to)), why, NEXT);
        let (anchored, plain) = from.strip_prefix('^').map_or((false, from), |rest| (true, rest));
        // With `^` alone, every name gets a prefix.
        if plain.is_empty() && !anchored {
            return Err(refuse("FROM is empty".to_string()));
        }
        if let Some(side) = [plain, to].into_iter().find(|side| side.len() > SIDE) {
            return Err(refuse(format!("a side has {} bytes, and at most {SIDE} are taken", side.len())));
        }
        if [plain, to].into_iter().any(|side| side.chars().any(|c| c.is_control() || c.is_whitespace())) {
            return Err(refuse("it has white space or control characters, which no name of a tensor has".to_string()));
        }
        Ok(Self { from: plain.to_string(), to: to.to_string(), anchored })
    }

    /// From `FROM=TO`.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        match text.split_once('=') {
            Some((from, to)) => Self::new(from, to),
            None => Err(Refusal::new(format!("rename `{}`", shown(text)), "it has no `=`", NEXT)),
        }
    }

    /// The name after it; none where it does not match.
    fn apply(&self, name: &str) -> Option<String> {
        let Self { from, to, anchored } = self;
        if *anchored {
            return name.strip_prefix(from.as_str()).map(|rest| format!("{to}{rest}"));
        }
        let (mut out, mut taken) = (String::new(), 0);
        let starts = std::iter::once(0).chain(name.match_indices('.').map(|(dot, _)| dot + 1));
        for start in starts {
            if start >= taken && name.get(start..).is_some_and(|rest| rest.starts_with(from.as_str())) {
                out.push_str(name.get(taken..start).unwrap_or_default());
                out.push_str(to);
                taken = start + from.len();
            }
        }
        (taken > 0).then(|| out + name.get(taken..).unwrap_or_default())
    }
}

impl std::fmt::Display for Rename {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}={}", if self.anchored { "^" } else { "" }, self.from, self.to)
    }
}

/// Renames in the order in which they are applied, each to what the one before made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Renames(Vec<Rename>);

impl Renames {
    /// A list of them.
    pub fn new(all: impl IntoIterator<Item = Rename>) -> Result<Self, Refusal> {
        let all: Vec<Rename> = all.into_iter().collect();
        if all.len() > MOST {
            let why = format!("there are {}, and at most {MOST} are taken", all.len());
            return Err(Refusal::new("the renames", why, "write fewer, with shorter FROM that match more names"));
        }
        Ok(Self(all))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Both lists, this one first.
    pub fn then(&self, others: &Self) -> Result<Self, Refusal> {
        Self::new(self.0.iter().chain(&others.0).cloned())
    }

    /// The model's name for a sender's name.
    pub fn apply<'n>(&self, name: &'n str) -> Result<Cow<'n, str>, Refusal> {
        self.noting(name, &mut BTreeSet::new())
    }

    /// The same; `used` gets the renames that matched.
    pub(crate) fn noting<'n>(&self, name: &'n str, used: &mut BTreeSet<usize>) -> Result<Cow<'n, str>, Refusal> {
        let mut now = Cow::Borrowed(name);
        for (i, rename) in self.0.iter().enumerate() {
            let Some(new) = rename.apply(&now) else { continue };
            if new.is_empty() || new.len() > NAME {
                let why = format!("`{rename}` makes a name of {} bytes of it; a name has 1 to {NAME}", new.len());
                return Err(Refusal::new(format!("tensor `{}`", shown(name)), why, "repair the rename"));
            }
            used.insert(i);
            now = Cow::Owned(new);
        }
        Ok(now)
    }

    /// What is worth saying of renames that matched no name.
    pub(crate) fn notes(&self, used: &BTreeSet<usize>) -> Vec<String> {
        let unused = self.0.iter().enumerate().filter(|(i, _)| !used.contains(i));
        unused.map(|(_, rename)| format!("rename `{rename}` matched no tensor")).collect()
    }
}

/// The refusal of a rename that makes one name of two.
pub(crate) fn two_become_one(first: &str, second: &str, name: &str) -> Refusal {
    let what = format!("tensor `{}`", shown(second));
    let why = format!("the renames make `{}` of it, and of `{}` too", shown(name), shown(first));
    Refusal::new(what, why, "write renames that keep names apart, or send one of the two only")
}

fn shown(name: &str) -> String {
    crate::words::shown(name)
}

/// Parts of names that wrappers of a trainer put there, and who does it.
const WRAPPERS: [(&str, &str); 9] = [
    ("_orig_mod.", "torch.compile"),
    ("_fsdp_wrapped_module.", "FSDP"),
    ("_checkpoint_wrapped_module.", "activation checkpointing"),
    ("_forward_module.", "Lightning Fabric"),
    ("_fpw_module.", "fairscale"),
    ("base_model.model.", "PEFT"),
    ("base_layer.", "PEFT"),
    ("modules_to_save.default.", "PEFT"),
    ("module.", "DDP"),
];
/// Beginnings that some checkpoints leave out.
const BEGINNINGS: [&str; 4] = ["model.", "model.language_model.", "language_model.model.", "language_model."];
/// Most components of a name that is looked at.
const COMPONENTS: usize = 24;
/// Most renames that are proposed.
const PROPOSED: usize = 4;
/// Most unknown names that are looked at.
const LOOKED_AT: usize = 1000;

/// Renames that make unknown names known.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Proposal {
    /// A name that is not known, and the known one that it stands for.
    pub(crate) example: (String, String),
    /// What would help.
    pub(crate) renames: Vec<Wanted>,
}

/// A rename as `--rename` takes it, and whose wrapper made it necessary, where that is known.
type Wanted = (String, Option<&'static str>);

impl Proposal {
    /// Looks for renames, one unknown name after the other.
    pub(crate) fn of<'n>(names: impl IntoIterator<Item = &'n str>, known: impl Fn(&str) -> bool) -> Option<Self> {
        let mut proposal: Option<Self> = None;
        let mut so_far = Renames::default();
        for name in names.into_iter().filter(|name| !known(name)).take(LOOKED_AT) {
            let now = so_far.apply(name).unwrap_or(Cow::Borrowed(name));
            if known(&now) {
                continue;
            }
            let Some((found, renames)) = propose(&now, &known) else { continue };
            let made = proposal.get_or_insert_with(|| Self { example: (name.to_string(), found), renames: Vec::new() });
            for (rename, who) in renames {
                if let Ok(parsed) = Rename::parse(&rename) {
                    so_far.0.push(parsed);
                }
                made.renames.push((rename, who));
            }
            if made.renames.len() >= PROPOSED {
                break;
            }
        }
        proposal
    }

    /// Why names are not known.
    pub(crate) fn why(&self) -> String {
        let who: BTreeSet<&str> = self.renames.iter().filter_map(|(_, who)| *who).collect();
        let from = match who.is_empty() {
            true => String::new(),
            false => format!(" of {}", who.into_iter().collect::<Vec<_>>().join(", ")),
        };
        let (name, known) = &self.example;
        format!("; without the prefix of a wrapper{from}, `{}` is `{}`", shown(name), shown(known))
    }

    /// What to do about it.
    pub(crate) fn next(&self) -> String {
        let flags: Vec<String> = self.renames.iter().map(|(rename, _)| format!("--rename {rename}")).collect();
        let fields: serde_json::Map<String, serde_json::Value> = self
            .renames
            .iter()
            .filter_map(|(rename, _)| rename.split_once('='))
            .map(|(from, to)| (from.to_string(), to.into()))
            .collect();
        let fields = serde_json::Value::Object(fields);
        format!(
            "unwrap the model before its tensors are saved or sent, or rename on the way: {} (in an update `\"rename\": {fields}`)",
            flags.join(" ")
        )
    }
}

/// A known name that an unknown one stands for, and the renames that lead to it.
fn propose(name: &str, known: impl Fn(&str) -> bool) -> Option<(String, Vec<Wanted>)> {
    if name.len() > NAME || name.split('.').count() > COMPONENTS {
        return None;
    }
    let (mut bare, mut renames): (String, Vec<Wanted>) = (name.to_string(), Vec::new());
    for (wrapper, who) in WRAPPERS {
        let without = Rename { from: wrapper.to_string(), to: String::new(), anchored: false };
        if let Some(shorter) = without.apply(&bare).filter(|shorter| !shorter.is_empty()) {
            bare = shorter;
            renames.push((format!("{wrapper}="), Some(who)));
        }
    }
    if known(&bare) {
        return (!renames.is_empty()).then_some((bare, renames));
    }
    let components: Vec<&str> = bare.split('.').collect();
    for length in 1..components.len() {
        for (start, run) in components.windows(length).enumerate().take(components.len() - length) {
            // A layer is no prefix: `model.layers.61.norm.weight` is not `model.norm.weight`.
            if run.iter().any(|part| *part == "layers" || part.parse::<u64>().is_ok()) {
                continue;
            }
            let rest = [&components[..start], &components[start + length..]].concat().join(".");
            if known(&rest) && (start == 0 || rest.contains(".layers.")) {
                let hat = if start == 0 { "^" } else { "" };
                renames.push((format!("{hat}{}.=", run.join(".")), None));
                return Some((rest, renames));
            }
        }
    }
    let beginning = BEGINNINGS.into_iter().find(|beginning| known(&format!("{beginning}{bare}")))?;
    let first = components.first()?;
    renames.push((format!("^{first}.={beginning}{first}."), None));
    Some((format!("{beginning}{bare}"), renames))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn renames(all: &[&str]) -> Renames {
        Renames::new(all.iter().map(|text| Rename::parse(text).unwrap())).unwrap()
    }

    #[test]
    fn a_rename_begins_where_a_component_does() {
        let cases = [
            ("_orig_mod.=", "_orig_mod.model.x", "model.x"),
            ("_orig_mod.=", "a._orig_mod._orig_mod.x", "a.x"),
            ("module.=", "model.submodule.x", "model.submodule.x"),
            ("module.=", "module.submodule.module.x", "submodule.x"),
            ("^layers.=model.layers.", "layers.0.layers.x", "model.layers.0.layers.x"),
            ("^layers.=model.layers.", "model.layers.0", "model.layers.0"),
            ("model.language_model=model", "model.language_model.layers.0", "model.layers.0"),
            ("weight=kernel", "a.weight_scale_inv", "a.kernel_scale_inv"),
            ("^=model.", "norm.weight", "model.norm.weight"),
            ("a.a.=", "a.a.a.x", "a.x"),
            ("a.a.=", "xa.a.a.y", "xa.y"),
        ];
        for (rename, name, becomes) in cases {
            assert_eq!(renames(&[rename]).apply(name).unwrap(), becomes, "{rename}");
        }
        assert_eq!(renames(&["a.=b.", "b.=c."]).apply("a.x").unwrap(), "c.x", "one after the other");
    }

    #[test]
    fn what_is_no_rename_is_refused() {
        for (text, says) in [
            ("abc", "no `=`"),
            ("=x", "FROM is empty"),
            ("a b=x", "white space"),
            ("a=\u{7}", "white space or control"),
            (&format!("{}=x", "a".repeat(300)), "300 bytes"),
        ] {
            let error = Rename::parse(text).unwrap_err();
            assert!(error.why.contains(says), "{text}: {error}");
        }
        assert!(Renames::new(std::iter::repeat_n(Rename::parse("a=b").unwrap(), 65)).is_err());
        let grows = renames(&[&format!("a.={}", "a.".repeat(100))]);
        assert!(grows.apply(&"a.".repeat(100)).unwrap_err().why.contains("a name has 1 to"));
        assert!(renames(&["abc="]).apply("abc").unwrap_err().why.contains("0 bytes"));
    }

    #[test]
    fn renames_that_match_nothing_are_told() {
        let all = renames(&["a.=", "b.="]);
        let mut used = BTreeSet::new();
        all.noting("a.x", &mut used).unwrap();
        assert_eq!(all.notes(&used), ["rename `b.=` matched no tensor"]);
    }

    #[test]
    fn wrappers_are_found_wherever_they_stand() {
        let known = |name: &str| ["model.layers.0.q.weight", "model.norm.weight", "lm_head.weight"].contains(&name);
        let of = |names: &[&str]| Proposal::of(names.iter().copied(), known);
        let renames = |names: &[&str]| -> Vec<String> {
            of(names).map(|p| p.renames.into_iter().map(|(rename, _)| rename).collect()).unwrap_or_default()
        };
        assert_eq!(renames(&["_orig_mod.lm_head.weight"]), ["_orig_mod.="]);
        assert_eq!(
            renames(&["base_model.model.lm_head.weight", "base_model.model.model.layers.0.q.base_layer.weight"]),
            ["base_model.model.=", "base_layer.="]
        );
        assert_eq!(
            renames(&["_fsdp_wrapped_module.model.layers.0._fsdp_wrapped_module.q.weight"]),
            ["_fsdp_wrapped_module.="]
        );
        assert_eq!(renames(&["policy.model.norm.weight"]), ["^policy.="]);
        assert_eq!(renames(&["model.language_model.layers.0.q.weight"]), ["language_model.="]);
        assert_eq!(renames(&["layers.0.q.weight"]), ["^layers.=model.layers."]);
        for names in [
            &["vision.x"][..],
            &["lm_head.weight"],
            &["module.nothing"],
            &["a.".repeat(3000).as_str()],
            &["model.layers.9.norm.weight"],
        ] {
            assert_eq!(of(names), None, "{names:?}");
        }
        let both = of(&["module.lm_head.weight"]).unwrap();
        assert!(both.why().contains("wrapper of DDP, `module.lm_head.weight` is `lm_head.weight`"), "{}", both.why());
        assert!(
            both.next().contains(r#"--rename module.= (in an update `"rename": {"module.":""}`)"#),
            "{}",
            both.next()
        );
        // What is proposed does it.
        for name in ["_orig_mod.module.model.norm.weight", "policy.model.norm.weight", "norm.weight"] {
            let proposal = of(&[name]).unwrap();
            let all = Renames::new(proposal.renames.iter().map(|(rename, _)| Rename::parse(rename).unwrap())).unwrap();
            assert!(known(&all.apply(name).unwrap()), "{name}: {proposal:?}");
        }
    }
}
