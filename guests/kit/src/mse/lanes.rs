//! Four f32 lanes: one wasm vector, or an array of four where the kernel is tested natively. Both round alike, so the
//! native tests prove what the guest computes.

#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod imp {
    use core::arch::wasm32::*;

    /// Four f32.
    #[derive(Clone, Copy)]
    pub struct F4(v128);

    impl F4 {
        #[inline(always)]
        pub fn splat(x: f32) -> Self {
            Self(f32x4_splat(x))
        }
        #[inline(always)]
        pub fn from_array(a: [f32; 4]) -> Self {
            Self(f32x4(a[0], a[1], a[2], a[3]))
        }
        /// Magnitudes of four bf16.
        #[inline(always)]
        pub fn magnitudes(bits: &[u16; 4]) -> Self {
            // SAFETY: `bits` is 8 bytes that can be read; the instruction has no alignment to keep.
            let wide = unsafe { u32x4_load_extend_u16x4(bits.as_ptr()) };
            Self(i32x4_shl(v128_and(wide, i32x4_splat(0x7FFF)), 16))
        }
        #[inline(always)]
        pub fn to_array(self) -> [f32; 4] {
            let v = self.0;
            [
                f32x4_extract_lane::<0>(v),
                f32x4_extract_lane::<1>(v),
                f32x4_extract_lane::<2>(v),
                f32x4_extract_lane::<3>(v),
            ]
        }
        #[inline(always)]
        pub fn add(self, o: Self) -> Self {
            Self(f32x4_add(self.0, o.0))
        }
        #[inline(always)]
        pub fn sub(self, o: Self) -> Self {
            Self(f32x4_sub(self.0, o.0))
        }
        #[inline(always)]
        pub fn mul(self, o: Self) -> Self {
            Self(f32x4_mul(self.0, o.0))
        }
        /// The smaller of each; one instruction, unlike `f32x4.min`, because no lane is NaN.
        #[inline(always)]
        pub fn min(self, o: Self) -> Self {
            Self(f32x4_pmin(self.0, o.0))
        }
        /// Four counts, exact below 2^24.
        #[inline(always)]
        pub fn counts(n: &[u32; 4]) -> Self {
            // SAFETY: `n` is 16 bytes that can be read; the instruction has no alignment to keep.
            Self(f32x4_convert_i32x4(unsafe { v128_load(n.as_ptr().cast()) }))
        }
        /// All ones in the lanes where `self > o`, as integers: -1.
        #[inline(always)]
        pub fn above(self, o: Self) -> I4 {
            I4(f32x4_gt(self.0, o.0))
        }
        /// `2^(e + 20)` for lanes in [2^e, 2^(e+1)), with e at least -6: added and taken away again, it rounds to a
        /// multiple of the e4m3 step 2^(e-3), ties to even. Lanes are not negative.
        #[inline(always)]
        pub fn rounder(self) -> Self {
            let exponent = v128_and(self.0, i32x4_splat(0x7F80_0000));
            let normal = i32x4_max(exponent, i32x4_splat(121 << 23));
            Self(i32x4_add(normal, i32x4_splat(20 << 23)))
        }
    }

    /// Four i32.
    #[derive(Clone, Copy)]
    pub struct I4(v128);

    impl I4 {
        #[inline(always)]
        pub fn from_array(a: [i32; 4]) -> Self {
            Self(i32x4(a[0], a[1], a[2], a[3]))
        }
        #[inline(always)]
        pub fn to_array(self) -> [i32; 4] {
            let v = self.0;
            [
                i32x4_extract_lane::<0>(v),
                i32x4_extract_lane::<1>(v),
                i32x4_extract_lane::<2>(v),
                i32x4_extract_lane::<3>(v),
            ]
        }
        #[inline(always)]
        pub fn add(self, o: Self) -> Self {
            Self(i32x4_add(self.0, o.0))
        }
        /// The counts in the lanes that are -1, 0 in the lanes that are 0.
        #[inline(always)]
        pub fn of(self, n: &[u32; 4]) -> Self {
            // SAFETY: `n` is 16 bytes that can be read; the instruction has no alignment to keep.
            Self(v128_and(self.0, unsafe { v128_load(n.as_ptr().cast()) }))
        }
    }

    /// Magnitudes of eight bf16 less `low` (0 where there is less), at most `most`, four in each half.
    #[inline(always)]
    pub fn above_low(bits: &[u16; 8], low: u16, most: u16) -> [u64; 2] {
        // SAFETY: `bits` is 16 bytes that can be read; the instruction has no alignment to keep.
        let bits = unsafe { v128_load(bits.as_ptr().cast()) };
        let v = u16x8_sub_sat(v128_and(bits, i16x8_splat(0x7FFF)), u16x8_splat(low));
        let v = u16x8_min(v, u16x8_splat(most));
        [u64x2_extract_lane::<0>(v), u64x2_extract_lane::<1>(v)]
    }
}

#[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
mod imp {
    /// Four f32.
    #[derive(Clone, Copy)]
    pub struct F4([f32; 4]);

    impl F4 {
        #[inline(always)]
        pub fn splat(x: f32) -> Self {
            Self([x; 4])
        }
        #[inline(always)]
        pub fn from_array(a: [f32; 4]) -> Self {
            Self(a)
        }
        /// Magnitudes of four bf16.
        #[inline(always)]
        pub fn magnitudes(bits: &[u16; 4]) -> Self {
            Self(bits.map(|b| f32::from_bits(u32::from(b & 0x7FFF) << 16)))
        }
        #[inline(always)]
        pub fn to_array(self) -> [f32; 4] {
            self.0
        }
        #[inline(always)]
        pub fn add(self, o: Self) -> Self {
            self.zip(o, |a, b| a + b)
        }
        #[inline(always)]
        pub fn sub(self, o: Self) -> Self {
            self.zip(o, |a, b| a - b)
        }
        #[inline(always)]
        pub fn mul(self, o: Self) -> Self {
            self.zip(o, |a, b| a * b)
        }
        /// The smaller of each.
        #[inline(always)]
        pub fn min(self, o: Self) -> Self {
            self.zip(o, |a, b| if b < a { b } else { a })
        }
        /// Four counts, exact below 2^24.
        #[inline(always)]
        pub fn counts(n: &[u32; 4]) -> Self {
            Self(n.map(|n| n as i32 as f32))
        }
        /// -1 in the lanes where `self > o`.
        #[inline(always)]
        pub fn above(self, o: Self) -> I4 {
            I4(std::array::from_fn(|i| -i32::from(self.0[i] > o.0[i])))
        }
        /// `2^(e + 20)` for lanes in [2^e, 2^(e+1)), with e at least -6.
        #[inline(always)]
        pub fn rounder(self) -> Self {
            Self(self.0.map(|x| f32::from_bits((x.to_bits() & 0x7F80_0000).max(121 << 23) + (20 << 23))))
        }
        #[inline(always)]
        fn zip(self, o: Self, f: impl Fn(f32, f32) -> f32) -> Self {
            Self(std::array::from_fn(|i| f(self.0[i], o.0[i])))
        }
    }

    /// Four i32.
    #[derive(Clone, Copy)]
    pub struct I4([i32; 4]);

    impl I4 {
        #[inline(always)]
        pub fn from_array(a: [i32; 4]) -> Self {
            Self(a)
        }
        #[inline(always)]
        pub fn to_array(self) -> [i32; 4] {
            self.0
        }
        #[inline(always)]
        pub fn add(self, o: Self) -> Self {
            Self(std::array::from_fn(|i| self.0[i] + o.0[i]))
        }
        /// The counts in the lanes that are -1, 0 in the lanes that are 0.
        #[inline(always)]
        pub fn of(self, n: &[u32; 4]) -> Self {
            Self(std::array::from_fn(|i| self.0[i] & n[i] as i32))
        }
    }

    /// Magnitudes of eight bf16 less `low` (0 where there is less), at most `most`, four in each half.
    #[inline(always)]
    pub fn above_low(bits: &[u16; 8], low: u16, most: u16) -> [u64; 2] {
        let one = |b: u16| u64::from((b & 0x7FFF).saturating_sub(low).min(most));
        let half = |b: &[u16]| one(b[0]) | one(b[1]) << 16 | one(b[2]) << 32 | one(b[3]) << 48;
        [half(&bits[..4]), half(&bits[4..])]
    }
}

pub use imp::{F4, I4, above_low};
