//! Names that people give to things.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Longest name, characters.
pub const LENGTH_MAX: usize = 63;

/// A name: 1 to 63 letters, digits, `-`, `_` or `.`, beginning with a letter or digit.
/// Unique per kind of thing, so that a command line can use it in place of an identifier.
#[derive(
    Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, example = "vol-01")]
pub struct Name(String);

/// Why a text is no name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{text:?} is no valid name: use 1 to {LENGTH_MAX} letters, digits, '-', '_' or '.', beginning with a letter or digit"
)]
pub struct InvalidName {
    /// The text, cut to 80 characters.
    pub text: String,
}

impl Name {
    /// Checks and takes a text.
    ///
    /// # Errors
    /// [`InvalidName`] if it breaks the rule of [`Name`].
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidName> {
        let text = text.into();
        let begins_well = text.chars().next().is_some_and(|first| first.is_ascii_alphanumeric());
        let consists_well = text
            .chars()
            .all(|character| character.is_ascii_alphanumeric() || "-_.".contains(character));
        if begins_well && consists_well && text.len() <= LENGTH_MAX {
            Ok(Name(text))
        } else {
            Err(InvalidName { text: text.chars().take(80).collect() })
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        Name::new(text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl FromStr for Name {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Name::new(text)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}
