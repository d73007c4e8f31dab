//! Typed commands, as methods of [`Client`](crate::Client): only those a hybrid NIC needs, with only the members it
//! needs. Names and shapes are those of QEMU's `qapi/*.json`.

mod device;
mod machine;
mod migration;
mod netdev;
mod pci;
mod tls;

pub use device::{Queues, VfioPci, VfioSource, VirtioNet};
pub use machine::{QemuVersion, Release, RunState, StatusInfo};
pub use migration::{
    InetAddress, MigrationCapability, MigrationInfo, MigrationParameters, MigrationStatus, RamStats,
};
pub use netdev::{Announce, RxFilter, RxState, TapNetdev, Vhost};
pub use pci::{PciAddress, PciBus, PciDevice};
pub use tls::{PassedFd, TlsEndpoint};

/// An enumeration of QEMU's strings that keeps unknown ones: newer QEMUs add some.
macro_rules! string_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
            /// A value this client does not know.
            Other(String),
        }

        impl $name {
            /// QEMU's name of it.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $text,)+
                    Self::Other(text) => text,
                }
            }

            /// The same, and one fixed word in place of a value that this client does not know.
            pub fn word(&self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                    Self::Other(_) => "other",
                }
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                match text {
                    $($text => Self::$variant,)+
                    // A status may repeat it.
                    other => Self::Other(crate::error::excerpt(other, crate::error::WORD)),
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                <std::borrow::Cow<'de, str>>::deserialize(deserializer).map(|text| Self::from(text.as_ref()))
            }
        }
    };
}
use string_enum;
