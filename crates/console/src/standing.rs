//! How far what was told is.

/// How far something is that was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is on its way; what is waited for.
    OnItsWay(String),
    /// It is where it was told to be.
    There(String),
    /// It is not, and does not get there before somebody does something.
    Stuck(String),
}

impl Standing {
    /// Whether nothing is waited for.
    pub fn is_settled(&self) -> bool {
        !matches!(self, Self::OnItsWay(_))
    }

    /// The words.
    pub fn text(&self) -> &str {
        match self {
            Self::OnItsWay(text) | Self::There(text) | Self::Stuck(text) => text,
        }
    }
}
