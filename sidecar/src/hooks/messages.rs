//! The messages, as far as they are used. Unknown fields are ignored.

/// What does the sidecar take part in?
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct InfoRequest {}

/// What it takes part in.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Info {
    /// Its name, for the launcher's log.
    #[prost(string, tag = "1")]
    pub name: String,
    /// When it is asked.
    #[prost(message, repeated, tag = "3")]
    pub hook_points: Vec<HookPoint>,
    /// Versions of the callbacks; the launcher takes the last that it knows.
    #[prost(string, repeated, tag = "4")]
    pub versions: Vec<String>,
}

/// A moment at which a sidecar is asked.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct HookPoint {
    /// KubeVirt's name for it.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Those with a higher one are asked first.
    #[prost(int32, tag = "2")]
    pub priority: i32,
}

/// A domain is about to be defined.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct OnDefineDomainRequest {
    /// It, as XML.
    #[prost(bytes = "vec", tag = "1")]
    pub domain: Vec<u8>,
    /// The VM's VirtualMachineInstance, as JSON.
    #[prost(bytes = "vec", tag = "2")]
    pub vmi: Vec<u8>,
}

/// The domain as it is to be.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct OnDefineDomain {
    /// It, as XML.
    #[prost(bytes = "vec", tag = "1")]
    pub domain: Vec<u8>,
}

/// The VM has ended.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ShutdownRequest {}

/// So does the sidecar.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Shutdown {}
