//! From sources to components.

use crate::toolchain::{TARGET, Toolchain};
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::time::Instant;
use wit_component::{ComponentEncoder, DecodedWasm};

/// The patches that people use, with the only interfaces that each may import.
const GUESTS: [(&str, &[&str]); 7] = [
    ("fp8_block", &[]),
    ("fp8_block_mse", &["patchhost:patch/row-source@0.1.0"]),
    ("gpu_layout", &[]),
    ("lora_tensors", &[]),
    ("moe_loader", &[]),
    ("refit_guard", &[]),
    ("vocab_mask", &[]),
];

/// One finished component.
pub struct Built {
    /// Name of the patch.
    pub name: String,
    /// One of those that misbehave on purpose.
    pub evil: bool,
    /// The component.
    pub bytes: Vec<u8>,
    /// What it imports.
    pub imports: Vec<String>,
}

impl Built {
    /// Where it is committed, relative to `guests/`.
    pub fn file(&self) -> String {
        if self.evil { format!("evil/{}.wasm", self.name) } else { format!("{}.wasm", self.name) }
    }
}

/// Builds every guest of the workspace at `root/guests` into `target` and wraps each as a component.
pub fn all(root: &Path, toolchain: &Toolchain, target: &Path) -> Result<Vec<Built>> {
    let guests = root.join("guests");
    eprintln!("compiling the guests with {}", toolchain.name);
    let start = Instant::now();
    let mut cargo = toolchain.cargo_build(&guests, target)?;
    let status = cargo.status().with_context(|| format!("cannot run {cargo:?}"))?;
    if !status.success() {
        bail!("the guests do not compile ({status}); the compiler's words are above");
    }
    eprintln!("compiled in {:.1} s", start.elapsed().as_secs_f64());

    let modules = target.join(TARGET).join("release");
    let mut built = Vec::new();
    for (name, allowed) in GUESTS {
        let one = wrap(name, false, &modules.join(format!("{name}.wasm")))?;
        if let Some(import) = one.imports.iter().find(|i| !allowed.contains(&i.as_str())) {
            bail!(
                "guest `{name}` imports `{import}`, which its world does not have; look for a call that needs the system"
            );
        }
        built.push(one);
    }
    for name in evil_names(&guests)? {
        let one = wrap(&name, true, &modules.join(format!("examples/{name}.wasm")))?;
        let allowed = |import: &String| name == WASI && import.starts_with("wasi:");
        if !one.imports.iter().all(allowed) {
            bail!(
                "evil guest `{name}` imports {}; it must be refused for what it does, not for that",
                one.imports.join(", ")
            );
        }
        built.push(one);
    }
    Ok(built)
}

/// Where the misbehaving guests are, one file each.
const EVIL: [&str; 5] =
    ["evil/examples", "evil/hooks/examples", "evil/loader/examples", "evil/state/examples", "evil/wasi/examples"];

/// The only evil guest that imports anything: WASI, which is what it is there for.
const WASI: &str = "any_wasi";

/// Their names, sorted.
fn evil_names(guests: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for folder in EVIL.map(|folder| guests.join(folder)) {
        let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
        for entry in entries {
            let path = entry.with_context(|| format!("cannot list {}", folder.display()))?.path();
            if path.extension().is_some_and(|e| e == "rs")
                && let Some(stem) = path.file_stem()
            {
                names.push(stem.to_string_lossy().into_owned());
            }
        }
    }
    names.sort();
    Ok(names)
}

/// A core module becomes a component; its interface was put into the module by the bindings.
fn wrap(name: &str, evil: bool, module: &Path) -> Result<Built> {
    let core = std::fs::read(module).with_context(|| format!("cannot read {}", module.display()))?;
    let encoded = ComponentEncoder::default().validate(true).module(&core).and_then(|mut e| e.encode());
    let bytes = encoded.with_context(|| format!("cannot make a component of {}", module.display()))?;
    let imports = imports(&bytes).with_context(|| format!("cannot read the interface of guest `{name}`"))?;
    let listed = if imports.is_empty() { "none".to_string() } else { imports.join(", ") };
    eprintln!(
        "  {:<28} {:>8} bytes, imports: {listed}",
        format!("{}{name}", if evil { "evil/" } else { "" }),
        bytes.len()
    );
    Ok(Built { name: name.into(), evil, bytes, imports })
}

fn imports(component: &[u8]) -> Result<Vec<String>> {
    match wit_component::decode(component)? {
        DecodedWasm::Component(resolve, world) => {
            let keys = resolve.worlds[world].imports.keys();
            Ok(keys.map(|key| resolve.name_world_key(key)).collect())
        }
        DecodedWasm::WitPackage(..) => bail!("it is a WIT package, not a component"),
    }
}
