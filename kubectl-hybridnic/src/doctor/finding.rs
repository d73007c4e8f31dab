//! What a check says.

use serde::Serialize;

use crate::connect::Unanswered;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Worth a look; or it could not be checked.
    Warn,
    /// Something that is asked for does not work.
    Fail,
}

/// One thing that a check has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check, in one word.
    pub check: &'static str,
    /// How bad it is.
    pub level: Level,
    /// A sentence.
    pub message: String,
    /// What to do about it; never empty for a failure or a warning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Finding {
    /// All is well.
    pub fn ok(check: &'static str, message: impl Into<String>) -> Self {
        Self {
            check,
            level: Level::Ok,
            message: message.into(),
            fix: None,
        }
    }

    /// Worth a look.
    pub fn warn(check: &'static str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            check,
            level: Level::Warn,
            message: message.into(),
            fix: Some(fix.into()),
        }
    }

    /// Wrong.
    pub fn fail(check: &'static str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            check,
            level: Level::Fail,
            message: message.into(),
            fix: Some(fix.into()),
        }
    }

    /// It could not be checked.
    pub fn unseen(check: &'static str, why: &Unanswered) -> Self {
        let fix = if why.forbidden {
            "run doctor with the rights of a cluster administrator"
        } else {
            "fix that first"
        };
        Self::warn(check, format!("could not be checked: {why}"), fix)
    }
}

/// A few names, and how many more there are.
pub fn some<S: AsRef<str>>(names: &[S]) -> String {
    const MOST: usize = 5;
    let mut shown: Vec<_> = names
        .iter()
        .take(MOST)
        .map(|name| name.as_ref().to_owned())
        .collect();
    if names.len() > MOST {
        shown.push(format!("{} more", names.len() - MOST));
    }
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whom_to_ask_depends_on_the_answer_and_not_on_its_words() {
        let fix = |forbidden| {
            let why = "Nodes: the proxy says that this is not allowed".to_owned();
            Finding::unseen("x", &Unanswered { why, forbidden }).fix.unwrap()
        };
        assert!(fix(true).contains("cluster administrator"));
        assert!(!fix(false).contains("cluster administrator"));
    }

    #[test]
    fn long_lists_are_cut() {
        assert_eq!(some(&["a", "b"]), "a, b");
        assert_eq!(some(&["a"; 7]), "a, a, a, a, a, 2 more");
        assert_eq!(some::<&str>(&[]), "");
    }
}
