//! The name of a resource, and its socket's.

use std::fmt;

/// The longest name of an extended resource without its domain.
const LONGEST: usize = 63;
/// How much of the name is in the socket's name: the kubelet's directory may have a long path, and a socket's path has 107 octets.
const SHOWN: usize = 24;

/// An extended resource that the kubelet takes: `domain/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resource(String);

/// Why a name is not that of an extended resource.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} is not the name of a resource: after the domain come at most 63 letters, digits, dots, dashes and underscores"
)]
pub struct BadName(String);

impl Resource {
    /// The resource `name` of a domain.
    pub fn new(domain: &str, name: &str) -> Result<Self, BadName> {
        let full = format!("{domain}/{name}");
        let inside = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
        let edge = |c: Option<&u8>| c.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = name.as_bytes();
        if bytes.len() <= LONGEST
            && bytes.iter().all(|c| inside(*c))
            && edge(bytes.first())
            && edge(bytes.last())
        {
            Ok(Self(full))
        } else {
            Err(BadName(full))
        }
    }

    /// The full name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the plugin's socket in the kubelet's directory: always the same, and short.
    pub fn socket(&self) -> String {
        let name = self.0.rsplit('/').next().unwrap_or_default();
        if name.len() <= SHOWN {
            return format!("{SOCKETS}{name}.sock");
        }
        // FNV-1a: what is cut off tells two names apart.
        let hash = self.0.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        format!("{SOCKETS}{}-{hash:016x}.sock", &name[..SHOWN])
    }
}

/// How the names of our sockets begin.
const SOCKETS: &str = "hybridnic-";

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_fits_the_kubelet_and_its_socket_a_path() {
        let resource = |name: &str| Resource::new("hybridnic.io", name);
        assert_eq!(resource("fast").unwrap().as_str(), "hybridnic.io/fast");
        assert_eq!(resource("fast").unwrap().socket(), "hybridnic-fast.sock");
        let long = "n".repeat(63);
        let socket = resource(&long).unwrap().socket();
        assert!(socket.len() <= 60, "{socket}");
        assert_ne!(socket, resource(&format!("{}m", &long[1..])).unwrap().socket());
        for bad in ["", "-a", "a-", "a/b", "a b", &"n".repeat(64)] {
            assert!(resource(bad).is_err(), "{bad}");
        }
    }
}
