//! The variables of the environment that this program reads, checked before a verb begins: what means nothing is refused, not
//! taken as if it were not there.

use std::ffi::OsStr;

use patchhost_kernels::environment::{self, EnvironmentError};
use tracing_subscriber::EnvFilter;

use crate::sandbox::CACHE_VARIABLE;

/// Sets what is logged.
const LOG_VARIABLE: &str = "PATCHHOST_LOG";
/// Logged where the user says nothing: errors, request fields that were ignored (once each), what became of watched files, and
/// traces that get nowhere.
const LOG_DEFAULT: &str = "error,patchhost::request=warn,patchhost::watch=info,patchhost::traces=warn";
/// Variables that only some verbs use: those that talk to a server, or start Python.
const TEXT_VARIABLES: [&str; 4] = ["PATCHHOST_ADMIN", "PATCHHOST_SERVER", "PATCHHOST_TOKEN_FILE", "PATCHHOST_PYTHON"];

/// Checks all variables, and gives the filter of the log.
pub fn check() -> Result<EnvFilter, EnvironmentError> {
    environment::check()?;
    let value = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    for name in TEXT_VARIABLES {
        value(name).map_or(Ok(()), |given| text(name, &given).map(|_| ()))?;
    }
    value(CACHE_VARIABLE).map_or(Ok(()), |given| cache(&given))?;
    value(LOG_VARIABLE).map_or_else(|| Ok(EnvFilter::new(LOG_DEFAULT)), |given| log(&given))
}

/// What a variable says; none where it is not set, or empty. Its value is text: [`check`] has seen it.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

fn text<'a>(name: &str, value: &'a OsStr) -> Result<&'a str, EnvironmentError> {
    value.to_str().ok_or_else(|| EnvironmentError::new(name, value, "UTF-8 text"))
}

/// A folder, or `off`: another word that turns things off would otherwise become a folder of that name.
fn cache(value: &OsStr) -> Result<(), EnvironmentError> {
    let refuse = |allowed: &str| Err(EnvironmentError::new(CACHE_VARIABLE, value, allowed));
    let word = value.to_string_lossy().to_ascii_lowercase();
    if value != "off" && ["off", "none", "no", "false", "0"].contains(&word.as_str()) {
        return refuse("a folder, or `off` in lower case");
    }
    let path = std::path::Path::new(value);
    if value != "off" && path.exists() && !path.is_dir() {
        return refuse("a folder (this is something else), or `off`");
    }
    Ok(())
}

/// Levels, or `target=level`. The parser would take any other word for the name of a target, and log nothing of this
/// program.
fn log(value: &OsStr) -> Result<EnvFilter, EnvironmentError> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let bad = || {
        let allowed =
            "a level (off, error, warn, info, debug, trace), or targets with levels (patchhost_app=debug,error)";
        EnvironmentError::new(LOG_VARIABLE, value, allowed)
    };
    let given = text(LOG_VARIABLE, value)?;
    let known = |part: &str| {
        let level = LEVELS.iter().any(|level| part.eq_ignore_ascii_case(level));
        level || part.contains(['=', '[']) || part.starts_with("patchhost")
    };
    if !given.split(',').map(str::trim).all(|part| part.is_empty() || known(part)) {
        return Err(bad());
    }
    EnvFilter::builder().parse(given).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::{cache, log, text};

    #[test]
    fn a_log_filter_is_levels_and_targets() {
        for good in ["info", "OFF", "error,patchhost_app=debug", "patchhost_runtime", "a[span]=trace"] {
            assert!(log(OsStr::new(good)).is_ok(), "{good}");
        }
        for bad in ["inof", "verbose", "info;debug", "patchhost_app=loud", "1,2"] {
            let error = log(OsStr::new(bad)).expect_err(bad);
            assert!(error.what.contains(bad) && error.why.contains("debug"), "{error}");
        }
    }

    #[test]
    fn a_cache_is_a_folder_or_off() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        std::fs::write(&file, "").expect("a file");
        assert!(cache(OsStr::new("off")).is_ok() && cache(folder.path().as_os_str()).is_ok());
        assert!(cache(folder.path().join("new").as_os_str()).is_ok());
        for bad in [OsStr::new("OFF"), OsStr::new("none"), OsStr::new("0"), file.as_os_str()] {
            assert!(cache(bad).is_err_and(|e| e.why.contains("`off`")), "{bad:?}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_text_is_shown_and_refused() {
        use std::os::unix::ffi::OsStrExt;
        let error = text("PATCHHOST_SERVER", OsStr::from_bytes(b"http://\xff")).expect_err("not UTF-8");
        assert!(error.what.contains("PATCHHOST_SERVER=\"http://") && error.why.contains("UTF-8"), "{error}");
    }
}
