//! `strftime_now`: the local time, written as Python's `datetime.strftime` writes it.

use jiff::civil::DateTime;
use jiff::fmt::strtime;

/// Directives that jiff writes as Python does.
const SAME: &str = "aAbBCdeGgHhIjklmMnpPStuUVwWyY";

/// The local time, in the words that a [`super::Rendering`] carries it in.
pub fn now() -> String {
    jiff::ZonedDateTime::now().datetime().to_string()
}

/// A time by a format. What no directive is stays as it is, as in the C library that Python asks.
pub(super) fn written(time: &str, format: &str) -> Result<String, String> {
    let time: DateTime = time.parse().map_err(|e| format!("`{time}` is no local time: {e}"))?;
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let behind = &rest[at + 1..];
        let flags = behind.find(|c| !matches!(c, '-' | '_' | '0' | '^' | '#' | ':')).unwrap_or(behind.len());
        let Some(letter) = behind[flags..].chars().next() else {
            // A format that ends with a mark.
            out.push_str(&rest[at..]);
            return Ok(out);
        };
        let directive = &rest[at..at + 1 + flags + letter.len_utf8()];
        let as_jiff =
            |format: &str| strtime::format(format, time).map_err(|e| format!("strftime_now(`{directive}`): {e}"));
        match letter {
            '%' => out.push('%'),
            // Python's time has no zone.
            'z' | 'Z' => {}
            'f' => out.push_str(&format!("{:06}", time.subsec_nanosecond() / 1000)),
            'c' => out.push_str(&as_jiff("%a %b %e %H:%M:%S %Y")?),
            'x' | 'D' => out.push_str(&as_jiff("%m/%d/%y")?),
            'X' | 'T' => out.push_str(&as_jiff("%H:%M:%S")?),
            'F' => out.push_str(&as_jiff("%Y-%m-%d")?),
            'R' => out.push_str(&as_jiff("%H:%M")?),
            'r' => out.push_str(&as_jiff("%I:%M:%S %p")?),
            letter if SAME.contains(letter) => out.push_str(&as_jiff(&directive.replace(':', ""))?),
            _ => out.push_str(directive),
        }
        rest = &rest[at + directive.len()..];
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// What Python's `datetime(2026, 3, 4, 15, 6, 7, 89012).strftime` writes.
    #[test]
    fn times_are_written_as_python_writes_them() {
        for (format, wanted) in [
            ("%Y-%m-%d", "2026-03-04"),
            ("%d %b %Y", "04 Mar 2026"),
            ("%A, %B %-d, %Y", "Wednesday, March 4, 2026"),
            ("%H:%M:%S.%f", "15:06:07.089012"),
            ("%I:%M %p%z%Z", "03:06 PM"),
            ("%j|%U|%w|%a|%y", "063|09|3|Wed|26"),
            ("%c", "Wed Mar  4 15:06:07 2026"),
            ("%x %X", "03/04/26 15:06:07"),
            ("100%% %Q 50%", "100% %Q 50%"),
            ("%é", "%é"),
            ("", ""),
        ] {
            assert_eq!(written("2026-03-04T15:06:07.089012", format).unwrap(), wanted, "{format}");
        }
        assert!(written(&now(), "%Y").unwrap().parse::<u32>().unwrap() > 2000);
        assert!(written("yesterday", "%Y").is_err());
    }
}
