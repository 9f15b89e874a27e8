//! One watched file: what says that it may have changed, and its bytes when nobody is writing it any more.

use std::fs::Metadata;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::patch::{Candidate, StageError};

/// A file that changed less than this ago may still be being written.
const SETTLED: Duration = Duration::from_millis(60);
/// Between two readings of a file that is being written.
const PAUSE: Duration = Duration::from_millis(20);
/// How often a file that is being written is read again.
const READS: usize = 25;
/// How often a file that is not there is looked for: whoever replaces what a link leads to may remove the old file between
/// our finding the name and opening it.
const ABSENT: usize = 5;
/// The times of a file system are this coarse, or finer.
const COARSE: Duration = Duration::from_secs(2);

/// What a file is, apart from its bytes. Of two looks that are equal and not young, the bytes are equal too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look {
    file: (u64, u64),
    size: u64,
    modified: Option<SystemTime>,
    /// When anything about it changed, which nobody can set.
    changed: Option<(i64, i64)>,
    /// It changed so lately that another change may have the same time.
    pub young: bool,
}

impl Look {
    /// Looks at a file, links followed.
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        let data = path.metadata()?;
        let (file, changed) = numbers(&data);
        let modified = data.modified().ok();
        let last = changed.and_then(|(seconds, _)| {
            let since = Duration::from_secs(u64::try_from(seconds).ok()?);
            SystemTime::UNIX_EPOCH.checked_add(since)
        });
        // A time in the future says nothing.
        let old = last.or(modified).and_then(|time| time.elapsed().ok()).is_some_and(|age| age > COARSE);
        Ok(Self { file, size: data.len(), modified, changed, young: !old })
    }

    /// Whether the bytes must be those of the look before.
    pub(super) fn is_as(&self, before: &Self) -> bool {
        !before.young && (Self { young: before.young, ..*self }) == *before
    }
}

#[cfg(unix)]
fn numbers(data: &Metadata) -> ((u64, u64), Option<(i64, i64)>) {
    use std::os::unix::fs::MetadataExt;
    ((data.dev(), data.ino()), Some((data.ctime(), data.ctime_nsec())))
}

#[cfg(not(unix))]
fn numbers(_: &Metadata) -> ((u64, u64), Option<(i64, i64)>) {
    ((0, 0), None)
}

/// Whether there is no such file, also a moment later.
pub(super) fn is_gone(path: &Path) -> bool {
    for _ in 0..ABSENT {
        if path.metadata().is_ok() {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
    true
}

/// The bytes of a file that nobody is writing any more: unchanged for a while, or the same when read twice.
pub(super) fn settled(path: &Path) -> Result<Candidate, StageError> {
    let mut last = read(path)?;
    for _ in 0..READS {
        let changed = std::fs::metadata(path).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        // A time in the future says nothing; such a file is read once more.
        if changed.elapsed().is_ok_and(|age| age > SETTLED) {
            break;
        }
        std::thread::sleep(PAUSE);
        let again = read(path)?;
        let same = again.digest() == last.digest();
        last = again;
        if same && last.is_whole() {
            break;
        }
    }
    Ok(last)
}

fn read(path: &Path) -> Result<Candidate, StageError> {
    let mut tries = 0;
    loop {
        match Candidate::from_file(path) {
            Err(StageError::Unreadable { error, .. }) if error.kind() == io::ErrorKind::NotFound && tries < ABSENT => {
                tries += 1;
                std::thread::sleep(PAUSE);
            }
            read => return read,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_of_the_same_size_and_time_is_another_one() {
        let tmp = tempfile::tempdir().unwrap();
        let (a, b) = (tmp.path().join("a"), tmp.path().join("b"));
        std::fs::write(&a, "one").unwrap();
        let mut before = Look::at(&a).unwrap();
        assert!(before.young && !before.is_as(&before), "the next write may be in the same tick");
        before.young = false;
        assert!(Look::at(&a).unwrap().is_as(&before));
        std::fs::write(&b, "two").unwrap();
        let time = a.metadata().unwrap().modified().unwrap();
        std::fs::File::options().write(true).open(&b).unwrap().set_modified(time).unwrap();
        std::fs::rename(&b, &a).unwrap();
        assert!(!Look::at(&a).unwrap().is_as(&before));
        std::fs::remove_file(&a).unwrap();
        assert!(Look::at(&a).is_err() && is_gone(&a));
    }
}
