//! Files of others: opened if they are plain files, read up to a bound. A model folder may hold links (the cache of the
//! Hugging Face hub is made of them), and by them or directly a pipe, a device or a file without an end.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Seek};
use std::path::Path;

pub use crate::config::MAX_CONFIG;

/// Most bytes of a config.json, generation_config.json or adapter_config.json.
pub const CONFIG: u64 = MAX_CONFIG as u64;
/// Most bytes of a tokenizer.json. Known ones have up to 35 MB.
pub const TOKENIZER: u64 = 64 << 20;
/// Most bytes of a tokenizer_config.json. Known ones have up to 1.2 MB.
pub const TOKENIZER_CONFIG: u64 = 2 << 20;
/// Most bytes of a chat template. Known ones have up to 30 kB.
pub const TEMPLATE: u64 = 1 << 20;
/// Most bytes of an index of shards. Known ones have up to 20 MB.
pub const INDEX: u64 = 48 << 20;
/// Most bytes of what a person writes and a verb reads: prompts, manifests.
pub const LIST: u64 = 64 << 20;

/// Opens a plain file for reading, links followed. A folder, pipe, socket or device is refused at once, without waiting
/// for who writes into it, and so is what git-lfs leaves in the place of a file ([`Pointer`]).
pub fn open(path: &Path) -> io::Result<File> {
    open_measured(File::options().read(true), path).and_then(no_pointer).map(|(file, _)| file)
}

/// The same with other options: for a file that is written, too. What is in it is not looked at.
pub fn open_with(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    open_measured(options, path).map(|(file, _)| file)
}

/// The bytes of a plain file, if there are no more than `most`.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let (file, data) = open_measured(File::options().read(true), path).and_then(no_pointer)?;
    let too_large = |why: String| io::Error::new(io::ErrorKind::FileTooLarge, why);
    if data.len() > most {
        return Err(too_large(format!("it has {} bytes, and at most {most} are read", data.len())));
    }
    let mut bytes = Vec::with_capacity(data.len() as usize);
    // It may grow meanwhile, and files of the system say that they have no bytes.
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(too_large(format!("it has more bytes than the {most} that are read")));
    }
    Ok(bytes)
}

/// The text of a plain file, if it has no more bytes than `most`.
pub fn read_text(path: &Path, most: u64) -> io::Result<String> {
    String::from_utf8(read(path, most)?).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        io::Error::new(io::ErrorKind::InvalidData, format!("it is not UTF-8 text: byte {at} is wrong"))
    })
}

/// The same for a file that may be absent. Only where there is none is that the answer: a link to nowhere is an error.
pub fn read_text_if_any(path: &Path, most: u64) -> io::Result<Option<String>> {
    match read_text(path, most) {
        Err(e) if e.kind() == io::ErrorKind::NotFound && path.symlink_metadata().is_err() => Ok(None),
        read => read.map(Some),
    }
}

fn open_measured(options: &mut OpenOptions, path: &Path) -> io::Result<(File, Metadata)> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // A pipe with nobody at its other end makes an ordinary `open` wait for ever.
        options.custom_flags((rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY).bits() as i32);
    }
    let opened = options.open(path).and_then(|file| file.metadata().map(|data| (file, data)));
    let (file, data) = opened.map_err(|e| match path.metadata() {
        // Some cannot be opened at all, and the system's error does not say why.
        Ok(data) if !data.is_file() => not_plain(&data),
        _ => e,
    })?;
    if data.is_file() { Ok((file, data)) } else { Err(not_plain(&data)) }
}

/// A file that git-lfs left in the place of another: a clone without git-lfs has these.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "it is not the file but a pointer of git-lfs to it ({bytes} bytes, sha256 {oid}…), as a clone without git-lfs has it; `git lfs pull` fetches the file"
)]
pub struct Pointer {
    /// Bytes of the file that it stands for.
    bytes: u64,
    /// The beginning of its digest.
    oid: String,
}

/// What to do where a file is a pointer of git-lfs.
pub const LFS_PULL: &str = "run `git lfs pull` in the folder (after `git lfs install`), or download the file again";
/// Pointers are shorter than this, by their definition.
const LONGEST_POINTER: u64 = 1024;

impl Pointer {
    /// Reads one; none where the bytes are something else.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        const BEGINNINGS: [&str; 2] =
            ["version https://git-lfs.github.com/spec/", "version https://hawser.github.com/spec/"];
        let text = std::str::from_utf8(bytes.get(..bytes.len().min(LONGEST_POINTER as usize))?).ok()?;
        BEGINNINGS.iter().any(|beginning| text.starts_with(beginning)).then_some(())?;
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        let digits = |text: &str| text.chars().take_while(char::is_ascii_hexdigit).take(12).collect();
        Some(Self { bytes: field("size ").trim().parse().unwrap_or_default(), oid: digits(field("oid sha256:")) })
    }
}

/// What to do about a file that was not read: `next`, unless it is a pointer of git-lfs.
pub fn next_of<'n>(error: &io::Error, next: &'n str) -> &'n str {
    match error.get_ref().is_some_and(|inner| inner.is::<Pointer>()) {
        true => LFS_PULL,
        false => next,
    }
}

fn no_pointer((file, data): (File, Metadata)) -> io::Result<(File, Metadata)> {
    if !(1..LONGEST_POINTER).contains(&data.len()) {
        return Ok((file, data));
    }
    let mut bytes = Vec::new();
    (&file).take(LONGEST_POINTER).read_to_end(&mut bytes)?;
    (&file).seek(io::SeekFrom::Start(0))?;
    match Pointer::read(&bytes) {
        None => Ok((file, data)),
        Some(pointer) => Err(io::Error::new(io::ErrorKind::InvalidData, pointer)),
    }
}

fn not_plain(data: &Metadata) -> io::Error {
    #[cfg(unix)]
    let kind = {
        use std::os::unix::fs::FileTypeExt;
        let of = data.file_type();
        match () {
            () if of.is_dir() => "a folder",
            () if of.is_fifo() => "a pipe",
            () if of.is_socket() => "a socket",
            () if of.is_char_device() || of.is_block_device() => "a device",
            () => "something else",
        }
    };
    #[cfg(not(unix))]
    let kind = if data.is_dir() { "a folder" } else { "something else" };
    io::Error::new(io::ErrorKind::InvalidInput, format!("it is not a file but {kind}, and only plain files are read"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn plain_files_are_read_up_to_the_bound() {
        let exe = std::env::current_exe().unwrap();
        let size = exe.metadata().unwrap().len();
        assert_eq!(read(&exe, size).unwrap().len() as u64, size);
        let why = read(&exe, size - 1).unwrap_err().to_string();
        assert_eq!(why, format!("it has {size} bytes, and at most {} are read", size - 1));
        assert!(read_text(&exe, size).unwrap_err().to_string().contains("not UTF-8"));
        assert_eq!(read_text_if_any(Path::new("/no/such/file"), 9).unwrap(), None);
    }

    #[test]
    fn a_pointer_of_git_lfs_is_told_from_a_file() {
        let path = std::env::temp_dir().join(format!("patchhost-files-{}-pointer", std::process::id()));
        let text = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 4965799096\n";
        std::fs::write(&path, text).unwrap();
        for error in [open(&path).map(|_| ()).unwrap_err(), read(&path, 9000).map(|_| ()).unwrap_err()] {
            let says = error.to_string();
            assert!(says.contains("pointer of git-lfs") && says.contains("4965799096 bytes"), "{says}");
            assert_eq!(next_of(&error, "else"), LFS_PULL);
        }
        // A file that only speaks of one, and one that is read from its beginning after it was looked at.
        for other in [format!("# {text}"), "version 2\n".to_string(), text.to_string() + &" ".repeat(2000)] {
            std::fs::write(&path, &other).unwrap();
            assert_eq!(read_text(&path, 9000).unwrap(), other);
            let mut all = String::new();
            open(&path).unwrap().read_to_string(&mut all).unwrap();
            assert_eq!(all, other);
        }
        assert_eq!(next_of(&read(Path::new("/no/such/file"), 1).unwrap_err(), "else"), "else");
        std::fs::remove_file(&path).unwrap();
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn folders_and_devices_are_not_read() {
        let why = |path: &str| read(Path::new(path), 1 << 20).unwrap_err().to_string();
        assert!(why("/").contains("but a folder"), "{}", why("/"));
        assert!(why("/dev/zero").contains("but a device"), "{}", why("/dev/zero"));
        // It says that it has none, and has more.
        assert!(read(Path::new("/proc/self/maps"), 1).unwrap_err().to_string().contains("than the 1 that are read"));
    }
}
