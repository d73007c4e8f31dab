use proptest::prelude::*;

use super::*;

const HEAD: &str = r#"<domain type="kvm" xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0">
	<name>default_web</name>
	<os>
		<type arch="x86_64" machine="q35">hvm</type>
	</os>
	<metadata><kubevirt xmlns="http://kubevirt.io"><uid>é &lt;devices&gt;</uid></kubevirt></metadata>
	<devices>"#;
const TAIL: &str = r"
	</devices>
	<features>
		<acpi></acpi>
	</features>
</domain>";
/// As KubeVirt renders what a tap binding asks for.
const FAST: &str = r#"
		<interface type="ethernet">
			<source></source>
			<target dev="pod115dc3606fb" managed="no"></target>
			<model type="virtio-non-transitional"></model>
			<alias name="ua-fast"></alias>
		</interface>"#;
/// What holds the place of NICs to come, for the addresses of ports.
const PLACEHOLDER: &str = r#"
		<interface type="ethernet">
			<source></source>
			<target dev="placeholder-0" managed="no"></target>
			<model type="virtio-non-transitional"></model>
			<alias name="ua-placeholder-0"></alias>
		</interface>"#;
const WORDS: &str = "<qemu:arg value='-chardev'/>\
	<qemu:arg value='socket,id=hybridnic-qmp,path=/var/run/kubevirt-private/hybridnic-qmp.sock,server=on,wait=off'/>\
	<qemu:arg value='-mon'/><qemu:arg value='chardev=hybridnic-qmp,mode=control'/>\
	<qemu:arg value='-device'/>\
	<qemu:arg value='pcie-root-port,id=hybridnic-fast,bus=pcie.0,addr=0x1e.0x0,multifunction=on,chassis=200,slot=200'/>";
const SECOND: &str = "<qemu:arg value='-device'/>\
	<qemu:arg value='pcie-root-port,id=hybridnic-slow,bus=pcie.0,addr=0x1e.0x1,chassis=201,slot=201'/>";
const TEAMING: &str = "<teaming type='persistent'/>";

fn nic(name: &str) -> Nic {
    Nic {
        name: name.into(),
        model: None,
    }
}

fn domain(devices: &str) -> String {
    format!("{HEAD}{devices}{TAIL}")
}

fn with_words(words: &str) -> String {
    TAIL.replace(
        "</domain>",
        &format!("<qemu:commandline xmlns:qemu='{QEMU}'>{words}</qemu:commandline></domain>"),
    )
}

#[test]
fn a_nic_gets_its_teaming_the_monitor_and_its_port() {
    let paired = FAST.replace("</interface>", &format!("{TEAMING}</interface>"));
    let edited = edit(&domain(FAST), &[nic("fast")]).unwrap();
    assert_eq!(edited, format!("{HEAD}{paired}{}", with_words(WORDS)));
    assert_eq!(
        edit(&edited, &[nic("fast")]).unwrap(),
        edited,
        "asked again, nothing is added"
    );
}

#[test]
fn each_nic_has_its_port_also_before_its_interface_is_there() {
    let nics = [nic("fast"), nic("slow")];
    let edited = edit(&domain(PLACEHOLDER), &nics).unwrap();
    let words = format!("{WORDS}{SECOND}");
    assert_eq!(edited, format!("{HEAD}{PLACEHOLDER}{}", with_words(&words)));
    // The second time KubeVirt asks without what was added, and with the NICs.
    let slow = FAST.replace("ua-fast", "ua-slow");
    let edited = edit(&domain(&format!("{slow}{FAST}")), &nics).unwrap();
    assert_eq!(edited.matches(TEAMING).count(), 2);
    assert!(
        edited.contains(&words),
        "ports are in the order of the VM's spec: {edited}"
    );
}

#[test]
fn other_nics_and_vms_without_ours_stay_as_they_are() {
    let other = FAST
        .replace("ua-fast", "ua-default")
        .replace("virtio-non-transitional", "e1000e");
    let edited = edit(&domain(&format!("{other}{FAST}")), &[nic("fast")]).unwrap();
    assert!(edited.contains(&other));
    assert_eq!(edit(&domain(&other), &[]).unwrap(), domain(&other));
}

#[test]
fn words_of_another_sidecar_stay_and_ours_come_after_them() {
    for (before, after) in [
        (
            "<qemu:commandline><qemu:arg value='-a'/></qemu:commandline>",
            "<qemu:commandline><qemu:arg value='-a'/>…</qemu:commandline>",
        ),
        ("<qemu:commandline/>", "<qemu:commandline>…</qemu:commandline>"),
        (
            "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0' ></q:commandline >",
            "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0' >…</q:commandline >",
        ),
        (
            "<commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0' />",
            "<commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0' >…</commandline>",
        ),
    ] {
        let place = |element: &str| TAIL.replace("</domain>", &format!("{element}</domain>"));
        let prefix = match before.split_once("commandline") {
            Some((start, _)) => &start[1..],
            None => unreachable!(),
        };
        let words = WORDS.replace("<qemu:", &format!("<{prefix}"));
        let paired = FAST.replace("</interface>", &format!("{TEAMING}</interface>"));
        let edited = edit(&format!("{HEAD}{FAST}{}", place(before)), &[nic("fast")]).unwrap();
        assert_eq!(
            edited,
            format!("{HEAD}{paired}{}", place(&after.replace('…', &words)))
        );
        assert_eq!(edit(&edited, &[nic("fast")]).unwrap(), edited);
    }
}

#[test]
fn what_is_half_there_is_completed() {
    let paired = FAST.replace("</interface>", &format!("{TEAMING}</interface>"));
    let (monitor, port) = WORDS.split_at(WORDS.find("<qemu:arg value='-device'").unwrap());
    let edited = edit(&format!("{HEAD}{paired}{}", with_words(port)), &[nic("fast")]).unwrap();
    assert_eq!(
        edited,
        format!("{HEAD}{paired}{}", with_words(&format!("{port}{monitor}")))
    );
}

#[test]
fn refusals_say_what_is_wrong() {
    use Refusal::*;
    let fast = || vec![nic("fast")];
    let name = || "fast".to_owned();
    let with = |from: &str, to: &str| domain(FAST).replace(from, to);
    let address = |slot: &str| {
        domain(&format!(
            "{FAST}<controller type='pci' model='x'><address type='pci' domain='0x0000' bus='0x00' slot='{slot}' function='0x0'/></controller>"
        ))
    };
    let model = |model: &str| Model {
        nic: name(),
        model: model.into(),
    };
    let nine: Vec<_> = (0..9).map(|n| nic(&format!("n{n}"))).collect();
    let e1000e = vec![Nic {
        name: name(),
        model: Some("e1000e".into()),
    }];
    for (domain, nics, expected) in [
        (with("<acpi></acpi>", ""), fast(), NoAcpi),
        (
            with("q35", "s390-ccw-virtio"),
            fast(),
            Machine("s390-ccw-virtio".into()),
        ),
        (with(r#" machine="q35""#, ""), fast(), Machine("unknown".into())),
        (domain(""), nine, TooMany(9)),
        (domain(""), vec![nic("a,b")], Name("a,b".into())),
        (domain(""), vec![nic("")], Name(String::new())),
        (domain(""), vec![nic("a"), nic("a")], SameName("a".into())),
        (domain(&format!("{FAST}{FAST}")), fast(), SameName(name())),
        (domain(""), e1000e, model("e1000e")),
        (with("virtio-non-transitional", "e1000e"), fast(), model("e1000e")),
        (
            with(r#"<model type="virtio-non-transitional"></model>"#, ""),
            fast(),
            model("none"),
        ),
        (
            with(r#"type="ethernet""#, r#"type="bridge""#),
            fast(),
            Attachment {
                nic: name(),
                found: "bridge".into(),
            },
        ),
        (
            with(
                "</interface>",
                "<teaming type='transient' persistent='ua-x'/></interface>",
            ),
            fast(),
            Paired(name()),
        ),
        (address("0x1e"), fast(), SlotTaken),
        (address("30"), fast(), SlotTaken),
        (
            domain("<controller type='pci' model='dmi-to-pci-bridge'/>"),
            fast(),
            SlotTaken,
        ),
        (
            format!("{HEAD}{FAST}{}", with_words(&WORDS.replace("slot=200", "slot=7"))),
            fast(),
            OtherWords("hybridnic-fast".into()),
        ),
        (
            "<interface/>".into(),
            fast(),
            Unreadable("it has no <domain>".into()),
        ),
    ] {
        assert_eq!(edit(&domain, &nics), Err(expected.clone()), "{domain}");
    }
    for unreadable in [
        "",
        "<domain>",
        "<domain><a:b/></domain>",
        "<!DOCTYPE a [<!ENTITY b 'c'>]><domain>&b;</domain>",
    ] {
        assert!(
            matches!(edit(unreadable, &fast()), Err(Unreadable(_))),
            "{unreadable}"
        );
    }
}

#[test]
fn other_slots_and_a_host_devices_own_address_are_no_hindrance() {
    let at = |bus: &str, slot: &str| {
        format!("<controller type='pci'><address type='pci' bus='{bus}' slot='{slot}'/></controller>")
    };
    let there = "<hostdev><source><address type='pci' bus='0x00' slot='0x1e'/></source></hostdev>";
    let devices = [at("0x00", "0x1d"), at("0x01", "0x1e"), at("x", "y"), there.into()].concat();
    edit(&domain(&devices), &[nic("fast")]).unwrap();
}

/// Pieces of a domain, some out of place.
fn piece() -> impl Strategy<Value = String> {
    const KNOWN: &[&str] = &[
        FAST,
        PLACEHOLDER,
        TEAMING,
        HEAD,
        TAIL,
        WORDS,
        "<interface type='ethernet'><alias name='ua-fast'/><model type='virtio'/></interface>",
        "<interface type='ethernet' ><model type='virtio'/><alias name='ua-slow'/><!-- </interface> --></interface >",
        "<qemu:commandline/>",
        "<qemu:commandline>",
        "</qemu:commandline>",
        "<![CDATA[</domain>]]>",
        "<x y='/>'/>",
        "<devices/>",
        "</devices><devices>",
        "é",
    ];
    prop_oneof![
        8 => proptest::sample::select(KNOWN).prop_map(Into::into),
        1 => "[ -~é\u{1f600}]{0,12}",
    ]
}

proptest! {
    #[test]
    fn whatever_is_asked_is_answered_and_an_answer_may_be_asked_again(
        pieces in proptest::collection::vec(piece(), 0..6),
        whole in any::<bool>(),
        names in proptest::collection::vec("fast|slow|a|[ -~]{0,3}", 0..4),
    ) {
        let source = if whole { domain(&pieces.concat()) } else { pieces.concat() };
        let nics: Vec<_> = names.iter().map(|name| nic(name)).collect();
        if let Ok(edited) = edit(&source, &nics) {
            prop_assert_eq!(edit(&edited, &nics), Ok(edited.clone()));
            // Nothing of it is lost, and its order is the same.
            let mut rest = edited.chars();
            let kept = source.replace("/>", ">");
            prop_assert!(kept.chars().all(|c| rest.any(|other| other == c)));
            let teamed = edited.matches("<teaming").count();
            prop_assert!(teamed <= nics.len() + source.matches("<teaming").count());
        }
    }

    #[test]
    fn any_text_is_answered(source in any::<String>(), name in any::<String>()) {
        let _ = edit(&source, &[nic(&name)]);
    }
}
