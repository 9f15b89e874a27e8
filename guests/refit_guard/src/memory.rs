//! What the guard remembers of the last refit that it accepted, and how that goes to its successor.

use crate::bindings::exports::patchhost::patch::state::Snapshot;

/// What the payload holds.
pub const SCHEMA: &str = "refit_guard.last-refit";
/// Layout: tensors (u32), fingerprint (u64), both little-endian, then the version as UTF-8. Empty: no refit yet.
pub const VERSION: u32 = 1;

/// Longest version of a refit, as the interface says.
const VERSION_BYTES: usize = 256;
const HEAD: usize = 12;

/// The last refit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Last {
    /// How many tensors it had.
    pub tensors: u32,
    /// Of their names, dtypes and shapes, in order.
    pub fingerprint: u64,
    /// What the trainer called it.
    pub version: String,
}

/// FNV-1a over the tensors of a refit as they come. Notices accidents; it is no defense against a forger.
#[derive(Debug, Clone)]
pub struct Fingerprint(u64);

impl Default for Fingerprint {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fingerprint {
    /// Adds a tensor. The name ends with a byte that no name has, the shape carries its length.
    pub fn add(&mut self, name: &str, dtype: u8, shape: &[u64]) {
        let rank = shape.len() as u8;
        let bytes = name.bytes().chain([0xff, dtype, rank]).chain(shape.iter().flat_map(|d| d.to_le_bytes()));
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// The value.
    pub fn value(&self) -> u64 {
        self.0
    }
}

/// What is handed over.
pub fn export(last: Option<&Last>) -> Snapshot {
    let payload = last.map_or_else(Vec::new, |last| {
        let head = [&last.tensors.to_le_bytes()[..], &last.fingerprint.to_le_bytes()].concat();
        head.into_iter().chain(last.version.bytes()).collect()
    });
    Snapshot { schema: SCHEMA.into(), version: VERSION, payload }
}

/// What was handed over.
pub fn import(snapshot: Snapshot) -> Result<Option<Last>, String> {
    let Snapshot { schema, version, payload } = snapshot;
    if schema != SCHEMA || version != VERSION {
        let known = format!("known is `{SCHEMA}` version {VERSION}");
        return Err(format!("schema `{schema}` version {version} is unknown; {known}"));
    }
    if payload.is_empty() {
        return Ok(None);
    }
    let wrong = || format!("a payload of {} bytes is not one of `{SCHEMA}` version {VERSION}", payload.len());
    let (tensors, rest) = payload.split_first_chunk().ok_or_else(wrong)?;
    let (fingerprint, version) = rest.split_first_chunk().ok_or_else(wrong)?;
    let version = match std::str::from_utf8(version) {
        Ok(version) if payload.len() - HEAD <= VERSION_BYTES => version.to_owned(),
        _ => return Err(wrong()),
    };
    let (tensors, fingerprint) = (u32::from_le_bytes(*tensors), u64::from_le_bytes(*fingerprint));
    Ok(Some(Last { tensors, fingerprint, version }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_exported_is_imported() {
        let last = Last { tensors: 7, fingerprint: u64::MAX - 3, version: "step-größe".into() };
        assert_eq!(import(export(Some(&last))), Ok(Some(last)));
        assert_eq!(import(export(None)), Ok(None));
    }

    #[test]
    fn other_state_is_refused() {
        let good = export(Some(&Last { tensors: 1, fingerprint: 2, version: "v".into() }));
        let schema = Snapshot { schema: "other".into(), ..good.clone() };
        assert!(import(schema).is_err_and(|why| why.contains("known is `refit_guard.last-refit` version 1")));
        assert!(import(Snapshot { version: 2, ..good.clone() }).is_err_and(|why| why.contains("version 2")));
        let short = Snapshot { payload: good.payload[..11].to_vec(), ..good.clone() };
        assert!(import(short).is_err_and(|why| why.contains("11 bytes")));
        let long = Snapshot { payload: vec![b'a'; 300], ..good.clone() };
        assert!(import(long).is_err());
        let not_text = Snapshot { payload: [&good.payload[..], &[0xff]].concat(), ..good };
        assert!(import(not_text).is_err());
    }

    #[test]
    fn a_fingerprint_sees_names_dtypes_shapes_and_order() {
        let of = |tensors: &[(&str, u8, &[u64])]| {
            let mut fingerprint = Fingerprint::default();
            tensors.iter().for_each(|(name, dtype, shape)| fingerprint.add(name, *dtype, shape));
            fingerprint.value()
        };
        let base = of(&[("a", 0, &[2, 3]), ("b", 0, &[])]);
        let others = [
            of(&[("a", 0, &[2, 3])]),
            of(&[("a", 0, &[3, 2]), ("b", 0, &[])]),
            of(&[("a", 1, &[2, 3]), ("b", 0, &[])]),
            of(&[("b", 0, &[]), ("a", 0, &[2, 3])]),
            of(&[("ab", 0, &[2, 3])]),
        ];
        assert!(others.iter().all(|other| *other != base));
    }
}
