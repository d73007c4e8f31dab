//! What a search needs of a world.

use std::fmt::Debug;
use std::hash::Hash;

/// What does not hold, in words.
pub type Broken = String;

/// A world as a system of states and actions.
pub trait System: Sync {
    /// One state of it.
    type State: Copy + Eq + Hash + Send + Sync;
    /// Something that happens.
    type Action: Copy + Debug + Send + Sync;

    /// Where it begins. `faults`: how many may happen on one way; `splits`: how often one NIC may be ahead of the other.
    fn start(&self, faults: u8, splits: u8) -> Self::State;

    /// All that may happen.
    fn actions(&self, state: &Self::State) -> Vec<Self::Action>;

    /// What follows when it happens.
    fn next(&self, state: &Self::State, action: Self::Action) -> Self::State;

    /// What must hold in each state.
    fn safe(&self, state: &Self::State) -> Result<(), Broken>;

    /// The same state, in which nothing goes wrong any more.
    fn calm(&self, state: &Self::State) -> Self::State;

    /// Everybody does all that there is to do, once, and nothing goes wrong.
    fn pass(&self, state: &Self::State) -> Self::State;

    /// What becomes of a state that [`System::pass`] does not change.
    fn rest(&self, state: &Self::State) -> Rest<Self::State>;

    /// A state in words.
    fn show(&self, state: &Self::State) -> String;
}

/// What becomes of a world in which there is nothing more to do.
pub enum Rest<S> {
    /// Time passes, and it goes on.
    Goes(S),
    /// It goes on as a person says, in one of these ways.
    Asks(Vec<S>),
    /// It stays as it is; whether that is as it should be.
    Stays(Result<(), Broken>),
}
