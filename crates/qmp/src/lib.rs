//! An asynchronous client for QMP, the QEMU Machine Protocol, over a Unix socket.
//!
//! The peer is not trusted: a guest may have taken its QEMU process over. Lines, queues and waits are limited,
//! and nothing that comes over the socket does worse than end the session with a reason.
//!
//! - [`Client`] is one session. It is cheap to clone; many callers may use it at once.
//! - [`commands`] holds the typed commands, as methods of [`Client`].
//! - [`Events`] receives the events; [`wait_event`] waits for one of them.
//!
//! The protocol is described in QEMU's `docs/interop/qmp-spec.rst`, the commands in its `qapi/*.json`.

mod client;
mod codec;
pub mod commands;
mod error;
mod event;
#[cfg(fuzzing)]
pub mod fuzzing;
mod message;
mod session;

pub use client::{Client, OnError, Options};
pub use error::{CloseReason, QmpError};
pub use event::{Event, EventError, Events, Timestamp, wait_event};
