//! Recognizing pickles, to refuse them with a reason. They are never parsed: unpickling runs code of the sender.

use base64::Engine as _;
use patchhost_runtime::error::Refusal;

use super::BodyError;

/// Fields of vLLM's and SGLang's requests that hold pickles, or handles to memory of another process.
pub const FIELDS: [&str; 4] = ["ipc_handles", "ipc_handles_pickled", "zmq_handles", "handles_pickled"];

/// Whether bytes are a pickle, or the zip archive of one that `torch.save` writes.
pub fn is_pickle(bytes: &[u8]) -> bool {
    match bytes {
        // Eight bytes of header length can begin like a pickle, for example 640 = 0x0280.
        _ if is_safetensors(bytes) => false,
        [0x80, 2..=5, ..] => true,
        [b'P', b'K', 3 | 5, 4 | 6, ..] => true,
        _ => false,
    }
}

/// Whether text is the base64 of a pickle.
pub fn is_pickle_base64(text: &str) -> bool {
    let head: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).take(24).collect();
    let whole = head.len() / 4 * 4;
    base64::engine::general_purpose::STANDARD.decode(&head[..whole]).is_ok_and(|bytes| is_pickle(&bytes))
}

/// Refuses bytes that are a pickle.
pub fn refuse(what: &str, bytes: &[u8]) -> Result<(), BodyError> {
    if is_pickle(bytes) { Err(BodyError::Pickle(refusal(what))) } else { Ok(()) }
}

/// Refuses JSON that has such a field at its top.
pub fn refuse_fields(value: &serde_json::Value) -> Result<(), BodyError> {
    match FIELDS.iter().find(|f| value.get(**f).is_some_and(|v| !v.is_null())) {
        Some(field) => Err(refuse_field(field)),
        None => Ok(()),
    }
}

/// Refuses a field that holds pickles or handles.
pub fn refuse_field(field: &str) -> BodyError {
    let why = match field {
        "ipc_handles" | "zmq_handles" => "it names memory or sockets of another process on a GPU machine",
        _ => "it holds a pickle, and unpickling runs whatever code the sender wrote",
    };
    BodyError::Pickle(Refusal::new(format!("field `{field}`"), why, NEXT))
}

/// The refusal of a pickle.
pub fn refusal(what: &str) -> Refusal {
    Refusal::new(
        what,
        "it is a pickle (torch.save, or a serialized tensor of vLLM or SGLang), and unpickling runs whatever code the \
         sender wrote",
        NEXT,
    )
}

const NEXT: &str = "send safetensors.torch.save(tensors) as the body (Content-Type: application/octet-stream), its base64, or \
                    the path of a safetensors file inside a --root";

fn is_safetensors(bytes: &[u8]) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else { return false };
    rest.first() == Some(&b'{') && u64::from_le_bytes(*length) <= patchhost_runtime::checkpoint::MAX_HEADER
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pickles_of_every_protocol_and_archives_are_seen() {
        for n in 2..=5 {
            assert!(is_pickle(&[0x80, n, b'}', b'.']));
        }
        assert!(is_pickle(b"\x80\x04\x95\x0b\0\0\0\0\0\0\0\x8c\x05hello\x94."));
        assert!(is_pickle(b"PK\x03\x04") && is_pickle(b"PK\x05\x06"));
        assert!(!is_pickle(b"") && !is_pickle(&[0x80]) && !is_pickle(b"{}") && !is_pickle(b"PKware"));
    }

    #[test]
    fn a_header_of_640_bytes_is_no_pickle() {
        for length in [640u64, 896, 1152, 1408] {
            let mut bytes = length.to_le_bytes().to_vec();
            assert!(is_pickle(&bytes), "only the length: cannot be told apart");
            bytes.extend(b"{\"w\":");
            assert!(!is_pickle(&bytes), "{length}");
        }
    }

    #[test]
    fn base64_is_looked_into() {
        let encode = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
        assert!(is_pickle_base64(&encode(b"\x80\x04\x95\x0b\0\0\0\0\0\0\0\x8c\x05hello\x94.")));
        assert!(is_pickle_base64(&format!(" \n{}", encode(b"PK\x03\x04\0\0"))));
        let mut tensor = 640u64.to_le_bytes().to_vec();
        tensor.extend(b"{\"w\":{}}");
        assert!(!is_pickle_base64(&encode(&tensor)) && !is_pickle_base64("") && !is_pickle_base64("!!!!"));
    }
}
