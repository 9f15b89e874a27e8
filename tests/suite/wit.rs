//! The interface: it parses, its digest is known, and the records that hooks repeat are the same everywhere.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};
use wit_parser::{Resolve, TypeDefKind, TypeId};

use crate::support::repo;

fn resolve() -> Resolve {
    let mut resolve = Resolve { all_features: true, ..Resolve::default() };
    resolve.push_dir(repo().join("wit/patch/0.1.0")).unwrap();
    resolve
}

/// A type as text, names resolved all the way down.
fn show(r: &Resolve, id: TypeId) -> String {
    let ty = |t: &wit_parser::Type| match t {
        wit_parser::Type::Id(id) => show(r, *id),
        other => format!("{other:?}"),
    };
    match &r.types[id].kind {
        TypeDefKind::Record(rec) => {
            rec.fields.iter().map(|f| format!("{}: {}", f.name, ty(&f.ty))).collect::<Vec<_>>().join(", ")
        }
        TypeDefKind::Enum(e) => e.cases.iter().map(|c| c.name.clone()).collect::<Vec<_>>().join(" | "),
        TypeDefKind::List(t) => format!("list<{}>", ty(t)),
        TypeDefKind::Type(t) => ty(t),
        other => format!("{other:?}"),
    }
}

#[test]
fn repeated_types_are_the_same_everywhere() {
    let r = resolve();
    let mut masters = BTreeMap::new();
    for (_, i) in &r.interfaces {
        if i.name.as_deref() == Some("types") {
            masters.extend(i.types.iter().map(|(name, id)| (name.clone(), show(&r, *id))));
        }
    }
    assert_eq!(masters.len(), 5);
    let mut compared = 0;
    for (_, i) in &r.interfaces {
        for (name, id) in &i.types {
            if let Some(master) = masters.get(name) {
                assert_eq!(&show(&r, *id), master, "{name} in {:?}", i.name);
                compared += 1;
            }
        }
    }
    assert!(compared > 15, "only {compared} compared");
}

#[test]
fn the_hooks_of_the_design_exist() {
    let r = resolve();
    let names: Vec<_> = r.interfaces.iter().filter_map(|(_, i)| i.name.clone()).collect();
    for wanted in
        ["types", "identity", "loader-map", "block-quant", "layout", "lora", "logits-mask", "refit-observer", "state"]
    {
        assert!(names.iter().any(|n| n == wanted), "no {wanted} in {names:?}");
    }
}

/// The interface is what patches are built against. A change that is meant changes this line too, and the guests must
/// be rebuilt; once 0.1.0 is released, a change needs a new version folder instead.
#[test]
fn the_digest_of_the_interface_is_known() {
    let mut files: Vec<_> =
        std::fs::read_dir(repo().join("wit/patch/0.1.0")).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let mut hash = Sha256::new();
    for f in files {
        hash.update(f.file_name().unwrap().to_str().unwrap().as_bytes());
        hash.update([0]);
        hash.update(std::fs::read(f).unwrap());
        hash.update([0]);
    }
    let hex: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    insta::assert_snapshot!(hex);
}
