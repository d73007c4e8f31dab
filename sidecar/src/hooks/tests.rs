//! A launcher, scripted: what it asks over the socket, and what it must be answered.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use prost::Message;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstCodec;

use super::*;

const DOMAIN: &str = "<domain><os><type machine='q35'/></os><features><acpi/></features><devices>\
    <interface type='ethernet'><model type='virtio'/><alias name='ua-fast'/></interface></devices></domain>";
const VMI: &str =
    r#"{"spec":{"domain":{"devices":{"interfaces":[{"name":"fast","binding":{"name":"hybridnic"}}]}}}}"#;

struct Sidecar {
    dir: TempDir,
    end: Arc<Notify>,
    served: JoinHandle<anyhow::Result<()>>,
}

impl Sidecar {
    fn start(dir: TempDir) -> Self {
        let end = Arc::new(Notify::new());
        let (directory, ended) = (dir.path().to_owned(), end.clone());
        let served = tokio::spawn(async move { serve(&directory, ended.notified()).await });
        Self { dir, end, served }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("hybridnic.sock")
    }

    /// Dials, as the launcher does, until there is an answer.
    async fn dial(&self) -> Channel {
        let socket = self.socket();
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move {
                loop {
                    if let Ok(stream) = UnixStream::connect(&socket).await {
                        return std::io::Result::Ok(Stream::new(stream));
                    }
                    tokio::task::yield_now().await;
                }
            }
        });
        let endpoint = Endpoint::from_static("http://launcher").timeout(Duration::from_secs(10));
        endpoint.connect_with_connector(connector).await.unwrap()
    }

    async fn ask<T, U>(&self, path: &str, message: T) -> Result<U, Status>
    where
        T: Message + Default + 'static,
        U: Message + Default + 'static,
    {
        let mut grpc = tonic::client::Grpc::new(self.dial().await);
        grpc.ready().await.unwrap();
        let path = PathAndQuery::try_from(path).unwrap();
        let answer = grpc
            .unary(Request::new(message), path, ProstCodec::<T, U>::default())
            .await;
        answer.map(Response::into_inner)
    }

    async fn define(&self, version: &str, domain: &str, vmi: &str) -> Result<String, Status> {
        let asked = OnDefineDomainRequest {
            domain: domain.into(),
            vmi: vmi.into(),
        };
        let path = format!("/kubevirt.hooks.{version}.Callbacks/OnDefineDomain");
        let answer: OnDefineDomain = self.ask(&path, asked).await?;
        Ok(String::from_utf8(answer.domain).unwrap())
    }
}

#[tokio::test]
async fn it_says_what_it_takes_part_in_and_edits_the_domain_in_each_version() {
    let sidecar = Sidecar::start(TempDir::new().unwrap());
    let info: Info = sidecar.ask(INFO, InfoRequest {}).await.unwrap();
    let names: Vec<_> = info.hook_points.iter().map(|point| &*point.name).collect();
    // With PreCloudInitIso the launcher panics for a VM without cloud-init.
    assert_eq!(names, ["OnDefineDomain", "Shutdown"]);
    assert_eq!(info.versions, VERSIONS);
    let expected = crate::domain::edit(DOMAIN, &crate::vmi::nics(VMI.as_bytes()).unwrap()).unwrap();
    assert_ne!(expected, DOMAIN);
    for version in VERSIONS {
        assert_eq!(sidecar.define(version, DOMAIN, VMI).await.unwrap(), expected);
        assert_eq!(sidecar.define(version, &expected, VMI).await.unwrap(), expected);
    }
}

#[tokio::test]
async fn one_that_ends_before_it_listens_leaves_nothing() {
    let dir = TempDir::new().unwrap();
    serve(dir.path(), std::future::ready(())).await.unwrap_err();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn what_is_refused_is_said_and_it_goes_on() {
    let sidecar = Sidecar::start(TempDir::new().unwrap());
    let define = async |domain: &str, vmi: &str| {
        let refused = sidecar.define("v1alpha3", domain, vmi).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        refused.message().to_owned()
    };
    assert!(
        define(&DOMAIN.replace("<acpi/>", ""), VMI)
            .await
            .starts_with("hybridnic: ACPI is off")
    );
    assert!(
        define("<domain", VMI)
            .await
            .starts_with("hybridnic: the domain cannot be read")
    );
    assert!(
        define(DOMAIN, "{}")
            .await
            .starts_with("hybridnic: the VM cannot be read")
    );
    let long = VMI
        .replace("fast", &"\u{1b}".repeat(5000))
        .replace('\u{1b}', "\\u001b");
    let shown = define(DOMAIN, &long).await;
    assert!(shown.chars().count() < 600 && !shown.contains('\u{1b}'));
    let unknown = sidecar
        .ask::<_, OnDefineDomain>(
            "/kubevirt.hooks.v1alpha3.Callbacks/PreCloudInitIso",
            InfoRequest {},
        )
        .await;
    assert_eq!(unknown.unwrap_err().code(), Code::Unimplemented);
    sidecar.define("v1alpha3", DOMAIN, VMI).await.unwrap();
}

#[tokio::test]
async fn it_ends_with_the_vm_and_when_it_is_told_and_leaves_nothing() {
    let sidecar = Sidecar::start(TempDir::new().unwrap());
    let Shutdown {} = sidecar
        .ask("/kubevirt.hooks.v1alpha3.Callbacks/Shutdown", ShutdownRequest {})
        .await
        .unwrap();
    sidecar.served.await.unwrap().unwrap();
    // What an earlier process could not remove is in nobody's way.
    let socket = sidecar.dir.path().join("hybridnic.sock");
    assert!(!socket.exists());
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let sidecar = Sidecar::start(sidecar.dir);
    sidecar.ask::<_, Info>(INFO, InfoRequest {}).await.unwrap();
    sidecar.end.notify_one();
    sidecar.served.await.unwrap().unwrap();
    assert!(!socket.exists());
}

/// A stream as the client's transport wants it.
type Stream = hyper_util::rt::TokioIo<UnixStream>;
