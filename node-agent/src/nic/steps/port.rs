//! Steps on the VF's port at the switch: the network's port profile.
//!
//! As libvirt does, the agent looks for the switch's answer again and again, because no event reports it.

use std::time::Duration;

use hybridnic_api::conditions::reasons;
use hybridnic_net::netlink::{NetlinkError, PortProfile, PortRequest, PortResponse, VfPort};
use tokio::time::Instant;
use tracing::{info, warn};

use super::{Context, vf::held};
use crate::{
    error::{HasReason, chain},
    journal::JournalError,
    nic::{
        port,
        seen::Port,
        vf::{VfError, pf_of},
    },
};

/// How often the answer is looked for, as by libvirt.
const LOOK: Duration = Duration::from_millis(125);
/// How long the switch may take, as with libvirt.
const DEADLINE: Duration = Duration::from_secs(10);

/// The switch was not asked, or has not done what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum PortError {
    #[error("the driver {driver} of the VF's PF has no port profiles")]
    Unsupported { driver: String, source: NetlinkError },
    #[error("{request} is refused")]
    Refused {
        request: PortRequest,
        source: NetlinkError,
    },
    #[error("the switch answers {request} of VF {vf} of {pf}{of} with {answer}")]
    Answered {
        request: PortRequest,
        vf: u16,
        pf: String,
        of: String,
        answer: PortResponse,
    },
    #[error("the switch has not answered {request} of VF {vf} of {pf}{of} within {} s", DEADLINE.as_secs())]
    Timeout {
        request: PortRequest,
        vf: u16,
        pf: String,
        of: String,
    },
    #[error(transparent)]
    Vf(#[from] VfError),
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl HasReason for PortError {
    fn reason(&self) -> &'static str {
        match self {
            Self::Unsupported { .. } => reasons::PORT_PROFILE_UNSUPPORTED,
            Self::Refused { .. } | Self::Answered { .. } => reasons::PORT_PROFILE_REFUSED,
            Self::Timeout { .. } => reasons::PORT_PROFILE_TIMEOUT,
            Self::Vf(error) => error.reason(),
            Self::Journal(error) => error.reason(),
        }
    }
}

/// Asks for the NIC's profile, or to take it away, until the switch has done it. `false` where the spec has changed meanwhile.
pub(super) async fn ask(cx: &mut Context, request: PortRequest) -> Result<bool, PortError> {
    let host = cx.host.sysfs.machine_uuid();
    let host = host.unwrap_or_else(|| port::uuid(&cx.host.options.node_name));
    let profile = port::profile(&cx.record.spec, host);
    let profile = profile.filter(|_| request != PortRequest::Disassociate);
    let done = settle(cx, request, profile.as_ref()).await;
    match done {
        Ok(done) => Ok(done),
        Err(error) => {
            let asked = matches!(error, PortError::Answered { .. } | PortError::Timeout { .. });
            if asked && profile.is_some() {
                call_off(cx).await;
            }
            Err(cx.vf_failed(error))
        }
    }
}

/// Lets the switch take away what it was asked for, before the VF is given back. `false` where the spec has changed meanwhile.
pub(super) async fn free(cx: &mut Context) -> Result<bool, PortError> {
    if !held(cx)?.port_asked {
        return Ok(true);
    }
    match settle(cx, PortRequest::Disassociate, None).await {
        // It has never had any.
        Err(PortError::Unsupported { .. }) => Ok(true),
        done => done,
    }
}

async fn settle(
    cx: &mut Context,
    request: PortRequest,
    profile: Option<&PortProfile>,
) -> Result<bool, PortError> {
    let pf = pf_of(&cx.host, held(cx)?).await?;
    let (vf, driver) = {
        let vf = held(cx)?;
        (vf.index, vf.pf_driver.clone())
    };
    let netlink = cx.host.netlink.clone();
    let look = async || netlink.vf_port(pf.index, vf).await.map_err(VfError::Table);
    let before = look().await?;
    // A port that is not listed may only be hidden: it is known to have nothing once the switch was asked.
    if before.is_some() && is_done(before.as_ref(), request, profile) {
        return Ok(true);
    }
    if !before.is_some_and(|port| port::is_under_way(&port, request, profile)) {
        note_asked(cx).await?;
        let asked = netlink.ask_port(pf.index, vf, request, profile).await;
        asked.map_err(|source| {
            if source.is_not_supported() {
                PortError::Unsupported { driver, source }
            } else {
                PortError::Refused { request, source }
            }
        })?;
    }
    let of = profile.map_or_else(String::new, |profile| {
        format!(" with port profile {}", profile.name)
    });
    let deadline = Instant::now() + DEADLINE;
    loop {
        let now = look().await?;
        if is_done(now.as_ref(), request, profile) {
            info!(%request, vf, pf = pf.name, profile = profile.map(|profile| &profile.name), "the switch has done it");
            return Ok(true);
        }
        let pf = pf.name.clone();
        match now
            .filter(|port| port.request == Some(request))
            .and_then(|port| port.response)
        {
            None | Some(PortResponse::InProgress | PortResponse::Success) => {}
            Some(answer) => {
                return Err(PortError::Answered {
                    request,
                    vf,
                    pf,
                    of,
                    answer,
                });
            }
        }
        if Instant::now() >= deadline {
            return Err(PortError::Timeout { request, vf, pf, of });
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            Ok(()) = cx.interrupt.changed() => return Ok(false),
        }
    }
}

/// Whether the port is as it was asked to be.
fn is_done(port: Option<&VfPort>, request: PortRequest, profile: Option<&PortProfile>) -> bool {
    match profile {
        Some(profile) => {
            let wanted = match request {
                PortRequest::Preassociate => Port::Preassociated,
                PortRequest::Associate => Port::Associated,
                PortRequest::Disassociate => Port::Free,
            };
            port::seen(port, profile) == wanted
        }
        None => port.is_none_or(|port| {
            port.request == Some(PortRequest::Disassociate) && port.response == Some(PortResponse::Success)
        }),
    }
}

/// Before the switch is asked, the journal knows that something is to be taken back.
async fn note_asked(cx: &mut Context) -> Result<(), PortError> {
    if held(cx)?.port_asked {
        return Ok(());
    }
    let note = cx.commit(|record| {
        if let Some(vf) = &mut record.vf {
            vf.port_asked = true;
        }
    });
    Ok(note.await?)
}

/// The switch may still do it, or keep half of it; none of it is wanted. The result is seen before the next try.
async fn call_off(cx: &Context) {
    let asked = async {
        let pf = pf_of(&cx.host, held(cx)?).await?;
        let netlink = &cx.host.netlink;
        let request = PortRequest::Disassociate;
        let asked = netlink.ask_port(pf.index, held(cx)?.index, request, None).await;
        asked.map_err(|source| PortError::Refused { request, source })
    };
    if let Err(error) = asked.await {
        warn!(
            error = chain(&error),
            "what the switch was asked for is not called off"
        );
    }
}
