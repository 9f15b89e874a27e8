//! The one thing that is read from config.json: which modules its `quantization_config` excludes.

/// Deepest nesting that is followed; real configs have three levels.
const MOST_DEPTH: usize = 64;

/// The entries of `quantization_config.modules_to_not_convert` and `.ignored_layers`; none where config.json is empty
/// or has no such list.
pub fn excluded_modules(config: &str) -> Result<Vec<String>, String> {
    let mut out = Vec::new();
    if config.trim().is_empty() {
        return Ok(out);
    }
    let mut json = Json { text: config.as_bytes(), at: 0 };
    let read = json.object(0, &mut |json, key| {
        if key != "quantization_config" || json.peek() != Some(b'{') {
            return json.skip(1);
        }
        json.object(1, &mut |json, key| {
            let wanted = key == "modules_to_not_convert" || key == "ignored_layers";
            if wanted && json.peek() == Some(b'[') { json.strings(&mut out) } else { json.skip(2) }
        })
    });
    if read.is_none() {
        return Err(format!(
            "config.json is not valid JSON near byte {}; fix it or load the model from elsewhere",
            json.at
        ));
    }
    if let Some(entry) = out.iter().find(|e| e.starts_with("re:")) {
        return Err(format!(
            "quantization_config in config.json excludes `{entry}`, and regular expressions are not read here; \
             name those modules in full there, or with the setting keep=GLOB"
        ));
    }
    Ok(out)
}

/// A cursor over JSON text. Every method is `None` on text that is not JSON.
struct Json<'a> {
    text: &'a [u8],
    at: usize,
}

type Member<'a, 'f> = dyn FnMut(&mut Json<'a>, &str) -> Option<()> + 'f;

impl<'a> Json<'a> {
    /// The next byte that is not white space.
    fn peek(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.text.get(self.at) {
            self.at += 1;
        }
        self.text.get(self.at).copied()
    }

    fn eat(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    /// Calls `member` at the value of each key; it must consume the value.
    fn object(&mut self, depth: usize, member: &mut Member<'a, '_>) -> Option<()> {
        if depth > MOST_DEPTH {
            return None;
        }
        self.eat(b'{')?;
        if self.peek()? == b'}' {
            return self.eat(b'}');
        }
        loop {
            let key = self.string()?;
            self.eat(b':')?;
            member(self, &key)?;
            if self.peek()? == b'}' {
                return self.eat(b'}');
            }
            self.eat(b',')?;
        }
    }

    /// A list; strings are collected, anything else in it is skipped.
    fn strings(&mut self, out: &mut Vec<String>) -> Option<()> {
        self.eat(b'[')?;
        if self.peek()? == b']' {
            return self.eat(b']');
        }
        loop {
            if self.peek()? == b'"' {
                out.push(self.string()?);
            } else {
                self.skip(3)?;
            }
            if self.peek()? == b']' {
                return self.eat(b']');
            }
            self.eat(b',')?;
        }
    }

    /// A string. Escapes other than `\"`, `\\` and `\/` cannot occur in module names and become `?`.
    fn string(&mut self) -> Option<String> {
        self.eat(b'"')?;
        let mut out = Vec::new();
        loop {
            let byte = *self.text.get(self.at)?;
            self.at += 1;
            match byte {
                b'"' => return String::from_utf8(out).ok(),
                b'\\' => {
                    let escaped = *self.text.get(self.at)?;
                    self.at += 1;
                    out.push(if matches!(escaped, b'"' | b'\\' | b'/') { escaped } else { b'?' });
                }
                _ => out.push(byte),
            }
        }
    }

    /// Any value. Without recursion: how deep it is nested is the file's to say, and the stack is small.
    fn skip(&mut self, depth: usize) -> Option<()> {
        let mut open: Vec<u8> = Vec::new();
        loop {
            if depth + open.len() > MOST_DEPTH {
                return None;
            }
            let begins = self.peek()?;
            match begins {
                b'{' | b'[' => {
                    self.eat(begins)?;
                    open.push(begins);
                    let end = if begins == b'{' { b'}' } else { b']' };
                    if self.peek()? != end {
                        if begins == b'{' {
                            self.key()?;
                        }
                        continue;
                    }
                }
                b'"' => {
                    self.string()?;
                }
                _ => self.scalar()?,
            }
            // A value, or the beginning of an empty list, has ended: what comes next?
            loop {
                let Some(outer) = open.last().copied() else { return Some(()) };
                let end = if outer == b'{' { b'}' } else { b']' };
                if self.peek()? == end {
                    self.eat(end)?;
                    open.pop();
                    continue;
                }
                self.eat(b',')?;
                if outer == b'{' {
                    self.key()?;
                }
                break;
            }
        }
    }

    /// A key and its colon.
    fn key(&mut self) -> Option<()> {
        self.string()?;
        self.eat(b':')
    }

    /// A number, true, false or null.
    fn scalar(&mut self) -> Option<()> {
        let start = self.at;
        while let Some(b'+' | b'-' | b'.' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z') = self.text.get(self.at) {
            self.at += 1;
        }
        (self.at > start).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::excluded_modules;

    #[test]
    fn reads_both_lists_and_nothing_else() {
        let config = r#"{ "architectures": ["X"], "eps": 1e-6, "a": {"modules_to_not_convert": ["no"]}, "n": null,
            "quantization_config": {"fmt": "e4m3", "weight_block_size": [128, 128],
              "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.gate"], "ignored_layers": [ ] } }"#;
        assert_eq!(excluded_modules(config), Ok(vec!["lm_head".into(), "model.layers.0.mlp.gate".into()]));
        assert_eq!(excluded_modules(""), Ok(vec![]));
        assert_eq!(excluded_modules("{}"), Ok(vec![]));
        assert_eq!(excluded_modules(r#"{"quantization_config": null}"#), Ok(vec![]));
        assert_eq!(excluded_modules(r#"{"quantization_config": {"modules_to_not_convert": null}}"#), Ok(vec![]));
    }

    #[test]
    fn refuses_what_it_cannot_read() {
        for broken in ["{", "[]", "{\"a\"}", "{\"a\": }", "{\"a\": \"x}"] {
            assert!(excluded_modules(broken).is_err(), "{broken}");
        }
        let deep = format!("{{\"a\": {}1{}}}", "[".repeat(1000), "]".repeat(1000));
        assert!(excluded_modules(&deep).is_err());
        let regex = r#"{"quantization_config": {"ignored_layers": ["re:.*gate"]}}"#;
        assert!(excluded_modules(regex).is_err_and(|e| e.contains("re:.*gate") && e.contains("keep=GLOB")));
    }
}
