//! Names of element types, as PyTorch, safetensors and trainers write them.

use safetensors::tensor::Dtype;

/// The element type of a name: `BF16`, `bfloat16`, `torch.bfloat16`, `bf16`, …
pub fn named(text: &str) -> Option<Dtype> {
    let lower = text.trim().to_ascii_lowercase();
    Some(match lower.strip_prefix("torch.").unwrap_or(&lower) {
        "f64" | "float64" | "double" => Dtype::F64,
        "f32" | "float32" | "float" | "fp32" => Dtype::F32,
        "f16" | "float16" | "half" | "fp16" => Dtype::F16,
        "bf16" | "bfloat16" => Dtype::BF16,
        "f8_e4m3" | "float8_e4m3fn" | "fp8" | "fp8_e4m3" => Dtype::F8_E4M3,
        "f8_e5m2" | "float8_e5m2" => Dtype::F8_E5M2,
        "f8_e8m0" | "float8_e8m0fnu" => Dtype::F8_E8M0,
        "i64" | "int64" | "long" => Dtype::I64,
        "i32" | "int32" | "int" => Dtype::I32,
        "i16" | "int16" | "short" => Dtype::I16,
        "i8" | "int8" => Dtype::I8,
        "u8" | "uint8" | "byte" => Dtype::U8,
        "bool" => Dtype::BOOL,
        _ => return None,
    })
}

/// Bytes of a tensor; none where that is no whole number, or too large.
pub fn bytes(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    let elements = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
    let bits = elements.checked_mul(dtype.bitsize())?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_all_houses() {
        for text in ["BF16", "bf16", "bfloat16", "torch.bfloat16", " bfloat16 "] {
            assert_eq!(named(text), Some(Dtype::BF16), "{text}");
        }
        assert_eq!(named("torch.float8_e4m3fn"), Some(Dtype::F8_E4M3));
        assert!(named("float7").is_none() && named("").is_none() && named("torch.").is_none());
    }

    #[test]
    fn sizes_do_not_overflow() {
        assert_eq!(bytes(Dtype::BF16, &[2, 3]), Some(12));
        assert_eq!(bytes(Dtype::F32, &[]), Some(4));
        assert_eq!(bytes(Dtype::F32, &[usize::MAX, 2]), None);
        assert_eq!(bytes(Dtype::F32, &[usize::MAX / 8]), None);
    }
}
