//! What the guest of `examples/` does with WASI, a function for each thing that it can be told to try.

use wasip2::cli::{environment, exit, stdout};
use wasip2::clocks::{monotonic_clock, wall_clock};
use wasip2::filesystem::preopens::get_directories;
use wasip2::filesystem::types::{Descriptor, DescriptorFlags, ErrorCode, OpenFlags, PathFlags};
use wasip2::random::random::get_random_u64;

/// Tries one thing, and says what came of it.
pub fn try_it(what: &str, value: &str) -> Result<String, String> {
    match what {
        "dirs" => Ok(get_directories().iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>().join(" ")),
        "read" => read(value),
        "list" => list(value),
        "write" => write(value),
        "mkdir" => at(value, |dir, path| dir.create_directory_at(path)).map(|()| "made".into()),
        "unlink" => at(value, |dir, path| dir.unlink_file_at(path)).map(|()| "removed".into()),
        "symlink" => {
            let (target, path) = value.split_once(' ').ok_or("symlink=TARGET PATH")?;
            at(path, |dir, path| dir.symlink_at(target, path)).map(|()| "linked".into())
        }
        "env" => {
            let all = environment::get_environment();
            let found = all.iter().find(|(name, _)| name == value).map(|(_, value)| value.clone());
            Ok(format!("{} of {}", found.unwrap_or_else(|| "unset".into()), all.len()))
        }
        "args" => Ok(environment::get_arguments().join(" ")),
        "clock" => Ok(format!("{} {}", wall_clock::now().seconds, monotonic_clock::now())),
        "random" => Ok(format!("{:x}", get_random_u64())),
        "print" => {
            let repeat: usize = value.parse().unwrap_or(1);
            let out = stdout::get_stdout();
            for _ in 0..repeat {
                out.blocking_write_and_flush(b"a line of the guest \x1b[2J\n").map_err(|e| format!("{e:?}"))?;
            }
            Ok("printed".into())
        }
        "sleep" => {
            monotonic_clock::subscribe_duration(value.parse().map_err(|_| "sleep=NANOSECONDS")?).block();
            Ok("slept".into())
        }
        "handles" => {
            let kept: Vec<_> = (0..1_000_000u64).map(monotonic_clock::subscribe_instant).collect();
            Ok(format!("{} handles", kept.len()))
        }
        "exit" => {
            exit::exit(Err(()));
            Ok("still here".into())
        }
        _ => Err(format!("nothing is called `{what}`")),
    }
}

/// The folder that a path begins with, and the rest of the path. A path that begins with no folder is tried in the first
/// one, whatever it is: `..`, `/etc/passwd`.
fn at<R>(path: &str, f: impl Fn(&Descriptor, &str) -> Result<R, ErrorCode>) -> Result<R, String> {
    let dirs = get_directories();
    let inside = dirs.iter().find_map(|(dir, name)| Some((dir, path.strip_prefix(name.as_str())?.strip_prefix('/')?)));
    let (dir, rest) = inside.or(dirs.first().map(|(dir, _)| (dir, path))).ok_or("no folder")?;
    f(dir, rest).map_err(|e| format!("{e:?}"))
}

fn read(path: &str) -> Result<String, String> {
    at(path, |dir, path| {
        let file = dir.open_at(PathFlags::SYMLINK_FOLLOW, path, OpenFlags::empty(), DescriptorFlags::READ)?;
        let (bytes, _) = file.read(64, 0)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    })
}

fn list(path: &str) -> Result<String, String> {
    at(path, |dir, path| {
        let flags = (OpenFlags::DIRECTORY, DescriptorFlags::READ);
        let entries = dir.open_at(PathFlags::SYMLINK_FOLLOW, path, flags.0, flags.1)?.read_directory()?;
        let mut names = Vec::new();
        while let Some(entry) = entries.read_directory_entry()? {
            names.push(entry.name);
        }
        names.sort();
        Ok(names.join(" "))
    })
}

fn write(path: &str) -> Result<String, String> {
    at(path, |dir, path| {
        let file = dir.open_at(PathFlags::empty(), path, OpenFlags::CREATE, DescriptorFlags::WRITE)?;
        file.write(b"written by a guest", 0).map(|n| format!("{n} bytes"))
    })
}
