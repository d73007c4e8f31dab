//! Metrics over TLS, only for clients that may read them: for a listener to which no NetworkPolicy applies.
//!
//! It works like a kubelet, and like controller-runtime: the API server says whose a token is (`TokenReview`), and whether that user may `get`
//! `/metrics` (`SubjectAccessReview`). The certificate is self-signed and lasts as long as the process; it hides the token from eavesdroppers.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::StatusCode;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;

use super::peers::Peers;

/// How long an answer of the API server is good.
const FRESH: Duration = Duration::from_mins(1);
/// How long while the API server does not answer, which is when metrics are needed most.
const STALE: Duration = Duration::from_hours(1);
/// The API server is not waited for longer.
const DEADLINE: Duration = Duration::from_secs(3);
/// The most tokens that are remembered.
const TOKENS: usize = 32;
/// No token is longer, in bytes.
const TOKEN_MAX: usize = 4096;
/// Unknown tokens of one peer: so many at once, and then one in each of these.
const STRANGERS: (u32, Duration) = (5, Duration::from_secs(2));
/// Handshakes of one peer, the same. Each is a signature and a key exchange, for a client that has shown nothing yet, on the thread that hands VMs
/// over. A separate thread would protect that one, but still give a stranger as much of the node's processor, or of the pod's share
/// of it, as the stranger likes; a pace limits both, and needs no second runtime.
const HANDSHAKES: (u32, Duration) = (8, Duration::from_millis(500));

/// Decides which clients are let in. Clones share what they know.
#[derive(Clone)]
pub struct Guard {
    pub(super) tls: TlsAcceptor,
    client: Client,
    audience: Option<String>,
    memory: Arc<Mutex<Memory>>,
}

/// Why a client is not let in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal(pub(super) StatusCode, pub(super) String);

/// A client that asks, with a token.
pub(super) struct Asker<'a> {
    guard: &'a Guard,
    peer: IpAddr,
    token: &'a str,
    admission: Admission,
}

impl Guard {
    /// With this certificate and its key, both in DER, and the API server's answers. With an audience, a token has to be for it; without,
    /// for the API server.
    ///
    /// # Errors
    /// They are not a certificate and a key.
    pub fn new(
        client: Client,
        certificate: Vec<u8>,
        key: Vec<u8>,
        audience: Option<String>,
    ) -> io::Result<Self> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .and_then(|builder| {
                let chain = vec![CertificateDer::from(certificate)];
                builder.with_no_client_auth().with_single_cert(chain, key)
            })
            .map_err(io::Error::other)?;
        Ok(Self::with(config, client, audience))
    }

    fn with(config: ServerConfig, client: Client, audience: Option<String>) -> Self {
        Self {
            tls: TlsAcceptor::from(Arc::new(config)),
            client,
            audience,
            memory: Arc::default(),
        }
    }

    /// Whether a peer may begin a handshake now; that is noted.
    pub(super) fn may_greet(&self, peer: IpAddr) -> bool {
        self.memory().greeted.may(peer, Instant::now())
    }

    /// The client of a request, by its `Authorization`. An unknown token is counted.
    pub(super) fn asker<'a>(
        &'a self,
        peer: IpAddr,
        authorization: Option<&'a [u8]>,
    ) -> Result<Asker<'a>, Refusal> {
        let Some(token) = authorization.and_then(token) else {
            let why = "a token is needed: Authorization: Bearer TOKEN, of somebody who may get /metrics";
            return Err(Refusal(StatusCode::UNAUTHORIZED, why.to_owned()));
        };
        let Some(admission) = self.memory().knows(peer, token, Instant::now()) else {
            let why = "too many unknown tokens at once";
            return Err(Refusal(StatusCode::SERVICE_UNAVAILABLE, why.to_owned()));
        };
        Ok(Asker {
            guard: self,
            peer,
            token,
            admission,
        })
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn review(&self, token: &str) -> kube::Result<Result<(), Refusal>> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: self.audience.clone().map(|audience| vec![audience]),
            },
            ..TokenReview::default()
        };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let status = reviews.create(&PostParams::default(), &review).await?.status;
        let Some(user) = status.and_then(|status| user(status, self.audience.as_deref())) else {
            let mut why = "the token is nobody's".to_owned();
            if let Some(audience) = &self.audience {
                write!(why, ", or not for the audience {audience}").ok();
            }
            return Ok(Err(Refusal(StatusCode::UNAUTHORIZED, why)));
        };
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let review = may_get_metrics(user);
        let status = reviews.create(&PostParams::default(), &review).await?.status;
        Ok(if status.is_some_and(|status| status.allowed) {
            Ok(())
        } else {
            let why = "the token's user may not get /metrics: that takes a rule with nonResourceURLs in a ClusterRole";
            Err(Refusal(StatusCode::FORBIDDEN, why.to_owned()))
        })
    }
}

impl Asker<'_> {
    /// Whether it was let in before.
    pub(super) fn is_known(&self) -> bool {
        self.admission != Admission::Unknown
    }

    /// Lets it in if it may get `/metrics`.
    pub(super) async fn admit(self) -> Result<(), Refusal> {
        if self.admission == Admission::Fresh {
            return Ok(());
        }
        let Self {
            guard, peer, token, ..
        } = self;
        let now = Instant::now();
        let answer = match timeout(DEADLINE, guard.review(token)).await {
            Ok(Ok(answer)) => answer,
            // Then only what was known before counts.
            unknown => {
                if guard.memory().has(token, now, STALE) {
                    return Ok(());
                }
                let why = match unknown {
                    Ok(Err(error)) => error.to_string(),
                    _ => format!("no answer within {DEADLINE:?}"),
                };
                let why = format!(
                    "the API server does not say whose token this is: {}",
                    hybridnic_text::bounded(&why, 256)
                );
                return Err(Refusal(StatusCode::SERVICE_UNAVAILABLE, why));
            }
        };
        guard.memory().learn(peer, token, answer.is_ok(), now);
        answer
    }
}

/// Whose a token is. If it has to be for an audience, the answer must say that it is: an API server that knows no audiences does not mention them.
fn user(status: TokenReviewStatus, audience: Option<&str>) -> Option<UserInfo> {
    let for_us = audience.is_none_or(|ours| status.audiences.iter().flatten().any(|theirs| theirs == ours));
    status
        .user
        .filter(|_| status.authenticated == Some(true) && for_us)
}

fn may_get_metrics(user: UserInfo) -> SubjectAccessReview {
    SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: user.username,
            uid: user.uid,
            groups: user.groups,
            extra: user.extra,
            non_resource_attributes: Some(NonResourceAttributes {
                path: Some("/metrics".to_owned()),
                verb: Some("get".to_owned()),
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    }
}

/// The token of `Bearer TOKEN`.
fn token(authorization: &[u8]) -> Option<&str> {
    let (scheme, token) = std::str::from_utf8(authorization).ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && token.len() <= TOKEN_MAX).then_some(token)
}

/// Whether a token was let in.
#[derive(Debug, PartialEq, Eq)]
enum Admission {
    /// It was let in just now.
    Fresh,
    /// It was let in, and the API server is to be asked again.
    Stale,
    /// It was not, as far as is remembered: the API server is to be asked.
    Unknown,
}

/// Which clients the API server has let in, and how often each peer has asked with an unknown token. Pure.
struct Memory {
    allowed: HashMap<String, Instant>,
    strangers: Peers,
    greeted: Peers,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            allowed: HashMap::new(),
            strangers: Peers::new(STRANGERS.0, STRANGERS.1),
            greeted: Peers::new(HANDSHAKES.0, HANDSHAKES.1),
        }
    }
}

impl Memory {
    fn has(&self, token: &str, now: Instant, within: Duration) -> bool {
        let learnt = self.allowed.get(token);
        learnt.is_some_and(|learnt| now.saturating_duration_since(*learnt) < within)
    }

    /// What is known about a token; `None` if the peer has used too many unknown ones. Strangers, no matter how many, do not keep
    /// out clients that were let in before.
    fn knows(&mut self, peer: IpAddr, token: &str, now: Instant) -> Option<Admission> {
        if self.has(token, now, FRESH) {
            return Some(Admission::Fresh);
        }
        if self.has(token, now, STALE) {
            return Some(Admission::Stale);
        }
        self.strangers.may(peer, now).then_some(Admission::Unknown)
    }

    fn learn(&mut self, peer: IpAddr, token: &str, allowed: bool, now: Instant) {
        if !allowed {
            self.allowed.remove(token);
            return;
        }
        self.strangers.welcome(peer, now);
        self.greeted.welcome(peer, now);
        self.allowed
            .retain(|_, learnt| now.saturating_duration_since(*learnt) < STALE);
        if self.allowed.len() >= TOKENS
            && let Some(oldest) = self
                .allowed
                .iter()
                .min_by_key(|(_, learnt)| **learnt)
                .map(|(token, _)| token.clone())
        {
            self.allowed.remove(&oldest);
        }
        self.allowed.insert(token.to_owned(), now);
    }
}

#[cfg(test)]
impl Guard {
    /// One without a certificate, which has let a client in with this token.
    pub(super) fn of(client: Client, peer: IpAddr, known: &str) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(rustls::server::ResolvesServerCertUsingSni::new()));
        let guard = Self::with(config, client, None);
        guard.memory().learn(peer, known, true, Instant::now());
        guard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_for_others_is_nobodys() {
        let status = |authenticated: bool, audiences: Option<&[&str]>| TokenReviewStatus {
            authenticated: Some(authenticated),
            audiences: audiences.map(|all| all.iter().map(ToString::to_string).collect()),
            user: Some(UserInfo::default()),
            ..TokenReviewStatus::default()
        };
        for (status, audience, good) in [
            (status(true, None), None, true),
            (status(true, Some(&["api"])), None, true),
            (status(false, None), None, false),
            (status(true, Some(&["ours"])), Some("ours"), true),
            (status(true, Some(&["api", "ours"])), Some("ours"), true),
            (status(true, Some(&["api"])), Some("ours"), false),
            (status(false, Some(&["ours"])), Some("ours"), false),
            // A webhook that knows of no audiences.
            (status(true, None), Some("ours"), false),
        ] {
            assert_eq!(user(status.clone(), audience).is_some(), good, "{status:?}");
        }
    }

    #[test]
    fn a_token_is_what_is_behind_bearer() {
        assert_eq!(token(b"Bearer abc"), Some("abc"));
        assert_eq!(token(b"bearer  abc "), Some("abc"));
        let long = [b"Bearer ".as_slice(), &[b'x'; TOKEN_MAX + 1]].concat();
        for none in [
            b"".as_slice(),
            b"Bearer",
            b"Bearer ",
            b"Basic abc",
            b"abc",
            b"Bearer \xff",
            &long,
        ] {
            assert_eq!(token(none), None);
        }
    }

    #[test]
    fn strangers_are_asked_for_a_few_times_and_keep_nobody_out() {
        let (scraper, stranger) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let start = Instant::now();
        let mut memory = Memory::default();
        for n in 0..STRANGERS.0 {
            assert_eq!(
                memory.knows(stranger, &format!("x{n}"), start),
                Some(Admission::Unknown)
            );
        }
        assert_eq!(memory.knows(stranger, "x", start), None);
        // They do not keep out a peer that uses a token for the first time, or another one.
        for known in ["known", "other"] {
            assert_eq!(memory.knows(scraper, known, start), Some(Admission::Unknown));
            memory.learn(scraper, known, true, start);
        }
        // Nor one that comes from the same address.
        assert_eq!(memory.knows(stranger, "known", start), Some(Admission::Fresh));
        let later = start + FRESH;
        assert_eq!(
            memory.knows(stranger, "known", later),
            Some(Admission::Stale),
            "asked again"
        );
        assert_eq!(
            memory.knows(stranger, "x", start + STRANGERS.1),
            Some(Admission::Unknown)
        );
        // Until the API server has said otherwise.
        assert!(memory.has("known", start + STALE / 2, STALE) && !memory.has("known", start + STALE, STALE));
        memory.learn(scraper, "known", false, later);
        assert!(!memory.has("known", start + FRESH, STALE));
    }

    #[test]
    fn as_many_are_remembered_as_there_is_room() {
        let mut now = Instant::now();
        let mut memory = Memory::default();
        for n in 0..=TOKENS {
            now += Duration::from_secs(1);
            memory.learn([10, 0, 0, 1].into(), &format!("t{n}"), true, now);
        }
        assert_eq!(memory.allowed.len(), TOKENS);
        assert!(!memory.has("t0", now, STALE) && memory.has("t1", now, STALE));
    }
}
