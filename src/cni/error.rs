//! Errors as the caller sees them: `{code, msg, details}`.
//!
//! Inside, errors are `anyhow` chains. Where the meaning of a failure is known, a
//! [`Coded`] goes into the chain; [`ErrorObject::from_error`] turns the chain into the
//! specification's object (section 2, "Error"): the outermost code counts, the
//! outermost sentence is `msg`, everything below it is `details`. The layers below have no
//! codes; the kind of their outermost [`Failure`] decides where no code stands above it.

use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Kind};

/// Error codes of the CNI specification 1.1.0, and the two the reference adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The configuration asks for a version we do not speak.
    IncompatibleVersion,
    /// A key of the configuration, or its value, is not supported.
    UnsupportedField,
    /// A required environment variable is missing or malformed.
    Environment,
    /// Reading or writing failed.
    Io,
    /// What came in is not what it should be: JSON, or a field of the wrong type.
    Decode,
    /// The configuration is well-formed but wrong.
    Config,
    /// `CNI_NETNS` is the plugin's own namespace.
    Netns,
    /// Somebody else is in the way for now: the same call may succeed later.
    TryAgain,
    /// `STATUS`: `ADD` cannot be served.
    NotAvailable,
    /// `STATUS`: `ADD` cannot be served, and what is wrong limits the containers that are
    /// attached, too.
    NotAvailableAndLimited,
    /// Everything else.
    Internal,
}

impl Code {
    /// The number on the wire.
    pub fn number(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::UnsupportedField => 2,
            Self::Environment => 4,
            Self::Io => 5,
            Self::Decode => 6,
            Self::Config => 7,
            Self::Netns => 8,
            Self::TryAgain => 11,
            Self::NotAvailable => 50,
            Self::NotAvailableAndLimited => 51,
            Self::Internal => 999,
        }
    }
}

impl From<Kind> for Code {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Busy => Self::TryAgain,
            Kind::Io => Self::Io,
            Kind::Namespace => Self::Environment,
            Kind::Invalid => Self::Config,
            Kind::Unsupported => Self::UnsupportedField,
            Kind::Unavailable | Kind::NotRoot => Self::NotAvailable,
            Kind::Refused => Self::Internal,
        }
    }
}

/// A sentence with a code, for the place in a chain where the meaning is known.
#[derive(Debug, Clone)]
pub struct Coded {
    code: Code,
    sentence: String,
}

impl std::fmt::Display for Coded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for Coded {}

/// A coded sentence: an error by itself, or context for one.
pub fn coded(code: Code, sentence: impl Into<String>) -> Coded {
    Coded {
        code,
        sentence: sentence.into(),
    }
}

/// A coded error with something to say about it: what was found, or what to do.
pub fn detailed(
    code: Code,
    sentence: impl Into<String>,
    details: impl Into<String>,
) -> anyhow::Error {
    anyhow::Error::msg(details.into()).context(coded(code, sentence))
}

/// `error`, as STATUS tells it.
pub fn not_available(error: &anyhow::Error) -> anyhow::Error {
    with_code(Code::NotAvailable, error)
}

/// `error`, as STATUS tells it where the containers that are attached suffer from it, too.
pub fn not_available_and_limited(error: &anyhow::Error) -> anyhow::Error {
    with_code(Code::NotAvailableAndLimited, error)
}

/// What `error` says, under another code.
fn with_code(code: Code, error: &anyhow::Error) -> anyhow::Error {
    let object = ErrorObject::from_error(error);
    if object.details.is_empty() {
        return coded(code, object.msg).into();
    }
    detailed(code, object.msg, object.details)
}

/// The code of `error`, if any part of its chain determines one. A [`Coded`] takes precedence
/// over a [`Failure`]: the layers below never wrap errors of the protocol.
pub fn code_of(error: &anyhow::Error) -> Option<Code> {
    let coded = error.downcast_ref::<Coded>().map(|coded| coded.code);
    coded.or_else(|| {
        let failure = error.downcast_ref::<Failure>()?;
        Some(failure.kind().into())
    })
}

/// What CHECK came to: success, or what differs from what was expected, the first in front.
///
/// # Errors
/// Every difference.
pub fn agree(differences: Vec<String>) -> anyhow::Result<()> {
    let mut differences = differences.into_iter();
    let Some(first) = differences.next() else {
        return Ok(());
    };
    let rest: Vec<String> = differences.collect();
    let error = anyhow::Error::msg(first.clone());
    Err(if rest.is_empty() {
        error
    } else {
        anyhow::Error::msg(format!("also: {}", rest.join("; "))).context(first)
    })
}

/// The specification's error object.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ErrorObject {
    /// The caller's version as it was written; left out while empty.
    #[serde(rename = "cniVersion", skip_serializing_if = "String::is_empty")]
    pub cni_version: String,
    /// As [`Code::number`], or any other number that a delegate chose.
    pub code: u32,
    /// One sentence for the operator.
    pub msg: String,
    /// What lies behind `msg`, for whoever looks for the cause; left out when empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub details: String,
}

/// A delegate's error object travels up unchanged: this is how it sits in a chain.
impl std::error::Error for ErrorObject {}

impl std::fmt::Display for ErrorObject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.msg)?;
        if !self.details.is_empty() {
            write!(f, "; {}", self.details)?;
        }
        Ok(())
    }
}

impl ErrorObject {
    /// What we say of the error ourselves: the details, where the message is the reference
    /// plugins' sentence.
    #[cfg(test)]
    pub fn ours(&self) -> &str {
        match self.details.as_str() {
            "" => &self.msg,
            details => details,
        }
    }

    /// What to print for `error`. A delegate's object inside the chain wins over
    /// everything around it: its code and message are what the runtime acts on.
    pub fn from_error(error: &anyhow::Error) -> Self {
        if let Some(delegated) = error.chain().find_map(|e| e.downcast_ref::<Self>()) {
            return delegated.clone();
        }
        let code = code_of(error).unwrap_or(Code::Internal);
        Self {
            cni_version: String::new(),
            code: code.number(),
            msg: error.to_string(),
            details: error
                .chain()
                .skip(1)
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(": "),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn outermost_code_and_sentence_win() {
        let error = anyhow!("no such device")
            .context(coded(Code::Config, "look up bridge cni0"))
            .context("prepare the node");
        let object = ErrorObject::from_error(&error);
        assert_eq!(object.code, 7);
        assert_eq!(object.msg, "prepare the node");
        assert_eq!(object.details, "look up bridge cni0: no such device");
    }

    #[test]
    fn kinds_become_codes_unless_a_code_stands_above() {
        let busy = || anyhow!("held by 7").context(Failure::new(Kind::Busy, "wait for the lock"));
        let object = ErrorObject::from_error(&busy().context("set up the rules"));
        assert_eq!((object.code, object.msg.as_str()), (11, "set up the rules"));
        assert_eq!(object.details, "wait for the lock: held by 7");
        let object = ErrorObject::from_error(&busy().context(coded(Code::Io, "open the leases")));
        assert_eq!(object.code, 5);
    }

    #[test]
    fn no_code_is_999_without_details() {
        let object = ErrorObject::from_error(&anyhow!("odd"));
        assert_eq!((object.code, object.details.as_str()), (999, ""));
    }

    #[test]
    fn a_delegates_object_survives_context() {
        let inner = ErrorObject {
            code: 11,
            msg: "busy".into(),
            ..ErrorObject::default()
        };
        let error = Err::<(), _>(inner.clone())
            .context(coded(Code::Io, "run ipam"))
            .unwrap_err();
        assert_eq!(ErrorObject::from_error(&error), inner);
    }
}
