#![allow(clippy::unwrap_used)]
use std::collections::HashMap;

use rand::{Rng, SeedableRng};
use safetensors::tensor::TensorView;
use serde_json::json;

use super::*;

fn file(tensors: &[(&str, Dtype, &[usize], &[u8])], metadata: &[(&str, &str)]) -> Bytes {
    let views = tensors.iter().map(|(n, d, s, b)| (*n, TensorView::new(*d, s.to_vec(), b).unwrap()));
    let metadata: HashMap<String, String> = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    Bytes::from(safetensors::serialize(views, (!metadata.is_empty()).then_some(metadata)).unwrap())
}

fn info(value: serde_json::Value) -> UpdateInfo {
    UpdateInfo::all(value).unwrap().pop().unwrap()
}

#[test]
fn safetensors_are_taken_whole_and_in_parts() {
    let data: Vec<u8> = (0..12).collect();
    let pieces = safetensors("body", file(&[("w", Dtype::BF16, &[2, 3], &data)], &[("format", "pt")])).unwrap();
    assert_eq!(pieces.len(), 1);
    let t = pieces[0].tensor().unwrap();
    assert_eq!((t.stored, &t.shape[..], &t.data.load().unwrap()[..]), (Dtype::BF16, &[2, 3][..], &data[..]));

    let part = file(&[("w", Dtype::U8, &[5], &data[4..9])], &[("w@range", "BF16[2,3] 4")]);
    let pieces = safetensors("body", part).unwrap();
    assert!(pieces[0].tensor().is_none());
    assert_eq!((pieces[0].dtype, pieces[0].offset, &pieces[0].shape[..]), (Dtype::BF16, 4, &[2, 3][..]));
    assert_eq!(pieces[0].data.load().unwrap()[..], data[4..9]);
}

#[test]
fn ranges_that_make_no_sense_are_refused() {
    let data = [0u8; 4];
    for range in
        ["", "BF16", "BF16[2,3]", "BF16[2,3] x", "BF16[2,3] -1", "BF16 2,3 4", "XX[2] 0", "BF16[2,] 0", "[2] 0"]
    {
        let made = safetensors("body", file(&[("w", Dtype::U8, &[4], &data)], &[("w@range", range)]));
        assert!(matches!(made, Err(BodyError::Malformed(_))), "{range}");
    }
    let not_bytes = file(&[("w", Dtype::F32, &[1], &data)], &[("w@range", "F32[1] 0")]);
    assert!(safetensors("body", not_bytes).is_err());
    let stray = file(&[("w", Dtype::U8, &[4], &data)], &[("v@range", "F32[1] 0")]);
    assert!(safetensors("body", stray).is_err());
    let scalar = file(&[("w", Dtype::U8, &[4], &data)], &[("w@range", "F32[] 0")]);
    assert_eq!(safetensors("body", scalar).unwrap()[0].shape, [0usize; 0]);
}

#[test]
fn packed_bytes_follow_the_lists() {
    let bytes = Bytes::from((0..20).collect::<Vec<u8>>());
    let lists = json!({"names": ["a", "b"], "dtype_names": ["bfloat16", "torch.float32"], "shapes": [[2, 3], [2]], "tensor_sizes": [12, 8]});
    let pieces = packed(&info(lists.clone()), &bytes).unwrap();
    assert_eq!(
        (&pieces[0].data.load().unwrap()[..], &pieces[1].data.load().unwrap()[..]),
        (&bytes[..12], &bytes[12..])
    );
    assert!(packed(&info(lists.clone()), &bytes.slice(1..)).is_err(), "too few bytes");
    let mut wrong = lists.clone();
    wrong["tensor_sizes"] = json!([12, 9]);
    assert!(packed(&info(wrong), &bytes).is_err());
    let mut placed = lists.clone();
    placed["offsets"] = json!([8, 0]);
    assert_eq!(packed(&info(placed), &bytes).unwrap()[1].data.load().unwrap()[..], bytes[..8]);
    let mut short = lists;
    short["offsets"] = json!([8]);
    assert!(packed(&info(short), &bytes).is_err());
}

#[test]
fn a_bucket_is_cut_where_it_says() {
    let bytes = Bytes::from((0..20).collect::<Vec<u8>>());
    let meta = |v| serde_json::from_value::<BucketMeta>(v).unwrap();
    let entry = json!({"name": "w", "dtype": "bf16", "shape": [2, 3], "offset": 8});
    assert_eq!(bucket(meta(json!([entry])), &bytes).unwrap()[0].data.load().unwrap()[..], bytes[8..20]);
    let part = json!([{"name": "w", "dtype": "bf16", "shape": [2, 3], "offset": 0, "nbytes": 6, "tensor_offset": 6}]);
    let pieces = bucket(meta(part), &bytes).unwrap();
    assert_eq!((pieces[0].offset, pieces[0].data.len()), (6, 6));
    for bad in [
        json!([{"name": "w", "dtype": "bf16", "shape": [2, 3], "offset": 9}]),
        json!([{"name": "w", "dtype": "bf16", "shape": [2, 3], "offset": u64::MAX}]),
        json!([{"name": "w", "dtype": "bf17", "shape": [2, 3], "offset": 0}]),
        json!([{"name": "w", "dtype": "bf16", "shape": [u64::MAX, 3], "offset": 0}]),
        json!([{"name": "w", "dtype": "bf16", "shape": [2], "offset": 0, "nbytes": u64::MAX}]),
    ] {
        assert!(bucket(meta(bad.clone()), &bytes).is_err(), "{bad}");
    }
}

#[test]
fn a_frame_is_read() {
    let raw = [1u8, 2, 3, 4];
    let frame = |text: &str| {
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes.extend(raw);
        Bytes::from(bytes)
    };
    for text in [
        r#"{"bucket_meta": {"w": {"dtype": "float32", "shape": [1], "offset": 0}}}"#,
        r#"{"names": ["w"], "dtype_names": ["float32"], "shapes": [[1]]}"#,
    ] {
        assert_eq!(framed("body", frame(text)).unwrap()[0].data.load().unwrap()[..], raw);
    }
    for text in ["", "[]", "[{},{}]", "{", "7", r#"{"bucket_meta": 7}"#, r#"{"names": ["w"]}"#] {
        assert!(framed("body", frame(text)).is_err(), "{text}");
    }
    assert!(framed("body", Bytes::from_static(&[1, 2, 3])).is_err());
    assert!(framed("body", Bytes::from_static(&[255; 16])).is_err());
}

#[test]
fn base64_with_and_without_padding_and_lines() {
    for text in ["AQI=", "AQI", "AQ\nI=", " AQI="] {
        assert_eq!(base64_bytes("x", text).unwrap()[..], [1, 2], "{text}");
    }
    assert!(matches!(base64_bytes("x", "A*"), Err(BodyError::Malformed(_))));
    assert!(matches!(base64_bytes("x", "gASVCwAAAAAAAACMBWhlbGxvlC4="), Err(BodyError::Pickle(_))));
}

#[test]
fn pickles_are_refused_and_never_parsed() {
    let pickle = Bytes::from_static(b"\x80\x04\x95\x0b\0\0\0\0\0\0\0\x8c\x05hello\x94.");
    for made in [safetensors("body", pickle.clone()), framed("body", pickle)] {
        let text = made.unwrap_err().to_string();
        assert!(text.contains("unpickling runs") && text.contains("safetensors.torch.save"), "{text}");
    }
}

/// Whatever is done to a good body, the answer is an error or pieces inside of it; never a panic.
#[test]
fn damaged_bodies_never_panic() {
    let data: Vec<u8> = (0..64).collect();
    let good = [
        file(
            &[("a", Dtype::BF16, &[4, 4], &data[..32]), ("b", Dtype::U8, &[32], &data[32..])],
            &[("b@range", "F32[4,4] 32")],
        ),
        {
            let text = r#"{"bucket_meta": [{"name": "w", "dtype": "float32", "shape": [4], "offset": 0}]}"#;
            let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
            bytes.extend(text.as_bytes());
            bytes.extend(&data[..16]);
            Bytes::from(bytes)
        },
    ];
    let mut rng = rand::rngs::StdRng::seed_from_u64(1);
    for round in 0..4000 {
        let mut bytes = good[round % 2].to_vec();
        for _ in 0..rng.random_range(1..4) {
            match rng.random_range(0..3) {
                0 => bytes.truncate(rng.random_range(0..=bytes.len())),
                1 if !bytes.is_empty() => {
                    let at = rng.random_range(0..bytes.len());
                    bytes[at] = rng.random();
                }
                _ => bytes.insert(rng.random_range(0..=bytes.len()), rng.random()),
            }
        }
        let bytes = Bytes::from(bytes);
        for piece in [safetensors("body", bytes.clone()), framed("body", bytes.clone())].into_iter().flatten().flatten()
        {
            assert!(piece.data.len() <= bytes.len());
        }
    }
}
