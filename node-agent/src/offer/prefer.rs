//! Which devices of several are best together: spread over PFs. Pure.

use std::collections::BTreeMap;

use hybridnic_net::{DeviceId, PciAddress};

/// `count` of the available devices, those of `included` among them. Each further one is of the PF that then has the fewest; `load`
/// says how many a PF has before. Those that are `last` come after all others. An id that is not a device's is skipped.
pub fn prefer(
    available: &[String],
    included: &[String],
    count: usize,
    load: impl Fn(PciAddress) -> usize,
    last: impl Fn(DeviceId) -> bool,
) -> Vec<String> {
    let parse = |id: &String| id.parse::<DeviceId>().ok();
    let mut chosen: Vec<DeviceId> = included.iter().filter_map(parse).collect();
    let mut left: Vec<DeviceId> = available.iter().filter_map(parse).collect();
    left.retain(|id| !chosen.contains(id));
    left.sort_unstable();
    let mut loads: BTreeMap<PciAddress, usize> = BTreeMap::new();
    for id in chosen.iter().chain(&left) {
        loads.entry(id.pf()).or_insert_with(|| load(id.pf()));
    }
    for id in &chosen {
        *loads.entry(id.pf()).or_default() += 1;
    }
    while chosen.len() < count {
        let Some(best) = left
            .iter()
            .copied()
            .min_by_key(|id| (last(*id), loads[&id.pf()], *id))
        else {
            break;
        };
        left.retain(|id| *id != best);
        *loads.entry(best.pf()).or_default() += 1;
        chosen.push(best);
    }
    chosen.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ids(of: &[(u8, u16)]) -> Vec<String> {
        of.iter()
            .map(|(pf, slot)| format!("0000:{pf:02x}:00.0-{slot}"))
            .collect()
    }

    #[test]
    fn devices_are_spread_over_pfs_and_what_must_be_in_is() {
        let available = ids(&[(1, 3), (1, 0), (2, 0), (2, 1), (1, 1)]);
        let (none, good) = (|_| 0, |_| false);
        assert_eq!(prefer(&available, &[], 2, none, good), ids(&[(1, 0), (2, 0)]));
        assert_eq!(
            prefer(&available, &ids(&[(1, 3)]), 3, none, good),
            ids(&[(1, 3), (2, 0), (1, 0)])
        );
        // The other PF has more already.
        let busy = |pf: PciAddress| if pf.bus() == 1 { 2 } else { 0 };
        assert_eq!(
            prefer(&available, &[], 3, busy, good),
            ids(&[(2, 0), (2, 1), (1, 0)])
        );
        assert_eq!(prefer(&available, &[], 9, none, good).len(), 5);
        // No VF comes with these.
        let slots = |id: DeviceId| id.pf().bus() == 2;
        assert_eq!(
            prefer(&available, &[], 4, none, slots),
            ids(&[(1, 0), (1, 1), (1, 3), (2, 0)])
        );
        assert_eq!(prefer(&["junk".into()], &["?".into()], 2, none, good), [""; 0]);
    }

    proptest! {
        #[test]
        fn as_many_as_asked_for_and_none_twice(
            of in prop::collection::btree_set((1..4u8, 0..6u16), 1..18),
            must in 0..4usize,
            count in 0..10usize,
        ) {
            let available = ids(&of.into_iter().collect::<Vec<_>>());
            let must = must.min(count).min(available.len());
            let chosen = prefer(&available, &available[..must], count, |_| 0, |_| false);
            prop_assert_eq!(chosen.len(), count.min(available.len()));
            prop_assert!(available[..must].iter().all(|id| chosen.contains(id)));
            let mut unique = chosen.clone();
            unique.sort();
            unique.dedup();
            prop_assert_eq!(unique.len(), chosen.len());
            prop_assert!(chosen.iter().all(|id| available.contains(id)));
        }
    }
}
