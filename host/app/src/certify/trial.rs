//! A run: every case is sent, and after each the engine is asked which weights it holds.

use serde::Serialize;

use super::cases::{Case, Expect, name_of};
use super::engine::{Engine, Outcome, Question};
use super::error::{KitError, KitErrorKind};
use super::judge::{Answers, Distance, Reference, between};
use super::stream::Stream;
use super::weights::Tensor;

/// What is tried, and on what.
pub struct Subject {
    /// The tensors of each checkpoint; the first is what the engine began with.
    pub weights: Vec<Vec<Tensor>>,
    /// The updates.
    pub cases: Vec<Case>,
    /// So many tokens are wanted for each prompt.
    pub max_tokens: usize,
}

/// What came of one case, as certificates have it.
#[derive(Debug, Clone, Serialize)]
pub struct Judged {
    /// As in the plan.
    pub id: String,
    /// What it was about.
    pub kind: &'static str,
    /// What kind of tensor was hit, or `all`.
    pub class: &'static str,
    /// The tensor that was hit, where it was one.
    pub tensor: Option<String>,
    /// `accept` or `refuse`.
    pub expected: Expect,
    /// `accepted`, `refused`, `left-open` (the sender died), `gone` or `not-asked`.
    pub answered: &'static str,
    /// The checkpoint whose answers the engine gave afterwards, or why none can be named.
    pub held: String,
    /// What the engine said that its weights are called, where it says it.
    pub reported: Option<String>,
    /// Whether it answered rightly and holds what it must.
    pub right: bool,
    /// What happened, in words.
    pub detail: String,
}

/// Starts the engine again, on the first checkpoint.
pub type Relaunch<'r> = &'r mut dyn FnMut() -> Result<Box<dyn Engine>, KitError>;

/// A run against one engine.
pub struct Trial<'t> {
    /// The engine.
    pub engine: Box<dyn Engine>,
    /// What is tried.
    pub subject: &'t Subject,
    /// What fresh loads answer.
    pub reference: &'t mut Reference,
    /// How the engine is started again, where the kit started it.
    pub relaunch: Option<Relaunch<'t>>,
    /// Is told each case as it is judged.
    pub tell: &'t mut dyn FnMut(&Judged),
}

/// What the engine holds, as the trial knows it.
enum Live {
    /// A checkpoint.
    Known(usize),
    /// Weights that are no checkpoint's: these were its last answers; none where it could not answer with them.
    Wrong(Answers),
    /// It is not there any more.
    Gone,
}

/// Words for weights that no checkpoint has.
const NONE_OF_THEM: &str = "none of the checkpoints";
const SILENT: &str = "it does not answer";

impl Trial<'_> {
    /// Sends every case.
    pub fn run(mut self) -> Result<Vec<Judged>, KitError> {
        let mut live = Live::Known(0);
        let mut all = Vec::new();
        let subject = self.subject;
        for case in &subject.cases {
            let judged = match live {
                Live::Gone => not_asked(case),
                before => {
                    let (judged, after) = self.case(case, before)?;
                    live = after;
                    judged
                }
            };
            (self.tell)(&judged);
            all.push(judged);
            if let Some(refusing) = self.relaunch.as_mut().filter(|_| matches!(live, Live::Gone | Live::Wrong(_))) {
                self.engine = refusing()?;
                live = Live::Known(0);
            }
        }
        if matches!(live, Live::Known(1..) | Live::Wrong(_)) {
            // Whoever uses the server next expects what it began with. Whether it took it was tried often enough.
            let base = subject.weights.first().map(Vec::as_slice).unwrap_or_default();
            self.update(&Stream::whole(base), "base")?;
        }
        Ok(all)
    }

    fn case(&mut self, case: &Case, before: Live) -> Result<(Judged, Live), KitError> {
        let subject = self.subject;
        let number = number_of(&case.checkpoint).filter(|n| *n < subject.weights.len());
        let stream = Stream::of(case, &|name| number_of(name).and_then(|n| subject.weights.get(n)).map(Vec::as_slice))?;
        let version = format!("case-{}-{}", case.id, case.checkpoint);
        let outcome = self.update(&stream, &version)?;
        let (answered, mut detail) = match &outcome {
            Outcome::Accepted => ("accepted", String::new()),
            Outcome::Refused(why) => ("refused", why.clone()),
            Outcome::LeftOpen => ("left-open", "the sender died in the middle".to_owned()),
            Outcome::Gone(why) => ("gone", why.clone()),
        };
        let must = match case.expect {
            Expect::Accept => number,
            Expect::Refuse => match before {
                Live::Known(n) => Some(n),
                _ => None,
            },
        };
        let mut judged = Judged { answered, reported: self.engine.version(), ..not_asked(case) };
        let fits_answer = match case.expect {
            Expect::Accept => answered == "accepted",
            Expect::Refuse => matches!(answered, "refused" | "left-open"),
        };
        let mut after = match (self.ask()?, must) {
            (Err(silent), _) => {
                (judged.held, detail) = (SILENT.to_owned(), joined(&detail, &silent));
                self.silent()
            }
            (Ok(answers), Some(must)) => self.held(must, answers, &mut judged, &mut detail)?,
            (Ok(answers), None) => {
                let within = self.reference.recorded_within;
                judged.right = matches!(&before, Live::Wrong(old) if between(old, &answers, within).within(within));
                let same =
                    if judged.right { "the same as before this case" } else { "and others than before this case" };
                judged.held = format!("{NONE_OF_THEM}, {same}");
                Live::Wrong(answers)
            }
        };
        judged.right &= fits_answer;
        if !fits_answer {
            detail = joined(wrong_answer(case.expect, answered), &detail);
        }
        if case.expect == Expect::Refuse && judged.reported.as_deref() == Some(version.as_str()) {
            judged.right = false;
            detail = joined(&detail, "it reports the refused weights as live");
        }
        if matches!(after, Live::Wrong(_)) && !(case.expect == Expect::Refuse && judged.right) {
            after = self.bring_back(&mut detail)?;
        }
        judged.detail = if judged.right { detail } else { joined(&detail, &format!("expected because {}", case.why)) };
        Ok((judged, after))
    }

    /// Which checkpoint the answers are of; first the one that must be live.
    fn held(
        &mut self,
        must: usize,
        answers: Answers,
        judged: &mut Judged,
        detail: &mut String,
    ) -> Result<Live, KitError> {
        if self.reference.fits(must, &answers)? {
            (judged.held, judged.right) = (name_of(must), true);
            return Ok(Live::Known(must));
        }
        // Right weights behind a cache of prefixes that the old ones computed look like wrong weights.
        if self.engine.reset_cache()
            && let Ok(again) = self.ask()?
            && self.reference.fits(must, &again)?
        {
            judged.held = name_of(must);
            *detail = joined(detail, "its cache of prefixes was stale: cleared, it answers rightly");
            return Ok(Live::Known(must));
        }
        for other in (0..self.subject.weights.len()).filter(|n| *n != must) {
            if self.reference.fits(other, &answers)? {
                judged.held = name_of(other);
                *detail = joined(detail, &format!("it must hold {} and holds {}", name_of(must), name_of(other)));
                return Ok(Live::Known(other));
            }
        }
        judged.held = NONE_OF_THEM.to_owned();
        *detail =
            joined(detail, &format!("it must hold {}, and its answers are those of no checkpoint", name_of(must)));
        Ok(Live::Wrong(answers))
    }

    /// A full update of the first checkpoint, after weights that are no checkpoint's.
    fn bring_back(&mut self, detail: &mut String) -> Result<Live, KitError> {
        let base = self.subject.weights.first().map(Vec::as_slice).unwrap_or_default();
        let outcome = self.update(&Stream::whole(base), "base")?;
        let answers = self.ask()?;
        let said = match (&outcome, &answers) {
            (_, Err(why)) => format!("after a full update of base it does not answer: {why}"),
            (_, Ok(answers)) if self.reference.fits(0, answers)? => {
                *detail = joined(detail, "a full update of base brought it back");
                return Ok(Live::Known(0));
            }
            (Outcome::Refused(why), Ok(_)) => format!("it refused a full update of base: {why}"),
            _ => "a full update of base did not bring it back".to_owned(),
        };
        *detail = joined(detail, &said);
        if self.relaunch.is_some() {
            *detail = joined(detail, "it was started again");
        }
        Ok(answers.map_or_else(|_| self.silent(), Live::Wrong))
    }

    /// An engine that gave no answer: NaN cannot be written as JSON, and a server that cannot say it is there all the same.
    fn silent(&self) -> Live {
        if self.engine.alive() { Live::Wrong(Answers::new()) } else { Live::Gone }
    }

    /// An engine that hangs up is an outcome, and no error of the kit.
    fn update(&mut self, stream: &Stream, version: &str) -> Result<Outcome, KitError> {
        match self.engine.update(stream, version) {
            Err(error) if error.kind == KitErrorKind::Host => Ok(Outcome::Gone(error.why().to_owned())),
            other => other,
        }
    }

    /// All prompts, or why one was not answered.
    fn ask(&self) -> Result<Result<Answers, String>, KitError> {
        ask(self.engine.as_ref(), &self.reference.prompts, self.subject.max_tokens)
    }
}

/// Asks all prompts, one after the other; the inner error says why one was not answered.
pub fn ask(engine: &dyn Engine, prompts: &[Vec<u32>], max_tokens: usize) -> Result<Result<Answers, String>, KitError> {
    let mut answers = Vec::new();
    for prompt in prompts {
        match engine.ask(&Question { prompt, max_tokens }) {
            Ok(answer) => answers.push(answer),
            Err(error) if error.kind == KitErrorKind::Host => return Ok(Err(error.why().to_owned())),
            Err(error) => return Err(error),
        }
    }
    Ok(Ok(answers))
}

/// Two rounds of all prompts from an engine that must answer, and how far they are apart.
pub fn ask_twice(
    engine: &dyn Engine,
    prompts: &[Vec<u32>],
    max_tokens: usize,
) -> Result<(Vec<Answers>, Distance), KitError> {
    let round = || {
        ask(engine, prompts, max_tokens)?.map_err(|why| {
            let what = format!("a prompt to {} before any update", engine.identity().url);
            KitError::host(
                what,
                why,
                "look at the log of the server: it must answer token ids with their log probabilities",
            )
        })
    };
    let (first, second) = (round()?, round()?);
    // Any tie is as likely as the other one here: nothing is known yet of what must be tolerated.
    let loose = Distance { mean: 0.05, median: 0.05, most: 0.05 };
    let apart = between(&first, &second, loose);
    if !apart.within(loose) {
        let what = format!("{} at {}", engine.identity().name, engine.identity().url);
        let why = "the same prompts, asked twice without any update, have different answers";
        return Err(KitError::host(what, why, "let nobody else use the server, and switch off what is random in it"));
    }
    Ok((vec![first, second], apart))
}

fn not_asked(case: &Case) -> Judged {
    Judged {
        id: case.id.clone(),
        kind: case.kind.name(),
        class: super::cases::class_name(case.class),
        tensor: case.tensor.clone(),
        expected: case.expect,
        answered: "not-asked",
        held: SILENT.to_owned(),
        reported: None,
        right: false,
        detail: "the engine was gone before this case".to_owned(),
    }
}

fn wrong_answer(expect: Expect, answered: &str) -> &'static str {
    match (expect, answered) {
        (_, "gone") => "it hung up",
        (Expect::Accept, _) => "it refused a right update",
        (Expect::Refuse, _) => "it accepted a faulty update",
    }
}

fn joined(one: &str, other: &str) -> String {
    [one, other].iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join("; ")
}

/// `base` is 0, `c3` is 3.
fn number_of(name: &str) -> Option<usize> {
    if name == "base" { Some(0) } else { name.strip_prefix('c')?.parse().ok() }
}
