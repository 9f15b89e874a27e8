//! Checkpoints that really differ from the first one: what a training step, or a mistake in one, could have changed.

use patchhost_runtime::hooks::Role;

use super::cases::Kind;
use super::dice::Dice;
use super::weights::Tensor;

/// A changed checkpoint.
#[derive(Debug, Clone)]
pub struct Changed {
    /// What was changed, in words.
    pub change: String,
    /// What an update with it is called in the table of results.
    pub kind: Kind,
    /// What kind of tensors differ; none where all do.
    pub class: Option<Role>,
    /// The one tensor that differs most, where there is one.
    pub tensor: Option<String>,
    /// All tensors.
    pub tensors: Vec<Tensor>,
}

/// How the values of a tensor are changed.
#[derive(Clone, Copy)]
enum How {
    Times(f32),
    /// Each value by up to this share of itself, at random.
    Noise(f32),
}

/// Every change that makes sense for these tensors, in a fixed order.
pub fn changes(base: &[Tensor], seed: u64) -> Vec<Changed> {
    let mut dice = Dice::new(seed, "changes");
    let of = |class: Role| base.iter().filter(move |t| t.class == class && t.shape.iter().product::<usize>() > 1);
    let mut all = Vec::new();
    let mut add = |change: String, kind, one: Option<&Tensor>, how: How, hit: &dyn Fn(&Tensor) -> bool| {
        let number = all.len();
        all.push(Changed {
            change,
            kind,
            class: one.map(|t| t.class),
            tensor: one.map(|t| t.name.clone()),
            tensors: base.iter().map(|t| if hit(t) { changed(t, how, seed, number) } else { t.clone() }).collect(),
        });
    };
    let any = |dice: &mut Dice, class| dice.one_of(&of(class).collect::<Vec<_>>()).copied();

    let moe = of(Role::Expert).next().is_some();
    let feed_forward = if moe { Role::Expert } else { Role::Mlp };
    let kind = if moe { Kind::ScaledExpert } else { Kind::Full };
    if let Some(one) = any(&mut dice, feed_forward) {
        let factor = dice.one_of(&[1.1, 1.25, 1.5]).copied().unwrap_or(1.1);
        let block = block(&one.name);
        let hit = |t: &Tensor| t.class == feed_forward && self::block(&t.name) == block;
        add(format!("every tensor of {block} times {factor}"), kind, Some(one), How::Times(factor), &hit);
    }
    if let Some(one) = of(Role::Embedding).next() {
        let change = format!("{} alone, each value by up to a fifth", one.name);
        add(change, Kind::StaleHead, Some(one), How::Noise(0.2), &|t| t.name == one.name);
    }
    add("every tensor, each value by up to 4 %".to_owned(), Kind::Full, None, How::Noise(0.04), &|_| true);
    if let Some(one) = any(&mut dice, Role::Norm) {
        add(format!("{} alone, times 1.3", one.name), Kind::Full, Some(one), How::Times(1.3), &|t| t.name == one.name);
    }
    for class in [Role::Attention, Role::LmHead, Role::Router] {
        // Biases can be all zero, and a change by a share of zero is none.
        let matrices: Vec<_> = of(class).filter(|t| t.shape.len() > 1).collect();
        if let Some(one) = dice.one_of(&matrices) {
            let change = format!("{} alone, each value by up to a fifth", one.name);
            add(change, Kind::Full, Some(one), How::Noise(0.2), &|t| t.name == one.name);
        }
    }
    if let Some(one) = of(Role::Expert).next() {
        let block = block(&one.name);
        let hit = |t: &Tensor| t.class == Role::Expert && self::block(&t.name) == block;
        let change = format!("every tensor of {block} times 1.01");
        add(change, Kind::ScaledExpert, Some(one), How::Times(1.01), &hit);
    }
    all
}

/// The module that a tensor's module is in: `model.layers.1.mlp.experts.3` for its `up_proj.weight`.
pub fn block(name: &str) -> &str {
    let module = name.strip_suffix(".weight").unwrap_or(name);
    module.rsplit_once('.').map_or(module, |(block, _)| block)
}

fn changed(tensor: &Tensor, how: How, seed: u64, number: usize) -> Tensor {
    match how {
        How::Times(factor) => tensor.mapped(|v| v * factor),
        How::Noise(share) => {
            let mut dice = Dice::new(seed, &format!("change {number} of {}", tensor.name));
            tensor.mapped(|v| v * (1.0 + share * dice.signed()))
        }
    }
}
