//! adapter_config.json: what of it can be served.

use serde_json::Value;

/// What the adapter's config says.
#[derive(Debug, PartialEq)]
pub struct Config {
    /// r.
    pub rank: u32,
    /// alpha / r, or alpha / sqrt(r) with rslora.
    pub scaling: f32,
    /// Module names, where `target_modules` is a list; a pattern or `all-linear` is the host's to check.
    pub modules: Option<Vec<String>>,
}

impl Config {
    /// Reads and checks the text of adapter_config.json.
    pub fn read(text: &str, max_rank: u32) -> Result<Self, String> {
        let json: Value = serde_json::from_str(text).map_err(|e| format!("adapter_config.json is not JSON: {e}"))?;
        let field = |key: &str| json.get(key).filter(|v| !v.is_null());
        let needed = |key: &str| field(key).ok_or_else(|| format!("adapter_config.json has no `{key}`"));
        let flag = |key: &str| field(key).and_then(Value::as_bool).unwrap_or(false);
        let rank = needed("r")?;
        let rank =
            rank.as_u64().filter(|r| *r > 0).ok_or_else(|| format!("`r` is {rank}; lora_rank must be above 0"))?;
        if rank > u64::from(max_rank) {
            return Err(format!("`r` is {rank}, above max_lora_rank {max_rank}; raise the setting max_lora_rank"));
        }
        let alpha = needed("lora_alpha")?;
        let alpha = alpha.as_f64().ok_or_else(|| format!("`lora_alpha` is {alpha}; it must be a number"))?;
        if flag("use_dora") {
            return Err("`use_dora` is true; DoRA adapters cannot be served, train with use_dora=False".into());
        }
        if flag("fan_in_fan_out") {
            return Err("`fan_in_fan_out` is true; only plain linear layers can be adapted".into());
        }
        if let Some(saved) = field("modules_to_save").filter(|v| v.as_array().is_none_or(|list| !list.is_empty())) {
            return Err(format!(
                "`modules_to_save` is {saved}; fully trained modules are no LoRA, send them in a refit"
            ));
        }
        if let Some(bias) = field("bias").filter(|b| b.as_str() != Some("none")) {
            return Err(format!("`bias` is {bias}; only `none` can be served"));
        }
        for key in ["rank_pattern", "alpha_pattern"] {
            if field(key).is_some_and(|v| v.as_object().is_none_or(|o| !o.is_empty())) {
                return Err(format!("`{key}` is not empty; one rank and one alpha for all modules can be served"));
            }
        }
        let modules = match needed("target_modules")? {
            Value::Array(list) => {
                let names = list.iter().map(|v| v.as_str().map(str::to_string)).collect::<Option<Vec<_>>>();
                Some(names.ok_or("`target_modules` holds something else than texts")?)
            }
            Value::String(_) => None,
            other => return Err(format!("`target_modules` is {other}; it must be a list or a text")),
        };
        let r = rank as f64;
        let scaling = if flag("use_rslora") { alpha / r.sqrt() } else { alpha / r };
        Ok(Self { rank: rank as u32, scaling: scaling as f32, modules })
    }
}

#[cfg(test)]
mod tests {
    use super::Config;

    #[test]
    fn scaling_and_modules() {
        let c = Config::read(r#"{"r":4,"lora_alpha":8,"target_modules":["q_proj"],"bias":"none"}"#, 8);
        assert_eq!(c, Ok(Config { rank: 4, scaling: 2.0, modules: Some(vec!["q_proj".into()]) }));
        let c = Config::read(r#"{"r":4,"lora_alpha":8,"target_modules":"all-linear","use_rslora":true}"#, 8);
        assert_eq!(c, Ok(Config { rank: 4, scaling: 4.0, modules: None }));
    }

    #[test]
    fn what_cannot_be_served_is_named() {
        let base = r#""r":4,"lora_alpha":8,"target_modules":["q_proj"]"#;
        for (more, says) in [
            (r#","use_dora":true"#, "use_dora"),
            (r#","bias":"all""#, "bias"),
            (r#","modules_to_save":["lm_head"]"#, "modules_to_save"),
            (r#","rank_pattern":{"q_proj":2}"#, "rank_pattern"),
        ] {
            let error = Config::read(&format!("{{{base}{more}}}"), 8).expect_err(more);
            assert!(error.contains(says), "{error}");
        }
        assert!(Config::read(&format!("{{{base}}}"), 3).is_err_and(|e| e.contains("max_lora_rank 3")));
        assert!(Config::read(r#"{"r":0,"lora_alpha":8,"target_modules":[]}"#, 8).is_err());
        assert!(Config::read(r#"{"r":4,"target_modules":[]}"#, 8).is_err_and(|e| e.contains("lora_alpha")));
        assert!(Config::read(&"[".repeat(60_000), 8).is_err());
    }
}
