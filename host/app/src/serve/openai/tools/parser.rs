//! The forms in which models call tools, under the names that vLLM has for them (`--tool-call-parser`).

use std::fmt;
use std::str::FromStr;

/// A form of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolParser {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`: Hermes, Qwen 2.5 and 3.
    Hermes,
    /// DeepSeek V3 and R1: the arguments in a fence of JSON.
    DeepseekV3,
    /// DeepSeek V3.1: the arguments bare.
    DeepseekV31,
}

impl ToolParser {
    /// All that are known.
    pub const ALL: [Self; 3] = [Self::Hermes, Self::DeepseekV3, Self::DeepseekV31];

    /// The form that a chat template teaches the model, where it is a known one.
    pub fn of_template(template: &str) -> Option<Self> {
        if template.contains("<｜tool▁call▁begin｜>") {
            return Some(if template.contains("```json") { Self::DeepseekV3 } else { Self::DeepseekV31 });
        }
        // Qwen3-Coder and GLM write XML between the same marks.
        let other = ["<function=", "<arg_key>", "<parameter="].iter().any(|mark| template.contains(mark));
        (template.contains("<tool_call>") && !other).then_some(Self::Hermes)
    }

    /// All names, for people.
    pub fn names() -> String {
        Self::ALL.map(|parser| parser.to_string()).join(", ")
    }
}

impl fmt::Display for ToolParser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hermes => "hermes",
            Self::DeepseekV3 => "deepseek_v3",
            Self::DeepseekV31 => "deepseek_v31",
        })
    }
}

impl FromStr for ToolParser {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|parser| parser.to_string() == name);
        found.ok_or_else(|| format!("the parsers of this server are {}", Self::names()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_template_tells_which_form_it_teaches() {
        let of = ToolParser::of_template;
        assert_eq!(of("<tool_call>\n{\"name\": <function-name>}\n</tool_call>"), Some(ToolParser::Hermes));
        assert_eq!(of("<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json"), Some(ToolParser::DeepseekV3));
        assert_eq!(of("<｜tool▁call▁begin｜>f<｜tool▁sep｜>"), Some(ToolParser::DeepseekV31));
        for other in ["<tool_call><function=f>", "<tool_call>f<arg_key>", "{{ messages }}"] {
            assert_eq!(of(other), None);
        }
    }

    #[test]
    fn names_are_those_of_vllm_and_others_are_refused_with_the_list() {
        for parser in ToolParser::ALL {
            assert_eq!(parser.to_string().parse::<ToolParser>().unwrap(), parser);
        }
        let why = "pythonic".parse::<ToolParser>().unwrap_err();
        assert!(why.contains("hermes, deepseek_v3, deepseek_v31"), "{why}");
    }
}
