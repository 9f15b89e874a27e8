//! Which vector instructions this machine has, chosen at run time.
//!
//! Every kernel computes the same bits on every [`Isa`]: the choice is about speed only.

use std::sync::OnceLock;

use crate::environment::{self, ISA_VARIABLE};

/// A set of vector instructions that the kernels are compiled for. Ordered: a later one is faster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust; needs nothing.
    Portable,
    /// NEON, which every aarch64 target with floating-point registers has. On other machines it counts as
    /// [`Isa::Portable`].
    Neon,
    /// AVX2, FMA and F16C (x86-64-v3). On other machines this and all later ones count as what is below them.
    Avx2,
    /// The same on cores that multiply subnormal numbers at full speed (AMD's): FP8 is decoded with fewer instructions.
    Avx2Subnormal,
    /// AVX-512 F, BW, VL and DQ, and all of [`Isa::Avx2`].
    Avx512,
}

impl Isa {
    /// What the architecture can have, slowest first.
    pub(crate) const ALL: &[Isa] = if cfg!(target_arch = "x86_64") {
        &[Isa::Portable, Isa::Avx2, Isa::Avx2Subnormal, Isa::Avx512]
    } else if cfg!(all(target_arch = "aarch64", target_feature = "neon")) {
        &[Isa::Portable, Isa::Neon]
    } else {
        &[Isa::Portable]
    };

    /// The best one of this machine, or what the environment variable `PATCHHOST_ISA`
    /// (a [`Isa::name`]) lowers it to. Read once per process; the variable cannot raise what the hardware lacks, and a
    /// word that is unknown on this architecture, which [`crate::environment::check`] refuses, changes nothing.
    pub fn detect() -> Isa {
        static CHOICE: OnceLock<Isa> = OnceLock::new();
        *CHOICE.get_or_init(|| {
            let wanted = std::env::var_os(ISA_VARIABLE).and_then(|word| environment::isa(&word).ok());
            wanted.map_or(Isa::hardware(), Isa::usable)
        })
    }

    /// All that this machine can run, slowest first; the environment is not asked.
    pub fn available() -> Vec<Isa> {
        let best = Isa::hardware();
        Isa::ALL.iter().copied().filter(|isa| *isa <= best).collect()
    }

    /// `portable`, `neon`, `avx2`, `avx2-subnormal` or `avx512`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Neon => "neon",
            Isa::Avx2 => "avx2",
            Isa::Avx2Subnormal => "avx2-subnormal",
            Isa::Avx512 => "avx512",
        }
    }

    /// This one, or the best below it that the machine can run.
    #[inline]
    pub(crate) fn usable(self) -> Isa {
        match self.min(Isa::hardware()) {
            // x86 has none, but has better ones.
            Isa::Neon if cfg!(target_arch = "x86_64") => Isa::Portable,
            isa => isa,
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
                    && is_x86_feature_detected!("f16c")
                    && is_x86_feature_detected!("popcnt");
                let avx512 = is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq");
                match (avx2, avx512) {
                    (true, true) => Isa::Avx512,
                    (true, false) if has_fast_subnormals() => Isa::Avx2Subnormal,
                    (true, false) => Isa::Avx2,
                    _ => Isa::Portable,
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            Isa::ALL.last().copied().unwrap_or(Isa::Portable)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_machine_can_run_is_in_order_and_everything_else_is_lowered_to_it() {
        let available = Isa::available();
        assert_eq!(available.first(), Some(&Isa::Portable));
        assert_eq!(available.last(), Some(&Isa::hardware()));
        assert!(available.is_sorted() && available.contains(&Isa::detect()));
        for isa in [Isa::Portable, Isa::Neon, Isa::Avx2, Isa::Avx2Subnormal, Isa::Avx512] {
            let best = available.iter().filter(|below| **below <= isa).max();
            assert_eq!(Some(&isa.usable()), best, "{isa:?}");
        }
    }
}
