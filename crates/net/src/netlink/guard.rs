//! What a macvtap lets through, no matter what the guest, or a process with the macvtap's descriptor, does: filters of the kernel's traffic
//! control (`clsact` with `flower`, `gact` and `police`), which need `CAP_NET_ADMIN` only.
//!
//! A frame that the guest sends passes the macvtap's egress, one for the guest its ingress. In each direction the first rule that
//! fits decides. A rule's handle is made of everything that it says, so two guards are the same if their handles are.

use std::{collections::BTreeSet, fmt};

use futures::TryStreamExt as _;
use rtnetlink::packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{
    TcAction, TcActionAttribute, TcActionOption, TcAttribute, TcFilterFlower, TcFilterFlowerOption, TcHandle,
    TcMessage, TcOption,
};

use super::{Netlink, NetlinkError};
use crate::types::MacAddr;

/// `ETH_P_*` of include/uapi/linux/if_ether.h.
const ALL: u16 = 0x0003;
const DOT1Q: u16 = 0x8100;
const DOT1AD: u16 = 0x88a8;
/// Tags as some switches made them before 802.1ad.
const QINQ: u16 = 0x9100;

/// What a bridge may not forward, such as spanning tree: IEEE 802.1D, 7.12.6, and the blocks beside it.
const LINK_LOCAL: (MacAddr, MacAddr) = (
    MacAddr::new([0x01, 0x80, 0xc2, 0, 0, 0]),
    MacAddr::new([0xff, 0xff, 0xff, 0, 0, 0]),
);
/// The bit of a group's address.
const GROUP: (MacAddr, MacAddr) = (MacAddr::new([1, 0, 0, 0, 0, 0]), MacAddr::new([1, 0, 0, 0, 0, 0]));
const EXACT: MacAddr = MacAddr::new([0xff; 6]);

/// `TC_ACT_OK` and `TC_ACT_SHOT` of include/uapi/linux/pkt_cls.h.
const PASS: i32 = 0;
const DROP: i32 = 2;

/// Nothing passes while rules are replaced, because it is not known whether the old ones are complete. This rule is before all others.
const SHUT: u16 = 1;
/// Where the rules of a guard begin. There are two places, so that a new guard is whole before the old one goes.
const PLACES: [u16; 2] = [10, 30];

/// What a macvtap lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guard {
    /// The NIC's MAC.
    pub mac: MacAddr,
    /// Whether frames with another source may be sent.
    pub any_source: bool,
    /// Whether frames for other stations may be received.
    pub any_destination: bool,
    /// Whether tagged frames may be sent.
    pub tags: bool,
    /// The most that may be sent, in Mbit/s; no limit where `None`.
    pub rate: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Way {
    /// From the guest.
    Out,
    /// To the guest.
    In,
}

impl Way {
    pub(super) const ALL: [Self; 2] = [Self::Out, Self::In];

    fn parent(self) -> TcHandle {
        TcHandle {
            major: u16::MAX,
            minor: match self {
                Self::Out => TcHandle::MIN_EGRESS,
                Self::In => TcHandle::MIN_INGRESS,
            },
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Match {
    Everything,
    /// With its mask.
    Source(MacAddr, MacAddr),
    Destination(MacAddr, MacAddr),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Pass,
    Drop,
    /// Mbit/s; what is more is dropped.
    Police(u32),
}

/// In words that must stay as they are: a rule's handle is made of them.
impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everything => f.write_str("Everything"),
            Self::Source(mac, mask) => write!(f, "Source({mac}, {mask})"),
            Self::Destination(mac, mask) => write!(f, "Destination({mac}, {mask})"),
        }
    }
}

/// In words that stay, as those of [`Match`].
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass => f.write_str("Pass"),
            Self::Drop => f.write_str("Drop"),
            Self::Police(rate) => write!(f, "Police({rate})"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    way: Way,
    /// Unique in its direction.
    priority: u16,
    protocol: u16,
    of: Match,
    verdict: Verdict,
}

/// How the kernel knows a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    way: Way,
    priority: u16,
    protocol: u16,
    handle: u32,
}

impl Guard {
    fn rules(&self, place: u16) -> Vec<Rule> {
        use Match::{Destination, Everything, Source};
        use Verdict::{Drop, Pass, Police};
        let sent = self.rate.map_or(Pass, Police);
        let mut out = vec![(ALL, Destination(LINK_LOCAL.0, LINK_LOCAL.1), Drop)];
        if !self.tags {
            out.extend([DOT1Q, DOT1AD, QINQ].map(|tagged| (tagged, Everything, Drop)));
        }
        if self.any_source {
            out.push((ALL, Everything, sent));
        } else {
            out.extend([(ALL, Source(self.mac, EXACT), sent), (ALL, Everything, Drop)]);
        }
        let received = if self.any_destination {
            vec![(ALL, Everything, Pass)]
        } else {
            vec![
                (ALL, Destination(GROUP.0, GROUP.1), Pass),
                (ALL, Destination(self.mac, EXACT), Pass),
                (ALL, Everything, Drop),
            ]
        };
        let numbered = |way, rules: Vec<_>| {
            (place..)
                .zip(rules)
                .map(move |(priority, (protocol, of, verdict))| Rule {
                    way,
                    priority,
                    protocol,
                    of,
                    verdict,
                })
        };
        numbered(Way::Out, out)
            .chain(numbered(Way::In, received))
            .collect()
    }

    fn keys(&self, place: u16) -> BTreeSet<Key> {
        self.rules(place).iter().map(Rule::key).collect()
    }
}

impl Rule {
    fn shut(way: Way) -> Self {
        Self {
            way,
            priority: SHUT,
            protocol: ALL,
            of: Match::Everything,
            verdict: Verdict::Drop,
        }
    }

    fn key(&self) -> Key {
        Key {
            way: self.way,
            priority: self.priority,
            protocol: self.protocol,
            handle: self.handle(),
        }
    }

    /// FNV-1a of 32 bits (<http://www.isthe.com/chongo/tech/comp/fnv/>) of all that the rule says: an agent after an update must
    /// know the rules of the one before. No handle is 0.
    fn handle(&self) -> u32 {
        let text = format!("{} {}", self.of, self.verdict);
        let hash = text.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
        (hash >> 1).max(1)
    }

    fn message(&self, index: u32) -> TcMessage {
        let mut options: Vec<TcFilterFlowerOption> = match self.of {
            Match::Everything => Vec::new(),
            Match::Source(mac, mask) => vec![
                TcFilterFlowerOption::EthSrc(mac.octets()),
                TcFilterFlowerOption::EthSrcMask(mask.octets()),
            ],
            Match::Destination(mac, mask) => vec![
                TcFilterFlowerOption::EthDst(mac.octets()),
                TcFilterFlowerOption::EthDstMask(mask.octets()),
            ],
        };
        options.push(TcFilterFlowerOption::Actions(vec![self.verdict.action()]));
        let mut message = self.key().message(index);
        message.attributes = vec![
            TcAttribute::Kind(TcFilterFlower::KIND.into()),
            TcAttribute::Options(options.into_iter().map(TcOption::Flower).collect()),
        ];
        message
    }
}

impl Key {
    fn message(self, index: u32) -> TcMessage {
        let mut message = TcMessage::with_index(index.cast_signed());
        message.header.parent = self.way.parent();
        message.header.handle = self.handle.into();
        message.header.info = u32::from(self.priority) << 16 | u32::from(self.protocol.to_be());
        message
    }

    /// `None` for what has no handle: the kernel shows each priority once more, without one.
    pub(super) fn of(way: Way, message: &TcMessage) -> Option<Self> {
        let handle = u32::from(message.header.handle);
        let [priority, protocol] = [message.header.info >> 16, message.header.info & 0xffff];
        (handle != 0).then(|| Self {
            way,
            priority: priority.try_into().unwrap_or_default(),
            protocol: u16::from_be(protocol.try_into().unwrap_or_default()),
            handle,
        })
    }
}

impl Verdict {
    fn action(self) -> TcAction {
        let (kind, options) = match self {
            Self::Pass => ("gact", vec![gact(PASS)]),
            Self::Drop => ("gact", vec![gact(DROP)]),
            Self::Police(rate) => ("police", police(rate)),
        };
        let mut action = TcAction::default();
        action.attributes = vec![
            TcActionAttribute::Kind(kind.into()),
            TcActionAttribute::Options(options.into_iter().map(TcActionOption::Other).collect()),
        ];
        action
    }
}

/// `struct tc_gact` of include/uapi/linux/tc_act/tc_gact.h: index, capabilities, action, two counts.
fn gact(action: i32) -> DefaultNla {
    const TCA_GACT_PARMS: u16 = 2;
    let fields = [0, 0, action, 0, 0];
    DefaultNla::new(
        TCA_GACT_PARMS,
        fields.into_iter().flat_map(i32::to_ne_bytes).collect(),
    )
}

/// `struct tc_police` of include/uapi/linux/pkt_cls.h, and the rate once more as it does not fit there from 34 Gbit/s on.
fn police(mbps: u32) -> Vec<DefaultNla> {
    const TCA_POLICE_TBF: u16 = 1;
    const TCA_POLICE_RATE: u16 = 2;
    const TCA_POLICE_RATE64: u16 = 8;
    /// A tick of `PSCHED_SHIFT`, in nanoseconds.
    const TICK: u64 = 64;
    /// What may come at once, as a time; and at least so many bytes, because a guest sends 64 KiB as one packet.
    const BURST: u64 = 20_000_000;
    const LEAST: u64 = 128 << 10;
    /// The kernel asks for a table of this size, and only checks that it is there.
    const TABLE: usize = 1024;
    let rate = u64::from(mbps.max(1)) * 125_000;
    let burst = (BURST.max(LEAST * 1_000_000_000 / rate) / TICK)
        .try_into()
        .unwrap_or(u32::MAX);
    let short = u32::try_from(rate).unwrap_or(u32::MAX);
    // index, action, limit, burst, MTU.
    let mut tbf: Vec<u8> = [0, DROP.cast_unsigned(), 0, burst, u32::MAX]
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .collect();
    // `struct tc_ratespec`: logarithm of a cell of the table, `TC_LINKLAYER_ETHERNET`, no overhead, no alignment, no least size.
    tbf.extend([1, 1, 0, 0, 0, 0, 0, 0]);
    tbf.extend(short.to_ne_bytes());
    // No peak rate; reference counts and capabilities.
    tbf.extend([0; 12 + 12]);
    vec![
        DefaultNla::new(TCA_POLICE_TBF, tbf),
        DefaultNla::new(TCA_POLICE_RATE, vec![0; TABLE]),
        DefaultNla::new(TCA_POLICE_RATE64, rate.to_ne_bytes().to_vec()),
    ]
}

impl Netlink {
    /// Whether exactly this guard is on a link.
    pub async fn is_guarded(&self, index: u32, guard: &Guard) -> Result<bool, NetlinkError> {
        let on = self.rules_on(index).await?;
        Ok(PLACES.iter().any(|place| on == guard.keys(*place)))
    }

    /// Puts a guard on a link, in place of all filters that are there. Until the new one is whole the old one decides, and where it
    /// cannot be made the old one stays. Only if rules of two guards are found, as after a crash, nothing passes meanwhile.
    ///
    /// `ENOENT` and an extended ack that names it, where the kernel has no `clsact`, `flower`, `gact` or `police`.
    pub async fn guard(&self, index: u32, guard: &Guard) -> Result<(), NetlinkError> {
        self.add_clsact(index).await?;
        let before = self.rules_on(index).await?;
        let of = |place: u16| move |key: &&Key| (place..place + 20).contains(&key.priority);
        let free = PLACES
            .into_iter()
            .find(|place| !before.iter().any(|key| of(*place)(&key)));
        match free {
            Some(place) if !before.iter().any(|key| key.priority == SHUT) => {
                self.put(index, &guard.rules(place)).await?;
                // The last one first: what is left falls through to the new ones.
                for key in before.iter().rev() {
                    self.remove_rule(index, *key).await?;
                }
                Ok(())
            }
            _ => self.shut_and_guard(index, guard, &before).await,
        }
    }

    /// Adds rules in their order, so that what is not decided yet falls through to those behind; all or none.
    async fn put(&self, index: u32, rules: &[Rule]) -> Result<(), NetlinkError> {
        for (done, rule) in rules.iter().enumerate() {
            if let Err(error) = self.add_rule(index, rule).await {
                for rule in rules[..done].iter().rev() {
                    self.remove_rule(index, rule.key()).await?;
                }
                return Err(error);
            }
        }
        Ok(())
    }

    async fn shut_and_guard(
        &self,
        index: u32,
        guard: &Guard,
        before: &BTreeSet<Key>,
    ) -> Result<(), NetlinkError> {
        for way in Way::ALL {
            let shut = Rule::shut(way);
            if !before.contains(&shut.key()) {
                self.add_rule(index, &shut).await?;
            }
        }
        for key in before.iter().filter(|key| key.priority != SHUT) {
            self.remove_rule(index, *key).await?;
        }
        self.put(index, &guard.rules(PLACES[0])).await?;
        for way in Way::ALL {
            self.remove_rule(index, Rule::shut(way).key()).await?;
        }
        Ok(())
    }

    async fn rules_on(&self, index: u32) -> Result<BTreeSet<Key>, NetlinkError> {
        let mut found = BTreeSet::new();
        for way in Way::ALL {
            let handle = self.handle.clone();
            let filters = handle.traffic_filter(index.cast_signed()).get();
            let filters = match way {
                Way::Out => filters.egress(),
                Way::In => filters.ingress(),
            };
            let filters: Vec<TcMessage> = self
                .answer(
                    "read_filters",
                    format!("read the filters of link {index}"),
                    filters.execute().try_collect(),
                )
                .await?;
            found.extend(filters.iter().filter_map(|filter| Key::of(way, filter)));
        }
        Ok(found)
    }

    async fn add_clsact(&self, index: u32) -> Result<(), NetlinkError> {
        let mut message = TcMessage::with_index(index.cast_signed());
        message.header.parent = TcHandle::CLSACT;
        message.header.handle = TcHandle::from(0xffff_0000);
        message.attributes = vec![TcAttribute::Kind("clsact".into())];
        let message = RouteNetlinkMessage::NewQueueDiscipline(message);
        let operation = format!("add clsact to link {index}");
        match self.change(operation, message, NLM_F_CREATE | NLM_F_EXCL).await {
            Err(error) if error.errno() == Some(nix::errno::Errno::EEXIST) => Ok(()),
            result => result,
        }
    }

    async fn add_rule(&self, index: u32, rule: &Rule) -> Result<(), NetlinkError> {
        let message = RouteNetlinkMessage::NewTrafficFilter(rule.message(index));
        let operation = format!("add a filter to link {index}");
        self.change(operation, message, NLM_F_CREATE | NLM_F_EXCL).await
    }

    async fn remove_rule(&self, index: u32, key: Key) -> Result<(), NetlinkError> {
        let mut message = key.message(index);
        message.attributes = vec![TcAttribute::Kind(TcFilterFlower::KIND.into())];
        let message = RouteNetlinkMessage::DelTrafficFilter(message);
        let operation = format!("remove a filter from link {index}");
        self.change(operation, message, 0).await
    }

    async fn change(
        &self,
        operation: String,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), NetlinkError> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut handle = self.handle.clone();
        let done = async move {
            let mut answers = handle.request(request)?;
            while let Some(answer) = futures::StreamExt::next(&mut answers).await {
                if let NetlinkPayload::Error(error) = answer.payload
                    && error.code.is_some()
                {
                    return Err(rtnetlink::Error::NetlinkError(error));
                }
            }
            Ok(())
        };
        self.answer("change_filters", operation, done).await
    }
}

#[cfg(test)]
#[path = "guard_tests.rs"]
mod tests;
