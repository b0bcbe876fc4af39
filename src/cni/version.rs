//! The versions of the specification we speak, and how versions compare.

use anyhow::Result;

use super::error::{Code, detailed};

/// A released version of the CNI specification that has a result format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// What a configuration without `cniVersion` means.
    V0_1_0,
    /// Has the results of 0.1.0.
    V0_2_0,
    /// Brought lists of plugins, and results with `interfaces` and any number of `ips`.
    V0_3_0,
    /// Has the results of 0.3.0.
    V0_3_1,
    /// Brought CHECK, and `prevResult` for DEL.
    V0_4_0,
    /// Dropped `version` from the `ips` of a result.
    V1_0_0,
    /// Brought STATUS and GC.
    V1_1_0,
}

/// The three forms a result has had; see `result`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `ip4` and `ip6`: 0.1.0 and 0.2.0.
    OnePerFamily,
    /// A list of `ips`, each with its `version`: 0.3.0 to 0.4.0.
    List,
    /// A list of `ips` without `version`, keys sorted: 1.0.0 and 1.1.0.
    Current,
}

impl Version {
    /// Every version, oldest first.
    pub const ALL: [Self; 7] = [
        Self::V0_1_0,
        Self::V0_2_0,
        Self::V0_3_0,
        Self::V0_3_1,
        Self::V0_4_0,
        Self::V1_0_0,
        Self::V1_1_0,
    ];

    /// What `VERSION` answers and what results are held in.
    pub const NEWEST: Self = Self::V1_1_0;

    /// The text used on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The version spelt exactly like `text`; an absent version means 0.1.0.
    pub fn exact(text: &str) -> Option<Self> {
        let text = if text.is_empty() { "0.1.0" } else { text };
        Self::ALL.into_iter().find(|v| v.as_str() == text)
    }

    /// The result format of this version.
    pub fn shape(self) -> Shape {
        match self {
            Self::V0_1_0 | Self::V0_2_0 => Shape::OnePerFamily,
            Self::V0_3_0 | Self::V0_3_1 | Self::V0_4_0 => Shape::List,
            Self::V1_0_0 | Self::V1_1_0 => Shape::Current,
        }
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A version as numbers, for comparing. One to three dot-separated integers are
/// legal here, although only an exact spelling is ever *supported*.
///
/// # Errors
/// Code 6 when the text is no version.
pub fn numbers(text: &str) -> Result<[u32; 3]> {
    let text = if text.is_empty() { "0.1.0" } else { text };
    let mut numbers = [0; 3];
    let invalid = |sentence: String| {
        let details = format!("cniVersion \"{text}\" is not a version, such as 1.0.0");
        detailed(Code::Decode, sentence, details)
    };
    let parts: Vec<&str> = text.split('.').collect();
    if parts.len() > numbers.len() {
        return Err(invalid(format!(
            "invalid version \"{text}\": too many parts"
        )));
    }
    let names = ["major", "minor", "micro"];
    for ((number, name), part) in numbers.iter_mut().zip(names).zip(parts) {
        *number = part.parse().map_err(|_no_number| {
            invalid(format!(
                "failed to convert {name} version part \"{part}\": strconv.Atoi: parsing \"{part}\": invalid syntax"
            ))
        })?;
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_spelling_decides_support() {
        for version in Version::ALL {
            assert_eq!(Version::exact(version.as_str()), Some(version));
        }
        assert_eq!(Version::exact(""), Some(Version::V0_1_0));
        for text in ["1.0", "1", "0.5.0", "1.1.0 ", "v1.0.0"] {
            assert_eq!(Version::exact(text), None, "{text}");
        }
    }

    #[test]
    fn numbers_compare_short_versions() {
        assert_eq!(numbers("1").unwrap(), [1, 0, 0]);
        assert_eq!(numbers("0.4").unwrap(), [0, 4, 0]);
        assert_eq!(numbers("").unwrap(), [0, 1, 0]);
        assert!(numbers("0.10.0").unwrap() > numbers("0.9.9").unwrap());
        for text in ["x", "1.2.3.4", "1..2", "-1"] {
            assert!(numbers(text).is_err(), "{text}");
        }
    }
}
