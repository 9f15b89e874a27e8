//! The first difference between two types of two packages, in words.

use crate::base::text;
use wit_parser::{Resolve, Type, TypeDefKind, TypeId};

/// How `found` (of `guest`) differs from `wanted` (of `host`): "is list<f64>, the host has list<f32>".
pub(super) fn difference(guest: &Resolve, found: &Type, host: &Resolve, wanted: &Type) -> Option<String> {
    let (found, wanted) = (resolve(guest, found), resolve(host, wanted));
    let (Type::Id(found_id), Type::Id(wanted_id)) = (&found, &wanted) else {
        return (found != wanted)
            .then(|| format!("is {}, the host has {}", render(guest, &found, DEPTH), render(host, &wanted, DEPTH)));
    };
    inner(guest, *found_id, host, *wanted_id)
}

/// How deep a type is written out.
const DEPTH: usize = 4;

/// Through `type x = y`.
fn resolve(of: &Resolve, ty: &Type) -> Type {
    let mut ty = *ty;
    while let Type::Id(id) = ty
        && let TypeDefKind::Type(target) = &of.types[id].kind
    {
        ty = *target;
    }
    ty
}

fn inner(guest: &Resolve, found: TypeId, host: &Resolve, wanted: TypeId) -> Option<String> {
    use TypeDefKind as K;
    let within = |what: String, difference: Option<String>| difference.map(|text| format!("{what} {text}"));
    let different = || {
        let (found, wanted) = (Type::Id(found), Type::Id(wanted));
        Some(format!("is {}, the host has {}", render(guest, &found, DEPTH), render(host, &wanted, DEPTH)))
    };
    let name = || host.types[wanted].name.clone().unwrap_or_else(|| "type".to_owned());
    match (&guest.types[found].kind, &host.types[wanted].kind) {
        (K::List(a), K::List(b)) => match difference(guest, a, host, b) {
            // "is list<f64>, the host has list<f32>" says more than "element is f64".
            Some(_) if is_primitive(host, b) => different(),
            other => within("element".into(), other),
        },
        (K::Option(a), K::Option(b)) => within("payload".into(), difference(guest, a, host, b)),
        (K::Result(a), K::Result(b)) => {
            optional(guest, &a.ok, host, &b.ok, "`ok`").or_else(|| optional(guest, &a.err, host, &b.err, "`err`"))
        }
        (K::Tuple(a), K::Tuple(b)) if a.types.len() == b.types.len() => {
            let pairs = a.types.iter().zip(&b.types).enumerate();
            pairs.map(|(i, (a, b))| within(format!("item {}", i + 1), difference(guest, a, host, b))).find_map(|d| d)
        }
        (K::Record(a), K::Record(b)) => {
            let fields = |names: Vec<&str>| names.join(", ");
            let (a_names, b_names): (Vec<_>, Vec<_>) = (
                a.fields.iter().map(|f| f.name.as_str()).collect(),
                b.fields.iter().map(|f| f.name.as_str()).collect(),
            );
            if a_names != b_names {
                let (a, b) = (text::clean(&fields(a_names), 200), fields(b_names));
                return Some(format!("record `{}` has fields {a}; the host has {b}", name()));
            }
            let pairs = a.fields.iter().zip(&b.fields);
            pairs
                .map(|(a, b)| {
                    within(format!("field `{}` of `{}`", b.name, name()), difference(guest, &a.ty, host, &b.ty))
                })
                .find_map(|d| d)
        }
        (K::Enum(a), K::Enum(b)) => {
            let a: Vec<_> = a.cases.iter().map(|case| case.name.as_str()).collect();
            let b: Vec<_> = b.cases.iter().map(|case| case.name.as_str()).collect();
            names_differ(&name(), "enum", &a, &b)
        }
        (K::Variant(a), K::Variant(b)) => {
            let a_names: Vec<_> = a.cases.iter().map(|case| case.name.as_str()).collect();
            let b_names: Vec<_> = b.cases.iter().map(|case| case.name.as_str()).collect();
            names_differ(&name(), "variant", &a_names, &b_names).or_else(|| {
                let mut pairs = a.cases.iter().zip(&b.cases);
                pairs.find_map(|(a, b)| {
                    let what = format!("case `{}` of `{}`", b.name, name());
                    optional(guest, &a.ty, host, &b.ty, &what)
                })
            })
        }
        _ => different(),
    }
}

fn is_primitive(of: &Resolve, ty: &Type) -> bool {
    !matches!(resolve(of, ty), Type::Id(_))
}

fn names_differ(name: &str, kind: &str, found: &[&str], wanted: &[&str]) -> Option<String> {
    (found != wanted).then(|| {
        let found = text::clean(&found.join(", "), 200);
        format!("{kind} `{name}` has cases {found}; the host has {}", wanted.join(", "))
    })
}

fn optional(guest: &Resolve, a: &Option<Type>, host: &Resolve, b: &Option<Type>, what: &str) -> Option<String> {
    match (a, b) {
        (Some(a), Some(b)) => difference(guest, a, host, b).map(|text| format!("{what} {text}")),
        (None, None) => None,
        (Some(_), None) => Some(format!("{what} has a payload, the host has none")),
        (None, Some(_)) => Some(format!("{what} has no payload, the host has one")),
    }
}

fn render(of: &Resolve, ty: &Type, depth: usize) -> String {
    let Type::Id(id) = resolve(of, ty) else {
        return format!("{:?}", resolve(of, ty)).to_lowercase();
    };
    if depth == 0 {
        return "…".to_owned();
    }
    let one = |ty: &Type| render(of, ty, depth - 1);
    let maybe = |ty: &Option<Type>| ty.as_ref().map_or_else(|| "_".to_owned(), one);
    let definition = &of.types[id];
    match &definition.kind {
        TypeDefKind::List(element) => format!("list<{}>", one(element)),
        TypeDefKind::Option(payload) => format!("option<{}>", one(payload)),
        TypeDefKind::Result(result) => format!("result<{}, {}>", maybe(&result.ok), maybe(&result.err)),
        TypeDefKind::Tuple(tuple) => {
            let items: Vec<_> = tuple.types.iter().take(8).map(one).collect();
            format!("tuple<{}>", items.join(", "))
        }
        kind => match &definition.name {
            Some(name) => format!("{} `{}`", kind.as_str(), text::clean(name, 80)),
            None => kind.as_str().to_owned(),
        },
    }
}
