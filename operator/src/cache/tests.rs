use super::*;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::ObjectMeta;
use std::cell::RefCell;
use tokio::sync::mpsc;

fn map(name: &str, version: &str, vm: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some("ns".to_owned()),
            resource_version: Some(version.to_owned()),
            labels: Some([("vm".to_owned(), vm.to_owned())].into()),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    }
}

impl Object for ConfigMap {
    type Glance = usize;
    fn keys(&self) -> Vec<Key> {
        let vm = self.labels().get("vm").cloned();
        vec![Key::Vm(VmRef::qemu("ns", vm.unwrap_or_default()))]
    }
    fn glance(&self) -> usize {
        self.labels().get("vm").map_or(0, String::len)
    }
    fn trim(&mut self) {
        self.data = None;
    }
}

fn names(cache: &Cache<ConfigMap>, vm: &str) -> Vec<String> {
    cache
        .by(&Key::Vm(VmRef::qemu("ns", vm)))
        .iter()
        .map(|m| m.name_any())
        .collect()
}

fn fill(feed: &mut Feed<ConfigMap>, maps: impl IntoIterator<Item = ConfigMap>) {
    let events = maps.into_iter().map(|map| watcher::Event::InitApply(map.into()));
    let events = std::iter::once(watcher::Event::Init).chain(events);
    for event in events.chain([watcher::Event::InitDone]) {
        feed.apply(event, &|_, _| {});
    }
}

#[test]
fn of_many_objects_all_are_found_and_few_are_unpacked() {
    let (cache, mut feed) = cache();
    let maps = (0..100).map(|n| {
        let mut map = map(&format!("m{n:02}"), "1", ["x", "yy"][n % 2]);
        map.data = Some([("much".to_owned(), "x".repeat(1000))].into());
        map.annotations_mut().insert("many".to_owned(), "x".repeat(1000));
        map
    });
    fill(&mut feed, maps);
    assert_eq!(cache.by(&Key::Vm(VmRef::qemu("ns", "x"))).len(), 50);
    let seven = cache.get("ns", "m07").unwrap();
    assert_eq!((seven.labels()["vm"].as_str(), &seven.data), ("yy", &None));
    assert!(seven.annotations().is_empty());
    assert!(
        Arc::ptr_eq(&seven, &cache.get("ns", "m07").unwrap()),
        "still warm"
    );
    cache.get("ns", "m08");
    cache.get("ns", "m09");
    let again = cache.get("ns", "m07").unwrap();
    assert!(!Arc::ptr_eq(&seven, &again) && seven == again, "packed meanwhile");

    assert_eq!(cache.select(|length| length == 2).len(), 50);
    let key = Key::Vm(VmRef::qemu("ns", "yy"));
    assert_eq!(cache.glances(&key), vec![2; 50]);
    assert_eq!(cache.names(&key).len(), 50);
    let mut shares: Vec<_> = (0..7).flat_map(|turn| cache.share(turn, 7)).collect();
    shares.sort_by_key(ToString::to_string);
    let mut all = cache.all_names();
    all.sort_by_key(ToString::to_string);
    assert_eq!((all.len(), &all), (100, &shares));
    assert_eq!(all[7].to_string(), "ns/m07");

    // Anything may come and go afterwards, in no order of places.
    for n in 0..60 {
        let gone = map(&format!("m{n:02}"), "2", "");
        feed.apply(watcher::Event::Delete(gone.into()), &|_, _| {});
    }
    feed.apply(watcher::Event::Apply(map("m99", "3", "zzz").into()), &|_, _| {});
    feed.apply(watcher::Event::Apply(map("new", "4", "x").into()), &|_, _| {});
    assert_eq!(names(&cache, "zzz"), ["m99"]);
    assert_eq!(cache.glances(&key).len(), 19);
    assert_eq!(names(&cache, "x").len(), 21);
    assert_eq!(cache.get("ns", "m07"), None);
}

#[test]
fn what_vanished_while_the_watch_was_broken_is_said() {
    let (cache, mut feed) = cache::<ConfigMap>();
    let log = RefCell::new(Vec::new());
    let changed = |old: Option<&ConfigMap>, new: Option<&ConfigMap>| {
        let version = |m: Option<&ConfigMap>| m.and_then(ResourceExt::resource_version).unwrap_or_default();
        let name = new.or(old).map(ResourceExt::name_any).unwrap_or_default();
        // The store has it already.
        assert_eq!(
            cache
                .get("ns", &name)
                .and_then(|m| m.resource_version())
                .unwrap_or_default(),
            version(new)
        );
        log.borrow_mut()
            .push(format!("{name}:{}>{}", version(old), version(new)));
    };
    fill(
        &mut feed,
        [map("a", "1", "x"), map("b", "2", "x"), map("c", "3", "y")],
    );
    assert_eq!(names(&cache, "x"), ["a", "b"]);

    feed.apply(watcher::Event::Apply(map("b", "4", "y").into()), &changed);
    feed.apply(watcher::Event::Delete(map("c", "5", "y").into()), &changed);
    assert_eq!(log.take(), ["b:2>4", "c:3>"]);
    assert_eq!(
        (names(&cache, "x"), names(&cache, "y")),
        (vec!["a".to_owned()], vec!["b".to_owned()])
    );

    for event in [
        watcher::Event::Init,
        watcher::Event::InitApply(map("b", "4", "y").into()),
        watcher::Event::InitApply(map("d", "9", "x").into()),
        watcher::Event::InitDone,
    ] {
        feed.apply(event, &changed);
    }
    log.borrow_mut().sort();
    assert_eq!(log.take(), ["a:1>", "d:>9"]);
    assert_eq!(names(&cache, "x"), ["d"]);
}

/// A kind of another project.
#[derive(Clone, Debug, kube::Resource, Serialize, serde::Deserialize)]
#[resource(inherit = ConfigMap)]
struct Foreign {
    metadata: ObjectMeta,
}

impl Object for Foreign {
    type Glance = ();
    const OPTIONAL: bool = true;
    fn keys(&self) -> Vec<Key> {
        Vec::new()
    }
    fn glance(&self) {}
    fn trim(&mut self) {}
}

/// What a watch says of a kind that is not there: a list begins, and fails.
fn failed_list(code: u16) -> [Said; 2] {
    let status = kube::core::Status::failure("404 page not found", "").with_code(code);
    let error = watcher::Error::InitialListFailed(kube::Error::Api(status.boxed()));
    [Ok(watcher::Event::Init), Err(error)]
}

type Said = Result<watcher::Event<Wire<Foreign>>, watcher::Error>;

fn say_all(say: &mpsc::UnboundedSender<Said>, events: impl IntoIterator<Item = Said>) {
    for event in events {
        say.send(event).unwrap();
    }
}

#[tokio::test]
async fn a_kind_that_the_cluster_lacks_is_not_waited_for_and_found_when_it_comes() {
    let (cache, feed) = cache::<Foreign>();
    let (say, said) = mpsc::unbounded_channel();
    let told = RefCell::new(Vec::new());
    let changed = |old: Option<&Foreign>, new: Option<&Foreign>| {
        told.borrow_mut().push((old.is_some(), new.is_some()));
    };
    let events = futures::stream::unfold(said, |mut said: mpsc::UnboundedReceiver<_>| async {
        Some((said.recv().await?, said))
    });
    let foreign = |name: &str| Foreign {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            resource_version: Some("1".to_owned()),
            ..ObjectMeta::default()
        },
    };
    let found = [
        Ok(watcher::Event::Init),
        Ok(watcher::Event::InitApply(foreign("a").into())),
        Ok(watcher::Event::InitDone),
    ];
    let script = async {
        let filled = cache.filled();
        say_all(&say, failed_list(403));
        tokio::task::yield_now().await;
        assert!(!*filled.borrow(), "that it may not be listed says nothing of it");
        for _ in 0..2 {
            say_all(&say, failed_list(404));
        }
        until_filled(filled).await.unwrap();
        assert_eq!(cache.all_names(), []);
        say_all(&say, found);
        // It was asked for all there is before: so this is asked for now. And it stays when the kind is missed for a while.
        say_all(&say, failed_list(404));
        drop(say);
    };
    futures::join!(feed.run(events, changed), script);
    assert_eq!(told.take(), [(false, true), (false, false)]);
    assert_eq!(cache.all_names().len(), 1);
}

#[tokio::test]
async fn a_kind_that_must_be_there_is_waited_for() {
    let (cache, feed) = cache::<ConfigMap>();
    let status = kube::core::Status::failure("404 page not found", "").with_code(404);
    let error = watcher::Error::InitialListFailed(kube::Error::Api(status.boxed()));
    feed.run(futures::stream::iter([Err(error)]), |_, _| {}).await;
    assert!(!*cache.filled().borrow());
    assert!(until_filled(cache.filled()).await.is_err(), "the watch has ended");
}

#[test]
fn an_object_that_does_not_parse_any_more_stays_as_it_was() {
    let (cache, mut feed) = cache::<ConfigMap>();
    let bad = |name: &str| -> Wire<ConfigMap> {
        let text = format!(r#"{{"metadata": {{"namespace": "ns", "name": "{name}"}}, "data": 7}}"#);
        serde_json::from_str(&text).unwrap()
    };
    fill(&mut feed, [map("a", "1", "x")]);
    let changed = |_: Option<&ConfigMap>, _: Option<&ConfigMap>| panic!("nothing is known to have changed");
    for event in [
        watcher::Event::Apply(bad("a")),
        watcher::Event::Init,
        watcher::Event::InitApply(bad("a")),
        watcher::Event::InitApply(bad("b")),
        watcher::Event::InitDone,
    ] {
        feed.apply(event, &changed);
    }
    assert_eq!(names(&cache, "x"), ["a"]);
    feed.apply(watcher::Event::Delete(bad("a")), &|_, _| {});
    assert_eq!(cache.all(), []);
}

/// A leader that has just begun has never seen how it was.
#[test]
fn the_address_of_an_object_that_does_not_parse_is_known_for_as_long_as_it_is_there() {
    const MAC: &str = "52:54:00:00:00:0a";
    let (cache, mut feed) = cache::<ConfigMap>();
    let with = |mac: &str| -> Wire<ConfigMap> {
        let text = format!(
            r#"{{"metadata": {{"namespace": "ns", "name": "a"}}, "data": 7, "spec": {{"mac": "{mac}"}}}}"#
        );
        serde_json::from_str(&text).unwrap()
    };
    let bad = || with(MAC);
    let mut seen = |events: Vec<watcher::Event<Wire<ConfigMap>>>| {
        for event in events {
            feed.apply(event, &|_, _| {});
        }
        let own = Name::new("ns", "a");
        let mac = Key::Mac(MAC.into());
        assert!(!cache.unread_has(&mac, Some(&own)), "it keeps it from itself");
        cache.unread_has(&mac, Some(&Name::new("other", "a")))
    };
    let list = |object: Option<Wire<ConfigMap>>| {
        let listed = object.map(watcher::Event::InitApply);
        [watcher::Event::Init]
            .into_iter()
            .chain(listed)
            .chain([watcher::Event::InitDone])
            .collect()
    };
    assert!(seen(list(Some(bad()))));
    assert!(seen(list(Some(bad()))), "listed once more");
    assert!(!seen(list(None)), "gone while nobody watched");
    assert!(seen(vec![watcher::Event::Apply(bad())]));
    assert!(
        !seen(vec![watcher::Event::Apply(map("a", "2", "x").into())]),
        "it parses again"
    );
    for other in ["52:54:00:00:00:0b", "none"] {
        assert!(seen(vec![watcher::Event::Apply(bad())]));
        assert!(
            !seen(vec![watcher::Event::Apply(with(other))]),
            "now it has {other}"
        );
    }
    assert!(seen(vec![watcher::Event::Apply(bad())]));
    assert!(!seen(vec![watcher::Event::Delete(bad())]));
}
