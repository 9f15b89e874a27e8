//! Which vector instructions this machine has, chosen at run time.
//!
//! Every kernel computes the same bits on every [`Isa`]: the choice is about speed only.

use std::sync::OnceLock;

/// A set of vector instructions that the kernels are compiled for. Ordered: a later one is faster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust; needs nothing.
    Portable,
    /// AVX2, FMA and F16C (x86-64-v3).
    Avx2,
    /// The same on cores that multiply subnormal numbers at full speed (AMD's): FP8 is decoded with fewer instructions.
    Avx2Subnormal,
    /// AVX-512 F, BW, VL and DQ, and all of [`Isa::Avx2`].
    Avx512,
}

impl Isa {
    /// The best one of this machine, or what the environment variable `PATCHHOST_ISA`
    /// (`portable`, `avx2`, `avx2-subnormal`, `avx512`) lowers it to. Read once per process; an unknown word changes nothing, and the
    /// variable cannot raise what the hardware lacks.
    pub fn detect() -> Isa {
        static CHOICE: OnceLock<Isa> = OnceLock::new();
        *CHOICE.get_or_init(|| {
            let wanted = match std::env::var("PATCHHOST_ISA").as_deref() {
                Ok("portable") => Isa::Portable,
                Ok("avx2") => Isa::Avx2,
                Ok("avx2-subnormal") => Isa::Avx2Subnormal,
                _ => Isa::Avx512,
            };
            wanted.min(Isa::hardware())
        })
    }

    /// All that this machine can run, slowest first; the environment is not asked.
    pub fn available() -> Vec<Isa> {
        let best = Isa::hardware();
        let all = [Isa::Portable, Isa::Avx2, Isa::Avx2Subnormal, Isa::Avx512];
        all.into_iter().filter(|isa| *isa <= best).collect()
    }

    /// `portable`, `avx2`, `avx2-subnormal` or `avx512`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx2Subnormal => "avx2-subnormal",
            Isa::Avx512 => "avx512",
        }
    }

    /// What the hardware has. This, and nothing a caller says, is what makes the vector paths sound.
    pub(crate) fn hardware() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| {
            #[cfg(target_arch = "x86_64")]
            {
                let avx2 = is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c");
                let avx512 = is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq");
                match (avx2, avx512) {
                    (true, true) => return Isa::Avx512,
                    (true, false) if has_fast_subnormals() => return Isa::Avx2Subnormal,
                    (true, false) => return Isa::Avx2,
                    _ => {}
                }
            }
            Isa::Portable
        })
    }
}

/// Whether multiplications with subnormal numbers take no longer than others. On Intel's cores each costs some 150
/// cycles; on AMD's none (measured on Zen 3). What is unknown counts as slow.
#[cfg(target_arch = "x86_64")]
fn has_fast_subnormals() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0);
    let name: Vec<u8> = [leaf.ebx, leaf.edx, leaf.ecx].iter().flat_map(|r| r.to_le_bytes()).collect();
    matches!(&name[..], b"AuthenticAMD" | b"HygonGenuine")
}
