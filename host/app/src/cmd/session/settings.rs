//! `--set`, taken apart.

use std::sync::Arc;

use super::super::args::PatchArgs;
use super::super::failure::UsageError;
use super::stem;
use crate::patch::Patch;

/// A setting for one patch: KEY=VALUE.
pub fn parse_setting(arg: &str) -> Result<(String, String), UsageError> {
    arg.split_once('=')
        .filter(|(key, _)| !key.is_empty())
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .ok_or_else(|| {
            UsageError::new(
                format!("--set {}", arg.escape_debug()),
                "a setting is KEY=VALUE",
                "write for example --set profile=deepseek",
            )
        })
}

/// `--set`, taken apart: KEY=VALUE for the patches that the user named, NAME.KEY=VALUE for one patch.
#[derive(Debug, Clone)]
pub(super) struct Settings(Vec<(Option<String>, String, String)>);

impl Settings {
    pub(super) fn parse(args: &[String]) -> Result<Self, UsageError> {
        let mut all = Vec::new();
        for arg in args {
            let (key, value) = parse_setting(arg)?;
            let (name, key) = match key.split_once('.') {
                Some((name, key)) => (Some(name.to_string()), key),
                None => (None, key.as_str()),
            };
            all.push((name, key.to_string(), value));
        }
        Ok(Self(all))
    }

    pub(super) fn for_patch(&self, name: &str, named_by_user: bool) -> Vec<(String, String)> {
        let mine = |(n, _, _): &&(Option<String>, String, String)| match n {
            Some(n) => n == name,
            None => named_by_user,
        };
        self.0.iter().filter(mine).map(|(_, k, v)| (k.clone(), v.clone())).collect()
    }

    /// A setting that no patch got is an error: it would silently do nothing.
    pub(super) fn check_used(&self, patches: &[Arc<Patch>], args: &PatchArgs, watches: bool) -> Result<(), UsageError> {
        if watches {
            return Ok(());
        }
        let stems: Vec<String> = args.components.iter().map(|c| stem(c)).collect();
        for (name, key, _) in &self.0 {
            let used = match name {
                None => !args.components.is_empty(),
                Some(n) => stems.contains(n) || patches.iter().any(|p| p.info().name == *n),
            };
            if !used {
                let why = match name {
                    Some(n) => format!("no patch `{n}` is loaded"),
                    None => "no patch is named by --component".to_string(),
                };
                return Err(UsageError::new(format!("--set {key}"), why, "name the patch with --component"));
            }
        }
        Ok(())
    }
}
