//! Where a cache keeps its objects: those used last as they are, all others packed, and one index for every key.

use std::collections::{BTreeSet, VecDeque};
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;

use kube::ResourceExt;

use super::pack::Packer;
use super::{Key, Name, Object};

/// How many objects of a kind are kept unpacked: those of the migrations that a cluster does at once.
const WARM: usize = if cfg!(test) { 2 } else { 512 };
/// Bits of a place; the others of an entry of the index are of the key's hash.
const PLACE_BITS: u32 = 24;

/// All objects of a kind.
pub struct Shelf<K: Object> {
    places: Vec<Option<Kept<K>>>,
    free: Vec<u32>,
    /// Hash of a key or of a name, and a place, in one number: two keys may share a hash, so what is found is compared.
    index: BTreeSet<u64>,
    hasher: RandomState,
    /// The places of objects that are there as they are, the oldest first.
    warm: VecDeque<u32>,
    packer: Packer,
}

struct Kept<K: Object> {
    name: Name,
    glance: K::Glance,
    listed: bool,
    held: Held<K>,
}

/// An object as it is, packed, or both: one that was only read is not packed again.
struct Held<K> {
    whole: Option<Arc<K>>,
    packed: Option<Box<[u8]>>,
}

impl<K> Held<K> {
    fn whole(object: Arc<K>) -> Self {
        Self {
            whole: Some(object),
            packed: None,
        }
    }
}

/// What putting an object there has changed.
pub struct Put<K> {
    /// The object as it was.
    pub old: Option<Arc<K>>,
    /// As it is now.
    pub new: Arc<K>,
    /// Whether it is another version.
    pub changed: bool,
}

impl<K: Object> Default for Shelf<K> {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            index: BTreeSet::new(),
            hasher: RandomState::new(),
            warm: VecDeque::new(),
            packer: Packer::default(),
        }
    }
}

impl<K: Object> Shelf<K> {
    /// The object of a name.
    pub fn get(&mut self, name: &Name) -> Option<Arc<K>> {
        self.find(name).and_then(|place| self.read(place))
    }

    /// The object of a name, which stays as it is kept.
    pub fn named(&mut self, name: &Name) -> Option<Arc<K>> {
        self.find(name).and_then(|place| self.peek(place))
    }

    /// The objects with a key, in no order, that `want` selects by what is seen at a glance.
    pub fn by(&mut self, key: &Key, want: impl Fn(K::Glance) -> bool) -> Vec<Arc<K>> {
        let places = self.places_of(key);
        self.wanted(places, want, |object| object.keys().contains(key))
    }

    /// What is seen at a glance of the object of a name.
    pub fn glance(&self, name: &Name) -> Option<K::Glance> {
        Some(self.kept(self.find(name)?)?.glance)
    }

    /// Whether there is an object with a key.
    pub fn any(&mut self, key: &Key) -> bool {
        let mut places = self.places_of(key).into_iter();
        places.any(|place| self.peek(place).is_some_and(|object| object.keys().contains(key)))
    }

    /// All objects, in no order, that `want` selects by what is seen at a glance.
    pub fn all(&mut self, want: impl Fn(K::Glance) -> bool) -> Vec<Arc<K>> {
        let places = (0..).take(self.places.len()).collect();
        self.wanted(places, want, |_| true)
    }

    fn wanted(
        &mut self,
        places: Vec<u32>,
        want: impl Fn(K::Glance) -> bool,
        is_it: impl Fn(&K) -> bool,
    ) -> Vec<Arc<K>> {
        // Looking at very many would only push out what is used.
        let warm = places.len() <= WARM / 2;
        let mut found = Vec::new();
        for place in places {
            if !self.kept(place).is_some_and(|kept| want(kept.glance)) {
                continue;
            }
            let object = if warm { self.read(place) } else { self.peek(place) };
            found.extend(object.filter(|object| is_it(object)));
        }
        found
    }

    /// Names and glances of the objects with a key, without unpacking one: hardly ever one too many.
    pub fn glances(&self, key: &Key) -> impl Iterator<Item = (&Name, K::Glance)> {
        let kept = |place| self.kept(place).map(|kept| (&kept.name, kept.glance));
        self.places_of(key).into_iter().filter_map(kept)
    }

    /// Names and glances of all objects, with their places.
    pub fn all_glances(&self) -> impl Iterator<Item = (usize, &Name, K::Glance)> {
        let places = self.places.iter().enumerate();
        let kept = places.filter_map(|(place, kept)| Some((place, kept.as_ref()?)));
        kept.map(|(place, kept)| (place, &kept.name, kept.glance))
    }

    /// Puts an object there, or its new version.
    pub fn put(&mut self, object: K) -> Put<K> {
        let (name, new) = (Name::of(&object), Arc::new(object));
        let Some(place) = self.find(&name) else {
            let place = self.make_room();
            self.index.insert(self.entry(&name, place));
            for key in new.keys() {
                self.index.insert(self.entry(&key, place));
            }
            let kept = Kept {
                name,
                glance: new.glance(),
                listed: true,
                held: Held::whole(new.clone()),
            };
            if let Some(room) = self.places.get_mut(place as usize) {
                *room = Some(kept);
            }
            self.warmed(place);
            return Put {
                old: None,
                new,
                changed: true,
            };
        };
        let old = self.peek(place);
        let changed = old.as_ref().map(|old| old.resource_version()) != Some(new.resource_version());
        if changed {
            let (before, now): (Vec<_>, _) = (old.iter().flat_map(|old| old.keys()).collect(), new.keys());
            self.reindex(place, &before, &now);
        }
        let Some(kept) = self.places.get_mut(place as usize).and_then(Option::as_mut) else {
            return Put { old, new, changed };
        };
        kept.listed = true;
        if changed {
            kept.glance = new.glance();
            let before = std::mem::replace(&mut kept.held, Held::whole(new.clone()));
            if before.whole.is_none() {
                self.warmed(place);
            }
        }
        Put { old, new, changed }
    }

    /// Takes an object away.
    pub fn remove(&mut self, name: &Name) -> Option<Arc<K>> {
        let place = self.find(name)?;
        let old = self.peek(place)?;
        self.index.remove(&self.entry(name, place));
        self.reindex(place, &old.keys(), &[]);
        if let Some(room) = self.places.get_mut(place as usize) {
            *room = None;
        }
        self.free.push(place);
        Some(old)
    }

    /// A list begins: nothing is in it yet.
    pub fn unlist(&mut self) {
        for kept in self.places.iter_mut().flatten() {
            kept.listed = false;
        }
    }

    /// This one is in the list, if it is there.
    pub fn list(&mut self, name: &Name) {
        let place = self.find(name);
        let kept = place.and_then(|place| self.places.get_mut(place as usize)?.as_mut());
        if let Some(kept) = kept {
            kept.listed = true;
        }
    }

    /// What was not in the list.
    pub fn unlisted(&self) -> Vec<Name> {
        let kept = self.places.iter().flatten();
        kept.filter(|kept| !kept.listed)
            .map(|kept| kept.name.clone())
            .collect()
    }

    fn kept(&self, place: u32) -> Option<&Kept<K>> {
        self.places.get(place as usize)?.as_ref()
    }

    /// The object at a place, which stays as it is for a while.
    fn read(&mut self, place: u32) -> Option<Arc<K>> {
        let object = self.peek(place)?;
        let kept = self.places.get_mut(place as usize)?.as_mut()?;
        if kept.held.whole.replace(object.clone()).is_none() {
            self.warmed(place);
        }
        Some(object)
    }

    /// The object at a place, which stays as it is kept.
    fn peek(&mut self, place: u32) -> Option<Arc<K>> {
        let held = &self.places.get(place as usize)?.as_ref()?.held;
        if let Some(whole) = &held.whole {
            return Some(whole.clone());
        }
        match self.packer.unpack(held.packed.as_ref()?) {
            Ok(object) => Some(Arc::new(object)),
            Err(error) => unreachable!("a {} that was packed here does not unpack: {error}", K::kind(&())),
        }
    }

    /// Notes that the object of a place is there unpacked; if that is one too many, the oldest of these keeps only
    /// its packed form.
    fn warmed(&mut self, place: u32) {
        self.warm.push_back(place);
        while self.warm.len() > WARM {
            let oldest = self
                .warm
                .pop_front()
                .and_then(|oldest| self.places.get_mut(oldest as usize));
            let Some(Some(Kept { held, .. })) = oldest else {
                continue;
            };
            if let (Some(object), None) = (&held.whole, &held.packed) {
                held.packed = self.packer.pack(object.as_ref()).ok();
            }
            if held.packed.is_some() {
                held.whole = None;
            }
        }
    }

    fn make_room(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            u32::try_from(self.places.len() - 1)
                .ok()
                .filter(|place| *place < 1 << PLACE_BITS)
                .unwrap_or_else(|| unreachable!("etcd does not hold so many objects"))
        })
    }

    fn reindex(&mut self, place: u32, before: &[Key], now: &[Key]) {
        for key in before.iter().filter(|key| !now.contains(key)) {
            self.index.remove(&self.entry(key, place));
        }
        for key in now.iter().filter(|key| !before.contains(key)) {
            self.index.insert(self.entry(key, place));
        }
    }

    fn entry(&self, of: &impl Hash, place: u32) -> u64 {
        self.hasher.hash_one(of) << PLACE_BITS | u64::from(place)
    }

    fn places_of(&self, of: &impl Hash) -> Vec<u32> {
        let first = self.entry(of, 0);
        let last = first | ((1 << PLACE_BITS) - 1);
        let place = |entry: &u64| u32::try_from(entry - first).unwrap_or_default();
        self.index.range(first..=last).map(place).collect()
    }

    fn find(&self, name: &Name) -> Option<u32> {
        let is_it = |place: &u32| self.kept(*place).is_some_and(|kept| kept.name == *name);
        self.places_of(name).into_iter().find(is_it)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::ObjectMeta;

    #[test]
    fn one_that_was_only_read_is_not_packed_again() {
        let mut shelf = Shelf::<ConfigMap>::default();
        let names: Vec<_> = (0..9).map(|n| Name::new("ns", &format!("m{n}"))).collect();
        let map = |name: &Name, version: &str| ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.name().to_owned()),
                namespace: Some(name.namespace().to_owned()),
                resource_version: Some(version.to_owned()),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        };
        for name in &names {
            shelf.put(map(name, "1"));
        }
        let held = |shelf: &Shelf<ConfigMap>| {
            let held = &shelf.kept(shelf.find(&names[0]).unwrap()).unwrap().held;
            (
                held.whole.is_some(),
                held.packed.as_ref().map(|packed| packed.as_ptr()),
            )
        };
        let (_, packed) = held(&shelf);
        assert!(packed.is_some());
        shelf.get(&names[0]);
        assert_eq!(held(&shelf), (true, packed));
        shelf.get(&names[1]);
        shelf.get(&names[2]);
        assert_eq!(held(&shelf), (false, packed), "the same bytes");

        shelf.put(map(&names[0], "2"));
        assert_eq!(held(&shelf), (true, None), "another version");
        shelf.get(&names[1]);
        shelf.get(&names[2]);
        assert!(!held(&shelf).0);
        let now = shelf.get(&names[0]).and_then(|map| map.resource_version());
        assert_eq!(now.as_deref(), Some("2"));
    }
}
