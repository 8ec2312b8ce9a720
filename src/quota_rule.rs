//! The text of quotas: how many bytes and objects may be stored below a prefix.

/// The most rules of one setting.
const MAX_RULES: usize = 1_000;

/// The units of sizes, each with its bytes.
const UNITS: &[(&str, u64)] = &[
    ("B", 1),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// How much may be stored under the keys that begin with a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuotaRule {
    /// The beginning of the keys; empty for all keys.
    pub prefix: String,
    /// The largest number of stored bytes.
    pub bytes: u64,
    /// The largest number of objects, if that is limited.
    pub objects: Option<u64>,
}

/// The reason why a text holds no quotas, as the end of a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct QuotaRuleError(String);

impl QuotaRule {
    /// Reads rules of the form `prefix=bytes[,objects]`, joined by `;`. An empty rule is skipped.
    ///
    /// # Errors
    ///
    /// [`QuotaRuleError`] for a text without a rule, for the first entry that is no rule, and for a prefix that is named
    /// twice.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, QuotaRuleError> {
        let mut rules: Vec<Self> = Vec::new();
        let entries = text.split(';').map(str::trim).filter(|entry| !entry.is_empty());
        for (index, entry) in entries.enumerate() {
            let wrong = |why: String| QuotaRuleError(format!("entry {} {why}", index + 1));
            let rule = Self::parse(entry).map_err(wrong)?;
            if rules.iter().any(|other| other.prefix == rule.prefix) {
                return Err(wrong(format!("names the prefix {:?} once more", rule.prefix)));
            }
            rules.push(rule);
        }
        match rules.len() {
            0 => Err(QuotaRuleError("there is no quota".to_owned())),
            1..=MAX_RULES => Ok(rules),
            count => Err(QuotaRuleError(format!("there are {count} quotas, and at most {MAX_RULES} are allowed"))),
        }
    }

    fn parse(entry: &str) -> Result<Self, String> {
        // A prefix may hold `=`; what follows cannot.
        let Some((prefix, limits)) = entry.rsplit_once('=') else {
            return Err("has no `=`; write prefix=bytes or prefix=bytes,objects".to_owned());
        };
        let prefix = prefix.trim();
        if prefix.len() > 1024
            || prefix.starts_with('/')
            || prefix.contains("//")
            || prefix.chars().any(char::is_control)
        {
            return Err("has a prefix with which no key begins".to_owned());
        }
        let (bytes, objects) = match limits.split_once(',') {
            Some((bytes, objects)) => (bytes, Some(objects.trim())),
            None => (limits, None),
        };
        let bytes = size(bytes.trim()).ok_or("has no size in bytes; write for example 10GiB or 500MB")?;
        let objects = match objects {
            Some(text) => Some(text.parse().map_err(|_| "has no whole number of objects after the comma".to_owned())?),
            None => None,
        };
        Ok(Self { prefix: prefix.to_owned(), bytes, objects })
    }
}

/// Reads a whole number with a unit, or without one in bytes.
fn size(text: &str) -> Option<u64> {
    let end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = unit.trim_start();
    let factor = match unit {
        "" => 1,
        unit => UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|(_, factor)| *factor)?,
    };
    number.parse::<u64>().ok()?.checked_mul(factor).filter(|bytes| i64::try_from(*bytes).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(prefix: &str, bytes: u64, objects: Option<u64>) -> QuotaRule {
        QuotaRule { prefix: prefix.to_owned(), bytes, objects }
    }

    #[test]
    fn rules_have_a_prefix_and_limits() {
        let text = "users/=10GiB,1000000; =1TiB ;a=b=5 kb; n=0,0;";
        let wanted = [
            rule("users/", 10 << 30, Some(1_000_000)),
            rule("", 1 << 40, None),
            rule("a=b", 5_000, None),
            rule("n", 0, Some(0)),
        ];
        assert_eq!(QuotaRule::parse_all(text).unwrap(), wanted);
    }

    #[test]
    fn nonsense_is_named() {
        for (text, words) in [
            ("", "no quota"),
            (";", "no quota"),
            ("users/", "entry 1 has no `=`"),
            ("a=1;b=", "entry 2 has no size"),
            ("a=ten", "size"),
            ("a=-1", "size"),
            ("a=1.5GiB", "size"),
            ("a=1GiX", "size"),
            ("a=99999999999999999999", "size"),
            ("a=10000000TiB", "size"),
            ("a=1,", "objects"),
            ("a=1,x", "objects"),
            ("a=1,2,3", "objects"),
            ("a=1;a=2", "entry 2 names the prefix \"a\" once more"),
            ("/a=1", "no key begins"),
            ("a//=1", "no key begins"),
        ] {
            let why = QuotaRule::parse_all(text).unwrap_err().to_string();
            assert!(why.contains(words), "{text:?}: {why}");
        }
    }
}
