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
    }
}

#[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
mod imp {
    /// Four f32.
    #[derive(Clone, Copy)]
    pub struct F4([f32; 4]);

    impl F4 {
        pub fn splat(x: f32) -> Self {
            Self([x; 4])
        }
        pub fn from_array(a: [f32; 4]) -> Self {
            Self(a)
        }
        /// Magnitudes of four bf16.
        pub fn magnitudes(bits: &[u16; 4]) -> Self {
            Self(bits.map(|b| f32::from_bits(u32::from(b & 0x7FFF) << 16)))
        }
        pub fn to_array(self) -> [f32; 4] {
            self.0
        }
        pub fn add(self, o: Self) -> Self {
            self.zip(o, |a, b| a + b)
        }
        pub fn sub(self, o: Self) -> Self {
            self.zip(o, |a, b| a - b)
        }
        pub fn mul(self, o: Self) -> Self {
            self.zip(o, |a, b| a * b)
        }
        /// The smaller of each.
        pub fn min(self, o: Self) -> Self {
            self.zip(o, |a, b| if b < a { b } else { a })
        }
        /// -1 in the lanes where `self > o`.
        pub fn above(self, o: Self) -> I4 {
            I4(std::array::from_fn(|i| -i32::from(self.0[i] > o.0[i])))
        }
        /// `2^(e + 20)` for lanes in [2^e, 2^(e+1)), with e at least -6.
        pub fn rounder(self) -> Self {
            Self(self.0.map(|x| f32::from_bits((x.to_bits() & 0x7F80_0000).max(121 << 23) + (20 << 23))))
        }
        fn zip(self, o: Self, f: impl Fn(f32, f32) -> f32) -> Self {
            Self(std::array::from_fn(|i| f(self.0[i], o.0[i])))
        }
    }

    /// Four i32.
    #[derive(Clone, Copy)]
    pub struct I4([i32; 4]);

    impl I4 {
        pub fn from_array(a: [i32; 4]) -> Self {
            Self(a)
        }
        pub fn to_array(self) -> [i32; 4] {
            self.0
        }
        pub fn add(self, o: Self) -> Self {
            Self(std::array::from_fn(|i| self.0[i] + o.0[i]))
        }
    }
}

pub use imp::{F4, I4};
