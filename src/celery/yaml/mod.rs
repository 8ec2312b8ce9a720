//! YAML, as Celery's serializer `yaml` writes and reads it: PyYAML's safe schema, which is that of YAML 1.1.
//!
//! Only the parser is a library's. What a plain scalar means is decided here by PyYAML's own rules, since a newer YAML reads
//! `yes`, `010` and `1e3` otherwise.

mod scalar;
mod write;

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle};

use self::scalar::{is_plain_tag, scalar};
use super::text_form::Broken;
use crate::json::{Json, MAX_DEPTH};

pub(super) use self::write::from_json;

/// The most values in a body, each as often as an alias names it.
const MOST_VALUES: u64 = 1 << 20;

/// Turns a YAML document into the JSON text of at most `limit` bytes that a producer with the serializer `json` would have sent.
///
/// Bytes and dates become kombu's typed JSON. An alias is its value once more, and counts as such: neither many of them nor
/// aliases of aliases make more of a body than its limit.
///
/// # Errors
///
/// [`Broken`] for what is no YAML, or has another tag than those of the safe schema that JSON can express.
pub(super) fn to_json(text: &str, limit: usize) -> Result<Vec<u8>, Broken> {
    let mut reader = Reader { limit: limit as u64, ..Reader::default() };
    for event in Parser::new_from_str(text) {
        let (event, _) = event.map_err(|error| Broken::Words(format!("{error}").chars().take(200).collect()))?;
        reader.event(event)?;
        if reader.is_too_deep {
            // The reader of the text refuses it for its depth.
            return Ok(vec![b'['; reader.open.len()]);
        }
    }
    let value = reader.document.unwrap_or(Json::Null);
    let text = value.compact().into_bytes();
    if text.len() > limit { Err(Broken::TooLong) } else { Ok(text) }
}

/// A collection that is being read.
struct Open {
    anchor: usize,
    kind: OpenKind,
}

enum OpenKind {
    Array(Vec<Json>),
    /// Members, the key whose value is awaited, and what `<<` merges.
    Object(Vec<(String, Json)>, Option<Key>, Vec<Json>),
}

enum Key {
    Name(String),
    Merge,
}

/// The size of a value: values and bytes of text.
#[derive(Clone, Copy, Default)]
struct Size {
    values: u64,
    bytes: u64,
}

impl Size {
    /// Adds a size, up to the bounds of a body.
    const fn with(self, more: Self, limit: u64) -> Result<Self, Broken> {
        let sum = Self { values: self.values + more.values, bytes: self.bytes + more.bytes };
        if sum.values > MOST_VALUES || sum.bytes > limit { Err(Broken::TooLong) } else { Ok(sum) }
    }
}

#[derive(Default)]
struct Reader {
    limit: u64,
    size: Size,
    open: Vec<Open>,
    anchors: HashMap<usize, (Json, Size)>,
    /// The size at the beginning of each open collection.
    began: Vec<Size>,
    document: Option<Json>,
    documents: u32,
    is_too_deep: bool,
}

impl Reader {
    fn event(&mut self, event: Event<'_>) -> Result<(), Broken> {
        match event {
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(Broken::Form("it has several documents"));
                }
            }
            Event::Alias(anchor) => {
                let (value, size) = self
                    .anchors
                    .get(&anchor)
                    .ok_or(Broken::Form("an alias in it names nothing, or contains itself"))?;
                // Counted before it is cloned.
                self.size = self.size.with(*size, self.limit)?;
                let value = value.clone();
                self.value(value, false)?;
            }
            Event::Scalar(text, style, anchor, tag) => {
                let is_plain = style == ScalarStyle::Plain;
                let is_merge = is_plain && tag.is_none() && text == "<<";
                let value = scalar(&text, is_plain, tag.as_deref())?;
                let size = Size { values: 1, bytes: text.len() as u64 };
                self.count(size)?;
                if anchor > 0 {
                    self.anchors.insert(anchor, (value.clone(), size));
                }
                self.value(value, is_merge)?;
            }
            Event::SequenceStart(anchor, tag) => {
                is_plain_tag(tag.as_deref(), "seq")?;
                self.begin(anchor, OpenKind::Array(Vec::new()))?;
            }
            Event::MappingStart(anchor, tag) => {
                is_plain_tag(tag.as_deref(), "map")?;
                self.begin(anchor, OpenKind::Object(Vec::new(), None, Vec::new()))?;
            }
            Event::SequenceEnd | Event::MappingEnd => self.end()?,
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
        Ok(())
    }

    fn count(&mut self, size: Size) -> Result<(), Broken> {
        self.size = self.size.with(size, self.limit)?;
        Ok(())
    }

    fn begin(&mut self, anchor: usize, kind: OpenKind) -> Result<(), Broken> {
        self.began.push(self.size);
        self.count(Size { values: 1, bytes: 2 })?;
        self.open.push(Open { anchor, kind });
        self.is_too_deep |= self.open.len() > 2 * MAX_DEPTH;
        Ok(())
    }

    fn end(&mut self) -> Result<(), Broken> {
        let (Some(Open { anchor, kind }), Some(began)) = (self.open.pop(), self.began.pop()) else {
            return Err(Broken::Form("a collection in it ends without a beginning"));
        };
        let value = match kind {
            OpenKind::Array(items) => Json::Array(items),
            OpenKind::Object(members, _, merged) => Json::Object(merge(members, merged)?),
        };
        if anchor > 0 {
            let size = Size { values: self.size.values - began.values, bytes: self.size.bytes - began.bytes };
            // The copy that is kept for aliases counts as well.
            self.count(size)?;
            self.anchors.insert(anchor, (value.clone(), size));
        }
        self.value(value, false)
    }

    /// Puts a value where it belongs.
    fn value(&mut self, value: Json, is_merge: bool) -> Result<(), Broken> {
        match self.open.last_mut().map(|open| &mut open.kind) {
            None => self.document = Some(value),
            Some(OpenKind::Array(items)) => items.push(value),
            Some(OpenKind::Object(members, key, merged)) => match key.take() {
                None if is_merge => *key = Some(Key::Merge),
                None => match value {
                    Json::Text(name) => *key = Some(Key::Name(name)),
                    _ => return Err(Broken::Key),
                },
                Some(Key::Merge) => merged.push(value),
                Some(Key::Name(name)) => members.push((name, value)),
            },
        }
        Ok(())
    }
}

/// Joins the members of a mapping with what `<<` merges into it: its own come first, then the earlier merged ones. Of a repeated
/// key the last value counts.
fn merge(members: Vec<(String, Json)>, merged: Vec<Json>) -> Result<Vec<(String, Json)>, Broken> {
    let mut all = Vec::new();
    for source in merged {
        let sources = match source {
            Json::Array(sources) => sources,
            one => vec![one],
        };
        for source in sources.into_iter().rev() {
            let Json::Object(members) = source else { return Err(Broken::Form("what << merges in it is no map")) };
            all.extend(members);
        }
    }
    all.extend(members);
    let mut places: HashMap<String, usize> = HashMap::with_capacity(all.len());
    let mut out: Vec<(String, Json)> = Vec::with_capacity(all.len());
    for (name, value) in all {
        match places.get(&name) {
            Some(place) => out[*place].1 = value,
            None => {
                places.insert(name.clone(), out.len());
                out.push((name, value));
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::{ParseLimits, parse};

    fn text(yaml: &str) -> Result<String, Broken> {
        to_json(yaml, 1 << 16).map(|text| String::from_utf8(text).unwrap())
    }

    #[test]
    fn plain_scalars_mean_what_they_mean_to_pyyaml() {
        for (yaml, json) in [
            ("~", "null"),
            ("", "null"),
            ("yes", "true"),
            ("Off", "false"),
            ("yEs", r#""yEs""#),
            ("010", "8"),
            ("0x1F", "31"),
            ("-0b11", "-3"),
            ("1_000", "1000"),
            ("+7", "7"),
            ("123456789012345678901234567890", "123456789012345678901234567890"),
            ("1:30", "90"),
            ("08", r#""08""#),
            ("1e3", r#""1e3""#),
            ("1.0e+3", "1000.0"),
            ("1.5", "1.5"),
            (".5", "0.5"),
            ("1.", "1.0"),
            ("1:30.5", "90.5"),
            (".inf", "Infinity"),
            ("-.INF", "-Infinity"),
            (".NaN", "NaN"),
            ("'1'", r#""1""#),
            ("a: b", r#"{"a":"b"}"#),
            ("- 1\n- [x, {y: z}]", r#"[1,["x",{"y":"z"}]]"#),
            ("2001-12-14", r#"{"__type__":"date","__value__":"2001-12-14"}"#),
            (
                "2001-12-14t21:59:43.10-05:00",
                r#"{"__type__":"datetime","__value__":"2001-12-14T21:59:43.100000-05:00"}"#,
            ),
            ("2001-12-14 21:59:43Z", r#"{"__type__":"datetime","__value__":"2001-12-14T21:59:43+00:00"}"#),
            ("2001-12-14 21:59:43", r#"{"__type__":"datetime","__value__":"2001-12-14T21:59:43"}"#),
            ("2001-12-14x", r#""2001-12-14x""#),
            ("!!binary aGVsbG8=", r#"{"__type__":"bytes","__value__":"hello"}"#),
            ("!!binary |\n  //4=\n", r#"{"__type__":"base64","__value__":"//4="}"#),
            ("!!str 1", r#""1""#),
            ("!!int '7'", "7"),
            ("!!float 1", "1.0"),
            ("[&a {x: 1}, *a, {<<: *a, y: 2}]", r#"[{"x":1},{"x":1},{"x":1,"y":2}]"#),
            ("{a: 1, a: 2}", r#"{"a":2}"#),
        ] {
            assert_eq!(text(yaml).as_deref(), Ok(json), "{yaml}");
        }
    }

    #[test]
    fn nothing_but_the_safe_schema_is_read() {
        for (yaml, words) in [
            ("!!python/object/apply:os.system [ls]", "meaning"),
            ("!!python/tuple [1]", "meaning"),
            ("!mine x", "meaning"),
            ("!!set {a}", "meaning"),
            ("!!omap [a: 1]", "meaning"),
            ("{1: 2}", "key"),
            ("{[1]: 2}", "key"),
            ("[1", ""),
            ("a\n---\nb", "documents"),
            ("*a", ""),
            ("&a [*a]", ""),
            ("2001-13-41", "calendar"),
            ("!!int x", "tag says"),
        ] {
            let error = text(yaml).unwrap_err().to_string();
            assert!(error.contains(words), "{yaml}: {error}");
        }
    }

    #[test]
    fn aliases_and_depth_are_bounded() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for level in 1..9 {
            bomb.push_str(&format!("a{level}: &a{level} [{}]\n", vec![format!("*a{}", level - 1); 9].join(", ")));
        }
        assert_eq!(to_json(&bomb, 64 << 20).unwrap_err(), Broken::TooLong);
        let deep: String = (0..3000).map(|level| format!("{}-\n", " ".repeat(level))).collect();
        let text = to_json(&deep, 64 << 20).unwrap();
        let error = parse(&text, ParseLimits::default()).unwrap_err();
        assert_eq!(error.kind, crate::json::ErrorKind::TooDeep);
        assert!(to_json(&"[".repeat(100_000), 64 << 20).is_err());
    }

    #[test]
    fn what_is_written_is_read_as_the_same_value() {
        for json in [
            "null",
            "[1,-2.5,1e16,1E-7,NaN,Infinity,-Infinity,123456789012345678901234567890]",
            r#"["yes","1","~","","a\"b\\\n\t\r","é😀","\u0000\u007f\u0085\u2028\ufeff"]"#,
            r#"{"a":{"b":[]},"":{}}"#,
            r#"{"__type__":"bytes","__value__":"hello"}"#,
            r#"{"__type__":"base64","__value__":"//4="}"#,
            r#"{"__type__":"datetime","__value__":"2001-12-14T21:59:43.100000-05:00"}"#,
            r#"{"__type__":"datetime","__value__":"no date"}"#,
        ] {
            let value = parse(json.as_bytes(), ParseLimits::default()).unwrap();
            let back = parse(text(&from_json(&value)).unwrap().as_bytes(), ParseLimits::default()).unwrap();
            if json.contains("1e16") {
                let numbers = |value: &Json| -> Vec<String> {
                    value.as_array().unwrap().iter().map(|one| format!("{:?}", one.as_f64())).collect()
                };
                assert_eq!(numbers(&back), numbers(&value));
            } else {
                assert_eq!(back, value, "{json}");
            }
        }
        let long = Json::Object(vec![("k".repeat(2000), Json::Null)]);
        assert_eq!(text(&from_json(&long)).unwrap(), long.compact());
    }
}
