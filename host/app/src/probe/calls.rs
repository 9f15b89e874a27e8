//! What must not matter for an answer: which instance gives it, and what was asked before; and what it costs.

use super::ask::{all, differ};
use super::run::Found;
use super::{synthetic, vectors};
use crate::patch::Patch;
use patchhost_kernels::activation::rule_scales;
use patchhost_kernels::profile::Profile;
use patchhost_runtime::activation::Activation;
use patchhost_runtime::hooks::{ActivationRule, BlockQuant, HookError, ScaleFormat, Scheme};
use std::sync::{Arc, Barrier};
use std::time::Instant;

/// Whether several instances give the same answers: asked from several threads at once, so that there are several.
pub(super) fn instances(patch: &Patch, quant: &dyn BlockQuant, scheme: &Scheme, seed: u64) -> Result<Found, String> {
    const THREADS: usize = 4;
    const TIMES: usize = 3;
    let amax = vectors::random(seed ^ 0x1457, 8_192);
    let barrier = Barrier::new(THREADS);
    let answers: Vec<Result<Vec<f32>, String>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    // Large enough that they meet: who comes when another is done gets the other's instance.
                    let first = all(quant, scheme, &amax)?;
                    for _ in 0..TIMES {
                        differ("asked again", &amax, &first, &all(quant, scheme, &amax)?)?;
                    }
                    Ok(first)
                })
            })
            .collect();
        let joined = threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err("a thread panicked".to_owned())));
        joined.collect()
    });
    let mut first: Option<Vec<f32>> = None;
    for answer in answers {
        let answer = answer?;
        match &first {
            None => first = Some(answer),
            Some(first) => differ("another instance", &amax, first, &answer)?,
        }
    }
    let made = patch.stats().instances_made;
    Ok(Found { worst: Some(format!("{made} instances so far")), ..Found::asked((TIMES + 1) * THREADS * amax.len()) })
}

/// Whether the answers stay the same over many calls: a few questions are asked again and again, until `until`.
pub(super) fn history(
    quant: &dyn BlockQuant,
    scheme: &Scheme,
    calls: usize,
    seed: u64,
    until: Instant,
) -> Result<Found, String> {
    const INPUTS: u64 = 8;
    const EACH: usize = 16;
    let inputs: Vec<Vec<f32>> = (0..INPUTS).map(|i| vectors::random(seed ^ (0xb0b0 + i), EACH)).collect();
    let first = inputs.iter().map(|amax| all(quant, scheme, amax)).collect::<Result<Vec<_>, _>>()?;
    let mut made = 0;
    for call in 0..calls {
        // A slow patch is asked less often; how often is said.
        if call % 64 == 63 && Instant::now() > until {
            break;
        }
        let i = call % inputs.len();
        let got = all(quant, scheme, &inputs[i])?;
        differ(&format!("after {call} calls"), &inputs[i], &first[i], &got)?;
        made += 1;
    }
    Ok(Found { worst: Some(format!("{made} calls")), ..Found::asked(made * EACH) })
}

/// How much fuel a block costs, compared with its limit, and whether it stays the same for many blocks.
pub(super) fn fuel(patch: &Patch, quant: &dyn BlockQuant, scheme: &Scheme) -> Result<Found, String> {
    let used = || patch.stats().functions.values().map(|f| f.fuel_total).sum::<u64>();
    let limits = patch.limits();
    let (mut worst, mut asked, mut each) = (0f64, 0, Vec::new());
    for blocks in [1usize, 16, 256, 4096, 16_384] {
        let amax = vectors::random(7, blocks);
        let before = used();
        all(quant, scheme, &amax)?;
        let fuel = used() - before;
        let limit = limits.fuel_scales_base.saturating_add(limits.fuel_per_block.saturating_mul(blocks as u64));
        worst = worst.max(fuel as f64 / limit.min(limits.fuel_max).max(1) as f64);
        each.push((blocks as f64, fuel as f64));
        asked += blocks;
    }
    let per_block = match each[..] {
        [.., (n, a), (m, b)] => (b - a) / (m - n),
        _ => 0.0,
    };
    // Three times as much for each further block as for those before: it is no longer in proportion.
    let before = match each[..] {
        [_, (n, a), (m, b), ..] => (b - a) / (m - n),
        _ => 0.0,
    };
    let note = (per_block > 3.0 * before.max(1.0))
        .then(|| format!("a block costs {before:.0} among few and {per_block:.0} among many: it is not in proportion"));
    let worst = format!("{per_block:.0} for a block; at most {:.1} % of the limit", 100.0 * worst);
    Ok(Found { worst: Some(worst), note, ..Found::asked(asked) })
}

/// Whether scales of activations follow the rule that the patch gives, or are right when it is called for them.
pub(super) fn activation(
    patch: &Patch,
    quant: &Arc<dyn BlockQuant>,
    random: usize,
    named: Option<(Profile, ScaleFormat)>,
) -> Result<Found, String> {
    let rule = quant.activation(&synthetic::model(patch)).map_err(|e| e.to_string())?;
    if let Some(rule) = rule {
        Activation::from_rule(quant.name(), rule).map_err(|e| e.to_string())?;
        return Ok(Found {
            worst: Some(format!("rule: max(amax, {:e}) / {}", rule.eps, rule.divisor)),
            ..Found::asked(1)
        });
    }
    let groups = random.clamp(4, 256);
    let amax = vectors::random(11, groups).into_iter().map(|a| a.clamp(1e-6, 1e6)).collect::<Vec<_>>();
    let x: Vec<f32> = amax.iter().flat_map(|a| (0..128).map(move |i| a * (i as f32 - 64.0) / 64.0)).collect();
    let call = Activation::Call(quant.clone());
    call.quantized(&x, groups, 128).map_err(|e| e.to_string())?;
    call.quantized(&[0.0; 128], 1, 128).map_err(|e| e.to_string())?;
    let (first, second) = (quant.activation_scales(&amax), quant.activation_scales(&amax));
    let text = |e: HookError| e.to_string();
    differ("asked again", &amax, &first.map_err(text)?, &second.map_err(text)?)?;
    let mut asked = 3 * groups;
    // Bit for bit what the host would compute itself, for lists of every length: an answer may be wrong for some only.
    if let Some((profile, format)) = named {
        let rule = ActivationRule { pow2_up: format == ScaleFormat::Ue8m0, ..profile.activation_rule() };
        for length in [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 64, 100, 256] {
            let amax: Vec<f32> =
                vectors::random(13 + length as u64, length).iter().map(|a| a.clamp(1e-30, 1e30)).collect();
            let mut expected = vec![0.0; length];
            rule_scales(&rule, &amax, &mut expected);
            let got = quant.activation_scales(&amax).map_err(text)?;
            differ(&format!("profile `{}` and the patch, {length} groups", profile.name()), &amax, &expected, &got)?;
            asked += length;
        }
    }
    Ok(Found::asked(asked))
}
