//! What an API server refuses, for a program that reads objects without one: unknown fields, lengths, and the rules in CEL.
//!
//! Lengths and messages are those of the schema. Each rule is written here once more, in Rust, found by its text in CEL; a test fails
//! if one of the schema's is missing here.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use serde_json::Value;

use crate::limits;

/// The checks of one kind's spec.
#[derive(Clone, Debug)]
pub struct Checks(JSONSchemaProps);

impl Checks {
    /// The checks of the kind with this definition.
    pub fn of(crd: CustomResourceDefinition) -> Self {
        let version = crd.spec.versions.into_iter().next();
        let schema = version.and_then(|version| version.schema?.open_api_v3_schema);
        let spec = schema.and_then(|schema| schema.properties?.remove("spec"));
        Self(spec.unwrap_or_default())
    }

    /// The same without the checks of one field, which the caller reads in another way.
    #[must_use]
    pub fn without(mut self, field: &str) -> Self {
        if let Some(properties) = &mut self.0.properties {
            properties.remove(field);
        }
        if let Some(required) = &mut self.0.required {
            required.retain(|name| name != field);
        }
        self
    }

    /// Unknown fields of a spec as it was written. A misspelt field would count as left out.
    pub fn unknown(&self, written: &Value) -> Vec<String> {
        let mut found = Vec::new();
        unknown(&self.0, written, "spec", &mut found);
        found
    }

    /// What is wrong with a spec that has all its defaults; and with its change, where there was one before.
    pub fn broken(&self, spec: &Value, before: Option<&Value>) -> Vec<String> {
        let mut found = Vec::new();
        broken(&self.0, spec, before, "spec", &mut found);
        let long = limits::exceeded(&self.0, spec);
        found.extend(long.into_iter().map(|what| format!("spec{what} are too many")));
        found
    }
}

fn unknown(schema: &JSONSchemaProps, value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let at = format!("{at}.{name}");
                match field(schema, name) {
                    Some(schema) => unknown(schema, value, &at, found),
                    None => found.push(format!("{at} is not known")),
                }
            }
        }
        Value::Array(values) => {
            if let Some(schema) = items(schema) {
                for (n, value) in values.iter().enumerate() {
                    unknown(schema, value, &format!("{at}[{n}]"), found);
                }
            }
        }
        _ => {}
    }
}

fn broken(
    schema: &JSONSchemaProps,
    value: &Value,
    before: Option<&Value>,
    at: &str,
    found: &mut Vec<String>,
) {
    if value.is_null() {
        return;
    }
    for rule in schema.x_kubernetes_validations.iter().flatten() {
        if holds(&rule.rule, value, before) == Some(false) {
            let message = rule.message.as_deref().unwrap_or(&rule.rule);
            found.push(format!("{at}: {message}"));
        }
    }
    let is_less = |length: usize, min: Option<i64>| {
        min.is_some_and(|min| i64::try_from(length).is_ok_and(|length| length < min))
    };
    match value {
        Value::String(text) if is_less(text.chars().count(), schema.min_length) => {
            found.push(format!("{at} is too short"));
        }
        Value::Array(values) => {
            if is_less(values.len(), schema.min_items) {
                found.push(format!("{at} has too few entries"));
            }
            if let Some(schema) = items(schema) {
                for (n, value) in values.iter().enumerate() {
                    // As an API server does, because it does not know which entry it was before.
                    broken(schema, value, None, &format!("{at}[{n}]"), found);
                }
            }
        }
        Value::Object(fields) => {
            for (name, value) in fields {
                if let Some(schema) = field(schema, name) {
                    let before = before.and_then(|before| before.get(name));
                    broken(schema, value, before, &format!("{at}.{name}"), found);
                }
            }
        }
        _ => {}
    }
}

fn field<'a>(schema: &'a JSONSchemaProps, name: &str) -> Option<&'a JSONSchemaProps> {
    let any = match &schema.additional_properties {
        Some(JSONSchemaPropsOrBool::Schema(any)) => Some(any.as_ref()),
        _ => None,
    };
    let property = schema.properties.as_ref().and_then(|all| all.get(name));
    property.or(any)
}

fn items(schema: &JSONSchemaProps) -> Option<&JSONSchemaProps> {
    match &schema.items {
        Some(JSONSchemaPropsOrArray::Schema(item)) => Some(item.as_ref()),
        _ => None,
    }
}

/// Whether a rule holds; `None` for one that is not known here. A rule about a change holds where nothing was before.
fn holds(rule: &str, this: &Value, before: Option<&Value>) -> Option<bool> {
    let text = this.as_str().unwrap_or_default();
    let has = |field: &str| this.get(field).is_some_and(|value| !value.is_null());
    let number = |field: &str| this.get(field).and_then(Value::as_i64);
    let entries = |is: fn(&str) -> bool| {
        let mut values = this.as_array().into_iter().flatten();
        values.all(|value| value.as_str().is_some_and(is))
    };
    if let Some((least, most)) = range(rule) {
        return Some(this.as_i64().is_some_and(|n| (least..=most).contains(&n)));
    }
    if rule == "self == oldSelf" {
        return Some(before.is_none_or(|before| before == this));
    }
    if let Some(field) = ["mac", "vlan", "mtu", "portProfile", "portInstanceId"].into_iter().find(|field| {
        rule == format!(
            "has(oldSelf.{field}) == has(self.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})"
        )
    }) {
        return Some(before.is_none_or(|before| before.get(field) == this.get(field)));
    }
    Some(match rule {
        "!has(self.vlan) || !has(self.vlan.qos) || self.vlan.qos == 0 || self.vlan.id > 0" => {
            let of = |field: &str| this.get("vlan").and_then(|vlan| vlan.get(field)?.as_i64());
            of("qos").unwrap_or(0) == 0 || of("id").is_some_and(|id| id > 0)
        }
        "!has(self.portProfile) || !has(self.vlan) || self.vlan.id == 0" => {
            let id = this.get("vlan").and_then(|vlan| vlan.get("id")?.as_i64());
            !has("portProfile") || id.unwrap_or(0) == 0
        }
        "!has(self.keepVf) || !self.keepVf || self.path == 'Standby'" => {
            this.get("keepVf") != Some(&Value::Bool(true))
                || this.get("path").is_some_and(|path| path == "Standby")
        }
        "!has(self.vm.kubevirt) || !has(self.pairing) || self.pairing != 'Bond'" => {
            let theirs = this.get("vm").and_then(|vm| vm.get("kubevirt"));
            theirs.is_none_or(Value::is_null) || this.get("pairing").is_none_or(|pairing| pairing != "Bond")
        }
        "!has(self.vm.kubevirt) || !has(self.standby) || self.standby != 'None'" => {
            let theirs = this.get("vm").and_then(|vm| vm.get("kubevirt"));
            theirs.is_none_or(Value::is_null) || this.get("standby").is_none_or(|standby| standby != "None")
        }
        "!has(self.standby) || self.standby != 'None' || !has(self.pairing) || self.pairing != 'Bond'" => {
            let is = |field: &str, word: &str| this.get(field).is_some_and(|value| value == word);
            !is("standby", "None") || !is("pairing", "Bond")
        }
        "!has(self.minMbps) || !has(self.maxMbps) || self.minMbps <= self.maxMbps" => {
            let both = number("minMbps").zip(number("maxMbps"));
            both.is_none_or(|(min, max)| min <= max)
        }
        "has(self.pfNames) || has(self.pciAddresses) || has(self.vendor) || has(self.device) || has(self.drivers)" => {
            ["pfNames", "pciAddresses", "vendor", "device", "drivers"]
                .into_iter()
                .any(has)
        }
        "!has(self.device) || has(self.vendor)" => !has("device") || has("vendor"),
        "self.from.lowerAscii() <= self.to.lowerAscii()" => {
            let of = |field: &str| this.get(field)?.as_str().map(str::to_ascii_lowercase);
            of("from") <= of("to")
        }
        "self.matches('^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$')" => is_mac(text),
        "self.size() < 2 || self.substring(1, 2).matches('[02468aceACE]')" => {
            text.len() < 2 || text.chars().nth(1).is_some_and(is_even)
        }
        "self != '00:00:00:00:00:00'" => text != ZEROS,
        "!self.startsWith('06:')" => !text.starts_with("06:"),
        "self.matches('^[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}$') && self != '00:00:00:00:00:00'" => {
            is_mac(text) && text.chars().nth(1).is_some_and(is_even) && text != ZEROS
        }
        "!self.lowerAscii().matches('^00:(00:5e:00:0[12]|00:0c:07:ac|00:0c:9f:f.|05:73:a0:0.|07:b4:00:..):')" => {
            !is_routers(&text.to_ascii_lowercase())
        }
        "self.all(n, n.matches('^[A-Za-z0-9_.*?@-]+$'))" => entries(|n| is_of(n, "_.*?@-")),
        "self.all(d, d.matches('^[A-Za-z0-9_-]+$'))" => entries(|d| is_of(d, "_-")),
        "self.all(a, a.matches('^[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f][.][0-7]$'))" => entries(is_pci),
        "self.matches('^[!-~]+$')" => !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()),
        "self.matches('^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$')" => is_uuid(text),
        "self.matches('^[0-9a-f]{4}$')" => text.len() == 4 && text.bytes().all(is_lower_hex),
        "self.all(r, r.matches('^[0-9]{1,3}(-[0-9]{1,3})?$') && (!r.contains('-') || int(r.split('-')[0]) <= \
         int(r.split('-')[1])))" => entries(is_vfs),
        _ => return None,
    })
}

const ZEROS: &str = "00:00:00:00:00:00";

/// `self >= 1 && self <= 255`.
fn range(rule: &str) -> Option<(i64, i64)> {
    let (least, most) = rule.strip_prefix("self >= ")?.split_once(" && self <= ")?;
    Some((least.parse().ok()?, most.parse().ok()?))
}

fn is_mac(text: &str) -> bool {
    let is_pair = |pair: &str| pair.len() == 2 && pair.bytes().all(|byte| byte.is_ascii_hexdigit());
    text.split(':').count() == 6 && text.split(':').all(is_pair)
}

fn is_uuid(text: &str) -> bool {
    let parts = text
        .split('-')
        .map(|part| (part.len(), part.bytes().all(|byte| byte.is_ascii_hexdigit())));
    parts.eq([8, 4, 4, 4, 12].map(|length| (length, true)))
}

fn is_even(digit: char) -> bool {
    digit.to_digit(16).is_some_and(|digit| digit % 2 == 0)
}

/// VRRP, CARP, HSRP and GLBP.
fn is_routers(mac: &str) -> bool {
    ["01", "02"]
        .iter()
        .any(|last| mac.starts_with(&format!("00:00:5e:00:{last}:")))
        || [
            "00:00:0c:07:ac:",
            "00:00:0c:9f:f",
            "00:05:73:a0:0",
            "00:07:b4:00:",
        ]
        .iter()
        .any(|first| mac.starts_with(first))
}

fn is_of(text: &str, besides: &str) -> bool {
    !text.is_empty()
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || besides.contains(c))
}

fn is_lower_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

fn is_pci(text: &str) -> bool {
    let hex = |at: std::ops::Range<usize>| {
        let part = text.as_bytes().get(at);
        part.is_some_and(|part| part.iter().copied().all(is_lower_hex))
    };
    let is = |at: usize, among: &[u8]| text.as_bytes().get(at).is_some_and(|byte| among.contains(byte));
    text.len() == 12
        && hex(0..4)
        && is(4, b":")
        && hex(5..7)
        && is(7, b":")
        && is(8, b"01")
        && hex(9..10)
        && is(10, b".")
        && is(11, b"01234567")
}

fn is_vfs(text: &str) -> bool {
    let number = |text: &str| {
        let is = (1..=3).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        is.then(|| text.parse::<u16>().ok()).flatten()
    };
    match text.split_once('-') {
        None => number(text).is_some(),
        Some((from, to)) => number(from).zip(number(to)).is_some_and(|(from, to)| from <= to),
    }
}

#[cfg(test)]
#[path = "checks_tests.rs"]
mod tests;
