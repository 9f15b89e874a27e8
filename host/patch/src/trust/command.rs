//! The command that would accept what was refused, as it can be pasted into a shell.

use crate::base::Grants;
use crate::base::{Dir, DirMode};
use crate::patch::Limits;
use std::ffi::{OsStr, OsString};
use std::path::Path;

use crate::base::quoted;

/// `patchhost lock …`, word for word.
#[derive(Debug, Default)]
pub(super) struct LockCommand<'a> {
    /// A path or a bundled name.
    pub component: OsString,
    /// Of the entry, where it is not the stem of the file.
    pub name: Option<&'a str>,
    pub settings: &'a [(String, String)],
    /// Limits that are not the policy's: names and values.
    pub limits: Vec<(String, String)>,
    pub grants: Option<&'a Grants>,
    pub lock: Option<&'a Path>,
    pub policy: Option<&'a Path>,
}

impl LockCommand<'_> {
    pub(super) fn line(&self) -> String {
        let mut words: Vec<OsString> = ["patchhost", "lock"].map(OsString::from).into();
        // A file called `--x` is a file too.
        match self.component.to_string_lossy().starts_with('-') {
            true => words.push([OsStr::new("./"), &self.component].iter().copied().collect()),
            false => words.push(self.component.clone()),
        }
        let mut option = |flag: &str, value: OsString| {
            // With `=`, a value that begins with `-` is no option.
            match value.to_string_lossy().starts_with('-') {
                true => words.push([OsStr::new(flag), OsStr::new("="), &value].iter().copied().collect()),
                false => words.extend([OsString::from(flag), value]),
            }
        };
        if let Some(name) = self.name {
            option("--name", name.into());
        }
        for (key, value) in self.settings {
            option("--set", format!("{key}={value}").into());
        }
        for (name, value) in &self.limits {
            option("--limit", format!("{name}={value}").into());
        }
        if let Some(wasi) = self.grants.and_then(|grants| grants.wasi.as_ref()) {
            option("--wasi", "inert".into());
            wasi.dirs.iter().for_each(|dir| option("--dir", folder(dir)));
            wasi.env.iter().for_each(|name| option("--env", name.into()));
        }
        if let Some(path) = self.lock {
            option("--lock", path.into());
        }
        if let Some(path) = self.policy {
            option("--policy", path.into());
        }
        if let Some(wasi) = self.grants.and_then(|grants| grants.wasi.as_ref()) {
            words.extend(wasi.clocks.then(|| "--clocks".into()));
            words.extend(wasi.random.then(|| "--random".into()));
        }
        words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
    }
}

/// A granted folder as the option of `patchhost grant`: `HOST=GUEST:ro`.
fn folder(dir: &Dir) -> OsString {
    let mode = if dir.mode == DirMode::Rw { "rw" } else { "ro" };
    let mut word = OsString::from(&dir.host);
    word.push(format!("={}:{mode}", dir.guest));
    word
}

/// The limits in which two differ, as `--limit` takes them.
pub(super) fn limit_words(own: &Limits, base: &Limits) -> Vec<(String, String)> {
    let names = super::limits::differing(own, base);
    names.into_iter().filter_map(|name| Some((name.clone(), super::limits::get(own, &name)?))).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::base::Wasi;

    #[test]
    fn every_part_of_the_identity_is_said() {
        let dirs = vec![Dir { host: "/srv/my data".into(), guest: "/d".into(), mode: DirMode::Ro }];
        let grants = Grants { wasi: Some(Wasi { dirs, env: vec!["A".into()], clocks: true, random: true }) };
        let command = LockCommand {
            component: "-x.wasm".into(),
            name: Some("x2"),
            settings: &[("profile".into(), "-a b".into())],
            limits: limit_words(&Limits { fuel_base: 7, ..Limits::default() }, &Limits::default()),
            grants: Some(&grants),
            lock: Some(Path::new("my.lock")),
            policy: None,
        };
        assert_eq!(
            command.line(),
            "patchhost lock ./-x.wasm --name x2 --set 'profile=-a b' --limit fuel_base=7 --wasi inert \
             --dir '/srv/my data=/d:ro' --env A --lock my.lock --clocks --random"
        );
    }
}
