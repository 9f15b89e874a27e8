//! Files of others: opened if they are plain files, read up to a bound. A model folder may hold links (the cache of the
//! Hugging Face hub is made of them), and by them or directly a pipe, a device or a file without an end.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
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
/// for who writes into it.
pub fn open(path: &Path) -> io::Result<File> {
    open_with(File::options().read(true), path)
}

/// The same with other options: for a file that is written, too.
pub fn open_with(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    open_measured(options, path).map(|(file, _)| file)
}

/// The bytes of a plain file, if there are no more than `most`.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let (file, data) = open_measured(File::options().read(true), path)?;
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
