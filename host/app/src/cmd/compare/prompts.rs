//! The tokens that the model is run on.

use std::path::Path;

use super::super::failure::{Result, UsageError};
use super::super::logits::read_ids;
use super::super::session::Model;
use super::Args;
use crate::checkpoint::bundled;
use crate::compare::Trainer;

/// What follows the bundled model's prompt, in the style it was trained on (Henry V, act III).
const BUNDLED_TEXT: &str = "\
Once more unto the breach, dear friends, once more;
Or close the wall up with our English dead.
In peace there's nothing so becomes a man
As modest stillness and humility:
But when the blast of war blows in our ears,
Then imitate the action of the tiger.
";

/// What models of a folder are run on where the user names nothing.
const ENGLISH_TEXT: &str = "\
The river rises in the hills to the north and runs for about two hundred miles before it reaches the sea. In spring, when \
the snow melts, it carries four times as much water as in late summer, and the towns along its lower course have built \
walls of earth to keep it in its bed. To find how long a boat takes from the first town to the last, divide the distance \
by the speed of the current plus the speed of the boat: at 3 miles an hour and 5 miles an hour, 160 miles take 20 hours.";

/// The sequences: of --ids, --prompts, the trainer's file, or a text of the host's. Every one fits the model.
pub fn sequences(args: &Args, model: &Model, trainer: Option<&Trainer>) -> Result<Vec<Vec<u32>>> {
    let found = if let Some(path) = &args.ids {
        let (batch, ids) = read_ids(path)?;
        ids.chunks_exact(ids.len() / batch.unwrap_or(1)).map(<[u32]>::to_vec).collect()
    } else if let Some(path) = &args.prompts {
        encode(model, &lines(path)?)?
    } else if let Some(trainer) = trainer {
        trainer.sequences().map(<[u32]>::to_vec).collect()
    } else {
        let text = match model.folder() {
            None => format!("{}{BUNDLED_TEXT}", bundled::PROMPT),
            Some(_) => ENGLISH_TEXT.to_string(),
        };
        encode(model, &[text])?
    };
    check(&found, model)?;
    if let Some(trainer) = trainer {
        check(&trainer.sequences().map(<[u32]>::to_vec).collect::<Vec<_>>(), model)?;
    }
    Ok(found)
}

fn encode(model: &Model, texts: &[String]) -> Result<Vec<Vec<u32>>> {
    if let Some(folder) = model.folder().filter(|folder| !folder.join("tokenizer.json").is_file()) {
        return Err(UsageError::new(
            format!("compare with the model `{}`", folder.display()),
            "it has no tokenizer.json, so no text can be run through it",
            "give token ids with --ids IDS.safetensors, or compare tensors alone with --tensors-only",
        )
        .into());
    }
    let tokenizer = model.tokenizer()?;
    let encoded = texts.iter().map(|text| tokenizer.encode(text));
    Ok(encoded.collect::<Result<Vec<_>, _>>()?)
}

fn lines(path: &Path) -> Result<Vec<String>, UsageError> {
    let unreadable = |why: String| {
        UsageError::new(format!("--prompts {}", path.display()), why, "give a text file with one prompt per line")
    };
    let text = patchhost_runtime::files::read_text(path, patchhost_runtime::files::LIST)
        .map_err(|e| unreadable(e.to_string()))?;
    let lines: Vec<String> = text.lines().filter(|l| !l.trim().is_empty()).map(str::to_string).collect();
    if lines.is_empty() {
        return Err(unreadable("it holds no prompt".to_string()));
    }
    Ok(lines)
}

/// Asked before anything heavy is done.
fn check(sequences: &[Vec<u32>], model: &Model) -> Result<(), UsageError> {
    let (vocab, positions) = (model.engine.model().vocab(), model.engine.model().max_positions());
    for (i, ids) in sequences.iter().enumerate() {
        let what = format!("sequence {} of {} tokens", i + 1, ids.len());
        if ids.is_empty() || ids.len() > positions {
            let why = format!("the model takes 1 to {positions}");
            return Err(UsageError::new(what, why, "shorten it, or leave it out"));
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
            let why = format!("token id {id} is not below the vocabulary size {vocab}");
            return Err(UsageError::new(what, why, "tokenize with the model's own tokenizer"));
        }
    }
    Ok(())
}
