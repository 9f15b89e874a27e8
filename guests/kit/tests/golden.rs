//! Every scale of the golden vectors, bit for bit, from the amax of its block.

use kit::numeric::{EdgeRule, Profile, Recipe};
use kit::types::Cast;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/quant/fp8_block_golden.safetensors");

/// Names of the modes in the file.
const MODES: [(&str, Profile, bool); 7] = [
    ("verl_torch", Profile::VerlTorch, false),
    ("verl_triton_ieee", Profile::VerlTriton, false),
    ("deepseek_act", Profile::DeepSeek, false),
    ("div_eps1e12", Profile::Slime, false),
    ("deepgemm", Profile::DeepGemm, false),
    ("deepgemm_ue8m0", Profile::DeepGemm, true),
    ("hf_nemo", Profile::Hf, false),
];

/// The golden file: a header of JSON in the one form that its writer uses, then the data.
struct Golden {
    header: String,
    data: Vec<u8>,
}

/// One tensor, widened to f32.
struct Tensor {
    cols: usize,
    values: Vec<f32>,
}

impl Golden {
    fn open() -> Self {
        let mut file = std::fs::read(FILE).unwrap_or_else(|e| panic!("{FILE}: {e}"));
        let header = u64::from_le_bytes(file[..8].try_into().expect("8 bytes")) as usize;
        let data = file.split_off(8 + header);
        Self { header: String::from_utf8(file.split_off(8)).expect("UTF-8"), data }
    }

    /// All names that end in `suffix`, without it.
    fn names(&self, suffix: &str) -> Vec<&str> {
        self.header.split('"').filter_map(|text| text.strip_suffix(suffix)).collect()
    }

    fn tensor(&self, name: &str) -> Tensor {
        let (_, entry) = self.header.split_once(&format!("\"{name}\":{{")).unwrap_or_else(|| panic!("no {name}"));
        let field = |key: &str, end: char| {
            let (_, value) = entry.split_once(&format!("\"{key}\":")).unwrap_or_else(|| panic!("no {key}"));
            value.split(end).next().expect("a value").trim_start_matches(['[', '"'])
        };
        let numbers = |key| field(key, ']').split(',').map(|n| n.parse().expect("a number")).collect::<Vec<usize>>();
        let (shape, range) = (numbers("shape"), numbers("data_offsets"));
        let bytes = &self.data[range[0]..range[1]];
        let values = match field("dtype", ',').trim_end_matches('"') {
            "F32" => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            "BF16" => {
                let widen = |b: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
                bytes.as_chunks().0.iter().map(widen).collect()
            }
            other => panic!("unexpected dtype {other}"),
        };
        Tensor { cols: shape[1], values }
    }
}

/// amax per 128x128 block, NaN where the block holds one.
fn amax(x: &[f32], cols: usize) -> Vec<f32> {
    let rows = x.len() / cols;
    let mut out = Vec::new();
    for r in (0..rows).step_by(128) {
        for c in (0..cols).step_by(128) {
            let block = x.chunks(cols).skip(r).take(128).flat_map(|row| &row[c..cols.min(c + 128)]);
            let larger = |m: f32, v: &f32| if m.is_nan() || v.is_nan() { f32::NAN } else { m.max(v.abs()) };
            out.push(block.fold(0.0, larger));
        }
    }
    out
}

#[test]
fn all_modes_all_inputs() {
    let golden = Golden::open();
    let mut compared = 0;
    for name in golden.names("/scale_inv") {
        let (input, mode) = name.split_once('/').expect("input/mode");
        let &(_, profile, pow2) = MODES.iter().find(|m| m.0 == mode).expect("a known mode");
        let edges = if profile == Profile::VerlTorch { EdgeRule::SeedTorch } else { EdgeRule::Strict };
        let recipe = Recipe { profile, pow2, edges };
        let x = golden.tensor(&format!("{input}/input"));
        let wanted = golden.tensor(&format!("{name}/scale_inv")).values;
        let amax = amax(&x.values, x.cols);
        let numbers = recipe.scales(name, 0, &amax).expect("scales");
        assert_eq!(numbers.len(), wanted.len(), "{name}");
        for ((a, g), s) in amax.iter().zip(numbers).zip(wanted) {
            let stored = if recipe.cast() == Cast::Multiply { 1.0 / g } else { g };
            let same = stored.to_bits() == s.to_bits() || (stored.is_nan() && s.is_nan());
            assert!(same, "{name}: amax {a:e} gave {stored:e}, golden {s:e}");
            compared += 1;
        }
    }
    assert!(compared > 100, "only {compared} scales were compared");
}

#[test]
fn the_strict_floor_is_exact() {
    for profile in [Profile::VerlTorch, Profile::Hf] {
        let recipe = Recipe { profile, pow2: false, edges: EdgeRule::Strict };
        let seed = Recipe { profile, pow2: false, edges: EdgeRule::SeedTorch };
        let last = recipe.floor().zero_below;
        let next = f32::from_bits(last.to_bits() + 1);
        assert_eq!(seed.scale(last), Some(f32::INFINITY));
        assert_eq!(recipe.scale(last), Some(1.0));
        assert_eq!(recipe.scale(0.0), Some(1.0));
        let multiplier = recipe.scale(next).expect("finite");
        assert!(multiplier.is_finite() && 1.0 / multiplier > 0.0, "{profile:?}");
    }
}

#[test]
fn powers_of_two_keep_their_contract_everywhere() {
    for (name, profile) in Profile::ALL {
        let recipe = Recipe { profile, pow2: true, edges: EdgeRule::Strict };
        let floor = recipe.floor();
        // Every 1021st positive finite f32, and all around each power of two times 448.
        let mut bits: Vec<u32> = (0..0x7F80_0000).step_by(1021).collect();
        bits.extend((0..=255u32).flat_map(|e| (0..9).map(move |d| ((e << 23) | 0x0060_0000) + d - 4)));
        for a in bits.into_iter().map(f32::from_bits).filter(|a| a.is_finite() && *a >= 0.0) {
            let s = recipe.scale(a).expect("finite");
            assert_eq!(s.to_bits() & 0x007F_FFFF, 0, "{name}: {a:e} gave {s:e}, not a power of two");
            if a <= floor.zero_below {
                assert_eq!(s, floor.zero_scale, "{name}: {a:e}");
                continue;
            }
            let ratio = f64::from(a.max(floor.eps)) / f64::from(s);
            assert!(ratio > 223.9998 && ratio <= 448.0003, "{name}: {a:e} / {s:e} = {ratio}");
        }
    }
}

#[test]
fn not_finite_blocks_are_named() {
    let strict = Recipe { profile: Profile::DeepSeek, pow2: false, edges: EdgeRule::Strict };
    let e = strict.scales("x.weight", 10, &[1.0, f32::NAN]).expect_err("NaN");
    assert!(e.contains("`x.weight`") && e.contains("block 11") && e.contains("NaN"), "{e}");
    let triton = Recipe { profile: Profile::VerlTriton, pow2: false, edges: EdgeRule::SeedTriton };
    assert_eq!(triton.scale(f32::INFINITY), Some(f32::INFINITY));
}
