//! The one cryptography provider of a process.

/// Makes aws-lc-rs the provider of every TLS connection. Call it first in `main`.
///
/// Where two providers are linked, rustls refuses to choose and the first connection panics; this chooses. A second
/// call changes nothing.
pub fn install_provider() {
    // The error means that there is one already, which is all that is needed.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
