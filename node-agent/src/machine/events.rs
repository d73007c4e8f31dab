//! What a VM does by itself, in the agent's own words.

use std::borrow::Cow;

/// How far a migration is, as far as the agent acts on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// It is under way.
    Going,
    /// The VM is paused, and is handed over once that is allowed.
    HandingOver,
    /// The VM is on its way.
    Sending,
    /// The VM is at the other end.
    Completed,
    /// It was called off, has failed, or never began.
    Over,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, strum::IntoStaticStr)]
pub enum VmEvent {
    /// The VM stands still.
    #[strum(serialize = "STOP")]
    Stopped,
    /// It runs again, or for the first time here.
    #[strum(serialize = "RESUME")]
    Resumed,
    /// Its guest restarts.
    #[strum(serialize = "RESET")]
    Reset,
    /// It ends.
    #[strum(serialize = "SHUTDOWN")]
    ShutDown,
    /// Its migration is somewhere else.
    Migration {
        /// Where.
        moment: Moment,
        /// The same in QEMU's word.
        word: &'static str,
    },
    /// The guest's driver has accepted the standby feature of a standby.
    FailoverNegotiated,
    /// The guest's driver of a NIC asks it to receive something: it has started.
    Receives,
    /// The guest has let go of a device, or says that it does not.
    Unplugged,
}

impl VmEvent {
    /// How it is noted in a NIC's timeline; `None` where it is not.
    pub fn note(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Migration { word, .. } => Some(format!("Migration {word}").into()),
            Self::Stopped | Self::Resumed | Self::Reset | Self::ShutDown => {
                Some(<&'static str>::from(self).into())
            }
            Self::FailoverNegotiated | Self::Receives | Self::Unplugged => None,
        }
    }
}
