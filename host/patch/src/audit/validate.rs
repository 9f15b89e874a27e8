//! wasmparser's validator, of the engine's own version, with only the proposals that are allowed.

use wasmparser::component_types::{ComponentAnyTypeId, ComponentDefinedType, ComponentDefinedTypeId, ComponentValType};
use wasmparser::types::{Types, TypesRef};
use wasmparser::{BinaryReaderError, Validator, WasmFeatures};

/// What Rust guests are compiled to.
pub(super) const ALLOWED: WasmFeatures = WasmFeatures::MUTABLE_GLOBAL
    .union(WasmFeatures::SATURATING_FLOAT_TO_INT)
    .union(WasmFeatures::SIGN_EXTENSION)
    .union(WasmFeatures::REFERENCE_TYPES)
    .union(WasmFeatures::MULTI_VALUE)
    .union(WasmFeatures::BULK_MEMORY)
    .union(WasmFeatures::SIMD)
    .union(WasmFeatures::FLOATS)
    .union(WasmFeatures::EXTENDED_CONST)
    .union(WasmFeatures::COMPONENT_MODEL);

/// Proposals that a component may not need, each with its rule.
pub(super) const FORBIDDEN: [(WasmFeatures, &str, &str); 21] = [
    (WasmFeatures::MULTI_MEMORY, "PH304", "several memories in a module"),
    (WasmFeatures::MEMORY64, "PH305", "64-bit memories"),
    (WasmFeatures::CUSTOM_PAGE_SIZES, "PH305", "custom page sizes"),
    (WasmFeatures::RELAXED_SIMD, "PH402", "relaxed SIMD"),
    (WasmFeatures::THREADS, "PH403", "threads and atomics"),
    (WasmFeatures::SHARED_EVERYTHING_THREADS, "PH403", "shared-everything threads"),
    (WasmFeatures::EXCEPTIONS, "PH404", "exceptions"),
    (WasmFeatures::LEGACY_EXCEPTIONS, "PH404", "legacy exceptions"),
    (WasmFeatures::GC, "PH405", "garbage collection"),
    (WasmFeatures::GC_TYPES, "PH405", "types of garbage collection"),
    (WasmFeatures::FUNCTION_REFERENCES, "PH405", "function references"),
    (WasmFeatures::TAIL_CALL, "PH406", "tail calls"),
    (WasmFeatures::STACK_SWITCHING, "PH407", "stack switching"),
    (WasmFeatures::CM_ASYNC, "PH205", "async, streams and futures"),
    (WasmFeatures::CM_ASYNC_STACKFUL, "PH205", "stackful async"),
    (WasmFeatures::CM_MORE_ASYNC_BUILTINS, "PH205", "further async builtins"),
    (WasmFeatures::CM_THREADING, "PH205", "component threads"),
    (WasmFeatures::CM_ERROR_CONTEXT, "PH205", "error contexts"),
    (WasmFeatures::WIDE_ARITHMETIC, "PH401", "wide arithmetic"),
    (WasmFeatures::MEMORY_CONTROL, "PH401", "memory control"),
    (WasmFeatures::CM_GC, "PH401", "the GC canonical ABI"),
];

/// Whether the bytes are valid at all.
pub(super) fn valid_with_everything(bytes: &[u8]) -> Result<(), BinaryReaderError> {
    Validator::new_with_features(WasmFeatures::all()).validate_all(bytes).map(|_| ())
}

/// Which forbidden proposals valid bytes need: those without which they are not valid.
pub(super) fn needed(bytes: &[u8]) -> Vec<(&'static str, &'static str)> {
    let without = |flag| Validator::new_with_features(WasmFeatures::all().difference(flag)).validate_all(bytes);
    let needed = FORBIDDEN.iter().filter(|(flag, _, _)| without(*flag).is_err());
    needed.map(|(_, id, what)| (*id, *what)).collect()
}

/// Depth of the deepest type of the root component. Types are ordered, each after what it is made of, and the
/// validator bounds their size; the memo makes this linear.
pub(super) fn type_depth(types: &Types) -> usize {
    let types = types.as_ref();
    let mut memo = std::collections::HashMap::new();
    let mut deepest = 0;
    for index in 0..types.component_type_count() {
        let depth = match types.component_any_type_at(index) {
            ComponentAnyTypeId::Defined(id) => defined(&types, id, &mut memo),
            ComponentAnyTypeId::Func(id) => {
                let func = &types[id];
                let params = func.params.iter().map(|(_, ty)| ty).chain(&func.result);
                params.map(|ty| value(&types, ty, &mut memo)).max().unwrap_or(0)
            }
            _ => 0,
        };
        deepest = deepest.max(depth);
    }
    deepest
}

/// Lifted functions that return lists or strings and have no post-return, by export name.
pub(super) fn leaks(types: &Types, lifted: &[super::facts::Lifted]) -> Vec<String> {
    let types = types.as_ref();
    let on_the_heap = |lifted: &&super::facts::Lifted| {
        if lifted.post_return || lifted.component_function >= types.component_function_count() {
            return false;
        }
        let func = &types[types.component_function_at(lifted.component_function)];
        func.result.as_ref().is_some_and(|ty| allocates(&types, ty, &mut std::collections::HashMap::new()))
    };
    lifted.iter().filter(on_the_heap).map(|lifted| crate::base::text::clean(&lifted.export, 120)).collect()
}

fn allocates(
    types: &TypesRef<'_>,
    ty: &ComponentValType,
    memo: &mut std::collections::HashMap<ComponentDefinedTypeId, bool>,
) -> bool {
    let id = match ty {
        ComponentValType::Primitive(primitive) => return *primitive == wasmparser::PrimitiveValType::String,
        ComponentValType::Type(id) => *id,
    };
    if let Some(known) = memo.get(&id) {
        return *known;
    }
    let mut inner = |ty: &ComponentValType| allocates(types, ty, memo);
    let found = match &types[id] {
        ComponentDefinedType::Primitive(primitive) => *primitive == wasmparser::PrimitiveValType::String,
        ComponentDefinedType::List { .. } | ComponentDefinedType::Map { .. } => true,
        ComponentDefinedType::Record(record) => record.fields.values().any(&mut inner),
        ComponentDefinedType::Variant(variant) => variant.cases.values().filter_map(|case| case.ty.as_ref()).any(inner),
        ComponentDefinedType::Tuple(tuple) => tuple.types.iter().any(inner),
        ComponentDefinedType::FixedLengthList { element, .. } => inner(element),
        ComponentDefinedType::Option { ty, .. } => inner(ty),
        ComponentDefinedType::Result { ok, err, .. } => ok.iter().chain(err).any(inner),
        _ => false,
    };
    memo.insert(id, found);
    found
}

type Memo = std::collections::HashMap<ComponentDefinedTypeId, usize>;

fn value(types: &TypesRef<'_>, ty: &ComponentValType, memo: &mut Memo) -> usize {
    match ty {
        ComponentValType::Primitive(_) => 1,
        ComponentValType::Type(id) => defined(types, *id, memo),
    }
}

/// Recursion is bounded: the validator refuses types nested deeper than 100.
fn defined(types: &TypesRef<'_>, id: ComponentDefinedTypeId, memo: &mut Memo) -> usize {
    if let Some(depth) = memo.get(&id) {
        return *depth;
    }
    let mut inner = |ty: &ComponentValType| value(types, ty, memo);
    let deepest = match &types[id] {
        ComponentDefinedType::Record(record) => record.fields.values().map(inner).max(),
        ComponentDefinedType::Variant(variant) => {
            variant.cases.values().filter_map(|case| case.ty.as_ref()).map(inner).max()
        }
        ComponentDefinedType::Tuple(tuple) => tuple.types.iter().map(inner).max(),
        ComponentDefinedType::List { element, .. } | ComponentDefinedType::FixedLengthList { element, .. } => {
            Some(inner(element))
        }
        ComponentDefinedType::Option { ty, .. } => Some(inner(ty)),
        ComponentDefinedType::Result { ok, err, .. } => ok.iter().chain(err).map(inner).max(),
        ComponentDefinedType::Map { key, value, .. } => Some(inner(key).max(inner(value))),
        _ => None,
    };
    let depth = 1 + deepest.unwrap_or(0);
    memo.insert(id, depth);
    depth
}
