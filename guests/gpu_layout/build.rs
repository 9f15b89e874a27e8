//! Bounds the guest's own memory, so that the host sees the bound before it compiles anything.

fn main() {
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("wasm32") {
        println!("cargo:rustc-link-arg-cdylib=--max-memory=62914560");
    }
    println!("cargo:rerun-if-changed=build.rs");
}
