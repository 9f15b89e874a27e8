#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| patchhost_fuzz::targets::safetensors(bytes));
